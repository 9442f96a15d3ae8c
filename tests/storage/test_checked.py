"""Records of checks: what was hashed is not hashed again, unless it was found damaged when it was loaded."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from trainer.storage import checked, open_store
from trainer.storage.documents import read_document, write_document

NAMES = ("a", "b")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Two files, as sealed, hashed once; `a` has rotted since, without a trace in its stamp."""
    sealed = {}
    for name in NAMES:
        (tmp_path / name).write_bytes(name.encode() * 9)
        sealed[name] = {"size": 9, "sha256": hashlib.sha256(name.encode() * 9).hexdigest()}
    assert checked.find_damaged(str(tmp_path), sealed) == {}
    (tmp_path / "a").write_bytes(b"aaaaXaaaa")
    record = read_document(str(tmp_path / checked.NAME), "a record", 1) or {}
    info = open_store(str(tmp_path)).head(str(tmp_path / "a"))
    assert info is not None
    record["files"]["a"]["stamp"] = info.stamp
    write_document(str(tmp_path / checked.NAME), record)
    return sealed


def test_what_was_hashed_is_believed_by_its_stamp(tmp_path: Path, files: dict[str, dict[str, Any]]) -> None:
    """That is what a record is for: bytes are hashed when they are loaded."""
    assert checked.find_damaged(str(tmp_path), files) == {}


@pytest.mark.parametrize("names", [("a",), ()])
def test_what_is_forgotten_is_read_again(tmp_path: Path, files: dict[str, dict[str, Any]], names: tuple[str, ...]) -> None:
    """One file by name, or all."""
    checked.forget(str(tmp_path), *names)
    assert list(checked.find_damaged(str(tmp_path), files)) == ["a"]


def test_other_files_stay_known(tmp_path: Path, files: dict[str, dict[str, Any]]) -> None:
    """A data set of a thousand shards is not read for the sake of one."""
    checked.forget(str(tmp_path), "b")
    assert checked.find_damaged(str(tmp_path), files) == {}


def test_forgetting_leaves_a_record_where_there_was_none(tmp_path: Path, files: dict[str, dict[str, Any]]) -> None:
    """Without a record only sizes would be compared, and a file that is known to be damaged would pass."""
    (tmp_path / checked.NAME).unlink()
    checked.forget(str(tmp_path), "a")
    assert (tmp_path / checked.NAME).exists()
    assert list(checked.find_damaged(str(tmp_path), files)) == ["a"]
