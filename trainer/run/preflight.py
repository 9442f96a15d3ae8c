"""Before step 1, on the machines that a job got: can the network and the store keep up with this recipe?

All ranks at once, for some seconds: the sum over ranks of what the gradients weigh, a read of shards, and a matrix product,
which tells how fast the devices could go. The recipe's needs follow from half of that speed. Too slow is said in one line,
with the numbers, and the run continues: its result is right, only late.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch

from trainer.config import StageConfig
from trainer.errors import InputError, RunError
from trainer.model import distributed, towers
from trainer.model.distributed import Distributed
from trainer.run.metrics import json_line
from trainer.run.records import Run
from trainer.storage.base import join, open_store
from trainer.storage.manifest import Shard

UTILISATION = 0.5
"""Part of a matrix product's rate that a step is assumed to reach: what a good ViT-B/32 step does on an H100."""
REDUCE_SHARE = 0.5
"""Where summing gradients takes more than this part of the arithmetic's time, the network is called slow."""
CAPTION_TOKENS = 24.0
"""Mean length of a caption, assumed."""
READ_CONNECTIONS = 4
"""As many as the shard cache opens."""
READ_BYTES = 16 << 20
"""At most so much on each."""
READ_SECONDS = 3.0
_REPEATS = 3
log = logging.getLogger("trainer")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the machines can do.

    Attributes:
        ranks: how many took part.
        gradient_bytes: of one step.
        reduce_seconds: to sum them over ranks; the slowest rank's time, 0 at one rank.
        read_bytes_per_second: from the store, all ranks together; 0 if it could not be read.
        flops_per_second: of a matrix product in the recipe's precision, all ranks together at the slowest one's rate.
    """

    ranks: int
    gradient_bytes: int
    reduce_seconds: float
    read_bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What the recipe asks of them, at UTILISATION of their speed.

    Attributes:
        step_seconds: arithmetic of one step.
        samples_per_second: that would follow from it.
        bytes_per_second: of shards, at that rate.
    """

    step_seconds: float
    samples_per_second: float
    bytes_per_second: float


def check(run: Run) -> None:
    """Measure and say, where the placement asks for it and the run is at its beginning; all ranks call it. Never fails the run."""
    if not run.config.placement.preflight or run.state.step > 0:
        return
    shards = run.manifest.split("train")
    measured = measure(run, shards)
    needed = needs(run.config, run.global_batch_size, measured.flops_per_second, shards)
    if run.lines is None:
        return
    log.info("%s: preflight: %s", run.name, _facts(measured, needed))
    slow = complaints(measured, needed)
    if slow:
        log.warning("%s: preflight: %s", run.name, "; ".join(slow))
    figures = {f"preflight_{name}": value for name, value in {**asdict(measured), **asdict(needed)}.items()}
    run.lines.add(json_line({"time": time.time(), "step": run.state.step, "steps": run.steps, **figures}))


def needs(config: StageConfig, global_batch_size: int, flops_per_second: float, shards: list[Shard]) -> Needed:
    """What the recipe asks for on devices of this speed."""
    if config.stage == "contrastive":
        flops = towers.flops_per_sample(config.model, CAPTION_TOKENS)
    else:
        flops = 3 * towers.flops_per_sample(config.model, 0)  # a triplet's three images
    seconds = global_batch_size * flops / (flops_per_second * UTILISATION)
    rate = global_batch_size / seconds
    bytes_per_sample = sum(shard.size for shard in shards) / sum(shard.num_samples for shard in shards)
    return Needed(step_seconds=seconds, samples_per_second=rate, bytes_per_second=rate * bytes_per_sample)


def complaints(measured: Measured, needed: Needed) -> list[str]:
    """What is too slow, each with its numbers."""
    slow = []
    if measured.reduce_seconds > REDUCE_SHARE * needed.step_seconds:
        slow.append(
            f"the network is slow for this recipe: a step sums {_megabytes(measured.gradient_bytes)} of gradients over "
            f"{measured.ranks} ranks in {measured.reduce_seconds:.3g} s and computes for {needed.step_seconds:.3g} s"
        )
    if not measured.read_bytes_per_second:
        slow.append("the store could not be read")
    elif measured.read_bytes_per_second < needed.bytes_per_second:
        slow.append(
            f"the store is slow for this recipe: it delivers {_megabytes(measured.read_bytes_per_second)}/s, but "
            f"{needed.samples_per_second:,.0f} samples/s need {_megabytes(needed.bytes_per_second)}/s"
        )
    return slow


