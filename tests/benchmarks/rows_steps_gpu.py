"""Rows K, L, N, S: step, exact text lengths, loss and memory on a GPU, against open_clip (amp_bf16, torch.compile) in one run."""

import dataclasses
import functools
import gc
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch

from tests.benchmarks import training
from tests.benchmarks.harness import Measured, interleaved, row
from trainer.config import ModelConfig
from trainer.configs.sizes import PEAK_FLOPS
from trainer.model import losses, towers

BATCH = 1024
MEMORY_FRACTION, LARGEST = 0.25, 8192
"""Share of the device's memory, and pairs, for row S: this makes the search over batch sizes quick, with the same result."""


def _rate(step: Callable[[], object], size: int, steps: int = 10) -> Callable[[], float]:
    """Samples per second of `step`, including the wait for the device."""

    def measure() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        return size * steps / (time.perf_counter() - start)

    return measure


def _peak(work: Callable[[], object]) -> float:
    """MiB above what was allocated before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


@functools.cache
def step(side: str) -> Callable[[], None]:
    """The steps that the rows and the breakdown share, compiled once: `open_clip`, `full` (ours at 77 tokens), `short` (mean 24)."""
    device, full = torch.device("cuda"), training.batch(BATCH, 224, torch.full((BATCH,), training.CONTEXT))
    if side == "open_clip":
        return training.open_clip_step(ModelConfig(), full, "bf16", device, compile=True)
    return training.our_step(ModelConfig(), full if side == "full" else training.batch(BATCH, 224), "bf16", device, compile=True)


@row(
    "K",
    what="training step, ViT-B/32, 77 tokens, bf16, against open_clip amp_bf16 with torch.compile",
    unit="pairs/s",
    target=1.1,
    gpu=True,
)
def step_at_full_length(folder: Path) -> Measured:
    """Every caption is 77 tokens long, so shorter captions give no advantage."""
    theirs, ours = step("open_clip"), step("full")
    measured = interleaved(_rate(theirs, BATCH), _rate(ours, BATCH))
    utilisation = towers.flops_per_sample(ModelConfig(), training.CONTEXT) * measured.ours / PEAK_FLOPS["H100"]
    peaks = f"peak MiB above weights and moments {_peak(theirs):.0f} -> {_peak(ours):.0f}"
    note = f"local batch {BATCH}, random pictures and words; {peaks}; ours is {utilisation:.0%} of 989 TFLOP/s"
    return dataclasses.replace(measured, note=note)


@row("L", what="the same step on captions of mean 24 tokens, exact, against ours at 77", unit="pairs/s", target=1.2, gpu=True)
def step_at_own_length(folder: Path) -> Measured:
    """The gain from exact variable-length text, firstsight against itself."""
    full, short = step("full"), step("short")
    peaks = f"peak MiB {_peak(full):.0f} -> {_peak(short):.0f}"
    mean = float(training.lengths_of_captions(BATCH).double().mean())
    return interleaved(_rate(full, BATCH), _rate(short, BATCH), note=f"local batch {BATCH}, mean {mean:.1f} tokens; {peaks}")


def _loss_sides() -> tuple[Callable[[], object], Callable[[], object]]:
    """One rank's 4,096 pairs among 32,768: open_clip's local loss, and ours with the sums of the other ranks left out."""
    generator = torch.Generator("cuda").manual_seed(0)
    image, text = (
        torch.nn.functional.normalize(torch.randn(32768, 512, generator=generator, device="cuda"), dim=-1).requires_grad_()
        for _ in range(2)
    )
    scale = torch.tensor(100.0, device="cuda", requires_grad=True)
    labels = torch.arange(4096, device="cuda")

    def theirs() -> object:
        per_image, per_text = scale * image[:4096] @ text.T, scale * text[:4096] @ image.T
        total = (torch.nn.functional.cross_entropy(per_image, labels) + torch.nn.functional.cross_entropy(per_text, labels)) / 2
        return torch.autograd.grad(total, (image, text, scale))

    def ours() -> object:
        return torch.autograd.grad(losses._TiledInfoNCE.apply(image[:4096], text, scale, 0), (image, text, scale))

    return theirs, ours


@row("N", what="loss 4k x 32k, float32, peak memory against open_clip's local loss", unit="MiB", target=0.1, at_least=False, gpu=True)
def loss_memory(folder: Path) -> Measured:
    """Gradients of the inputs count on both sides."""
    theirs, ours = _loss_sides()
    theirs(), ours()
    return Measured(reference=_peak(theirs), ours=_peak(ours), note=f"open_clip {open_clip.__version__}")


@row(
    "N-time",
    what="loss 4k x 32k, float32, forward and backward, against open_clip's local loss",
    unit="s",
    target=1.0,
    at_least=False,
    gpu=True,
)
def loss_time(folder: Path) -> Measured:
    """As row N."""
    theirs, ours = _loss_sides()

    def in_bf16() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            theirs()

    in_bf16()
    measured = interleaved(lambda: 1 / _rate(theirs, 1)(), lambda: 1 / _rate(ours, 1)())
    note = f"float32 matrix products without TF32; with bf16 logits, as open_clip's under autocast: {1 / _rate(in_bf16, 1)():.4f} s"
    return dataclasses.replace(measured, note=note)


@row("S", what="largest local batch of ViT-B/32 in a given memory", unit="pairs", target=2.0, gpu=True)
def largest_batch(folder: Path) -> Measured:
    """Doubling from 64 until the allocator refuses; ours runs the gradient cache in chunks of 128."""
    step.cache_clear()  # the models of the other rows
    torch.cuda.empty_cache()
    device = torch.device("cuda")
    torch.cuda.set_per_process_memory_fraction(MEMORY_FRACTION)
    try:
        theirs = _largest(lambda given: training.open_clip_step(ModelConfig(), given, "bf16", device))
        ours = _largest(lambda given: training.our_step(ModelConfig(), given, "bf16", device, local_batch_size=128))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    memory = MEMORY_FRACTION * torch.cuda.get_device_properties(0).total_memory / 2**30
    note = f"{memory:.0f} GiB; ours with the gradient cache, exact; {LARGEST:,} is the largest tried"
    return Measured(reference=theirs, ours=ours, note=note)


def _largest(make: Callable[[training.Batch], Callable[[], None]]) -> float:
    fits, size = 0, 64
    while size <= LARGEST:
        gc.collect()
        torch.cuda.empty_cache()
        try:
            one = make(training.batch(size, 224))
            one(), one()
        except torch.cuda.OutOfMemoryError:
            break
        fits, size = size, size * 2
    return float(fits)
