"""What lists of URLs hold that is text, and what is not, in every form that they come in."""

import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.staging.remote.sources import photo_hash
from tests.staging.remote.test_plan import all_rows, plan, refused
from trainer.staging.captions import clean_name
from trainer.staging.remote.inputs import quote, scalar
from trainer.staging.remote.rows import read_plan

ROWS = {  # key -> the rest of its line of JSON, and the texts or the cause that become of it
    "a": ({"caption": 'he said "hi"', "label": "big \n dog"}, ['he said "hi"']),
    "b": ({"caption": ["one", None, 3, ["two"], " "]}, ["one"]),
    "c": ({"caption": [], "text": "found"}, ["found"]),
    "d": ({"caption": 3.5}, "caption is not text"),
    "e": ({"caption": True}, "caption is not text"),
    "f": ({"caption": {"raw": "x"}}, "caption is not text"),
    "g": ({"caption": [["x"]]}, "caption is not text"),
    "h": ({"caption": None}, "empty caption"),
    "i": ({"caption": float("nan")}, "empty caption"),
    "j": ({"caption": " \n"}, "empty caption"),
    "k": ({}, "empty caption"),
    "l": ({"caption": "3.5", "label": 7}, ["3.5"]),
    "m": ({"caption": "x\u2028y\nz"}, ["x\u2028y", "z"]),
}
BAD_LINES = ["[" * 100_000, '{"id": "x", "caption": "\\ud800"}', '{"id": "y", ', "[1]", '"text"']


def planned(folder: str) -> tuple[dict[str, list[str | None]], dict[str, int]]:
    return {row.key: list(row.texts) for row in all_rows(folder)}, read_plan(folder).lost


def causes(*more: str) -> dict[str, int]:
    found = [cause for _, cause in ROWS.values() if isinstance(cause, str)] + list(more)
    return {cause: found.count(cause) for cause in found}


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Strings, and nothing else, are texts; a line that is no JSON is one reject."""
    lines = [json.dumps({"id": key, "url": f"http://h/{key}", **rest}) for key, (rest, _) in ROWS.items()]
    text = "\n".join([*lines[:3], *BAD_LINES, "", *lines[3:], ""]) if name == "x.jsonl" else f"[{', '.join(lines)}]"
    (tmp_path / name).write_text(text)
    folder = plan(capsys, "urls", "--root", str(tmp_path), "--list", str(tmp_path / name))
    found, lost = planned(folder)
    assert found == {key: texts for key, (_, texts) in ROWS.items() if isinstance(texts, list)}
    assert lost == causes(*["bad row"] * (len(BAD_LINES) if name == "x.jsonl" else 0))
    assert {row.key: row.label for row in all_rows(folder) if row.label} == {"a": "big dog", "l": "7"}


def test_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Columns of numbers, structs and truth are no captions; lists of strings are several."""
    table = pa.table({
        "id": [1, 2, 3, 4], "url": [f"HTTP://h/{n}" for n in range(4)], "caption": [None, 2.5, float("nan"), None],
        "text": pa.array([["a", None, "b"], [], None, None]), "title": pa.array(["no", None, None, "t"]).dictionary_encode(),
        "label": [1.0, None, 2.0, 3.0],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "x.parquet")
    folder = plan(capsys, "urls", "--root", str(tmp_path), "--list", str(tmp_path / "x.parquet"))
    assert planned(folder) == ({"1": ["a", "b"], "4": ["t"]}, {"caption is not text": 1, "empty caption": 1})
    assert {(row.key, row.images[0], row.label) for row in all_rows(folder)} == {("1", "http://h/0", "1"), ("4", "http://h/3", "3")}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "position,broken,texts,URL,Caption\n1,1,no,HTTP://h/a,one\n2,1,,https://h/b,two\n"),
        ("x.csv", 'Image URL;Alt Text\nhttp://h/a;one\nHttps://h/b;"two"\n'),
        ("x.csv", "image-url|caption\nhttp://h/a|one\nhttps://h/b|two\n"),
        ("x.tsv", "caption\turl\none\thttp://h/a\ntwo\thttps://h/b\n"),
        ("cc3m.tsv", "one\tHTTP://h/a\ntwo\thttps://h/b\n"),
        ("urls.txt", "http://h/a\tone\nhttps://h/b\ttwo\n"),
        ("cc12m.tsv", "http://h/a\tone\nhttps://h/b\ttwo\n"),
        ("x.csv", "url;label\nhttp://h/a;one\nhttps://h/b;two\n"),
        ("images.csv", "ImageID,OriginalURL,Author,Title\n1,http://h/a,x,one\n2,https://h/b,y,two\n"),
        ("x.psv", "url|text\nhttp://h/a|one\nhttps://h/b|two\n"),
        ("x.ndjson", '{"url": "http://h/a", "caption": "one"}\r\n{"url": "https://h/b", "texts": ["two"]}\r\n'),
    ],
)
def test_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str) -> None:
    """Columns by any of their names, separated by anything, and HTTP in capitals."""
    (tmp_path / name).write_text(text, newline="")
    folder = plan(capsys, "urls", "--root", str(tmp_path), "--list", str(tmp_path / name))
    assert {(row.images[0], *row.texts) for row in all_rows(folder)} == {("http://h/a", "one"), ("https://h/b", "two")}
    assert read_plan(folder).lost == {}


