"""A picture's metadata never stops a run: what cannot be read is set aside, the pixels are kept as they lie, and it is counted."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.staging.conftest import photo_folder, picture
from tests.staging.test_triplets import nights_folder
from trainer.staging.images import BadImageError, normalise, squash
from trainer.staging.metadata import without_metadata
from trainer.storage.manifest import Manifest

ORIENTATION, RESOLUTION, UNIT = 0x0112, 0x011A, 0x0128
SHORT, TEXT, RATIONAL, SIGNED, FLOAT, UNDEFINED = 3, 2, 5, 10, 11, 7


def tiff(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of entries (tag, type, count, value) as they may be there, valid or not."""
    values, table = b"", struct.pack("<H", len(entries))
    for tag, kind, count, value in sorted(entries):
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 14 + 12 * len(entries) + len(values))
        values += value if len(value) > 4 else b""
        table += struct.pack("<HHI", tag, kind, count) + place
    return b"II*\0\x08\0\0\0" + table + bytes(4) + values


TURNED = (ORIENTATION, SHORT, 1, struct.pack("<H", 6))
EXIF = {
    "a negative resolution": tiff((RESOLUTION, SIGNED, 1, struct.pack("<ii", -72, 1)), (UNIT, SHORT, 1, b"\2\0")),
    "a resolution of text": tiff((RESOLUTION, TEXT, 6, b"hello\0")),
    "an orientation of text": tiff((ORIENTATION, TEXT, 4, b"abc\0")),
    "a rational orientation": tiff((ORIENTATION, RATIONAL, 1, struct.pack("<II", 6, 1))),
    "a rational over 0": tiff((ORIENTATION, RATIONAL, 1, struct.pack("<II", 6, 0))),
    "an orientation that is NaN": tiff((ORIENTATION, FLOAT, 1, struct.pack("<f", float("nan")))),
    "an orientation of bytes": tiff((ORIENTATION, UNDEFINED, 1, b"\6")),
    "an unknown orientation": tiff((ORIENTATION, SHORT, 1, struct.pack("<H", 77))),
    "garbage": b"\xff\xfe garbage" * 5,
    "text": b"hello",
}


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    data = picture(1, (40, 30))
    return data[:33] + b"".join(chunk(*one) for one in chunks) + data[33:]


def jpeg(marker: int, body: bytes) -> bytes:
    data = picture(1, (40, 30), "JPEG")
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def webp(**options: bytes) -> bytes:
    return picture(1, (40, 30), "WEBP", lossless=True, **options)


