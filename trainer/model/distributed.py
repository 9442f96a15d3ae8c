"""Ranks: starting them, and the collectives that training needs.

Every all-reduce has a fixed layout, so a resumed process adds in the same order as one that never stopped.
DistributedDataParallel is not suitable: it rebuilds its buckets after the first iteration, and with three or more gloo
ranks a resumed run then differs by rounding (../docs/DECISIONS.md).
"""

import contextlib
import ctypes
import functools
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.config import Placement, require
from trainer.errors import InputError, PeerLost, RunError
from trainer.model import gpus

BUCKET_ELEMENTS = 6 << 20
"""Smallest number of elements in a gradient bucket, filled in parameter order: 25 MB of float32, as in DistributedDataParallel."""

PATIENCE_SECONDS = 1800.0
"""Timeout of a collective until `wait_at_most` sets another; it is long, since one of the ranks may be reading a checkpoint."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, as numbered in glibc's malloc.h."""


@dataclass(frozen=True)
class Distributed:
    """The rank of this process, and the device on which it computes."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which does all writing."""
        return self.rank == 0


def start(placement: Placement) -> Distributed:
    """Join the process group that torchrun describes in the environment, or run alone; set threads and precision.

    Raises:
        InputError: placement.device is cuda and there is none for this rank; a GPU that was given cannot be used (trainer/model/gpus.py).
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank, local_world_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0))
    device = _device(placement, local_rank)
    # with a GPU the CPU cores belong to the loader; threads spinning on small sums would take them away
    torch.set_num_threads(placement.threads or (1 if device.type == "cuda" else max(1, cores // local_world_size)))
    if device.type == "cpu":
        keep_freed_memory()
    torch.set_float32_matmul_precision("highest")  # TF32 has 10 bits of mantissa: never without the user's knowledge
    torch.backends.cudnn.allow_tf32 = False
    if world_size > 1 and not dist.is_initialized():
        # gloo for tensors on the host (flags, losses), nccl for tensors on the device
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=PATIENCE_SECONDS))
    return Distributed(rank, world_size, local_rank, device)


def keep_freed_memory() -> None:
    """Make glibc reuse the memory of freed tensors for those of the next step, whatever their size.

    By default it returns large blocks to the kernel, which clears every page again at its next use: a tenth of the demo's step
    (https://man7.org/linux/man-pages/man3/mallopt.3.html). Other C libraries have no such setting.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_M_MMAP_THRESHOLD, 1 << 30):  # refused before glibc 2.35; the other alone would make every block a mapping
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def stop() -> None:
    """Leave the group; safe if there is none."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_at_most(seconds: float) -> None:
    """Set the timeout of collectives, after which the process group fails."""
    if dist.is_initialized():
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        set_timeout(timedelta(seconds=seconds))


def share(key: str, total: int, world_size: int) -> int:
    """A rank's part of `total`.

    Raises:
        InputError: the world size does not divide it; `key` names the setting.
    """
    require(key, total, f"a multiple of the number of ranks {world_size}", total % world_size == 0)
    return total // world_size


@contextlib.contextmanager
def peers_named(name: str) -> Iterator[None]:
    """Report in one line that another rank is gone, instead of gloo's or nccl's message with a page of C++ frames."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if isinstance(error, RunError) or not (isinstance(error, dist.DistError) or "gloo" in said):
            raise
        raise PeerLost(f"{name}: lost another rank: {said.splitlines()[0]}") from error


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def largest(*values: float) -> list[float]:
    """The largest of each value over ranks; every rank gets the same answer. The host waits for all ranks."""
    if not dist.is_initialized():
        return list(values)
    found = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    result: list[float] = found.tolist()
    return result


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of `value` over ranks, without a gradient; a new tensor."""
    total = value.detach().clone()
    if dist.is_initialized():
        with _clock.running(total.device):
            dist.all_reduce(total)
    return total


def concatenate(value: Tensor) -> Tensor:
    """(n, ...) of each rank -> (W, n, ...), without a gradient. n must be equal on all ranks."""
    if not dist.is_initialized():
        return value.detach().unsqueeze(0)
    result = value.new_empty((dist.get_world_size(), *value.shape))
    with _clock.running(value.device):
        dist.all_gather_into_tensor(result.view(-1, *value.shape[1:]), value.detach().contiguous())
    return result


def gather(features: Tensor) -> Tensor:
    """Features of all ranks, with their gradient.

    Args:
        features: (n, D), n equal on all ranks.

    Returns:
        (W * n, D), rank by rank. In the backward pass each rank gets the gradients of its rows, summed over ranks.
    """
    if not dist.is_initialized():
        return features
    result: Tensor = _Gather.apply(features)
    return result


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return concatenate(features).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        rows = gradient.shape[0] // dist.get_world_size()
        if gradient.device.type == "cuda":
            own = gradient.new_empty((rows, *gradient.shape[1:]))
            with _clock.running(own.device):
                dist.reduce_scatter_tensor(own, gradient)
            return own
        total = sum_over_ranks(gradient)  # gloo has no reduce-scatter
        return total[dist.get_rank() * rows : (dist.get_rank() + 1) * rows]


class _Clock:
    """Seconds in which computation waited for collectives; on a GPU measured between events of its queue, without synchronisation."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextlib.contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Count the time within this context as waiting for a collective, on the host or in the device's queue."""
        if device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            yield
            ended.record()
            self._pending.append((began, ended))
        else:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start

    def take(self) -> float:
        """The seconds since the last call, as far as their events have completed."""
        while self._pending and self._pending[0][1].query():  # type: ignore[no-untyped-call]
            began, ended = self._pending.popleft()
            self._seconds += began.elapsed_time(ended) / 1000
        seconds, self._seconds = self._seconds, 0.0
        return seconds


_clock = _Clock()


def communication_seconds() -> float:
    """Seconds since the last call in which this rank's computation waited for the collectives of this module.

    Waiting for a slower rank is included; communication that overlaps with computation is not.
    """
    return _clock.take()


class GradientSum:
    """Sums `.grad` over ranks in buckets of parameters, each sent while the backward pass still computes the others.

    The buckets, and so the order in which numbers are added, depend only on the model. The order in which they are sent does not
    change the result, but must be the same on all ranks: the first step sends them after the backward pass, and from then on every
    rank sends them in the order in which those of rank 0 were complete in the first step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """For those of these parameters that currently require a gradient."""
        self._parameters = [p for p in parameters if p.requires_grad]
        self._runs = _runs(self._parameters) if dist.is_initialized() else []
        self._sums = [torch.empty(sum(p.numel() for p in run), dtype=run[0].dtype, device=run[0].device) for run in self._runs]
        self._parts = {  # for each bucket, one view per parameter
            p: part.view_as(p)
            for run, total in zip(self._runs, self._sums, strict=True)
            for p, part in zip(run, torch.split(total, [p.numel() for p in run]), strict=True)
        }
        self._order: list[int] = []
        self._passes = 0
        self._seen: dict[nn.Parameter, int] = {}
        self._left: list[int] = []
        self._complete: list[int] = []
        self._sent: dict[int, Any] = {}
        for index, run in enumerate(self._runs):
            for p in run:
                p.register_post_accumulate_grad_hook(functools.partial(self._grown, index))  # type: ignore[no-untyped-call]

    def begin(self, passes: int) -> None:
        """Begin a step: set each `.grad` to zero, as a view of its bucket; with one rank, set it to None.

        Args:
            passes: backward passes after which a gradient is complete; gradients with fewer passes are complete at `finish`.
        """
        for total in self._sums:
            total.zero_()
        for p in self._parameters:
            p.grad = self._parts.get(p)
        self._passes = passes
        self._seen = dict.fromkeys(self._parts, 0)
        self._left = [len(run) for run in self._runs]
        self._complete.clear()

    def finish(self) -> None:
        """Send the remaining buckets and wait for all; afterwards each `.grad` is the sum over ranks."""
        if not self._runs:
            return
        if not self._order:
            order = torch.tensor(self._complete + [index for index in range(len(self._runs)) if index not in self._complete])
            dist.broadcast(order, src=0)
            self._order = order.tolist()
        for index in self._order[len(self._sent) :]:
            self._send(index)
        with _clock.running(self._sums[0].device):
            for work in self._sent.values():
                work.wait()
        self._sent.clear()

    def _grown(self, index: int, p: nn.Parameter) -> None:
        """Called when a backward pass has added to the gradient of `p`, in bucket `index`."""
        self._seen[p] += 1
        assert self._seen[p] <= self._passes, f"begin() announced {self._passes} backward passes, but there was another one"
        if self._seen[p] == self._passes:
            self._left[index] -= 1
            if not self._left[index]:
                self._complete.append(index)
        while len(self._sent) < len(self._order) and self._order[len(self._sent)] in self._complete:
            self._send(self._order[len(self._sent)])

    def _send(self, index: int) -> None:
        self._sent[index] = dist.all_reduce(self._sums[index], async_op=True)


def _runs(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters in order, split wherever a bucket has reached BUCKET_ELEMENTS or the dtype changes."""
    runs: list[list[nn.Parameter]] = []
    size = 0
    for p in parameters:
        if not runs or size >= BUCKET_ELEMENTS or runs[-1][0].dtype != p.dtype:
            runs.append([])
            size = 0
        runs[-1].append(p)
        size += p.numel()
    return runs


def _device(placement: Placement, local_rank: int) -> torch.device:
    available = gpus.usable(placement.device)
    if placement.device == "cpu" or (placement.device == "auto" and not available):
        return torch.device("cpu")
    if not available or local_rank >= torch.cuda.device_count():
        found = torch.cuda.device_count() if available else 0
        raise InputError(f"placement.device is {placement.device!r}, but local rank {local_rank} has no CUDA device ({found} found)")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
