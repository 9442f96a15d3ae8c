"""A fraction of a split: which samples belong to it, and the canonical order over them.

All keys of the split are ranked by SHA-256 over the stream seed "subset" of the run's seed and the key; a fraction f of N samples is
the first round(f N). So a smaller fraction lies within a larger one, whatever the shards, and each seed draws its own.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from trainer.config import stream_seed
from trainer.data.order import CanonicalOrder, ShardRead
from trainer.storage.manifest import Shard
from trainer.storage.samples import read_index

_READERS = 16


def chosen(keys: Sequence[str], seed: int, fraction: float) -> NDArray[np.int64]:
    """Which of `keys` belong to a fraction of them: (round(fraction * N),) positions, ascending."""
    return _first(_ranks(keys, seed), round(fraction * len(keys)))


def read_chosen(folder: str, shards: Sequence[Shard], seed: int, fraction: float) -> NDArray[np.int64]:
    """`chosen` of the samples of these shards, end to end. Every index is read, and compared with the manifest.

    Raises:
        MissingObject, Corrupt: an index is missing, or not as it was written.
    """
    with ThreadPoolExecutor(_READERS, "subset") as readers:
        ranks = list(readers.map(lambda shard: _ranks(read_index(folder, shard).keys, seed), shards))
    total = sum(map(len, ranks))
    return _first(np.concatenate(ranks), round(fraction * total))


def _ranks(keys: Sequence[str], seed: int) -> NDArray[np.void]:
    """(N,) SHA-256 of each key, as 32 bytes that compare from the left."""
    prefix = f"{stream_seed(seed, 'subset')}:"
    digests = b"".join(hashlib.sha256(f"{prefix}{key}".encode()).digest() for key in keys)
    return np.frombuffer(digests, [("head", ">u8"), ("tail", "V24")])


def _first(ranks: NDArray[np.void], count: int) -> NDArray[np.int64]:
    """Positions of the `count` lowest ranks, ascending."""
    if count >= len(ranks):
        return np.arange(len(ranks))
    heads = ranks["head"].astype(np.uint64)
    last = np.partition(heads, count - 1)[count - 1] if count else np.uint64(0)
    sure = np.flatnonzero(heads < last) if count else np.empty(0, np.int64)
    tied = sorted(np.flatnonzero(heads == last), key=lambda position: ranks["tail"][position].tobytes())  # nearly always one
    return np.sort(np.concatenate([sure, np.array(tied[: count - len(sure)], np.int64)])).astype(np.int64)


class SubsetOrder:
    """The canonical order of a subset: CanonicalOrder over the chosen samples of each shard, in rows of the whole shards.

    Attributes:
        steps_per_epoch: global batches an epoch.
    """

    def __init__(
        self, shard_sizes: Sequence[int], positions: NDArray[np.int64], *, seed: int, global_batch_size: int, runs: int, block_shards: int
    ) -> None:
        """Fix the order of the samples at `positions` of the split, ascending; errors as of CanonicalOrder."""
        self._positions = positions
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(shard_sizes, np.int64))])  # of each shard among the split's samples
        self._chosen = positions.searchsorted(self._starts)  # and among the chosen ones
        sizes = np.diff(self._chosen).tolist()
        self._order = CanonicalOrder(sizes, seed=seed, global_batch_size=global_batch_size, runs=runs, block_shards=block_shards)
        self.steps_per_epoch = self._order.steps_per_epoch

    def part(self, epoch: int, b: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """As CanonicalOrder's."""
        part = self._order.part(epoch, b, rank, world_size)
        return np.column_stack([part[:, 0], part[:, 1], self._row(part[:, 1], part[:, 2])])

    def reads(self, epoch: int, rank: int, world_size: int) -> list[ShardRead]:
        """As CanonicalOrder's: of a shard the rows from the first to the last that is needed."""
        return [
            ShardRead(
                run=read.run,
                shard=read.shard,
                first_row=int(self._row(read.shard, read.first_row)),
                stop_row=int(self._row(read.shard, read.stop_row - 1)) + 1,
                first_step=read.first_step,
                last_step=read.last_step,
            )
            for read in self._order.reads(epoch, rank, world_size)
        ]

    def _row(self, shard: NDArray[np.int64] | int, row: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """The row in its shard of a shard's row-th chosen sample."""
        found: NDArray[np.int64] = self._positions[self._chosen[shard] + row] - self._starts[shard]
        return found
