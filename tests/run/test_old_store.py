"""What commit ad127be wrote is found, read and gone on with by today's code: finished is finished, and a resumed run ends in its bits."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.planning import arms
from pipelines.planning.plan import Experiment, resolve
from pipelines.planning.writing import write_plan
from tests import old_store
from trainer.config import DataConfig, Recipe, StagingConfig, recipe_hash
from trainer.configs import read_stored
from trainer.evaluation.evaluate import evaluate
from trainer.fields import recipe
from trainer.report.write import write_report
from trainer.run.train import is_done, launch
from trainer.staging.stage import stage_pairs, stage_triplets
from trainer.storage.committed import read_committed
from trainer.storage.recipes import read_stage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return old_store.unpack(tmp_path)


def cells(root: Path) -> list[dict[str, Any]]:
    """As its plan.json has them."""
    found: list[dict[str, Any]] = plan(root)["cells"]
    return found


def plan(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "experiments/tiny/plan.json").read_text())
    return found


def test_every_stage_has_the_hash_that_its_plan_seal_and_lineage_say(root: Path) -> None:
    """Of three configurations, two of them sealed."""
    places = sorted(root.glob("experiments/tiny/**/contrastive/config.yaml")) + sorted(root.glob("experiments/tiny/towers/*/config.yaml"))
    assert len(places) == 3
    for place in places:
        config = read_stage(str(place))
        seal = read_committed(f"{config.output}/final")
        assert recipe_hash(config) == json.loads((place.parent / "lineage.json").read_text())["recipe_hash"]
        assert seal is None or seal.recipe_hash == recipe_hash(config)
        planned = [cell["recipe_hashes"][config.stage] for cell in cells(root) if cell[config.stage] == config.output]
        assert set(planned) == {recipe_hash(config)}


def test_finished_stages_are_found_done(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the one that is not, is not."""
    finished, broken = cells(root)
    assert is_done(read_stage(f"{finished['contrastive']}/config.yaml"))
    assert is_done(read_stage(f"{broken['perceptual']}/config.yaml"))
    assert not is_done(read_stage(f"{broken['contrastive']}/config.yaml"))
    launch("contrastive", f"{finished['contrastive']}/config.yaml", [])
    assert "contrastive random-seed0: already done" in capsys.readouterr().err


def test_its_data_sets_are_found_sealed(root: Path) -> None:
    """The plan id of a source and its options is what it was, so nothing is staged again: they were checked, and that is noted."""
    old = plan(root)
    recipe = read_stored(Recipe, old["recipe"], "plan.json")
    before = {path: path.read_bytes() for path in root.glob("datasets/**/*") if path.is_file()}
    pairs = stage_pairs(root=str(root), source=str(root.parent / "source/shapes"), recipe=recipe, max_reject_fraction=0.0)
    triplets = stage_triplets(
        root=str(root), source=str(root.parent / "source/votes"), recipe=recipe, max_reject_fraction=0.0, from_pairs=""
    )
    assert pairs == (old["pairs"]["uri"], old["pairs"]["identity"])
    assert triplets == (old["triplets"]["uri"], old["triplets"]["identity"])
    after = {path: path.read_bytes() for path in root.glob("datasets/**/*") if path.is_file() and path.name != "CHECKED.json"}
    assert after == before


@dataclass(frozen=True, kw_only=True)
class GrownStaging(StagingConfig):
    """As a later version may have it."""

    sharpen: float = recipe(0.5, "ours", "Came later.", since="0.2.0", introduced=0.0)


def test_a_data_set_is_found_where_staging_grew(root: Path) -> None:
    """While the new field is as introduced; another value makes another plan, beside it."""
    old = plan(root)
    known, source = read_stored(Recipe, old["recipe"], "plan.json"), str(root.parent / "source/shapes")

    def stage(sharpen: float) -> tuple[str, str]:
        staging = GrownStaging(**dataclasses.asdict(known.staging), sharpen=sharpen)
        return stage_pairs(root=str(root), source=source, recipe=dataclasses.replace(known, staging=staging), max_reject_fraction=0.0)

    assert stage(0.0) == (old["pairs"]["uri"], old["pairs"]["identity"])
    assert stage(0.5)[0] != old["pairs"]["uri"]


def test_the_same_request_plans_the_same_stages(root: Path) -> None:
    """Nothing is refused, and each stage lies where it lay, with the hash that it had."""
    old = plan(root)
    experiment = Experiment(
        root=str(root),
        name="tiny",
        recipe=read_stored(Recipe, old["recipe"], "plan.json"),
        pairs=DataConfig(**old["pairs"]),
        triplets=DataConfig(**old["triplets"]),
    )
    found = [resolve(experiment, arm, 0) for arm in arms.parse_arms("random,perceptual")]
    write_plan(experiment, found)
    for cell, entry in zip(found, old["cells"], strict=True):
        assert {stage.stage: recipe_hash(stage) for stage in cell.stages()} == entry["recipe_hashes"]
        assert {stage.stage: stage.output for stage in cell.stages()} == {stage.stage: entry[stage.stage] for stage in cell.stages()}
        assert cell.evaluation.output == entry["evaluation"]


def test_its_evaluation_is_found_done(root: Path) -> None:
    """No figure is measured again."""
    done = evaluate(f"{cells(root)[0]['evaluation']}/config.yaml")
    assert done["written"] == 0
    assert done["done"] == done["wanted"] == 8


def test_its_report_says_the_same(root: Path) -> None:
    """Every figure of results.json, and what is missing."""
    old = json.loads((root / "experiments/tiny/report/results.json").read_text())
    write_report(str(root / "experiments/tiny"), [])
    new = json.loads((root / "experiments/tiny/report/results.json").read_text())
    del old["answer"]["sentence"], new["answer"]["sentence"]  # its wording may change
    for key in ("arms", "stages", "scores", "two_afc", "metrics", "endpoints", "excluded", "answer", "evaluation_version"):
        assert _as_it_was(new[key]) == old[key], key
    assert [cell["cell"] for cell in new["missing"]] == [cell["cell"] for cell in old["missing"]] == ["perceptual-seed0"]


def _as_it_was(rows: Any) -> Any:
    """Without the point of a recipe's axes, which rows did not have."""
    if isinstance(rows, dict):
        return {name: value for name, value in rows.items() if (name, value) != ("point", "")}
    return [_as_it_was(row) for row in rows] if isinstance(rows, list) else rows


def test_its_unfinished_stage_ends_in_the_same_bits(root: Path) -> None:
    """Resumed from ad127be's checkpoint in a process of its own: the final model is that of ad127be's uninterrupted run."""
    expected = old_store.unfinished()
    folder = root / expected["stage"]
    arguments = ["train", "contrastive", "--config", str(folder / "config.yaml"), *(f"--set={item}" for item in expected["set"])]
    command, environment = [sys.executable, "-m", "trainer", *arguments], {**os.environ, **expected["environment"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"resumed {folder}/checkpoints/{expected['left_at']}" in done.stderr
    seal = read_committed(str(folder / "final"))
    assert seal is not None
    assert (seal.step, seal.recipe_hash) == (expected["seal"]["step"], expected["seal"]["recipe_hash"])
    if torch.__version__ != expected["torch"]:
        pytest.skip(f"bits are those of torch {expected['torch']}")
    assert seal.facts["weights_sha256"] == expected["weights_sha256"]
    assert seal.files == expected["seal"]["files"]
