import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.staging.conftest import picture
from trainer.staging import images
from trainer.staging.images import BadImageError, _resize, encode_png, is_plain_png, normalise, squash
from trainer.staging.kinds import UNREAD_CAUSE
from trainer.staging.samples import PairMaker


def pixels(data: bytes) -> np.ndarray:
    """Decode what was staged, and check that it is plain."""
    image = Image.open(io.BytesIO(data))
    assert image.mode == "RGB"
    assert image.getexif().get(0x0112) is None
    return np.asarray(image)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Save to bytes."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """An RGB PNG written by hand: PIL writes none of 16 bits a channel, and none that lies."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_plain_jpeg_keeps_its_bytes() -> None:
    """`original` is what the paper's recipe reads."""
    data = picture(1, kind="JPEG")
    assert normalise(data, "original").data == data


def test_transparency_becomes_white() -> None:
    """Of RGBA, of a palette with a transparent colour, and of gray with alpha."""
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert (pixels(normalise(encoded(clear), "original").data) == 255).all()
    assert (pixels(normalise(encoded(clear.convert("LA")), "original").data) == 255).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, 1, 1, 1])
    assert (pixels(normalise(encoded(palette, transparency=0), "original").data) == 255).all()


def test_half_transparency_is_composited() -> None:
    """Half black on white is gray."""
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert abs(int(pixels(normalise(encoded(half), "original").data)[0, 0, 0]) - 127) <= 1


def test_a_palette_comes_in_as_its_colours() -> None:
    """Not as its indexes."""
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert pixels(normalise(encoded(image), "original").data)[0, 0].tolist() == [200, 100, 50]


def test_cmyk_comes_in_as_rgb() -> None:
    """A CMYK JPEG of pure red stays red."""
    staged = pixels(normalise(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), "original").data)
    red, green, blue = staged.mean(axis=(0, 1))
    assert red > 240
    assert max(green, blue) < 15


def test_exif_rotation_is_applied() -> None:
    """Orientation 6: the stored left edge is the top."""
    image = Image.new("RGB", (32, 16), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 4, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    staged = normalise(encoded(image, "JPEG", exif=exif, quality=95), "original")
    assert (staged.width, staged.height) == (16, 32)
    assert pixels(staged.data)[0].mean() < 40 < 200 < pixels(staged.data)[-1].mean()


def test_sixteen_bit_gray_keeps_its_brightness() -> None:
    """The high byte of each value, in three equal channels."""
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    staged = pixels(normalise(encoded(Image.fromarray(values)), "original").data)
    assert (staged == (values >> 8).astype(np.uint8)[..., None]).all()


def test_sixteen_bit_colour_keeps_its_brightness() -> None:
    """The high byte of each value."""
    row = b"\0" + struct.pack(">HHH", 65535, 32768, 0) * 4
    data = png(4, 4, 16, row * 4)
    assert pixels(normalise(data, "original").data)[0, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize("mode", ["L", "1"])
def test_gray_and_bilevel_become_rgb(mode: str) -> None:
    """Three equal channels."""
    staged = pixels(normalise(encoded(Image.new(mode, (4, 4), 1 if mode == "1" else 77)), "original").data)
    assert set(staged.reshape(-1).tolist()) == {255 if mode == "1" else 77}


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty file"),
        (b"<html><body>404</body></html>", "not an image"),
        (b"hello", "not an image"),
        (picture(1)[:-60], "truncated image"),
        (picture(1, kind="JPEG")[:-200], "truncated image"),
        (picture(1)[:20], "broken image"),
    ],
)
def test_what_is_no_picture_is_refused_by_cause(data: bytes, cause: str) -> None:
    """Whatever its name says."""
    for policy in ("original", "short256"):
        with pytest.raises(BadImageError) as caught:
            normalise(data, policy)
        assert caught.value.cause == cause


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    """A header that declares 20000 x 20000 pixels."""
    data = png(20000, 20000, 8, b"\0" * 1000)
    with pytest.raises(BadImageError, match="20000x20000, at most 100 megapixels"):
        normalise(data, "original")


def test_short256_has_a_short_side_of_256_and_never_enlarges() -> None:
    """500 x 375 becomes 341 x 256; a small picture keeps its size."""
    large = normalise(picture(1, (500, 375), "JPEG"), "short256")
    assert (large.width, large.height, large.suffix) == (341, 256, "jpg")
    assert pixels(large.data).shape == (256, 341, 3)
    assert (normalise(picture(1), "short256").width, normalise(picture(1), "short256").height) == (40, 30)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (1001, 257), (640, 427)])
