"""The training step on a CUDA device: the same numbers as the plain reference on a CPU."""

import dataclasses

import numpy as np
import pytest
import torch

from tests import reference_trainer as reference
from trainer import distributed, losses, models, optimizer
from trainer.config import Placement, Precision, StageConfig
from trainer.configs import load_recipe
from trainer.stages.contrastive import ContrastiveStage

pytestmark = pytest.mark.gpu
STEPS, BATCH = 5, 16


def stage_config(precision: Precision, local_batch_size: int = 0) -> StageConfig:
    """The smoke model at batch 16."""
    recipe = load_recipe("smoke")
    contrastive = dataclasses.replace(
        recipe.contrastive,
        optimizer=dataclasses.replace(recipe.contrastive.optimizer, learning_rate=1e-4, warmup_steps=2),
        global_batch_size=BATCH,
        contrast_batch_size=BATCH,
        precision=precision,
    )
    placement = Placement(device="cuda", threads=1, local_batch_size=local_batch_size)
    return StageConfig(stage="contrastive", output="unused", model=recipe.model, contrastive=contrastive, placement=placement)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-9), ("fp32", 1e-4)])
@pytest.mark.parametrize("local_batch_size", [0, 5])
def test_steps_equal_the_reference(precision: Precision, tolerance: float, local_batch_size: int) -> None:
    """Losses of five steps, with and without the gradient cache; TF32 would miss float32's tolerance by far."""
    config = stage_config(precision, local_batch_size)
    assert config.contrastive is not None
    model = models.build_model(config.model, config.seed).to(torch.float64 if precision == "fp64" else torch.float32)
    expected = reference.train(config, model, reference.random_batches(STEPS, BATCH, 32), STEPS)
    dist = distributed.start(config.placement)
    stage = ContrastiveStage(config, dist, dist.device)
    ours = optimizer.build(stage.module, config.contrastive.optimizer)
    found = []
    for step, batch in enumerate(reference.random_batches(STEPS, BATCH, 32)):
        figures = stage.forward_backward(batch, step)  # type: ignore[arg-type]
        torch.nn.utils.clip_grad_norm_(stage.module.parameters(), config.contrastive.optimizer.clip_norm)
        for group in ours.param_groups:
            group["lr"] = optimizer.learning_rate(config.contrastive.optimizer, step, STEPS)
        ours.step()
        stage.after_optimizer()
        found.append(float(figures["loss"]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_loss_and_gradients_equal_those_of_the_cpu() -> None:
    """In float64, tile by tile."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(300, 64, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2))
    results = []
    for device in ("cpu", "cuda"):
        inputs = [x.to(device).detach().requires_grad_() for x in (image, text, torch.tensor(50.0, dtype=torch.float64))]
        loss = losses.contrastive_loss(*inputs)
        results.append([loss.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(loss, inputs))])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_float32_products_are_not_tf32() -> None:
    """After distributed.start a product has float32's mantissa."""
    distributed.start(Placement(device="cuda", threads=1))
    a = torch.randn(256, 256, device="cuda")
    torch.testing.assert_close((a @ a).double(), a.double() @ a.double(), rtol=0, atol=1e-3)
