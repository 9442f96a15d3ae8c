"""Parquet files that hold the pictures themselves become tars."""

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.staging.remote.sources import picture
from trainer.__main__ import main


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


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No file, a missing column and a file cut short are said by name, and no tar is left."""
    arguments = ["stage", "unpack", "--source", str(tmp_path), "--folder", str(tmp_path / "tars")]
    (tmp_path / "x.txt").write_text("x")
    assert main(arguments) == 2
    assert "no .parquet file" in capsys.readouterr().err
    pq.write_table(pa.table({"images": [b"x"]}), tmp_path / "x.parquet")
    assert main(arguments) == 2
    assert "has no column 'texts'" in capsys.readouterr().err
    write(tmp_path / "x.parquet", 3)
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-50])
    assert main(arguments) == 1
    assert "not a whole parquet file" in capsys.readouterr().err
    assert not (tmp_path / "tars").exists()
