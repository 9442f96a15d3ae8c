"""Files made to hurt: each is refused in one line that names file, bound and what was found, before it takes time or memory."""

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.staging.conftest import picture
from tests.staging.hostile import copies
from tests.staging.hostile.copies import write
from tests.staging.remote.sources import bomb
from trainer.configs import load_recipe
from trainer.errors import InputError
from trainer.staging import images, samples
from trainer.staging.evaluation_sets.copies import Copy, as_kept
from trainer.staging.evaluation_sets.stage import CONVERTERS
from trainer.staging.foreign import parse_xml, read_npy
from trainer.staging.images import BadImageError, normalise
from trainer.staging.rows import Blob, PairRow, Reject
from trainer.staging.samples import PairMaker
from trainer.staging.sources import bapps, folder, nights, records, table, tars
from trainer.staging.sources.listing import list_source
from trainer.staging.tokens import Tokenizer


def png(width: int, height: int, kind: int, channels: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of zeros, whose rows are packed as they are made."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(1 + width * channels)) for _ in range(height)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*extra) for extra in chunks) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def webp_header(kind: bytes, width: int, height: int) -> bytes:
    """The first bytes of a WebP picture that declares a size."""
    if kind == b"VP8X":
        size = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        size = b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little")
    else:
        size = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
    body = b"WEBP" + kind + struct.pack("<I", len(size)) + size + bytes(20)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def encoded_as(kind: str, size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    """A large picture of one colour."""
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind, **options)
    return stream.getvalue()


def jp2_header(width: int, height: int) -> bytes:
    """A small JPEG 2000 file that declares another size."""
    small = encoded_as("JPEG2000", (16, 12))
    return small.replace(struct.pack(">II", 16, 12), struct.pack(">II", width, height)).replace(
        struct.pack(">II", 12, 16), struct.pack(">II", height, width)
    )


def tiff_of_one_tile(side: int) -> bytes:
    """A picture of 16 x 16 in a tile that is much larger, of 1 kB."""
    tile = zlib.compress(bytes(1 << 20))
    tags = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side), (324, 134), (325, len(tile))]
    return (
        b"II*\0"
        + struct.pack("<IH", 8, len(tags))
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        + bytes(4)
        + tile
    )


