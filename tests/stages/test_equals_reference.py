"""Twenty steps of the contrastive stage equal the plain reference, on 1, 2 and 4 ranks, whatever saves time or memory."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests import reference_trainer as reference
from tests.ranks import run_ranks
from trainer.config import Placement, Precision, StageConfig
from trainer.configs import load_recipe
from trainer.model import optimizer, towers
from trainer.model.distributed import Distributed
from trainer.stages.contrastive import ContrastiveStage

STEPS, BATCH, SIDE = 20, 16, 32
VARIANTS = {  # buckets, local batch size (0: the rank's whole share)
    "plain": (False, 0),
    "buckets": (True, 0),
    "cache": (False, 3),
    "cache and buckets": (True, 3),
}


def stage_config(precision: Precision, contrast_batch_size: int = BATCH, local_batch_size: int = 0) -> StageConfig:
    """The smoke model with the paper's optimiser settings, twenty steps.

    In float32 the rate is a fifth of the paper's peak (and still 25 times what its warm-up reaches in twenty steps):
    AdamW divides rounding by rounding where a token's gradient is tiny, and makes steps of the rate's size of it.
    """
    recipe = load_recipe("smoke")
    learning_rate = 1e-4 if precision == "fp32" else 5e-4
    contrastive = dataclasses.replace(
        recipe.contrastive,
        optimizer=dataclasses.replace(recipe.contrastive.optimizer, warmup_steps=4, learning_rate=learning_rate),
        global_batch_size=BATCH,
        contrast_batch_size=contrast_batch_size,
        precision=precision,
    )
    placement = Placement(device="cpu", threads=1, local_batch_size=local_batch_size)
    return StageConfig(stage="contrastive", output="unused", model=recipe.model, contrastive=contrastive, placement=placement)


def train_ours(dist: Distributed, config: StageConfig, buckets: bool) -> tuple[list[float], dict[str, np.ndarray]]:
    """The loop's phases by hand, over the reference's batches: losses and final weights."""
    stage = ContrastiveStage(config, dist, dist.device)
    if not buckets:
        stage.text_buckets = ()
    settings = config.contrastive
    assert settings is not None
    ours = optimizer.build(stage.module, settings.optimizer)
    losses = []
    for step, batch in enumerate(reference.random_batches(STEPS, BATCH, SIDE)):
        figures = stage.forward_backward(batch.part(dist.rank, dist.world_size), step)  # type: ignore[arg-type]
        torch.nn.utils.clip_grad_norm_(stage.module.parameters(), settings.optimizer.clip_norm)
        for group in ours.param_groups:
            group["lr"] = optimizer.learning_rate(settings.optimizer, step, STEPS)
        ours.step()
        stage.after_optimizer()
        losses.append(float(figures["loss"]))
    return losses, {name: p.detach().numpy() for name, p in stage.module.named_parameters()}


@functools.cache
def train_reference(config: StageConfig) -> tuple[list[float], dict[str, np.ndarray]]:
    """The same twenty steps by tests/reference_trainer.py, which knows no local batches."""
    model = towers.build_model(config.model, config.seed)
    assert config.contrastive is not None
    if config.contrastive.precision == "fp64":
        model.double()
    losses = reference.train(config, model, reference.random_batches(STEPS, BATCH, SIDE), STEPS)
    return losses, {name: p.detach().numpy() for name, p in model.named_parameters()}


def train_variants(dist: Distributed, precision: Precision, names: Sequence[str]) -> dict[str, Any]:
    """The variants, one after the other, on this rank."""
    return {
        name: train_ours(dist, stage_config(precision, local_batch_size=VARIANTS[name][1]), buckets=VARIANTS[name][0]) for name in names
    }


def without_key_biases(name: str, weights: np.ndarray) -> np.ndarray:
    """A key's bias has no gradient but rounding, which AdamW turns into steps of full size: leave it out in float32."""
    return np.delete(weights, range(len(weights) // 3, 2 * len(weights) // 3)) if name.endswith("in_proj_bias") else weights


@pytest.mark.parametrize(
    ("world_size", "names"),
    [
        (1, ("plain",)),
        (2, ("cache and buckets",)),
        pytest.param(1, tuple(VARIANTS), marks=pytest.mark.slow),
        pytest.param(2, tuple(VARIANTS), marks=pytest.mark.campaign),
        pytest.param(4, tuple(VARIANTS), marks=pytest.mark.slow),
    ],
)
def test_float64_equals_to_a_billionth(world_size: int, names: tuple[str, ...]) -> None:
    """Every loss and every weight to 1e-9, with and without gradient cache and buckets."""
    losses, weights = train_reference(stage_config("fp64"))
    for rank in run_ranks(train_variants, world_size, "fp64", names):
        for name, (our_losses, our_weights) in rank.items():
            np.testing.assert_allclose(our_losses, losses, rtol=0, atol=1e-9, err_msg=name)
            for key, value in weights.items():
                np.testing.assert_allclose(our_weights[key], value, rtol=0, atol=1e-9, err_msg=f"{name}: {key}")


@pytest.mark.parametrize("local_batch_size", [0, 3])
def test_the_clamp_as_coded_equals_the_reference(local_batch_size: int) -> None:
    """In the loss instead of after the step; from ln 100, where half of all gradients push the scale above its maximum."""
    config = stage_config("fp64", local_batch_size=local_batch_size)
    assert config.contrastive is not None
    config = dataclasses.replace(config, contrastive=dataclasses.replace(config.contrastive, logit_scale_clamp="forward"))
    losses, weights = train_reference(dataclasses.replace(config, placement=stage_config("fp64").placement))
    ((our_losses, our_weights),) = run_ranks(train_ours, 1, config, True)
    np.testing.assert_allclose(our_losses, losses, rtol=0, atol=1e-9)
    for key, value in weights.items():
        np.testing.assert_allclose(our_weights[key], value, rtol=0, atol=1e-9, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.campaign), 4])
def test_float32_equals_to_rounding(world_size: int) -> None:
    """Losses to 1e-5, weights to 1e-4 except for key biases."""
    losses, weights = train_reference(stage_config("fp32"))
    for rank in run_ranks(train_variants, world_size, "fp32", tuple(VARIANTS)):
        for name, (our_losses, our_weights) in rank.items():
            np.testing.assert_allclose(our_losses, losses, rtol=0, atol=1e-5, err_msg=name)
            for key, value in weights.items():
                mine, other = without_key_biases(key, our_weights[key]), without_key_biases(key, value)
                np.testing.assert_allclose(mine, other, rtol=0, atol=1e-4, err_msg=f"{name}: {key}")


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("local_batch_size", [0, 3])
def test_contrast_groups_equal_at_any_world_size(world_size: int, local_batch_size: int) -> None:
    """With contrast_batch_size a quarter of the batch, each of four groups is contrasted by itself, the same on any ranks."""
    losses, weights = train_reference(stage_config("fp64", contrast_batch_size=BATCH // 4))
    config = stage_config("fp64", contrast_batch_size=BATCH // 4, local_batch_size=local_batch_size)
    for our_losses, our_weights in run_ranks(train_ours, world_size, config, True):
        np.testing.assert_allclose(our_losses, losses, rtol=0, atol=1e-9)
        for key, value in weights.items():
            np.testing.assert_allclose(our_weights[key], value, rtol=0, atol=1e-9, err_msg=key)
