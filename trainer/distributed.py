"""Ranks: starting them, and the four collectives that training needs.

Every sum over ranks has a fixed layout, so a process that resumed adds in the same order as one that never
stopped. DistributedDataParallel would not do: it rebuilds its buckets after the first iteration, and from three
gloo ranks up a resumed run then differs by rounding (../docs/DECISIONS.md).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.config import Placement, require
from trainer.errors import InputError

BUCKET_ELEMENTS = 16 << 20
"""Gradients are summed in runs of at least this many elements (64 MB of float32), cut in parameter order."""


@dataclass(frozen=True)
class Distributed:
    """Who this process is among the ranks, and the device it computes on."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0


def start(placement: Placement) -> Distributed:
    """Join the group that torchrun describes in the environment, or stand alone; pin threads and precision.

    Raises:
        InputError: placement.device is cuda and there is none for this rank.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank, local_world_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0))
    device = _device(placement, local_rank)
    # beside a GPU the cores belong to the loader: threads that spin for small sums would take them from it
    torch.set_num_threads(placement.threads or (1 if device.type == "cuda" else max(1, cores // local_world_size)))
    torch.set_float32_matmul_precision("highest")  # TF32 keeps 10 bits of mantissa: never behind the user's back
    torch.backends.cudnn.allow_tf32 = False
    if world_size > 1 and not dist.is_initialized():
        # gloo for what lies on the host (flags, losses), nccl for what lies on the device
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return Distributed(rank, world_size, local_rank, device)


def stop() -> None:
    """Leave the group; safe where there is none."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share(key: str, total: int, world_size: int) -> int:
    """A rank's part of `total`.

    Raises:
        InputError: the world size does not divide it; `key` names the setting.
    """
    require(key, total, f"a multiple of the number of ranks {world_size}", total % world_size == 0)
    return total // world_size


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def all_any(flag: bool) -> bool:
    """Whether any rank says so; every rank gets the same answer."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor([int(flag)])
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of `value` over ranks, without a gradient; a new tensor."""
    total = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def concatenate(value: Tensor) -> Tensor:
    """(n, ...) of each rank -> (W, n, ...), without a gradient. n must be equal on all ranks."""
    if not dist.is_initialized():
        return value.detach().unsqueeze(0)
    result = value.new_empty((dist.get_world_size(), *value.shape))
    dist.all_gather_into_tensor(result.view(-1, *value.shape[1:]), value.detach().contiguous())
    return result


def gather(features: Tensor) -> Tensor:
    """Features of all ranks, with their gradient.

    Args:
        features: (n, D), n equal on all ranks.

    Returns:
        (W * n, D), listed rank by rank. In backward each rank gets the sum over ranks of its rows' gradients.
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
            dist.reduce_scatter_tensor(own, gradient)
            return own
        total = gradient.clone()  # gloo has no reduce-scatter
        dist.all_reduce(total)
        return total[dist.get_rank() * rows : (dist.get_rank() + 1) * rows]


def reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum `.grad` over ranks, in runs of parameters that depend on the model alone.

    A parameter without a gradient counts as zero, so that all ranks send the same bytes. Afterwards each `.grad`
    is a view of its run's buffer.
    """
    if not dist.is_initialized():
        return
    pending = []
    for run in _runs([p for p in parameters if p.requires_grad]):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in run])
        pending.append((run, flat, dist.all_reduce(flat, async_op=True)))
        for p in run:
            p.grad = None  # the buffer replaces it: at most one run is held twice
    for run, flat, work in pending:
        work.wait()
        for p, part in zip(run, torch.split(flat, [p.numel() for p in run]), strict=True):
            p.grad = part.view_as(p)


def _runs(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters in order, cut wherever a run has reached BUCKET_ELEMENTS or the dtype changes."""
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
    available = torch.cuda.is_available()
    if placement.device == "cpu" or (placement.device == "auto" and not available):
        return torch.device("cpu")
    if not available or local_rank >= torch.cuda.device_count():
        found = torch.cuda.device_count() if available else 0
        raise InputError(f"placement.device is {placement.device!r}, but local rank {local_rank} has no CUDA device ({found} found)")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
