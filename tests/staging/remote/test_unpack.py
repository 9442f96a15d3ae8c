"""Parquet files that hold the pictures themselves become tars."""

import json
import tarfile
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.staging.remote.sources import picture
from trainer.__main__ import main
from trainer.staging import stage
from trainer.staging.rows import Reject


def write(path: Path, rows: int) -> None:
    """A file as RWKV's YFCC15M has them."""
    texts = [[49406, 320, 1125, 539, 320 + number, 49407, 0, 0] for number in range(rows)]
    pq.write_table(pa.table({"images": [{"bytes": picture(n), "path": None} for n in range(rows)], "texts": texts}), path)


def test_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file becomes a tar with the pictures' own bytes and the words of the ids; what is there is kept."""
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", 3)
    arguments = ["stage", "unpack", "--source", str(tmp_path), "--folder", str(tmp_path / "tars")]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 6
    with tarfile.open(tmp_path / "tars" / "b.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    assert [members[f"{number:08d}.jpg"] for number in range(3)] == [picture(number) for number in range(3)]
    assert members["00000000.txt"].decode().startswith("a photo of")
    before = (tmp_path / "tars" / "b.tar").read_bytes()
    (tmp_path / "tars" / "b.tar").unlink()
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 3
    assert (tmp_path / "tars" / "b.tar").read_bytes() == before


def test_what_the_datasets_library_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files named after splits, and labels whose names the schema has, which are captions where there are no others."""
    names = {"info": {"features": {"label": {"names": ["big\ndog", "cat"], "_type": "ClassLabel"}}}}
    for split, count in (("train", 2), ("test", 1)):
        pictures = [{"bytes": picture(number), "path": "x.jpg"} for number in range(count)]
        table = pa.table({"img": pictures, "label": list(range(count))})
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(
            table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        )
    assert main(["stage", "unpack", "--source", str(tmp_path), "--folder", str(tmp_path / "tars")]) == 0
    capsys.readouterr()
    found, rejects = rows_of(str(tmp_path / "tars"), tmp_path)
    assert found == [("big dog", "big dog", "test"), ("big dog", "big dog", "train"), ("cat", "cat", "train")]
    assert not rejects


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"picture": [picture(0), picture(1)], "title": ["a dog", "a"]}, [("a", "", ""), ("a dog", "", "")]),
        ({"jpg": [picture(0)], "txt": ["a dog"], "class": ["dog"]}, [("a dog", "dog", "")]),
        ({"sample": [{"bytes": picture(0)}], "sentences": [["a dog", "a hound"]], "label": [7]}, [("a dog", "7", "")]),
        ({"image": [picture(0)], "label": [7]}, []),
    ],
)
def test_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, object], found: list[tuple[str, str, str]]) -> None:
    """By any of their names; the pictures' also by what it holds. A number without a name is no caption."""
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert main(["stage", "unpack", "--source", str(tmp_path), "--folder", str(tmp_path / "tars")]) == 0
    capsys.readouterr()
    assert rows_of(str(tmp_path / "tars"), tmp_path)[0] == found


def rows_of(folder: str, root: Path) -> tuple[list[tuple[str, str, str]], list[Reject]]:
    """First caption, label and split of what is staged of a folder of tars, sorted; and what is lost."""
    with ExitStack() as stack:
        rows = stage._read_pairs(stage._find(folder, str(root)), 0, stack)
    return sorted((row.captions[0], row.label, row.split) for row in rows.rows), rows.rejects


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No file, a missing column and a file cut short are said by name, and no tar is left."""
    arguments = ["stage", "unpack", "--source", str(tmp_path), "--folder", str(tmp_path / "tars")]
    (tmp_path / "x.txt").write_text("x")
    assert main(arguments) == 2
    assert "no .parquet file" in capsys.readouterr().err
    pq.write_table(pa.table({"images": [b"x"]}), tmp_path / "x.parquet")
    assert main(arguments) == 2
    assert "has no column 'captions' or 'caption'" in capsys.readouterr().err
    write(tmp_path / "x.parquet", 3)
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-50])
    assert main(arguments) == 1
    assert "not a whole parquet file" in capsys.readouterr().err
    assert not (tmp_path / "tars").exists()
