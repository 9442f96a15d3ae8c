"""The report of an experiment, read back."""

import json
from pathlib import Path

import pytest

import firstsight


def test_a_report_is_what_the_page_says(first: Path) -> None:
    """By the experiment's folder or the file itself."""
    written = json.loads((first / "report" / "results.json").read_text())
    report = firstsight.read_report(str(first))
    assert (report.experiment, report.verdict, report.sentence) == ("first", written["answer"]["verdict"], written["answer"]["sentence"])
    assert {row["arm"] for row in report.scores} == {"random", "perceptual", "posthoc"}
    for name in ("endpoints", "scores", "contrasts", "metrics", "data"):
        assert getattr(report, name) == written[name]
    assert firstsight.read_report(str(first / "report" / "results.json")) == report


def test_a_report_that_is_not_there_or_damaged_is_refused(first: Path, tmp_path: Path) -> None:
    """In one line that says what to do."""
    with pytest.raises(firstsight.InputError, match="no report here"):
        firstsight.read_report(str(tmp_path))
    text = (first / "report" / "results.json").read_text()
    (tmp_path / "results.json").write_text(text.replace('"experiment": "first"', '"experiment": "other"'))
    with pytest.raises(firstsight.Corrupt, match="checksum"):
        firstsight.read_report(str(tmp_path / "results.json"))


def test_a_report_of_a_newer_format_is_refused(first: Path, tmp_path: Path) -> None:
    """By its version."""
    written = json.loads((first / "report" / "results.json").read_text())
    del written["sha256"]
    (tmp_path / "results.json").write_text(json.dumps({**written, "format_version": 99}))
    with pytest.raises(firstsight.InputError, match="format 99 is newer"):
        firstsight.read_report(str(tmp_path / "results.json"))