def raw_profile(exif: bytes) -> bytes:
    """EXIF as ImageMagick writes it into a PNG."""
    body = b"Exif\0\0" + exif
    return png((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n    %d\n" % len(body) + body.hex().encode())))


WRITERS: dict[str, Callable[[bytes], bytes]] = {
    "PNG": lambda exif: png((b"eXIf", exif)),
    "PNG raw profile": raw_profile,
    "JPEG": lambda exif: jpeg(0xE1, b"Exif\0\0" + exif),
    "WebP": lambda exif: webp(exif=exif),
}
OTHERS = {
    "a raw profile that is no number": (png((b"tEXt", b"Raw profile type exif\0\nexif\nx\nabc")), "unreadable EXIF"),
    "XMP of a PNG": (png((b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>\xff')), "unreadable XMP"),
    "XMP of a JPEG": (jpeg(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>\xff'), "unreadable XMP"),
    "XMP of a WebP": (webp(xmp=b'<x tiff:Orientation="6"/>\xff'), "unreadable XMP"),
    "a short pHYs": (png((b"pHYs", b"\0\0")), "unreadable metadata"),
    "a short sRGB": (png((b"sRGB", b"")), "unreadable metadata"),
    "a short acTL": (png((b"acTL", b"\0")), "unreadable metadata"),
    "an unknown compression of a profile": (png((b"iCCP", b"k\0\7x")), "unreadable metadata"),
    "a wrong checksum of a text": (png((b"tEXt", b"a\0b")).replace(b"tEXta\0b", b"tEXta\0c"), "unreadable metadata"),
    "a short JFIF": (jpeg(0xE0, b"JFIF\0"), "unreadable metadata"),
    "a short profile": (jpeg(0xE2, b"ICC_PROFILE\0"), "unreadable metadata"),
    "a short Adobe segment": (jpeg(0xEE, b"Adobe"), "unreadable metadata"),
}


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("exif", EXIF.values(), ids=EXIF)
def test_broken_exif_leaves_the_pixels_as_they_lie(kind: str, exif: bytes) -> None:
    plain = {"JPEG": picture(1, (40, 30), "JPEG"), "WebP": webp()}.get(kind, picture(1, (40, 30)))
    staged = normalise(WRITERS[kind](exif), "original")
    assert staged.note == "unreadable EXIF"
    assert (decoded(staged.data) == decoded(plain)).all()
    (squashed, note), (expected, _) = squash(WRITERS[kind](exif), 16), squash(plain, 16)
    assert note == "unreadable EXIF"
    assert (squashed == expected).all()


@pytest.mark.parametrize("kind", WRITERS)
def test_whole_exif_turns_the_picture_and_is_no_note(kind: str) -> None:
    staged = normalise(WRITERS[kind](tiff(TURNED, (RESOLUTION, RATIONAL, 1, struct.pack("<II", 72, 1)))), "original")
    assert (staged.note, staged.width, staged.height) == ("", 30, 40)


@pytest.mark.parametrize(("data", "note"), OTHERS.values(), ids=OTHERS)
def test_other_broken_metadata_is_set_aside(data: bytes, note: str) -> None:
    """What keeps a picture from being opened is left out, of the bytes that are kept too: training opens them again."""
    for policy in ("original", "short256"):
        staged = normalise(data, policy)
        assert (staged.note, staged.width, staged.height) == (note, 40, 30)
        Image.open(io.BytesIO(staged.data)).load()


def test_notes_of_triplets_are_counted(tmp_path: Path, stage_three: Callable[..., tuple[str, Manifest]]) -> None:
    """Once a triplet, by the first picture that has one."""
    folder = nights_folder(tmp_path / "nights", [(0, 1, 8)] * 6)
    (folder / "ref/000/001.png").write_bytes(raw_profile(EXIF["garbage"]))
    (folder / "distort/000/001_1.png").write_bytes(OTHERS["a short sRGB"][0])
    (folder / "distort/000/002_0.png").write_bytes(OTHERS["a short sRGB"][0])
    rows = stage_three(folder)[1].rows
    assert rows == {"read": 6, "written": 6, "lost": {}, "notes": {"unreadable EXIF": 1, "unreadable metadata": 1}}


def test_damage_of_the_pixels_stays_a_reject() -> None:
    """With the words for it, also where metadata could be left out."""
    for data, cause in ((png((b"tEXt", b"a\0b"))[:-60], "truncated image"), (jpeg(0xFE, b"comment")[:-200], "truncated image")):
        with pytest.raises(BadImageError, match=cause):
            normalise(data, "original")


def test_without_metadata_keeps_every_pixel() -> None:
    """Of CMYK (whose Adobe segment says how), of a palette with transparency, of alpha; what has none is left alone."""
    comment = b"\xff\xfe\0\5abc"
    cmyk = picture(1, (40, 30), "JPEG", "CMYK")
    bare = without_metadata(cmyk[:2] + comment + cmyk[2:])
    assert bare is not None
    assert comment not in bare
    assert (np.asarray(Image.open(io.BytesIO(bare))) == np.asarray(Image.open(io.BytesIO(cmyk)))).all()
    alpha = picture(1, (40, 30), "WEBP", "RGBA", lossless=True)
    bare = without_metadata(picture(1, (40, 30), "WEBP", "RGBA", lossless=True, xmp=b"x"))
    assert bare is not None
    assert (np.asarray(Image.open(io.BytesIO(bare))) == np.asarray(Image.open(io.BytesIO(alpha)))).all()
    assert without_metadata(picture(1)) is None
    assert without_metadata(b"BM") is None


def test_notes_are_counted_in_record_and_manifest(tmp_path: Path, stage: Callable[..., tuple[str, Manifest]]) -> None:
    """They change nothing of a data set that has none: its records stay of the version before."""
    uri, manifest = stage(photo_folder(tmp_path / "plain", 6))
    assert "notes" not in manifest.rows
    assert {json.loads(path.read_bytes())["format_version"] for path in Path(uri, "slices").iterdir()} == {2}
    folder = photo_folder(tmp_path / "photos", 6)
    for number, kind in enumerate(WRITERS):
        (folder / f"p{number:03d}.png").write_bytes(WRITERS[kind](EXIF["garbage"]))
    (folder / "p004.png").write_bytes(OTHERS["a short sRGB"][0])
    uri, manifest = stage(folder)
    assert manifest.rows == {"read": 6, "written": 6, "lost": {}, "notes": {"unreadable EXIF": 4, "unreadable metadata": 1}}
    assert 3 in {json.loads(path.read_bytes())["format_version"] for path in Path(uri, "slices").iterdir()}
    Path(uri, "manifest.json").unlink()
    assert stage(folder)[1].identity == manifest.identity
