"""failure.json: what it says is read back; what was damaged decides nothing and ends nothing."""

import json
from pathlib import Path

import pytest

from tests.damage import flip, rewrite
from trainer.storage import layout, write_json
from trainer.storage.failures import read_failure, write_failure


def test_a_failure_is_read_back_as_it_was_written(root: str) -> None:
    write_failure(root, stage="contrastive", exit_code=2, line="no such data set")
    found = read_failure(root)

    assert found is not None
    assert (found.stage, found.exit_code, found.line) == ("contrastive", 2, "no such data set")


def test_where_nothing_failed_there_is_none(root: str) -> None:
    assert read_failure(root) is None


def test_a_record_of_an_older_version_is_read(tmp_path: Path) -> None:
    """It had neither format version nor checksum."""
    write_json(layout.failure(str(tmp_path)), {"time": 3.5, "stage": "posthoc", "exit_code": 1, "line": "disk full"})
    found = read_failure(str(tmp_path))

    assert found is not None
    assert (found.time, found.stage, found.exit_code, found.line) == (3.5, "posthoc", 1, "disk full")


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.campaign)])
def test_no_flipped_bit_becomes_another_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str], stride: int) -> None:
    """It is named in a line instead; some bits of white space change nothing."""
    write_failure(str(tmp_path), stage="s", exit_code=1, line="disk full")
    path = tmp_path / "failure.json"
    written, data = read_failure(str(tmp_path)), path.read_bytes()
    for bit in range(0, 8 * len(data), stride):
        rewrite(path, flip(data, bit))
        assert read_failure(str(tmp_path)) in (None, written)
    said = capsys.readouterr().err.splitlines()

    assert len(said) > len(data) / stride
    assert all(line.startswith(f"{path}: ") for line in said)


@pytest.mark.parametrize(
    "text", ["", "[", "3", "null", json.dumps({"exit_code": "2", "line": 3}), json.dumps({"format_version": 9}), "\xff"]
)
def test_what_is_no_failure_is_passed_over_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "failure.json").write_text(text, "latin-1")

    assert read_failure(str(tmp_path)) is None
    assert len(capsys.readouterr().err.splitlines()) == 1
