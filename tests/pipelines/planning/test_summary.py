"""What a plan looks like on a terminal."""

from pathlib import Path

import pytest

from pipelines.planning import plan
from pipelines.planning.arms import parse_arms
from pipelines.planning.summary import print_plan
from trainer.config import DataConfig
from trainer.configs import load_recipe


def test_a_plan_folds_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each folder stands whole on its line, however narrow the terminal."""
    monkeypatch.setenv("COLUMNS", "60")
    experiment = plan.Experiment(
        root=str(tmp_path / ("long" * 20)), name="demo", recipe=load_recipe("smoke"), pairs=DataConfig(uri="p", identity="p"),
        triplets=DataConfig(uri="t", identity="t"),
    )  # fmt: skip
    cells = [plan.resolve(experiment, arm, 0) for arm in parse_arms("random,perceptual")]
    print_plan(experiment, cells, ["one line " * 20])
    lines = capsys.readouterr().out.splitlines()
    for cell in cells:
        for stage in cell.stages():
            assert [line for line in lines if cell.name in line and line.rstrip().endswith(stage.output)]
    assert ("one line " * 20) in lines
