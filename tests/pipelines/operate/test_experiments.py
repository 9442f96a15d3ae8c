"""What `status` shows of a root on this machine, without a cluster."""

import json
import os
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.operate.experiments import Progress, survey_root
from tests.report.fabricate import Fabrication, fabricate
from trainer.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`runs` below the working folder, with one finished experiment."""
    fabricate(tmp_path / "runs", Fabrication(arms=("random", "perceptual", "posthoc"), items=8))
    return tmp_path / "runs"


def states(root: Path) -> dict[tuple[str, str], str]:
    return {(row.stage, row.cell): row.state for row in survey_root(str(root))}


def test_every_stage_has_one_row_with_its_state(root: Path) -> None:
    """A shared stage names its cells; finished, stopped, running, failed and not begun are told apart."""
    shared = ("contrastive", "random-seed0, posthoc-seed0")
    assert states(root) == {
        shared: "Done", ("perceptual", "perceptual-seed0"): "Done", ("contrastive", "perceptual-seed0"): "Done",
        ("posthoc", "posthoc-seed0"): "Done", ("evaluate", "random-seed0"): "Done", ("evaluate", "perceptual-seed0"): "Done",
        ("evaluate", "posthoc-seed0"): "Done", ("report", ""): "To do",
    }  # fmt: skip
    experiment = root / "experiments" / "demo"
    stage = experiment / "random-seed0" / "contrastive"
    (stage / "final" / "COMMITTED.json").unlink()
    assert states(root)[shared] == "Running"
    os.utime(stage / "progress.jsonl", (1, 1))
    assert states(root)[shared] == "Stopped"
    (stage / "failure.json").write_text('{"time": "2026-11-24", "stage": "contrastive", "exit_code": 1, "line": "out of memory"}')
    (row,) = [row for row in survey_root(str(root), "demo") if row.stage == "contrastive" and "random" in row.cell]
    assert (row.state, row.why, row.step, row.steps) == ("Failed", "out of memory", 100, 100)
    (stage / "failure.json").unlink()
    (stage / "progress.jsonl").unlink()
    assert states(root)[shared] == "To do"


def test_a_plan_that_cannot_be_read_is_a_row(root: Path) -> None:
    """The others are still shown."""
    broken = root / "experiments" / "broken"
    broken.mkdir()
    (broken / "plan.json").write_text("{")
    rows = survey_root(str(root))
    assert [row.experiment for row in rows if row.state == "Failed"] == ["broken"]
    assert {row.experiment for row in rows} == {"broken", "demo"}
    with pytest.raises(InputError, match="nothing is planned there"):
        survey_root(str(root), "other")


@pytest.mark.parametrize("named", [True, False])
def test_without_a_cluster_status_shows_the_root(
    root: Path, named: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that is named, else runs/ here; with no such folder it is still an error that names the kubeconfig."""
    monkeypatch.setenv("KUBECONFIG", str(root / "none"))
    monkeypatch.chdir(root.parent)
    assert main(["status", *(["--root", str(root)] if named else [])]) == 0
    shown = capsys.readouterr().out
    assert f"this is what is in {root}" in shown
    assert "random-seed0, posthoc-seed0" in shown
    assert main(["status", "--root", str(root), "--json"]) == 0
    assert Progress(**json.loads(capsys.readouterr().out)[0]).experiment == "demo"
    monkeypatch.chdir(root)
    assert main(["status"]) == 2
    assert "it does not define a usable cluster" in capsys.readouterr().err
