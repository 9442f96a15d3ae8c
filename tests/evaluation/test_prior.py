"""What is left of the start: the cosine of a tower's matrices with those that stage 2 began with."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from tests.damage import flip
from tests.evaluation import build
from trainer.config import ContrastiveConfig, EvaluateConfig, StageConfig, StartConfig
from trainer.errors import Corrupt
from trainer.evaluation.measure import _with_start
from trainer.evaluation.prior import Start, cosine
from trainer.evaluation.results import Outcome
from trainer.model import towers
from trainer.storage import layout
from trainer.storage.committed import find_damage, read_committed
from trainer.storage.recipes import write_config_file


def evaluation(root: Path, start: StartConfig) -> EvaluateConfig:
    """Of a cell whose contrastive stage started from `start`."""
    stage = StageConfig(
        stage="contrastive", seed=3, output=f"{root}/contrastive", start=start, model=build.MODEL, contrastive=ContrastiveConfig()
    )
    write_config_file(layout.config(stage.output), stage)
    return EvaluateConfig(seed=3, output=f"{root}/evaluation", model=build.MODEL, models=(build.asked("contrastive", stage.output, "a"),))


def test_the_cosine_is_that_of_all_matrices_in_one_row() -> None:
    """Gains and biases, which begin at 1 and 0 everywhere, would make any two towers alike."""
    ours = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([[[1.0]], [[-1.0]]]), "gain": torch.ones(9)}
    theirs = {"a": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "b": torch.tensor([[[2.0]], [[2.0]]]), "gain": torch.ones(9)}
    rows = [torch.cat([part[name].flatten() for name in ("a", "b")]) for part in (ours, theirs)]

    assert cosine(ours, theirs) == pytest.approx(float(torch.nn.functional.cosine_similarity(*rows, dim=0)))
    assert cosine(ours, ours) == pytest.approx(1.0)
    assert cosine(ours, {name: torch.zeros_like(part) for name, part in ours.items()}) == 0.0


def test_a_start_is_a_tower_its_permutation_or_the_seeds_own_weights(tmp_path: Path) -> None:
    """As the run itself began; of the permuted tower its own order of numbers."""
    recipe_hash = build.finished(f"{tmp_path}/tower", seed=7, tower=True)
    tower = towers.vision_state(towers.build_model(build.MODEL, 7))
    place = {"uri": f"{tmp_path}/tower/final", "recipe_hash": recipe_hash}
    starts = {
        "random": (StartConfig(), towers.vision_state(towers.build_model(build.MODEL, 3))),
        "tower": (StartConfig(kind="tower", **place), tower),
        "permuted": (StartConfig(kind="permuted", **place), towers.permute_within(tower, 3)),
    }
    for name, (start, weights) in starts.items():
        found = Start(evaluation(tmp_path / name, start))
        assert found.cosine(weights) == pytest.approx(1.0), name
        assert abs(found.cosine(tower if name != "tower" else starts["random"][1]) or 0.0) < 0.9, name


def test_a_start_that_is_gone_leaves_the_figure_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The measurement goes on: it is said once."""
    missing = Start(evaluation(tmp_path, StartConfig(kind="tower", uri=f"{tmp_path}/gone/final", recipe_hash="a")))

    assert missing.cosine({}) is None
    assert missing.cosine({}) is None
    assert capsys.readouterr().out.count("similarity to the start is left out") == 1


def test_a_damaged_start_fails_the_measurement_and_not_only_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A result without the figure would count as done for good."""
    place = {"uri": f"{tmp_path}/tower/final", "recipe_hash": build.finished(f"{tmp_path}/tower", seed=7, tower=True)}
    seal = read_committed(place["uri"])
    assert seal is not None
    assert not find_damage(f"{tmp_path}/tower", seal)
    file = tmp_path / "tower/final/vision.safetensors"
    file.write_bytes(flip(file.read_bytes(), 80_000))
    start = Start(evaluation(tmp_path / "cell", StartConfig(kind="tower", **place)))

    for _ in range(2):
        with pytest.raises(
            Corrupt, match=r"tower/final/vision\.safetensors: its SHA-256 does not match .*; run the stage in .*tower again"
        ):
            start.cosine({})
    assert "left out" not in capsys.readouterr().out
    encoder = Mock(vision_weights=dict)
    assert isinstance(_with_start(Outcome(metrics={}, chance={}, baselines={}, items={}, num_items=0), start, encoder), Corrupt)
    assert list(find_damage(f"{tmp_path}/tower", seal)) == [str(file)]
