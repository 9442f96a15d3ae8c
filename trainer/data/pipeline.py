"""Turn an order into decoded batches, for pairs and triplets alike. The only state is the step.

One thread walks the steps, has each batch's samples decoded in chunks by a pool (threads of this process, or worker
processes), and stays two batches ahead. Workers get (file, row) lists and return arrays; they do not know the order,
so their number does not matter. Errors are passed to the consumer as the original exception.
"""

import contextlib
import functools
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from trainer.data.cache import Source
from trainer.data.shards import DamagedFile, ShardFile
from trainer.data.workers import Threads
from trainer.errors import RunError

CHUNK_SAMPLES = 32
"""Samples decoded by one task: few enough that the first batch is spread over all workers."""

_AHEAD = 2
BATCHES_AT_ONCE = _AHEAD + 3
"""Number of consecutive batches after which the chunks of the first are assembled: those ahead, one waited for, one being put, one more."""
_POLL_SECONDS = 0.2

DecodedT = TypeVar("DecodedT")
BatchT = TypeVar("BatchT")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Samples to decode: rows[i] of files[which[i]] for each column; a sample may need others' members too.

    Attributes:
        epoch: epoch for which random numbers are drawn.
        files: the shards of the samples.
        which: (n, columns) index into files.
        rows: (n, columns).
        positions: (n, columns, 2) of (shard, row): names of the samples that do not depend on the place of the files.
    """

    epoch: int
    files: list[ShardFile]
    which: NDArray[np.int64]
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]


class BatchOrder(Protocol):
    """CanonicalOrder, or a single pass."""

    steps_per_epoch: int

    def part(self, epoch: int, b: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """(n, 3) of (run, shard, row)."""
        ...


class Pipeline(Generic[DecodedT, BatchT]):
    """Batches from `start_step` to `stop_step` (None: for ever)."""

    def __init__(
        self,
        *,
        order: BatchOrder,
        source: Source,
        rank: int,
        world_size: int,
        workers: Threads[DecodedT],
        assemble: Callable[[int, int, list[DecodedT]], BatchT],
        others: Callable[[int, NDArray[np.int64]], NDArray[np.int64] | None],
        start_step: int,
        stop_step: int | None = None,
    ) -> None:
        """Start immediately, in the background.

        Args:
            order: the order, which determines the samples of a batch.
            source: source of the shards.
            rank: rank of this process.
            world_size: number of ranks.
            workers: pool that decodes chunks.
            assemble: (step, epoch, its decoded chunks) to a batch; must copy what it takes from them.
            others: maps (epoch, (n, 3) part) to the (n, 3) of other samples that each one also needs; or None.
            start_step: first step.
            stop_step: where to end.
        """
        self._order, self._source, self._rank, self._world_size = order, source, rank, world_size
        self._workers, self._assemble, self._others = workers, assemble, others
        self._assembler = ThreadPoolExecutor(1, "assemble")
        self._batches: queue.Queue[Future[BatchT | None]] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(start_step, stop_step), name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[BatchT]:
        """The batches in turn; closing the iterator closes the pipeline."""
        try:
            while not self._stopped.is_set() and (batch := self._batches.get().result()) is not None:
                yield batch
        except BrokenProcessPool as error:
            raise RunError(
                "a loader worker died (killed from outside, or out of memory): fewer placement.loader_workers need less memory"
            ) from error
        finally:
            self.close()

    def close(self) -> None:
        """Stop, and release the shards."""
        self._stopped.set()
        self._source.close()
        with contextlib.suppress(queue.Empty):
            self._batches.get_nowait()  # the thread may be waiting for room
        self._thread.join()
        self._assembler.shutdown(wait=True, cancel_futures=True)
        ended: Future[BatchT | None] = Future()
        ended.set_result(None)
        with contextlib.suppress(queue.Full):  # full: the consumer has something to get
            self._batches.put_nowait(ended)

    def _produce(self, start_step: int, stop_step: int | None) -> None:
        last: Future[BatchT | None] = Future()
        try:
            for step in itertools.count(start_step) if stop_step is None else range(start_step, stop_step):
                epoch = step // self._order.steps_per_epoch
                decoded = [functools.partial(self._whole, chunk, self._workers.submit(chunk)) for chunk in self._chunks(step, epoch)]
                if not decoded:
                    continue
                if not self._put(self._assembler.submit(self._finish, step, epoch, decoded)):
                    return
            last.set_result(None)
        except BaseException as error:  # the consumer can tell the user
            last.set_exception(error)
        self._put(last)

    def _finish(self, step: int, epoch: int, decoded: Sequence[Callable[[], DecodedT]]) -> BatchT:
        batch = self._assemble(step, epoch, [chunk() for chunk in decoded])
        self._source.release(step + 1)
        return batch

    def _whole(self, chunk: Chunk, result: Callable[[], DecodedT]) -> DecodedT:
        """A chunk's result; if a file of the cache turns out to be damaged, it is fetched again, once."""
        healed: set[str] = set()
        while True:
            try:
                return result()
            except DamagedFile as error:
                if error.file.path in healed or not self._source.heal(error.file):
                    raise
                healed.add(error.file.path)
                result = functools.partial(self._workers.decode_here, chunk)

    def _put(self, batch: Future[BatchT | None]) -> bool:
        while not self._stopped.is_set():
            try:
                self._batches.put(batch, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def _chunks(self, step: int, epoch: int) -> Iterator[Chunk]:
        """The rank's part of one step, once its shards are available."""
        part = self._order.part(epoch, step % self._order.steps_per_epoch, self._rank, self._world_size)
        others = self._others(epoch, part)
        columns = np.stack([part] if others is None else [part, others], axis=1)  # (n, columns, 3)
        for start in range(0, len(part), CHUNK_SAMPLES):
            piece = columns[start : start + CHUNK_SAMPLES]
            used, which = np.unique(piece[..., :2].reshape(-1, 2), axis=0, return_inverse=True)
            files = [self._source.file(epoch, int(run), int(shard), step) for run, shard in used]
            yield Chunk(epoch=epoch, files=files, which=which.reshape(piece.shape[:2]), rows=piece[..., 2], positions=piece[..., 1:])