def test_a_list_without_a_header_may_have_commas_in_its_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first line's separator is the one that leaves a URL and a caption."""
    (tmp_path / "cc3m.tsv").write_text("a dog, big, brown\thttp://h/a\nb\thttp://h/b\n")
    folder = plan(capsys, "urls", "--root", str(tmp_path), "--list", str(tmp_path / "cc3m.tsv"))
    assert {row.images[0]: list(row.texts) for row in all_rows(folder)} == {"http://h/a": ["a dog, big, brown"], "http://h/b": ["b"]}


UTF_16 = "{list}: must be UTF-8, but its first bytes look like UTF-16: convert it with iconv -f UTF-16 -t UTF-8"
LATIN_1 = "{list}: must be UTF-8, but line %d is not: perhaps Latin-1 (Windows-1252): convert it with iconv -f WINDOWS-1252 -t UTF-8"
NO_URL = (
    "{list}: has no column 'url' or 'image_url' (it has file, caption): rename a column; a list of files in a folder is staged by "
    "stage pairs --source FOLDER"
)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.csv", "url,caption\nhttp://h/a,x\n".encode("utf-16"), UTF_16),
        ("x.jsonl", '{"url": "http://h/a"}'.encode("utf-16-le"), UTF_16),
        ("x.csv", "url,caption\nhttp://h/a,caf\u00e9\n".encode("latin-1"), LATIN_1 % 2),
        ("x.jsonl", '{"url": "http://h/a", "caption": "caf\u00e9"}\n'.encode("latin-1"), LATIN_1 % 1),
        ("x.csv", b"file,caption\na.jpg,x\n", NO_URL),
        ("x.csv", b"url,caption\nftp://h/a,x\nhttp://h/b,\n", "{list}: no usable row among 2: 1 x bad URL (such as row 1: "),
    ],
)
def test_what_is_refused_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes, message: str) -> None:
    """The list, what is wrong and what to do; where no row is left, the causes, an example of each, and where all are listed."""
    path = tmp_path / name
    path.write_bytes(data)
    said = refused(capsys, "urls", "--root", str(tmp_path / "root"), "--list", str(path))
    assert said.startswith(f"trainer stage: {message.replace('{list}', str(path))}")
    if "no usable row" in message:
        listed = said.rpartition("all are listed in ")[2]
        assert [json.loads(line)["cause"] for line in Path(listed).read_text().splitlines()] == ["bad URL", "empty caption"]


def test_the_lists_of_yfcc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DeCLIP's captions that are no text are rejects; RWKV's may be lists of texts, which are no token ids."""
    values: list[object] = ["a photo", 3.5, {"a": 1}, None, ["x", "y"]]
    rows = [{"caption": value, "filename": f"{photo_hash(number)}.jpg", "url": "x"} for number, value in enumerate(values)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    folder = plan(capsys, "yfcc15m-declip", "--root", str(tmp_path), "--list", str(tmp_path / "x.jsonl"), "--images", "http://x")
    assert planned(folder) == (
        {photo_hash(0): ["a photo"], photo_hash(3): [], photo_hash(4): ["x", "y"]},
        {"caption is not text": 2, "bad row": 1},
    )
    pq.write_table(pa.table({"hash": [photo_hash(0)], "texts": [["a photo", "of a dog"]]}), tmp_path / "x.parquet")
    folder = plan(capsys, "yfcc15m-rwkv", "--root", str(tmp_path), "--list", str(tmp_path / "x.parquet"), "--images", "http://x")
    assert planned(folder) == ({photo_hash(0): ["a photo", "of a dog"]}, {})


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_labels_are_cleaned_as_those_of_folders(text: str) -> None:
    """SQL and Python agree on what white space is."""
    ((found,),) = duckdb.sql(f"SELECT {scalar('label', 'VARCHAR')} FROM (SELECT {quote(text)} AS label)").fetchall()
    assert found == clean_name(text)