def measure(run: Run, shards: list[Shard]) -> Measured:
    """The three measurements, each on all ranks at the same time; every rank gets the same answer."""
    dist = run.dist
    parameters = [p for p in run.stage.module.parameters() if p.requires_grad]
    gradient_bytes = sum(p.numel() * p.element_size() for p in parameters)
    distributed.barrier()
    reduced = _reduce_seconds(dist, gradient_bytes)
    read = _read_rate(dist, run.config.data.uri, shards)
    distributed.barrier()
    flops = _flops_rate(dist, getattr(run.config, run.config.stage).precision)
    ranks = distributed.concatenate(torch.tensor([reduced, read, flops], dtype=torch.float64))
    return Measured(
        ranks=dist.world_size,
        gradient_bytes=gradient_bytes,
        reduce_seconds=float(ranks[:, 0].max()),
        read_bytes_per_second=float(ranks[:, 1].sum()),
        flops_per_second=float(ranks[:, 2].min()) * dist.world_size,
    )


def _reduce_seconds(dist: Distributed, gradient_bytes: int) -> float:
    """The time of summing so many bytes over ranks, from the best of a few sums of one run of gradients at most."""
    if dist.world_size == 1:
        return 0.0
    size = min(gradient_bytes, 4 * distributed.BUCKET_ELEMENTS)
    buffer = torch.zeros(max(1, size // 4), device=dist.device)
    seconds = []
    for _ in range(1 + _REPEATS):  # the first one connects the ranks
        distributed.barrier()
        began = time.perf_counter()
        float(distributed.sum_over_ranks(buffer)[0])  # reading it waits for the device
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:]) * gradient_bytes / max(1, size)


def _read_rate(dist: Distributed, uri: str, shards: list[Shard]) -> float:
    """Bytes a second that this rank reads from the beginnings of some shards; 0 if it cannot."""
    chosen = [shards[(dist.rank * READ_CONNECTIONS + k) % len(shards)] for k in range(READ_CONNECTIONS)]
    began = time.perf_counter()

    def read(shard: Shard) -> int:
        done, length = 0, min(shard.size, READ_BYTES)
        for piece in open_store(uri).stream(join(uri, shard.name), 0, length):
            done += len(piece)
            if time.perf_counter() - began > READ_SECONDS:
                break
        return done

    try:
        with ThreadPoolExecutor(READ_CONNECTIONS) as threads:
            total = sum(threads.map(read, chosen))
    except (InputError, RunError, OSError) as error:
        log.warning("preflight: rank %d: %s", dist.rank, error)  # the loader will meet it too, and end the run
        return 0.0
    return total / (time.perf_counter() - began)


def _flops_rate(dist: Distributed, precision: str) -> float:
    """Operations a second of a square matrix product, the best of a few."""
    side = 8192 if dist.device.type == "cuda" else 1024
    dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(precision, torch.float32)
    left = torch.ones(side, side, device=dist.device, dtype=dtype)
    seconds = []
    for _ in range(1 + _REPEATS):
        began = time.perf_counter()
        float((left @ left)[0, 0])
        seconds.append(time.perf_counter() - began)
    return 2.0 * side**3 / min(seconds[1:])


def _facts(measured: Measured, needed: Needed) -> str:
    reduced = f"{_megabytes(measured.gradient_bytes)} of gradients summed over {measured.ranks} ranks in {measured.reduce_seconds:.3g} s, "
    return (
        f"{reduced if measured.ranks > 1 else ''}{_megabytes(measured.read_bytes_per_second)}/s from the store, matrix products at "
        f"{measured.flops_per_second / 1e12:.3g} TFLOP/s; at {UTILISATION:.0%} of these the compute of a step takes "
        f"{needed.step_seconds:.3g} s and needs {_megabytes(needed.bytes_per_second)}/s"
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.3g} MB" if size < 1e9 else f"{size / 1e6:,.0f} MB"
