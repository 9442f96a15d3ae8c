"""The contrastive stage's own rules: what it refuses, clamps, reports and leaves behind."""

import dataclasses
import math
import weakref
from pathlib import Path

import open_clip
import pytest
import torch

from tests import reference_trainer as reference
from trainer.config import ContrastiveConfig, Placement, StageConfig
from trainer.configs import load_recipe
from trainer.errors import InputError
from trainer.model import towers
from trainer.model.distributed import Distributed
from trainer.stages import contrastive as contrastive_stage
from trainer.stages.contrastive import ContrastiveStage

CPU = torch.device("cpu")


def config(local_batch_size: int = 0, **changes: object) -> StageConfig:
    """The smoke recipe at batch 8 with changes."""
    recipe = load_recipe("smoke")
    contrastive: ContrastiveConfig = dataclasses.replace(
        recipe.contrastive,
        **({"global_batch_size": 8, "contrast_batch_size": 8} | changes),  # type: ignore[arg-type]
    )
    placement = Placement(device="cpu", threads=1, local_batch_size=local_batch_size)
    return StageConfig(stage="contrastive", output="unused", model=recipe.model, contrastive=contrastive, placement=placement)


@pytest.mark.parametrize(
    ("given", "world_size", "message"),
    [
        (config(), 3, r"contrastive.global_batch_size must be a multiple of the number of ranks 3, got 8"),
        (config(contrast_batch_size=2), 4, r"contrastive.contrast_batch_size must be a multiple of the number of ranks 4, got 2"),
        (
            config(2, accumulation="independent"),
            1,
            r"accumulation independent never splits .* placement.local_batch_size must be >= .* 8, got 2",
        ),
    ],
)
def test_what_does_not_divide_is_refused(given: StageConfig, world_size: int, message: str) -> None:
    """Ranks that do not divide the batches, and a split where none is allowed, end before any step."""
    with pytest.raises(InputError, match=message):
        ContrastiveStage(given, Distributed(0, world_size, 0, CPU), CPU)


def test_the_logit_scale_is_clamped() -> None:
    """After the optimiser, exp(logit scale) lies between 1 and logit_scale_max."""
    stage = ContrastiveStage(config(), Distributed(0, 1, 0, CPU), CPU)
    for value, expected in ((9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        stage.model.logit_scale.data.fill_(value)
        stage.after_optimizer()
        assert stage.model.logit_scale.item() == pytest.approx(expected)


@pytest.mark.parametrize("local_batch_size", [0, 3])
def test_a_clamp_in_the_loss_leaves_the_parameter_without_a_gradient(local_batch_size: int) -> None:
    """Above logit_scale_max: as coded, the loss uses the maximum and the parameter stays where it is, gradient cache or not."""
    stage = ContrastiveStage(config(local_batch_size, logit_scale_clamp="forward"), Distributed(0, 1, 0, CPU), CPU)
    batch = next(reference.random_batches(1, 8, 32))
    losses = []
    for value, moves in ((math.log(100) - 0.1, True), (math.log(100) + 1e-3, False), (9.0, False)):
        stage.model.logit_scale.data.fill_(value)
        figures = stage.forward_backward(batch, 0)  # type: ignore[arg-type]
        assert (float(stage.model.logit_scale.grad) != 0) is moves  # type: ignore[arg-type]
        stage.after_optimizer()
        assert stage.model.logit_scale.item() == pytest.approx(value)
        assert float(figures["logit_scale"]) <= 100.001
        losses.append(float(figures["loss"]))
    assert losses[1] == losses[2] != losses[0]


def test_bf16_keeps_weights_and_gradients_in_float32() -> None:
    """Autocast touches the computation alone, and the loss stays near that of float32."""
    batch = next(reference.random_batches(1, 8, 32))
    losses = {}
    for precision in ("fp32", "bf16"):
        stage = ContrastiveStage(config(precision=precision), Distributed(0, 1, 0, CPU), CPU)
        losses[precision] = float(stage.forward_backward(batch, 0)["loss"])  # type: ignore[arg-type]
        assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.dtype == torch.float32 for p in stage.module.parameters())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_figures_of_a_step() -> None:
    """The loss, the scale, and FLOPs counted at the captions' own lengths."""
    given = config()
    stage = ContrastiveStage(given, Distributed(0, 1, 0, CPU), CPU)
    batch = next(reference.random_batches(1, 8, 32))
    figures = stage.forward_backward(batch, 0)  # type: ignore[arg-type]
    assert figures["logit_scale"] == pytest.approx(1 / 0.07)
    assert figures["flops"] == pytest.approx(8 * towers.flops_per_sample(given.model, batch.lengths.double().mean().item()))
    assert 0.5 < float(figures["loss"]) < 6


def test_gradients_do_not_pile_up() -> None:
    """A second call starts from zero, whether or not the caller cleared."""
    stage = ContrastiveStage(config(), Distributed(0, 1, 0, CPU), CPU)
    batch = next(reference.random_batches(1, 8, 32))
    stage.forward_backward(batch, 0)  # type: ignore[arg-type]
    first = stage.model.visual.proj.grad.clone()
    stage.forward_backward(batch, 1)  # type: ignore[arg-type]
    assert torch.equal(stage.model.visual.proj.grad, first)


def test_the_final_model_opens_in_open_clip(tmp_path: Path) -> None:
    """final/ holds what open_clip opens, and the facts are the hashes of its weights."""
    stage = ContrastiveStage(config(), Distributed(0, 1, 0, CPU), CPU)
    facts = stage.save_final(tmp_path)
    opened = open_clip.create_model(f"local-dir:{tmp_path}")
    assert all(torch.equal(a, b) for a, b in zip(stage.model.parameters(), opened.parameters(), strict=True))
    assert facts.keys() == {"weights_sha256", "vision_sha256"}
    assert all(len(value) == 64 for value in facts.values())


def test_a_share_that_is_augmented_in_chunks_is_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As trainer/configs/sizes.py counts it: in float32 too a chunk is gone when the next one is augmented."""
    augment, seen = contrastive_stage.augment_on_device, list[weakref.ref[torch.Tensor]]()

    def noted(*arguments: object) -> torch.Tensor:
        assert [part for part in seen if part() is not None] == []
        part = augment(*arguments)  # type: ignore[arg-type]
        seen.append(weakref.ref(part))
        return part

    (batch,) = reference.random_batches(1, 8, 32)
    whole = ContrastiveStage(config(precision="fp32", augmentation="moco_v2"), Distributed(0, 1, 0, CPU), CPU)._augmented(batch)  # type: ignore[arg-type]
    monkeypatch.setattr(contrastive_stage, "augment_on_device", noted)
    stage = ContrastiveStage(config(3, precision="fp32", augmentation="moco_v2"), Distributed(0, 1, 0, CPU), CPU)
    assert torch.equal(stage._augmented(batch), whole)  # type: ignore[arg-type]
    assert len(seen) == 3