def test_short256_is_pils_antialiased_bicubic(size: tuple[int, int]) -> None:
    """The picture that is encoded is PIL's, within 2 of 255 on any pixel and .05 in the mean."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    height, width = (round(side * 256 / min(size)) for side in (size[1], size[0]))
    pils = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    apart = np.abs(_resize(pixels, height, width).astype(np.int64) - pils)
    assert apart.max() <= 2
    assert apart.mean() <= 0.05


def test_triplets_are_squashed() -> None:
    """Whatever the aspect, a square comes out."""
    assert squash(picture(1, (90, 30)), 32)[0].shape == (32, 32, 3)


def test_only_a_plain_png_of_the_side_is_kept_as_it_is() -> None:
    """Not one of another side, with alpha, or with anything besides pixels."""
    plain = Image.new("RGB", (32, 32), (1, 2, 3))
    assert is_plain_png(encode_png(plain), 32)
    assert not is_plain_png(encode_png(plain), 48)
    assert not is_plain_png(encoded(plain.convert("RGBA")), 32)
    assert not is_plain_png(encoded(plain, dpi=(72, 72)), 32)
    assert not is_plain_png(encoded(plain, "JPEG"), 32)


@pytest.mark.parametrize("kind", ["JPEG2000", "AVIF", "PPM", "TGA", "PCX", "SGI", "DIB", "TIFF"])
def test_what_pillow_reads_is_read(kind: str) -> None:
    """By data sets of today's rules; those that were begun before go on as they began."""
    data = picture(1, (40, 30), kind)
    staged = normalise(data, "original")
    assert np.abs(pixels(staged.data).astype(int) - pixels(picture(1, (40, 30)))).mean() < 3
    assert (normalise(data, "short256").width, squash(data, 16)[0].shape) == (40, (16, 16, 3))
    if kind not in ("PPM", "TIFF"):
        with pytest.raises(BadImageError, match="not an image"):
            normalise(data, "original", rules=1)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(40), "by its bytes .heic is not read: .* pillow-heif"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "by its bytes .mp4 is not read"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "by its bytes .svg is not read"),
        (b"\xff\x0a" + bytes(40), "by its bytes .jxl is not read"),
        (b"%PDF-1.7" + bytes(40), "by its bytes .pdf is not read"),
        (b"\0\0\1\0\1\0" + bytes(40), "by its bytes .ico is not read"),
        (b"qoif" + bytes(40), "by its bytes .qoi is not read"),
        (b"DDS " + bytes(40), "by its bytes .dds is not read"),
        (b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\4\0\0\0\5\0\x10\0\3" + bytes(200), r"by its bytes this kind of \.psd is not read"),
        (b"8BPS\0\2" + bytes(40), "by its bytes .psb is not read"),
        (b"FUJIFILMCCD-RAW" + bytes(40), "by its bytes .raf is not read"),
        (b"II*\0\x10\0\0\0CR" + bytes(40), "by its bytes .cr2 is not read"),
        (b"P7\nWIDTH 2\n" + bytes(40), "by its bytes .pam is not read"),
    ],
)
def test_a_known_kind_that_is_not_read_is_called_that(data: bytes, detail: str) -> None:
    """Whatever its name: phones call HEIC `.jpg`."""
    with pytest.raises(BadImageError, match=detail) as caught:
        normalise(data, "original")
    assert caught.value.cause == UNREAD_CAUSE


def test_a_pointer_of_git_lfs_is_called_that() -> None:
    """As a clone without git-lfs has them for every picture."""
    with pytest.raises(BadImageError, match="not an image: a pointer of Git LFS: git lfs pull fetches the picture"):
        normalise(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "original")


def test_a_large_picture_is_narrowed_in_strips_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that no JPEG can hold becomes a PNG."""
    data = picture(3, (700, 900))
    whole = normalise(data, "short256").data
    monkeypatch.setattr(images, "_STRIP_PIXELS", 700 * 97)
    assert normalise(data, "short256").data == whole
    long = normalise(picture(1, (66_000, 5)), "original")
    assert (long.suffix, long.width) == ("png", 66_000)


def test_whatever_a_library_raises_is_that_pictures_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what no one has seen it raise."""

    def fail(*args: object, **given: object) -> None:
        raise KeyError("something new")

    for name in ("_convert", "encode_png"):
        with monkeypatch.context() as patched:
            patched.setattr(images, name, fail)
            with pytest.raises(BadImageError, match="broken image: 'something new'"):
                normalise(picture(1), "original")


def test_looks_are_made_where_they_are_wanted_alone() -> None:
    """Whoever fetches compares none, and a look costs a tenth of making a picture."""
    assert not PairMaker("short256").looks
    for kind, policy in (("JPEG", "original"), ("PNG", "original"), ("PNG", "short256")):
        data = picture(1, (300, 200), kind)
        plain, looked = normalise(data, policy), normalise(data, policy, looks=True)
        assert (plain.look, plain.data) == (None, looked.data)
        assert looked.look is not None


def test_a_progressive_jpeg_is_counted_with_its_coefficients() -> None:
    """All of them are in memory until the last scan, which measures 9 bytes a pixel, not 4."""
    for progressive, needed in ((False, 4), (True, 10)):
        with images.decoding(picture(1, (64, 48), "JPEG", progressive=progressive)) as image:
            assert images._InFlight.budget._used.value == needed * image.width * image.height
    with images.decoding(picture(1, (64, 48), "JPEG", mode="L", progressive=True)) as image:
        assert images._InFlight.budget._used.value == 10 * image.width * image.height
