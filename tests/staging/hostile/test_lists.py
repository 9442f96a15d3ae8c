"""Lists made to hurt: columns, fields, values and captions without number are refused in one line, within seconds and little memory."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.staging.hostile import copies
from tests.staging.hostile.copies import write
from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Copy
from trainer.staging.evaluation_sets.stage import CONVERTERS
from trainer.staging.remote.unpack import unpack_parquet
from trainer.staging.sources import nights, table
from trainer.staging.sources.listing import list_source
from trainer.storage.rdms import read_rdm

PEAK = """
import sys, time
from tests.peak import peak_bytes
from trainer.errors import InputError
from trainer.staging.sources import table, tars
from trainer.staging.sources.listing import list_source
files, read = list_source(sys.argv[1]), {"table": table, "tars": tars}[sys.argv[2]].read
before, began = peak_bytes(), time.process_time()
try:
    found = read(sys.argv[1], files)
    print([(reject.cause, reject.detail) for reject in found.rejects][:3])
except InputError as error:
    print(error)
print(time.process_time() - began)
print(peak_bytes() - before >> 20)
"""


def refused(place: str, how: str) -> tuple[str, float, int]:
    """What reading a source in a process of its own says, the CPU seconds and the megabytes that it takes."""
    command = [sys.executable, "-c", PEAK, place, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})
    said, seconds, megabytes = done.stdout.splitlines()
    return said, float(seconds), int(megabytes)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("captions.csv", b"file,caption" + b"," * (20 << 20) + b"\n", "its first line has 20,971,532 characters, but at most 65,536"),
        ("captions.csv", b"file,caption\na.png,x\n" + b"," * (20 << 20), "line 3: a row of more than 4,194,304 characters"),
        ("captions.csv", b"file,caption\na.png,x\n" + b'"\n",' * (5 << 20), "line [0-9]+: a row of more than 4,194,304 characters"),
        ("captions.tsv", b"file\tcaption\na.png\tx\n" + b"\t" * (20 << 20), "a row of more than 4,194,304 characters"),
        ("captions.json", b"[" + b"[]," * (26 << 20) + b"[]]", "more than 50,000,000 commas and brackets"),
        ("captions.json", b"[" + b"{}," * (26 << 20) + b"{}]", "more than 50,000,000 commas and brackets"),
        (
            "captions.csv",
            b"file,caption\n" + b"".join(b"a.png,caption %d\n" % number for number in range(150_000)),
            "'too many captions', 'row 2 of captions.csv: more than 1000'",
        ),
    ],
)
def test_a_list_that_unfolds_is_refused(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    """Columns, fields, values and captions without number: in one line, within seconds, and within 300 MB beside the file itself."""
    place = write(tmp_path, {"a.png": copies.PNG, name: content})
    said, seconds, megabytes = refused(place, "table")
    assert re.search(rf"{name}.*{line}|{line}", said)
    assert seconds < 2
    assert megabytes < 300


def test_rows_without_end_are_refused_by_every_reader_of_csv(tmp_path: Path) -> None:
    """The table of triplets, that of an evaluation set, and a dissimilarity matrix; a file of many lines is not copied four times."""
    endless = b"," * (5 << 20) + b"\n"
    place = write(tmp_path / "nights", {**copies.nights(), "data.csv": endless})
    with pytest.raises(InputError, match=r"data\.csv: line 1: a row of more than 4,194,304 characters"):
        nights.read(place, list_source(place), 0)
    place = write(
        tmp_path / "gtsrb", {**copies.copies()["gtsrb"], "GT-final_test.csv": b"Filename;ClassId\n" + endless.replace(b",", b";")}
    )
    with pytest.raises(InputError, match=r"GT-final_test\.csv: line 2: a row of more than 4,194,304 characters"):
        CONVERTERS["gtsrb"](Copy(place, list_source(place)))
    for text, line in ((endless, 1), (b"," * 6000 + b"\n", 1), (b"a,b\n" + b"x,1\n" * 6000, 5002)):
        with pytest.raises(InputError, match=rf"x\.csv: line {line}: "):
            read_rdm(write(tmp_path, {"x.csv": text}) + "/x.csv")
    said, seconds, megabytes = refused(write(tmp_path / "quoted", {"a.png": copies.PNG, "captions.csv": QUOTED}), "table")
    assert re.search(r"captions\.csv: line 2: ", said)
    assert (seconds < 2, megabytes < 250) == (True, True)


QUOTED = b'file,caption\na.png,"' + b"x" * (60 << 20) + b'"\n'


@pytest.mark.parametrize(
    ("cell", "cause"),
    [
        (b"[" * 900 + b"]" * 900, "caption not JSON"),
        (b"[" * 150 + b"]" * 150, "caption not JSON"),
        (b"[0x" + b"f" * 60_000 + b"]", "caption is not text"),
        (b"[[0x" + b"f" * 60_000 + b"]]", "caption is not text"),
        (b"[" + b"9" * 4_200 + b"]", "caption is not text"),
        (b"[" + b"-" * 30_000 + b"1]", ""),
        (b"['" + b"(" * 30_000 + b"']", ""),
    ],
)
def test_a_cell_that_is_a_list_of_anything_is_a_caption_or_a_reject(tmp_path: Path, cell: bytes, cause: str) -> None:
    """Deep lists, and numbers that Python does not write out."""
    place = write(tmp_path, {"a.png": copies.PNG, "b.png": copies.PNG, "captions.csv": b"file,caption\nb.png,fine\na.png," + cell + b"\n"})
    found = table.read(place, list_source(place))
    assert [reject.cause for reject in found.rejects] == [cause] * bool(cause)
    assert len(found.rows) == 1 + (not cause)


def repeated(size: int, rows: int) -> bytes:
    """A parquet file of one long caption that stands in every row, of 2 kB."""
    stream = io.BytesIO()
    caption = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int8()), pa.array(["x" * size]))
    pq.write_table(pa.table({"file": pa.array(["a.png"] * rows), "caption": caption}), stream, compression="zstd")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("size", "rows", "line"),
    [
        (8 << 20, 3_000, "256 rows take 2,147,[0-9]{3},[0-9]{3} bytes, at most 268,435,456 are read at once"),
        (900_000, 3_000, "1,1[0-9]{2},[0-9]{3},[0-9]{3} bytes, but at most 1,073,741,824 are read"),
    ],
)
def test_a_value_that_stands_in_every_row_is_counted_before_it_is_copied(tmp_path: Path, size: int, rows: int, line: str) -> None:
    """Parquet stores it once, and reading a batch of rows would make hundreds of it."""
    place = write(tmp_path, {"a.png": copies.PNG, "captions.parquet": repeated(size, rows)})
    said, seconds, megabytes = refused(place, "table")
    assert re.search(rf"captions\.parquet: {line}", said)
    assert seconds < 3
    assert megabytes < 400


def test_a_picture_that_stands_in_every_row_is_counted_too(tmp_path: Path) -> None:
    """As `stage unpack` reads it, also where it lies in a struct as Hugging Face's do."""
    pictures = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int8()), pa.array([bytes(1 << 20)])).dictionary_decode()
    for number, column in enumerate([pictures, pa.StructArray.from_arrays([pictures], ["bytes"])]):
        place = tmp_path / str(number)
        place.mkdir()
        pq.write_table(pa.table({"image": column, "text": ["x"] * 600}), place / "train.parquet", compression="zstd")
        with pytest.raises(InputError, match=r"train\.parquet: 256 rows take 268,[0-9]{3},[0-9]{3} bytes, at most 268,435,456 are read"):
            unpack_parquet(str(place), str(tmp_path / "out"))
