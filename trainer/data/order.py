"""The canonical order: which samples make up global batch b of an epoch, independent of the machines.

The samples of a global batch are a function of (data set, seed, epoch, b) alone. Each epoch

1. permutes all shards and concatenates their samples in one row,
2. drops the N mod G samples at the row's end (G: global batch size) and splits the rest into C equal runs,
3. shuffles each run inside a sliding block of K shards, and
4. lets batch b take the next G/C samples of every run, listed run by run.

Rank r of W takes the r-th of W equal parts of that list. If W divides C, each rank thus reads C/W runs that no other rank reads.
With C = 1 and K = 0 the epoch is one full permutation.

Only the raw output of NumPy's Philox is used, which never changes, and none of its distributions, which may
change between versions. docs/ARCHITECTURE.md explains what depends on this order; docs/SHUFFLE.md measures how well it mixes.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.config import require
from trainer.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ShardRead:
    """What one rank reads of one shard in one epoch: rows [first_row, stop_row), for a run of the order.

    `first_step` and `last_step` are the batches of the epoch between which they are used.
    """

    run: int
    shard: int
    first_row: int
    stop_row: int
    first_step: int
    last_step: int


class CanonicalOrder:
    """The order of one split.

    Attributes:
        steps_per_epoch: global batches per epoch.
        dropped: samples left over in each epoch (different ones each time).
    """

    def __init__(self, shard_sizes: Sequence[int], *, seed: int, global_batch_size: int, runs: int, block_shards: int) -> None:
        """Fix the order of shards with `shard_sizes` samples each.

        Raises:
            InputError: a batch is larger than the split, or the runs do not divide it.
        """
        self._sizes = np.asarray(shard_sizes, np.int64)
        total = int(self._sizes.sum())
        require("global_batch_size", global_batch_size, ">= 1", global_batch_size >= 1)
        require("order_runs", runs, f"a divisor of global_batch_size {global_batch_size}", runs >= 1 and global_batch_size % runs == 0)
        require("order_block_shards", block_shards, ">= 0", block_shards >= 0)
        if total < global_batch_size:
            raise InputError(f"global_batch_size must be at most the {total} samples of the split, got {global_batch_size}")
        self.global_batch_size = global_batch_size
        self.runs = runs
        self.block_shards = block_shards
        self.steps_per_epoch = total // global_batch_size
        self.dropped = total % global_batch_size
        self._total = total
        self._run_length = self.steps_per_epoch * (global_batch_size // runs)
        self._seed = seed
        self._epochs: dict[int, _Epoch] = {}  # the current epoch and the next: a prefetcher looks ahead
        self._lock = threading.Lock()

    def batch(self, epoch: int, b: int) -> NDArray[np.int64]:
        """Global batch `b` of `epoch`: (G, 2) of (shard, row)."""
        return self.part(epoch, b, 0, 1)[:, 1:]

    def part(self, epoch: int, b: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """The part of global batch `b` for `rank`: (G / world_size, 3) of (run, shard, row). Only the rank's own runs are shuffled."""
        assert 0 <= b < self.steps_per_epoch, f"batch {b} of an epoch of {self.steps_per_epoch}"
        first, stop = self._share(rank, world_size)
        per_run = self.global_batch_size // self.runs
        state = self._epoch(epoch)
        pieces = []
        for run in range(first // per_run, -(-stop // per_run)):
            begin, end = max(first - run * per_run, 0), min(stop - run * per_run, per_run)
            positions = state.run(run)[b * per_run + begin : b * per_run + end].astype(np.int64) + run * self._run_length
            pieces.append(np.column_stack([np.full(len(positions), run), state.locate(positions)]))
        return np.concatenate(pieces)

    def reads(self, epoch: int, rank: int, world_size: int) -> list[ShardRead]:
        """What `rank` reads in `epoch`, in the order in which it is first needed."""
        first, stop = self._share(rank, world_size)
        per_run = self.global_batch_size // self.runs
        state = self._epoch(epoch)
        reads = []
        for run in range(first // per_run, -(-stop // per_run)):
            order = state.run(run)
            places = state.bounds.searchsorted(order.astype(np.int64) + run * self._run_length, side="right") - 1
            begin = int(places.min())
            slots = np.arange(len(order)) // per_run
            firsts = np.full(int(places.max()) - begin + 1, self.steps_per_epoch)
            lasts = np.full(len(firsts), -1)
            firsts[(places - begin)[::-1]] = slots[::-1]  # assigned in turn, so the earliest use stays
            lasts[places - begin] = slots
            for place in np.flatnonzero(lasts >= 0):
                start = int(state.bounds[place + begin])
                rows = (0, int(self._sizes[state.shards[place + begin]]))
                if not state.whole:  # a run's end may lie inside a shard
                    rows = (max(run * self._run_length - start, 0), min((run + 1) * self._run_length - start, rows[1]))
                reads.append(
                    ShardRead(
                        run=run,
                        shard=int(state.shards[place + begin]),
                        first_row=rows[0],
                        stop_row=rows[1],
                        first_step=int(firsts[place]),
                        last_step=int(lasts[place]),
                    )
                )
        return sorted(reads, key=lambda read: (read.first_step, read.run, read.last_step))

    def _share(self, rank: int, world_size: int) -> tuple[int, int]:
        require(
            "global_batch_size", self.global_batch_size, f"a multiple of the {world_size} ranks", self.global_batch_size % world_size == 0
        )
        local = self.global_batch_size // world_size
        return rank * local, (rank + 1) * local

    def _epoch(self, epoch: int) -> "_Epoch":
        with self._lock:
            if epoch not in self._epochs:
                for old in [known for known in self._epochs if known not in (epoch - 1, epoch + 1)]:
                    del self._epochs[old]
                self._epochs[epoch] = _Epoch(self._sizes, self._total, self._run_length, self.runs, self.block_shards, self._seed, epoch)
            return self._epochs[epoch]


class SinglePass:
    """One pass over a split in the order of its shards, with a short last batch, for validation. Same protocol as CanonicalOrder.

    A rank whose share of the last batch is empty gets an empty part. Every shard counts as needed from first to last,
    since a triplet may be paired with one of any other shard.
    """

    def __init__(self, shard_sizes: Sequence[int], *, global_batch_size: int) -> None:
        """Fix the pass."""
        self._bounds = np.concatenate([[0], np.cumsum(np.asarray(shard_sizes, np.int64))])
        self._batch = global_batch_size
        self.steps_per_epoch = -(-int(self._bounds[-1]) // global_batch_size)

    def part(self, epoch: int, b: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """(n, 3) of (0, shard, row)."""
        local = self._batch // world_size
        first = min(b * self._batch + rank * local, int(self._bounds[-1]))
        positions = np.arange(first, min(first + local, int(self._bounds[-1])))
        places = self._bounds.searchsorted(positions, side="right") - 1
        return np.stack([np.zeros_like(positions), places, positions - self._bounds[places]], axis=1)

    def reads(self, epoch: int, rank: int, world_size: int) -> list[ShardRead]:
        """Every shard, whole."""
        last = self.steps_per_epoch - 1
        sizes = np.diff(self._bounds).tolist()
        return [ShardRead(run=0, shard=shard, first_row=0, stop_row=size, first_step=0, last_step=last) for shard, size in enumerate(sizes)]


class _Epoch:
    """One epoch: the row of shards, and the shuffled runs that were requested."""

    def __init__(self, sizes: NDArray[np.int64], total: int, run_length: int, runs: int, block_shards: int, seed: int, epoch: int) -> None:
        self._seed, self._epoch = seed, epoch
        self._total, self._run_length = total, run_length
        self.whole = runs == 1 and block_shards == 0
        self.shards = np.arange(len(sizes)) if self.whole else np.argsort(self._random("shards", len(sizes)), kind="stable")
        self.bounds = np.concatenate([[0], np.cumsum(sizes[self.shards])])  # (shards + 1,) first position of each in the row
        self._block = block_shards * total / len(sizes)
        self._runs: dict[int, NDArray[np.int32]] = {}
        self._lock = threading.Lock()

    def run(self, run: int) -> NDArray[np.int32]:
        """Positions in run `run`, shuffled: (run length,)."""
        with self._lock:
            if run not in self._runs:
                self._runs[run] = self._shuffled(run)
            return self._runs[run]

    def locate(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the row as (n, 2) of (shard, row)."""
        places = self.bounds.searchsorted(positions, side="right") - 1
        return np.stack([self.shards[places], positions - self.bounds[places]], axis=1)

    def _shuffled(self, run: int) -> NDArray[np.int32]:
        if self.whole:  # the left-over samples are those that the permutation puts last
            return np.argsort(self._random("samples", self._total), kind="stable")[: self._run_length].astype(np.int32)
        random = self._random(f"run {run}", self._run_length)
        if not self._block:
            return np.argsort(random, kind="stable").astype(np.int32)
        # Every sample is moved forward or back by up to half a block, and reflected at both ends of the run, so that
        # the ends are as well mixed and as dense as the middle; sorting by the new positions gives the shuffle.
        landed = np.arange(self._run_length) + ((random >> np.uint64(11)) * 2.0**-53 - 0.5) * min(self._block, self._run_length)
        landed = np.abs(landed)
        landed = self._run_length - np.abs(self._run_length - landed)
        return np.argsort(landed, kind="stable").astype(np.int32)

    def _random(self, stream: str, count: int) -> NDArray[np.uint64]:
        """`count` uint64 of a named stream of this seed and epoch."""
        digest = hashlib.sha256(f"firstsight order:{self._seed}:{self._epoch}:{stream}".encode()).digest()
        return np.random.Philox(key=np.frombuffer(digest[:16], "<u8")).random_raw(count)
