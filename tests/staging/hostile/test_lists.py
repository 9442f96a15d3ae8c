"""Lists made to hurt: columns, fields, values and captions without number are refused in one line, within seconds and little memory."""

import io
import json
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
from trainer.bounds import parse_json
from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Copy
from trainer.staging.evaluation_sets.stage import CONVERTERS
from trainer.staging.remote.unpack import unpack_parquet
from trainer.staging.rows import Reject, check_rejected
from trainer.staging.sources import nights, table
from trainer.staging.sources.listing import list_source
from trainer.storage.rdms import read_rdm

PEAK = """
import sys, time
from tests.peak import peak_bytes
from trainer.errors import InputError
from trainer.staging.sources import nights, table, tars
from trainer.staging.sources.listing import list_source
readers = {"table": table.read, "tars": tars.read, "nights": lambda uri, files: nights.read(uri, files, 0)}
files, read = list_source(sys.argv[1]), readers[sys.argv[2]]
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
        ("captions.json", b"[" + b"[]," * (26 << 20) + b"[]]", "more than 10,223,616 commas and brackets, the most that are read in 81"),
        ("captions.json", b"[" + b"{}," * (5 << 20) + b"{}]", "more than 2,000,000 commas and brackets, the most that are read in 15"),
        ("captions.json", b"[" + b'"",' * (5 << 20) + b"{}]", "more than 2,000,000 commas and brackets"),
        ("captions.json", b'[{"file":"a.png","caption":"x"}' + b",{}" * 400_000 + b"]", "100,001 x no such file"),
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


def test_json_that_lists_each_word_is_read() -> None:
    """The densest list in use, Karpathy's of COCO, is longer than what may be as dense as it likes."""
    words = "a man on a horse in the rain at night"
    sentence = json.dumps({"tokens": words.split(), "raw": words, "imgid": 1}, separators=(",", ":"))
    assert len(parse_json(f"[{','.join([sentence] * 160_000)}]", "dataset_coco.json")) == 160_000


UNUSABLE = [
    ("captions.jsonl", b'{"file":"a.png","caption":"x"}\n', b"{}\n", r"no such file \(such as line 2: line 2 of captions\.jsonl"),
    ("captions.jsonl", b'{"file":"a.png","caption":"x"}\n', b"x\n", r"bad row \(such as captions\.jsonl: line 2: line 2: not JSON"),
    ("captions.jsonl", b'{"file":"a.png","caption":"x"}\n', b'{"file":"a.png"}\n', r"empty caption \(such as a\.png"),
    ("captions.csv", b"file,caption\na.png,x\n", b"x\n", r"bad row \(such as captions\.csv: row 3: line 3 must have 2 columns"),
    ("captions.csv", b"file,caption\na.png,x\n", b"b,c\n", r"no such file \(such as b: row 3 of captions\.csv"),
    ("captions.csv", b"file,caption\n", b"a.png,x\n", r"duplicate \(such as a\.png: row 3 of captions\.csv"),
    ("captions.csv", b"file,caption\na.png," + b'"' + b"x\n" * 1_001 + b'"\n', b"b,x\na.png,x\n", r"no such file \(such as b: "),
    ("captions.tsv", b"file\tcaption\na.png\tx\n", b"x\n", r"bad row \(such as captions\.tsv: row 3: line 3 must have 2 columns"),
    ("captions.tsv", b"file\tcaption\na.png\tx\n", b"\tx\n", r"no such file \(such as row 3: row 3 of captions\.tsv"),
]


@pytest.mark.parametrize(("name", "begin", "row", "line"), UNUSABLE)
def test_rows_without_end_that_cannot_be_used_are_refused(tmp_path: Path, name: str, begin: bytes, row: bytes, line: str) -> None:
    """6 MB of one row after another, each of which would be kept with its cause."""
    content = begin + row * ((6 << 20) // len(row))
    said, seconds, megabytes = refused(write(tmp_path, {"a.png": copies.PNG, name: content}), "table")
    assert re.search(rf"{name}: so far 100,001 rows cannot be used and [0-9]+ can: (100,00[01]|50,00[01]) x {line}", said)
    assert seconds < 2
    assert megabytes < 300


def test_lists_of_many_folders_share_one_bound(tmp_path: Path) -> None:
    """What is too much in one list is too much in ten."""
    rows = {f"{part}/captions.csv": b"file,caption\n" + b"b,c\n" * 15_000 for part in range(10)}
    said, *_ = refused(write(tmp_path, {"0/a.png": copies.PNG, **rows}), "table")
    assert re.search(r"6/captions\.csv: so far 100,001 rows cannot be used and 0 can", said)


def test_unusable_rows_of_triplets_and_beside_tars_are_refused(tmp_path: Path) -> None:
    """NIGHTS' table, and the one that img2dataset leaves: 1 million rows in a few kilobytes."""
    begin = copies.nights()["data.csv"].partition(b"\n")[0]
    commas = begin.count(b",")
    rows = b"".join(b"%d" % number + b"," * commas + b"\n" for number in range(300_000))
    said, seconds, megabytes = refused(write(tmp_path / "nights", {**copies.nights(), "data.csv": begin + b"\n" + rows}), "nights")
    assert re.search(r"data\.csv: so far 100,001 rows cannot be used and 0 can: 100,001 x no votes \(such as 0: ", said)
    assert (seconds < 2, megabytes < 300) == (True, True)
    stream, count = io.BytesIO(), 1_000_000
    columns = {"key": ["1"] * count, "status": ["failed"] * count, "error_message": ["404"] * count}
    pq.write_table(pa.table(columns), stream, compression="zstd")
    tar = copies.tar([("a.png", copies.PNG), ("a.txt", b"x")])
    place = write(tmp_path / "tars", {"00000.tar": tar, "00000.parquet": stream.getvalue()})
    said, seconds, megabytes = refused(place, "tars")
    assert re.search(r"00000\.parquet: so far 100,001 rows cannot be used and 1 can: 100,001 x not fetched by its maker", said)
    assert (seconds < 3, megabytes < 300) == (True, True)


def test_large_lists_of_which_half_is_usable_are_read(tmp_path: Path) -> None:
    """Of pictures that were fetched in part: --max-reject-fraction decides."""
    rows = b"".join(b"a.png,caption %d\nb.png,x\n" % number for number in range(900))
    found = table.read(place := write(tmp_path, {"a.png": copies.PNG, "captions.csv": b"file,caption\n" + rows}), list_source(place))
    assert (len(found.rows), len(found.rejects)) == (1, 900)
    check_rejected([Reject("a", "no such file", "b")] * 150_000, 150_000, "captions.csv")
    check_rejected([Reject("a", "no such file", "b")] * 100_000, 0, "captions.csv")


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