def jpeg_of_many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = picture(1, (640, 480), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 7000 + data[-2:]


@pytest.mark.parametrize(
    ("make", "cause", "detail"),
    [
        (bomb, "too many pixels", "20000x10000, at most 100 megapixels"),
        (lambda: webp_header(b"VP8X", 16_000, 16_000), "too many pixels", "16000x16000, at most 100 megapixels"),
        (lambda: webp_header(b"VP8L", 16_000, 16_000), "too many pixels", "16000x16000, at most 100 megapixels"),
        (lambda: webp_header(b"VP8 ", 16_000, 16_000), "too many pixels", "16000x16000, at most 100 megapixels"),
        (lambda: png(10_000, 10_000, 6, 4), "unpacks to too much", r"10000x10000 in \d+,\d+ bytes, more than 32 pixels a byte"),
        (lambda: encoded_as("TIFF", (6000, 5000), compression="tiff_deflate"), "unpacks to too much", "6000x5000 in"),
        (lambda: encoded_as("GIF", (6000, 5000), "L"), "unpacks to too much", "6000x5000 in"),
        (lambda: jp2_header(8000, 8000), "too many pixels", "8000x8000, at most 40 megapixels of JPEG2000"),
        (lambda: tiff_of_one_tile(20_000), "unpacks to too much", "16x16 in tiles of 400,000,000 pixels"),
        (jpeg_of_many_scans, "too many scans", "scans of 640x480, at most 2000 megapixels in all"),
        (lambda: png(8, 8, 2, 3, *[(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 17), "broken image", "text"),
        (lambda: png(8, 8, 2, 3, (b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20)))), "broken image", "MAX_TEXT_CHUNK"),
        (lambda: png(8, 8, 2, 3, (b"iCCP", b"k\0\0" + zlib.compress(bytes(100 << 20)))), "broken image", "MAX_TEXT_CHUNK"),
    ],
)
def test_a_picture_that_is_a_bomb_is_a_reject(make: Callable[[], bytes], cause: str, detail: str) -> None:
    data = make()
    for policy in ("original", "short256"):
        with pytest.raises(BadImageError, match=detail) as caught:
            normalise(data, policy)
        assert caught.value.cause == cause


def test_of_several_frames_the_first_counts() -> None:
    """However many there are: GIF, WebP, TIFF and PNG."""
    frames = [Image.new("RGB", (16, 12), (number % 256, 0, 0)) for number in range(300)]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        stream = io.BytesIO()
        frames[9].save(stream, kind, save_all=True, append_images=frames)
        staged = normalise(stream.getvalue(), "original")
        assert (staged.width, staged.height) == (16, 12)
        assert abs(np.asarray(Image.open(io.BytesIO(staged.data)))[0, 0, 0].astype(int) - 9) <= 3


@pytest.mark.filterwarnings("ignore")
def test_a_picture_with_broken_exif_is_read_as_it_lies() -> None:
    """It is what every other reader does; a plain JPEG keeps its bytes."""
    exif = b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(20)
    data = picture(1, (40, 30), "JPEG", exif=exif)
    assert normalise(data, "original").data == data


def test_pixels_in_flight_are_bounded_over_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads decode no more at one time than the budget; a picture that is larger than it is decoded alone."""
    budget = images.Budget(3 * 4 * 40 * 30)
    monkeypatch.setattr(images._InFlight, "budget", budget)
    seen: list[int] = []
    true = images._convert

    def convert(image: Image.Image) -> Image.Image:
        seen.append(budget._used.value)
        time.sleep(0.005)
        return true(image)

    monkeypatch.setattr(images, "_convert", convert)
    small, large = picture(1, (40, 30)), picture(2, (100, 90))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: normalise(data, "original"), [small, small, small, large, small, small] * 6))
    assert max(amount for amount in seen if amount != 4 * 9000) == 3 * 4 * 40 * 30
    assert seen.count(4 * 9000) == 6
    assert budget._used.value == 0


_DECODE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from tests.peak import peak_bytes
from trainer.staging.images import normalise
data = open(sys.argv[1], "rb").read()
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: normalise(data, sys.argv[2]), range(4)))
print(peak_bytes() >> 20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["original", "short256"])
def test_four_of_the_largest_pictures_fit_into_a_pod(tmp_path: Path, policy: str) -> None:
    """100 megapixels with alpha, in four threads at once: each took 1.6 GB once, now all of them take less."""
    noise = np.random.default_rng(0).integers(0, 256, (1250, 1250, 4), dtype=np.uint8)
    Image.fromarray(noise.repeat(8, 0).repeat(8, 1)).save(tmp_path / "x.png", compress_level=1)
    command = [sys.executable, "-W", "ignore", "-c", _DECODE, str(tmp_path / "x.png"), policy]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})
    assert int(done.stdout) < 1600


def test_a_picture_of_too_many_bytes_is_a_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is read."""
    monkeypatch.setattr(samples, "MAX_PICTURE_BYTES", 1000)
    row = PairRow(key="x", where="x.png", image=Blob("/nowhere/x.png", length=1001), captions=("a",))
    assert PairMaker("original")(row) == Reject("x.png", "too many bytes", "1,001, at most 1,000")


def test_captions_beyond_a_bound_are_rejects(tmp_path: Path) -> None:
    """Too many bytes, too many captions, too deep, a number of thousands of digits; in a folder and in a tar."""
    facts = {"a": b"x" * (1 << 20) + b"y", "b": b"x\n" * 1001}
    deep = {"c": b"[" * 100_000, "d": b'{"caption": ' + b"9" * 5000 + b"}"}
    files = {f"{name}.{kind}": data for kind, found in (("txt", facts), ("json", deep)) for name, data in found.items()}
    causes = ["too many bytes", "too many captions", "caption not JSON", "caption not JSON"]
    place = write(tmp_path / "folder", {**files, **{f"{name}.png": copies.PNG for name in "abcde"}, "e.txt": b"fine"})
    found = folder.read(place, list_source(place))
    assert [reject.cause for reject in found.rejects] == causes
    members = [(name, data) for key in "abcd" for name, data in [(f"{key}.png", copies.PNG), *files.items()] if name.startswith(key)]
    place = write(tmp_path / "tars", {"0.tar": copies.tar([*members, ("e.png", copies.PNG), ("e.txt", b"fine")])})
    found = tars.read(place, list_source(place))
    assert [reject.cause for reject in found.rejects] == causes
    assert [row.captions for row in found.rows] == [("fine",)]


@pytest.mark.parametrize("content", [rb'{"caption": "x \ud800"}', rb'{"caption": "x", "label": "\udfff"}', rb'["\udc00", "x"]'])
def test_half_characters_are_a_reject(tmp_path: Path, content: bytes) -> None:
    """JSON may hold a surrogate alone, which no UTF-8 text can: it is that sample's reject, and nobody else's."""
    place = write(tmp_path, {"a.png": copies.PNG, "a.json": content, "b.png": copies.PNG, "b.txt": b"fine"})
    found = folder.read(place, list_source(place))
    assert [(reject.where, reject.cause) for reject in found.rejects] == [("a.png", "caption not UTF-8")]
    assert [row.captions for row in found.rows] == [("fine",)]


def test_a_caption_without_blanks_is_tokenised_in_time() -> None:
    """What pairs letters takes a time that grows with the square of a word; only 75 tokens count."""
    letters = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 300_000)))
    assert len(Tokenizer()([letters])[0]) == 77


