"""What a step makes the host wait for: nothing, counted on a device that computes on the CPU."""

import dataclasses
import types
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import reference_trainer as reference
from tests.ranks import run_ranks
from tests.run import build
from trainer import device as crossing
from trainer.config import Placement, StageConfig
from trainer.configs import load_recipe
from trainer.device import Leaving, sent
from trainer.model import optimizer
from trainer.model.distributed import Distributed
from trainer.run import loop
from trainer.run.starting import State

STEPS, BATCH = 3, 8
CPU = torch.device("cpu")


def contrastive(local_batch_size: int) -> StageConfig:
    """The smoke model with MoCo-v2."""
    recipe = load_recipe("smoke")
    settings = dataclasses.replace(recipe.contrastive, global_batch_size=BATCH, contrast_batch_size=BATCH, augmentation="moco_v2")
    placement = Placement(threads=1, local_batch_size=local_batch_size)
    return StageConfig(stage="contrastive", output="unused", model=recipe.model, contrastive=settings, placement=placement)


def triplets(count: int) -> Iterator[Any]:
    """Noise, six at a time, as `tests.run.build.perceptual` has them."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        images = torch.randint(0, 256, (6, 3, 3, 16, 16), generator=generator, dtype=torch.uint8)
        yield types.SimpleNamespace(images=images, target=torch.rand(6, generator=generator))


def figures_of(config: StageConfig, device: torch.device, batches: Iterable[Any], log: bool, counts: Counter[str]) -> list[Any]:
    """What arrives of the loop's steps over `batches`; `counts` begins after the second."""
    dist = Distributed(0, 1, 0, device)
    stage = loop.build_stage(config, dist)
    built = optimizer.build(stage.module, loop.stage_settings(config).optimizer)
    run: Any = types.SimpleNamespace(config=config, dist=dist, stage=stage, state=State(), steps=STEPS, optimizer=built)
    leaving, arrived = Leaving(device), []
    for step, batch in enumerate(batches):
        if step == 2:
            counts.clear()
        figures = loop._step(run, batch)
        run.state.step += 1
        leaving.add(run.state.step, figures if log else {loop.SKIPPED: figures[loop.SKIPPED]})
        arrived += leaving.arrived(wait=False)
    return arrived


def counted(_: Distributed, folder: Path) -> tuple[list[dict[str, int]], list[list[Any]], list[Any]]:
    """In a process of its own: counts and figures of four runs on the counting device, and figures of the last one's on the CPU."""
    from tests.counting_device import CountingDevice, counts

    counting = CountingDevice()
    crossing._pinned, crossing._event = counting.pinned, counting.event
    found, arrived = [], []
    for config, log in ((build.perceptual(folder), True), (contrastive(0), True), (contrastive(0), False), (contrastive(4), True)):
        batches = triplets(STEPS + 2) if config.stage == "perceptual" else reference.random_batches(STEPS + 2, BATCH, 32)
        arrived.append(figures_of(config, counting.device, batches, log, counts))
        found.append(dict(counts))
    return found, arrived, figures_of(contrastive(4), CPU, reference.random_batches(STEPS + 1, BATCH, 32), True, Counter())


def test_a_step_waits_for_nothing_but_the_step_before_it(tmp_path: Path) -> None:
    """A copy each for pictures, what is done to them, tokens, how captions lie; one brings all figures back, logged or not.

    The gradient cache sends two chunks' pictures and what is done to them, and how captions lie for both of its passes. Figures
    are those of a CPU.
    """
    found, arrived, on_cpu = run_ranks(counted, 1, tmp_path)[0]
    for counts, copies in zip(found, (2, 4, 4, 9), strict=True):
        assert counts == {"there": copies * STEPS, "back": STEPS, "events waited for": STEPS}
    for figures in arrived:
        assert [step for step, _, _ in figures] == list(range(1, STEPS + 2))
        assert all(values[loop.SKIPPED] == 0 for _, values, _ in figures)
    late, at_once = ([values["loss"] for _, values, _ in figures] for figures in (arrived[-1], on_cpu))
    assert late == pytest.approx(at_once, rel=1e-6)


def test_on_a_cpu_nothing_is_copied_and_figures_are_there_at_once() -> None:
    """Without a queue there is nothing to hide."""
    parts = [torch.arange(3), torch.ones(2, 2)]
    assert all(a is b for a, b in zip(sent(parts, CPU), parts, strict=True))
    leaving = Leaving(CPU)
    leaving.add(7, {"loss": torch.tensor(0.5), "rate": 2.0}, "about")
    assert leaving.arrived(wait=False) == [(7, {"loss": 0.5, "rate": 2.0}, "about")]
    assert leaving.arrived(wait=True) == []
