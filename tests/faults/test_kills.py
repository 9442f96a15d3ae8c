"""Any process may die at any time: nothing is lost, nothing is done twice, and the weights come out the same."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults import campaign
from tests.run import build
from trainer.config import Precision, StageConfig
from trainer.storage.committed import read_committed

EPOCHS = 12
STEPS = 2 * EPOCHS


def weights_of(config: StageConfig) -> str:
    seal = read_committed(f"{config.output}/final")
    assert seal is not None
    return str(seal.facts["weights_sha256"])


def losses_of(config: StageConfig) -> list[float]:
    lines = [json.loads(line) for line in (Path(config.output) / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


def kept_of(config: StageConfig) -> dict[int, str]:
    """Hash of the weights that were kept and sealed, by step."""
    seals = [read_committed(str(path.parent)) for path in Path(config.output, "trajectory").glob("*/COMMITTED.json")]
    return {seal.step: seal.files["model.safetensors"]["sha256"] for seal in seals if seal is not None}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("world_size", "precision"),
    [
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, "fp32"), (3, "bf16"))),
        *(pytest.param(*case, marks=pytest.mark.campaign) for case in ((2, "bf16"), (3, "fp32"))),
    ],
)
def test_ten_kills_leave_no_trace_in_the_weights(tmp_path: Path, world_size: int, precision: Precision) -> None:
    """SIGKILL of a random rank at ten random moments, mid-save among them: bit-equal to the run left alone, each step logged once."""
    asked: dict[str, Any] = {"epochs": EPOCHS, "precision": precision, "processes_per_node": world_size, "trajectory": True}
    whole = build.contrastive(tmp_path / "whole", **asked)
    assert campaign.finish(campaign.start_ranks(whole, world_size)) == [0] * world_size
    config = build.contrastive(tmp_path / "killed", **asked, checkpoint_every_steps=1)
    torn = campaign.run_with_kills(config, world_size, kills=10, last_step=STEPS - 2, seed=world_size)
    assert torn >= 1
    assert weights_of(config) == weights_of(whole)
    assert losses_of(config) == losses_of(whole)
    assert kept_of(config) == kept_of(whole)
    assert kept_of(whole).keys() == {0, 2, 4, 8, 16}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_run_goes_on_at_another_world_size(tmp_path: Path, world_size: int) -> None:
    """From the checkpoint of step 4 on, 20 steps: the loss is that of the two ranks it began with, to 1e-5."""
    began = build.contrastive(tmp_path / "two", epochs=EPOCHS, processes_per_node=2, checkpoint_every_steps=STEPS - 20, keep_last=9)
    assert campaign.finish(campaign.start_ranks(began, 2)) == [0, 0]
    config = build.contrastive(tmp_path / "other", epochs=EPOCHS, processes_per_node=world_size)
    checkpoint = Path("checkpoints") / f"step-{STEPS - 20:09d}"
    shutil.copytree(Path(began.output) / checkpoint, Path(config.output) / checkpoint)
    shutil.copy(Path(began.output) / "progress.jsonl", config.output)
    assert campaign.finish(campaign.start_ranks(config, world_size)) == [0] * world_size
    assert losses_of(config)[STEPS - 20 :] == pytest.approx(losses_of(began)[STEPS - 20 :], abs=1e-5)
    state = json.loads((Path(config.output) / "lineage.json").read_text())
    assert state["world_size"] == world_size


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_on_one_rank_saves_the_same_step_on_all(tmp_path: Path) -> None:
    """Rank 1 alone is told to stop: both exit 143 after one checkpoint, and the run resumes from it."""
    config = build.contrastive(tmp_path, epochs=EPOCHS, processes_per_node=2, checkpoint_every_steps=1)
    ranks = campaign.start_ranks(config, 2)
    campaign._wait_for_step(config, 2, ranks)
    assert ranks[1].pid is not None
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert campaign.finish(ranks) == [143, 143]
    again = dataclasses.replace(config, placement=build.placed(processes_per_node=2))
    assert campaign.finish(campaign.start_ranks(again, 2)) == [0, 0]