@pytest.mark.parametrize("column", ["flip_left", "flip_right"])
def test_a_flip_that_is_no_number_is_refused(tmp_path: Path, column: str) -> None:
    files = copies.nights()
    files["data.csv"] = files["data.csv"].replace(b"0.25,0.5", b"near,0.5" if column == "flip_left" else b"0.25,nan", 1)
    place = write(tmp_path, files)
    with pytest.raises(InputError, match=rf"data\.csv: row 2: {column}: must be a number"):
        nights.read(place, list_source(place), 0)


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(118 - 10)
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999999999,), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }", bytes(8)),
        npy("{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }", bytes(16)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (True,), }", bytes(8))[:-1],
        npy("(" * 100),
        npy("{'descr': '<f8'"),
        b"PK\x03\x04" + bytes(100),
        b"",
    ],
)
def test_an_array_whose_header_lies_is_refused(tmp_path: Path, data: bytes) -> None:
    """Before anything of the declared size is made; a judgement of BAPPS is then a reject."""
    with pytest.raises(InputError, match=r"x\.npy: "):
        read_npy(data, "x.npy")
    files = copies.bapps()
    other = {name.replace("000", "001"): content for name, content in files.items()}
    place = write(tmp_path, {**files, **other, "train/cnn/judge/000.npy": data})
    found = bapps.read(place, list_source(place), 0)
    assert [reject.cause for reject in found.rejects] == ["broken judgement"]


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><a>&b;</a>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "<a>", "<a>&b;</a>", "",
        '<?xml version="1.0" encoding="x"?><a/>', "<a/>" + " " * (1 << 20),
    ],
)  # fmt: skip
def test_xml_that_is_more_than_an_annotation_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"1\.xml: "):
        parse_xml(text.encode(), "1.xml")


@pytest.mark.parametrize(
    ("name", "files", "line"),
    [
        (
            "mnist",
            {"t10k-images-idx3-ubyte.gz": zlib.compress(bytes(130 << 20), wbits=31)},
            r"ubyte\.gz: more than 134,217,728 bytes when decompressed",
        ),
        ("mnist", {"t10k-images-idx3-ubyte.gz": struct.pack(">IIII", 0x803, 1 << 31, 1 << 31, 4)}, r"incomplete or damaged gzip file"),
        ("mnist", {"t10k-labels-idx1-ubyte": b"\0\0\x08\x01\0"}, "its header alone has 8"),
        ("svhn", {"test_32x32.mat": copies.matlab(y=[1])}, r"test_32x32\.mat: has no variable 'X'"),
        ("flowers-102", {"setid.mat": copies.matlab(tstid=[[9]])}, r"tstid: must be a whole number from 1 to 2, got"),
        ("voc2007", {"Annotations/1.xml": b"<annotation><object><name>cat</name></object></annotation>"}, "without a box"),
        ("clevr-count", {"scenes/CLEVR_val_scenes.json": b"[]"}, "CLEVR_val_scenes.json: has no 'scenes'"),
        ("clevr-dist", {"scenes/CLEVR_val_scenes.json": b'{"scenes": [{"image_filename": "1.png", "objects": []}]}'}, "has no objects"),
        ("kitti-distance", {"training/label_2/1.txt": b"Car 0 0\n"}, r"1\.txt: a line must have 15 columns"),
        ("flickr30k-retrieval", {"dataset_flickr30k.json": b'{"images": [5], "annotations": []}'}, "must be a whole number"),
        ("flickr30k-retrieval", {"dataset_flickr30k.json": b"[" * 5000}, "nested deeper than 64 levels"),
        ("pets", {"annotations/test.txt": b"cat_1\n"}, r"test\.txt: line 1 must have 2 columns, got 'cat_1'"),
        ("gtsrb", {"GT-final_test.csv": b"Filename;ClassId\n0.ppm;\xff\n"}, "must be UTF-8, but has byte 0xff at 23"),
        ("cars", {"cars_meta.mat": copies.matlab_of(copies.nested_cells(20_000))}, "cells or fields more than 64 levels inside each other"),
        ("cars", {"cars_meta.mat": copies.matlab_of(copies.matrix(1, (1 << 30, 1)))}, "more than 1,000,000 cells and fields"),
        ("cars", {"cars_meta.mat": copies.matlab_of(copies.matrix(2, (1 << 30, 1)), packed=True)}, "more than 1,000,000 cells and fields"),
        (
            "cars",
            {"cars_meta.mat": copies.matlab_of(copies.matrix(1, (1, 1), copies.matrix(1, (1 << 30, 1))))},
            "more than 1,000,000 cells",
        ),
        ("cars", {"cars_meta.mat": b"no"}, r"cars_meta\.mat: not a MATLAB file"),
    ],
)
def test_a_copy_beyond_a_bound_is_refused_by_its_file(tmp_path: Path, name: str, files: copies.Files, line: str) -> None:
    place = write(tmp_path, {**copies.copies()[name], **files})
    with pytest.raises(InputError, match=line):
        _ = [row.image() for row in CONVERTERS[name](Copy(place, list_source(place))).rows]


