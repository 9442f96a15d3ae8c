import json
from pathlib import Path

import pytest

from tests.evaluation.test_evaluate import make_cell
from trainer.evaluation import siblings
from trainer.evaluation.evaluate import evaluate
from trainer.storage import read_bytes


@pytest.fixture
def experiment(tmp_path):
    """(configuration, experiment): a plan with two arms of seed 0 and one of seed 1, and the first arm measured."""
    config = make_cell(str(tmp_path))
    folder = tmp_path / "experiment"
    cells = [("random", 0), ("other", 0), ("random", 1)]
    folder.mkdir()
    plan = {"format_version": 1, "cells": [{"evaluation": output(folder, arm, seed), "seed": seed} for arm, seed in cells]}
    (folder / "plan.json").write_text(json.dumps(plan))
    assert evaluate(config, [f"output={output(folder, 'random', 0)}"]) == {"wanted": 10, "done": 0, "written": 10}
    return config, folder


def output(folder: Path, arm: str, seed: int) -> str:
    return f"{folder}/{arm}-seed{seed}/evaluation"


def test_models_that_arms_share_are_measured_once(experiment):
    """The untrained model's four results and the tower's two are taken over under the second arm's name, bytes of items and all."""
    config, folder = experiment
    result = evaluate(config, [f"output={output(folder, 'other', 0)}", "arm=other"])

    assert result == {"wanted": 10, "done": 6, "written": 4}
    first, second = (Path(output(folder, arm, 0), "untrained-final", "colours_zeroshot_classification") for arm in ("random", "other"))
    assert first.with_suffix(".items.npz").read_bytes() == second.with_suffix(".items.npz").read_bytes()
    theirs, own = (json.loads(path.with_suffix(".json").read_text()) for path in (first, second))
    assert own["metrics"] == theirs["metrics"]
    assert (own["model"], own["firstsight"]["arm"]) == ("other-seed0", "other")
    assert evaluate(config, [f"output={output(folder, 'other', 0)}", "arm=other"]) == {"wanted": 10, "done": 10, "written": 0}


def test_another_seeds_model_is_another_model(experiment):
    """Nothing is taken over from a cell of another seed."""
    config, folder = experiment
    assert evaluate(config, [f"output={output(folder, 'random', 1)}", "seed=1"])["written"] == 10


@pytest.mark.parametrize("how", ["torn", "another set", "no items"])
def test_a_siblings_result_that_does_not_count_is_not_taken(experiment, how):
    """Half a JSON, another data set's figures, or no items beside them."""
    config, folder = experiment
    path = Path(output(folder, "random", 0), "untrained-final", "colours_zeroshot_classification.json")
    if how == "torn":
        path.write_text(path.read_text()[:80])
    elif how == "another set":
        value = json.loads(path.read_text())
        value["firstsight"]["dataset_identity"] = "0" * 64
        path.write_text(json.dumps(value))
    else:
        path.with_name(path.name.replace(".json", ".items.npz")).unlink()

    assert evaluate(config, [f"output={output(folder, 'other', 0)}", "arm=other"]) == {"wanted": 10, "done": 5, "written": 5}


def test_items_that_are_damaged_as_they_are_copied_are_not_taken(experiment, monkeypatch):
    """They are compared with their checksum when they are read, whatever a record says of them."""
    config, folder = experiment
    monkeypatch.setattr(siblings, "read_bytes", lambda uri: b"x" + read_bytes(uri)[1:])

    assert evaluate(config, [f"output={output(folder, 'other', 0)}", "arm=other"]) == {"wanted": 10, "done": 0, "written": 10}


def test_without_a_plan_everything_is_measured(experiment):
    """A cell that stands alone has no siblings."""
    config, folder = experiment
    (folder / "plan.json").unlink()
    assert evaluate(config, [f"output={output(folder, 'other', 0)}", "arm=other"])["written"] == 10
