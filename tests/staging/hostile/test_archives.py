"""Zips, tars, packed lists and parquet files made to hurt: refused whole, before they take time, memory or disk."""

import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.staging.hostile import copies
from tests.staging.hostile.copies import write
from trainer.errors import InputError, RunError
from trainer.staging.remote.download import unpack
from trainer.staging.remote.http import HttpSettings, PoliteClient
from trainer.staging.remote.inputs import Inputs
from trainer.staging.remote.sources import url_list
from trainer.staging.remote.zips import read_directory
from trainer.staging.sources import tars
from trainer.staging.sources.listing import list_source


def lists(place: Path, data: bytes, name: str) -> None:
    with duckdb.connect() as database:
        url_list.table(database, Inputs(place), list_uri=write(place, {name: data}) + f"/{name}", captions="as-is")


@pytest.mark.parametrize("name", ["list.csv.gz", "list.csv.zst"])
def test_a_packed_list_that_is_a_bomb_is_refused_by_its_beginning(tmp_path: Path, name: str) -> None:
    """230 MB of empty rows in a few hundred kB."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "gzip" if name.endswith("gz") else "zstd") as stream:
        stream.write(b"url,caption\n")
        for _ in range(230):
            stream.write(b",\n" * (1 << 19))
    with pytest.raises(InputError, match=rf"{name}: the first .* bytes hold more than .* at most a ratio of 200"):
        lists(tmp_path, sink.getvalue().to_pybytes(), name)


def zip_of_many(count: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for number in range(count):
            file.writestr(f"ref/{number}.png", b"")
    return stream.getvalue()


def zip_with(change: Callable[[bytearray, int], None]) -> bytes:
    """A zip whose directory was changed: `change` gets all bytes, and where the entry begins."""
    data = bytearray(copies.archive({"ref/000.png": copies.PNG}))
    change(data, data.rindex(b"PK\x01\x02"))
    return bytes(data)


def without_name(data: bytearray, entry: int) -> None:
    """The entry's name becomes its comment."""
    data[entry + 28 : entry + 34] = struct.pack("<HHH", 0, 0, struct.unpack_from("<H", data, entry + 28)[0])


def encrypted(data: bytearray, entry: int) -> None:
    data[entry + 8] |= 1


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: copies.archive({f"ref/{n}.png": bytes(1 << 17) for n in range(9)}), "bytes unpacked, at most 1,048,576 .* bomb"),
        (lambda: copies.archive({"ref/0.png": bytes(5 << 20)}), "decompression bomb"),
        (lambda: zip_of_many(60), r"60 files, at most 50 are read"),
        (lambda: zip_with(without_name), r"a member has no name"),
        (lambda: zip_with(encrypted), "is encrypted"),
        (
            lambda: copies.archive({"ref/0.png": copies.PNG}, zipfile.ZIP_LZMA),
            "must be stored or deflated, but it is compressed with method 14",
        ),
    ],
)
def test_a_zip_beyond_a_bound_is_refused_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes], line: str
) -> None:
    """Here and by ranges; nothing of it is written."""
    monkeypatch.setattr("trainer.staging.remote.download.MAX_ARCHIVE_MEMBERS", 50)
    monkeypatch.setattr("trainer.staging.remote.download.MAX_MEMBER_BYTES", 1 << 20)
    place = write(tmp_path, {"nights.zip": make()})
    with pytest.raises(RunError, match=rf"nights\.zip: .*{line}"):
        unpack(tmp_path / "nights.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises((InputError, RunError), match=rf"nights\.zip: .*{line}"):
        list(read_directory(PoliteClient(HttpSettings()), f"{place}/nights.zip", "nights.zip", ""))


def test_damaged_deflate_data_leaves_nothing(tmp_path: Path) -> None:
    """Zlib's own error is one line too."""
    data = bytearray(copies.archive({"ref/0.png": os.urandom(2000) + bytes(3000)}))
    data[60:90] = b"\xff" * 30
    write(tmp_path, {"nights.zip": bytes(data)})
    with pytest.raises(RunError, match=r"nights\.zip: not a whole zip"):
        unpack(tmp_path / "nights.zip", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE, body: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + body.ljust(-(-len(body) // 512) * 512, b"\0")


def pax_keywords(size: int) -> bytes:
    """An extended header of keywords without a value, each of which would become an object."""
    return b"".join(b"13 %06x=xx\n" % number for number in range(size // 13 + 1))[:size]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (tar_header("0.jpg", 1 << 40), "truncated"),
        (tar_header("x", 1 << 40, tarfile.XHDTYPE), "a header asks for 1,099,511,627,776 bytes at once"),
        (tar_header("x", 30 << 20, tarfile.GNUTYPE_LONGNAME, bytes(30 << 20)), "a header asks for 31,457,280 bytes at once"),
        (tar_header("x", 20, tarfile.XHDTYPE, b"20 GNU.sparse.map=1\n") * 3000, "not a whole tar file"),
        (tar_header("x", 8 << 20, tarfile.XHDTYPE, pax_keywords(8 << 20)), "a header asks for 8,388,608 bytes at once, at most 1,048,576"),
        (tar_header("x", 8 << 20, tarfile.XGLTYPE, pax_keywords(8 << 20)), "a header asks for 8,388,608 bytes at once, at most 1,048,576"),
        (tar_header("0.txt", 0, tarfile.GNUTYPE_SPARSE) + bytes(1024), "sparse|no pictures"),
        (b"\x1f\x8b" + bytes(1000), "compressed with gzip"),
    ],
)  # fmt: skip
def test_a_tar_that_is_a_bomb_is_refused(tmp_path: Path, data: bytes, line: str) -> None:
    place = write(tmp_path, {"0.tar": data + bytes(1024)})
    with pytest.raises(InputError, match=line):
        tars.read(place, list_source(place))


def many_rows(count: int) -> bytes:
    stream = io.BytesIO()
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int8)), pa.array(["x"]))
    pq.write_table(pa.table({"key": column, "status": column, "error_message": column}), stream)
    return stream.getvalue()


def test_a_parquet_file_of_too_many_rows_is_refused_by_its_footer(tmp_path: Path) -> None:
    """Two million equal rows take a few kB."""
    place = write(tmp_path, {**copies.tars(), "0.parquet": many_rows(2_000_000)})
    with pytest.raises(InputError, match=r"0\.parquet: 2000000 rows, at most 1,000,000 are read"):
        tars.read(place, list_source(place))