def test_a_box_larger_than_any_picture_is_refused(tmp_path: Path) -> None:
    """What is cut out along it would have 10^12 pixels."""
    files = copies.copies()["voc2007"]
    place = write(tmp_path, {**files, "Annotations/1.xml": files["Annotations/1.xml"].replace(b">9<", b">1e6<").replace(b">8<", b">1e6<")})
    with pytest.raises(InputError, match=r"1\.xml: the box \(1, 2, 1000000, 1000000\) of an object is empty or too large"):
        list(CONVERTERS["voc2007"](Copy(place, list_source(place))).rows)


def test_a_bomb_in_a_copy_is_refused_with_its_name() -> None:
    with pytest.raises(InputError, match=r"1\.png: not a picture, or truncated: too many pixels: 20000x10000"):
        as_kept(bomb(), "1.png")


def test_a_table_of_too_many_bytes_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_TABLE_BYTES", 50)
    place = write(tmp_path, copies.captions_csv())
    with pytest.raises(InputError, match=r"captions\.csv: \d+ bytes, but at most 50 are read"):
        table.read(place, list_source(place))


def laughs() -> str:
    more = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)]
    return "\n".join(["a0: &a0 [x, x, x]", *more])


def merges() -> str:
    return "\n".join(["b0: &b0 {x: 1}", *(f"b{level}: &b{level} {{<<: [*b{level - 1}, *b{level - 1}]}}" for level in range(1, 30))])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (laughs(), "more than 10000 values, aliases written out"),
        (merges(), "more than 10000 values"),
        ("a: " + "[" * 100_000, "nested deeper than 64 levels"),
        ("\n".join(" " * level + "a:" for level in range(100)), "nested deeper than 64 levels"),
        ("a: [" + "1, " * 20_000 + "]", "more than 10000 values"),
        ("a: " + "1" * 5000, "a number of 5000 characters, at most 1000 are read"),
        ("a: " + ":".join(["1"] * 2000), "a number of 3999 characters"),
        ("a: 0x" + "f" * 5000, "a number of 5002 characters"),
        ("a: " + "x" * (1 << 20), "1,048,580 characters of YAML, but at most 262,144 are read"),
        ("a: !!int ''", "not of type int"),
        ("a: !!bool x", "not of type bool"),
        ("a: !!timestamp x", "not of type timestamp"),
        ("a: !!set x", "not of type set"),
    ],
)  # fmt: skip
def test_yaml_beyond_a_bound_is_refused_in_one_line(text: str, line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        load_recipe(text + "\n", source="x.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("x.yaml: ")


def test_recipes_under_each_other_are_counted(tmp_path: Path) -> None:
    """Sixteen, however they are named."""
    from trainer.storage.recipes import read_recipe

    for number in range(40):
        (tmp_path / f"{number}.yaml").write_text(f"base: {tmp_path}/{number + 1}.yaml\n" if number < 39 else "base: paper\n")
    with pytest.raises(InputError, match=r"base must be under at most 16 others"):
        read_recipe(str(tmp_path / "0.yaml"))
    assert read_recipe(str(tmp_path / "30.yaml")) == read_recipe({"base": "paper", "name": "30"})
