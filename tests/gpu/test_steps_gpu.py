"""The training step on a CUDA device: the same numbers as the plain reference on a CPU."""

import dataclasses
import json
import shutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import reference_trainer as reference
from tests.data import reference_augment
from tests.run import build
from trainer.config import OptimizerConfig, Placement, Precision, StageConfig
from trainer.configs import load_recipe
from trainer.data.augment import augment_on_device
from trainer.device import Leaving
from trainer.model import distributed, encoding, losses, optimizer, towers
from trainer.run import loop
from trainer.run.starting import State
from trainer.run.train import launch
from trainer.stages.contrastive import ContrastiveStage
from trainer.storage.committed import read_committed

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


def batches() -> Iterator[reference.Batch]:
    """The reference's, their pictures black and white: a division by 255 rounds otherwise on a GPU, but not there."""
    for batch in reference.random_batches(STEPS, BATCH, 32):
        yield dataclasses.replace(batch, images=(batch.images > 127).to(torch.uint8) * 255)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-9), ("fp32", 1e-4)])
@pytest.mark.parametrize("local_batch_size", [0, 5])
def test_steps_equal_the_reference(precision: Precision, tolerance: float, local_batch_size: int) -> None:
    """Losses of five steps, with and without the gradient cache; TF32 would miss float32's tolerance by far."""
    config = stage_config(precision, local_batch_size)
    assert config.contrastive is not None
    model = towers.build_model(config.model, config.seed).to(torch.float64 if precision == "fp64" else torch.float32)
    expected = reference.train(config, model, batches(), STEPS)
    dist = distributed.start(config.placement)
    stage = ContrastiveStage(config, dist, dist.device)
    ours = optimizer.build(stage.module, config.contrastive.optimizer)
    found = []
    for step, batch in enumerate(batches()):
        figures = stage.forward_backward(batch, step)  # type: ignore[arg-type]
        torch.nn.utils.clip_grad_norm_(stage.module.parameters(), config.contrastive.optimizer.clip_norm)
        for group in ours.param_groups:
            group["lr"] = optimizer.learning_rate(config.contrastive.optimizer, step, STEPS)
        ours.step()
        stage.after_optimizer()
        found.append(float(figures["loss"]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("local_batch_size", [0, 4])
def test_a_step_waits_for_nothing(local_batch_size: int) -> None:
    """By CUDA's own account, with MoCo-v2, after two steps in which constants were sent and kernels loaded."""
    config = stage_config("bf16", local_batch_size)
    assert config.contrastive is not None
    config = dataclasses.replace(config, contrastive=dataclasses.replace(config.contrastive, augmentation="moco_v2"))
    dist = distributed.start(config.placement)
    stage = ContrastiveStage(config, dist, dist.device)
    built = optimizer.build(stage.module, config.contrastive.optimizer)
    run: Any = types.SimpleNamespace(config=config, dist=dist, stage=stage, state=State(), steps=STEPS, optimizer=built)
    leaving, losses_found = Leaving(dist.device), []
    try:
        for step, batch in enumerate(reference.random_batches(STEPS, BATCH, 32)):
            pinned = dataclasses.replace(batch, images=batch.images.pin_memory(), tokens=batch.tokens.pin_memory())
            torch.cuda.set_sync_debug_mode("error" if step >= 2 else "default")
            leaving.add(step, loop._step(run, pinned))
            run.state.step += 1
            losses_found += [figures["loss"] for _, figures, _ in leaving.arrived(wait=False)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(losses_found) == STEPS - 1
    assert np.isfinite(losses_found).all()


@pytest.mark.parametrize("size", [9, 33, 224])
def test_augmentation_equals_the_references(size: int) -> None:
    """To 1e-6 on the device, whatever is sent in one copy."""
    generator = torch.Generator().manual_seed(size)
    images = torch.randint(0, 256, (64, 3, size, size), dtype=torch.uint8, generator=generator).cuda()
    seeds = torch.randint(0, 2**62, (64,), generator=generator)
    torch.testing.assert_close(augment_on_device(images, seeds, "moco_v2"), reference_augment.augment(images, seeds), rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("compiled", [False, True])
def test_captions_at_their_own_length_equal_the_full_length(compiled: bool) -> None:
    """In bf16 attention runs over packed captions: features and gradients are those of float32 at 77 tokens, to bf16's rounding."""
    model = towers.build_model(load_recipe("smoke").model, 0).cuda()
    batch = next(reference.random_batches(1, 24, 32))
    tokens, images = batch.tokens.cuda(), torch.randn(24, 3, 32, 32, device="cuda")
    direction = torch.randn(24, model.text_projection.shape[1], device="cuda")
    weights = [p for name, p in model.named_parameters() if name != "logit_scale"]
    found = []
    for precision in ("fp32", "bf16"):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            assert encoding._kernel_for_any_length(tokens.device) == (precision == "bf16")
            text = encoding.encode_text(model, tokens, batch.lengths, compiled=compiled)
            image = encoding.encode_image(model, images, compiled=compiled)
        gradients = torch.autograd.grad(((text + image) * direction).sum(), weights)
        found.append([text.detach(), image.detach(), *gradients])
    for exact, rounded in zip(*found, strict=True):
        assert float((rounded - exact).norm()) <= 0.1 * float(exact.norm())


def test_a_literal_end_of_text_ends_a_packed_caption() -> None:
    """What follows the first EOT inside a caption changes nothing."""
    model = towers.build_model(load_recipe("smoke").model, 0).cuda()
    batch = next(reference.random_batches(1, 8, 32))
    batch.tokens[:, 1] = reference.END
    other = batch.tokens.clone()
    other[:, 2] = 5
    with torch.autocast("cuda", torch.bfloat16):
        first, second = (encoding.encode_text(model, tokens.cuda(), batch.lengths) for tokens in (batch.tokens, other))
    assert torch.equal(first, second)


def test_sums_over_nccl_are_those_of_one_process() -> None:
    """One rank in a real nccl group: gather, its backward, and the sum of gradients change nothing."""
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl", init_method="tcp://127.0.0.1:29511", rank=0, world_size=1)
    try:
        value = torch.randn(6, 4, device="cuda", requires_grad=True)
        gathered = distributed.gather(value)
        gathered.pow(2).sum().backward()
        weight = torch.nn.Parameter(torch.zeros(3, device="cuda"))
        gradients = distributed.GradientSum([weight])
        for _ in range(2):  # after backward, then while it runs
            weight.grad = None
            gradients.begin(passes=1)
            (weight * torch.arange(3.0, device="cuda")).sum().backward()
            gradients.finish()
        torch.cuda.synchronize()
        assert distributed.communication_seconds() > 0
        assert distributed.communication_seconds() == 0
        assert torch.equal(gathered.detach(), value.detach())
        assert torch.equal(value.grad, 2 * value.detach())  # type: ignore[arg-type]
        assert weight.grad is not None
        assert weight.grad.tolist() == [0.0, 1.0, 2.0]
        assert distributed.largest(1.0, 2.0) == [1.0, 2.0]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("compile", [False, True])
def test_a_stage_goes_on_from_its_checkpoint_on_the_device(tmp_path: Path, compile: bool) -> None:
    """Saved through pinned buffers at step 3 and resumed there: the last losses are those of the run left alone, to rounding."""
    whole = build.contrastive(tmp_path / "whole", epochs=4, device="cuda", checkpoint_every_steps=3, keep_last=9, compile=compile)
    launch("contrastive", build.written(whole), [])
    resumed = build.contrastive(tmp_path / "resumed", epochs=4, device="cuda", compile=compile)
    shutil.copytree(f"{whole.output}/checkpoints/step-000000003", f"{resumed.output}/checkpoints/step-000000003")
    launch("contrastive", build.written(resumed), [])
    losses_of = [
        {line["step"]: line["loss"] for line in map(json.loads, (Path(config.output) / "progress.jsonl").read_text().splitlines())}
        for config in (whole, resumed)
    ]
    assert min(losses_of[1]) == 4
    for step, loss in losses_of[1].items():
        assert loss == pytest.approx(losses_of[0][step], abs=1e-4)
    assert read_committed(f"{resumed.output}/final") is not None


def test_a_gradient_that_is_not_finite_is_skipped_and_told_a_step_later() -> None:
    """Without a wait for the device in between; weights stay finite."""
    module = torch.nn.Linear(3, 2).cuda()
    built = optimizer.build(module, OptimizerConfig(learning_rate=1e-2))
    leaving, told = Leaving(torch.device("cuda")), []
    for step in range(1, 5):
        for p in module.parameters():
            p.grad = torch.full_like(p, float("nan") if step in (2, 4) else 0.5)
        skip = ~torch.isfinite(torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))
        built.step(unless=skip)
        leaving.add(step, {"skipped": skip})
        told.append([known for known, figures, _ in leaving.arrived(wait=False) if figures["skipped"]])
    assert told == [[], [], [2], []]
    assert [(step, figures) for step, figures, _ in leaving.arrived(wait=True)] == [(4, {"skipped": 1.0})]
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())
