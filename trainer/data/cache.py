"""Shards on this machine: used in place if the root is a folder, otherwise prefetched into a bounded cache.

The ranks of a node share one folder (trainer/data/folder.py): a rank that finds a file missing or damaged fetches it for all, and
the last rank to release a file removes it. If the whole split fits into `placement.cache_bytes`, shards are fetched whole, nothing
is removed before the end, and later epochs fetch nothing.
"""

import functools
import itertools
import os
import queue
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from trainer.config import Placement
from trainer.data.fetch import fetch_shard
from trainer.data.folder import join_cache
from trainer.data.order import ShardRead
from trainer.data.shards import ShardFile
from trainer.errors import InputError, RunError
from trainer.storage.base import join, local_path
from trainer.storage.checked import forget
from trainer.storage.manifest import Manifest, Shard

_CONNECTIONS = 4
_MOST_CONNECTIONS = 16
_SWEPT_AROUND = 64
"""Number of first reads for which a bounded cache keeps files left by an earlier run."""
_CLOSE_SECONDS = 10.0
"""Seconds for which a closed loader waits for fetches in progress, so that a store that is down does not delay the exit."""


class Order(Protocol):
    """The part of an order that the cache needs: see CanonicalOrder."""

    steps_per_epoch: int

    def reads(self, epoch: int, rank: int, world_size: int) -> list[ShardRead]:
        """What a rank reads in an epoch, in the order of its first use."""
        ...


class Source(Protocol):
    """The source of a loader's shards."""

    def file(self, epoch: int, run: int, shard: int, step: int) -> ShardFile:
        """The file of a shard for a run, once it is available; `step` (of all steps) needs it."""
        ...

    def release(self, step: int) -> None:
        """Announce that no step before `step` will be requested again."""
        ...

    def heal(self, file: ShardFile) -> bool:
        """Repair a file that was found damaged; False if there is no source to repair it from."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class InPlace:
    """Shards of a local folder, used in place."""

    def __init__(self, folder: str, shards: list[Shard]) -> None:
        self._files = [
            ShardFile(
                shard=shard,
                path=str(local_path(join(folder, shard.name))),
                index=str(local_path(join(folder, shard.index_name))),
                uri=join(folder, shard.name),
            )
            for shard in shards
        ]

    def file(self, epoch: int, run: int, shard: int, step: int) -> ShardFile:
        """The shard's own file."""
        return self._files[shard]

    def release(self, step: int) -> None:
        """Nothing was taken."""

    def heal(self, file: ShardFile) -> bool:
        """Always False, since there is no other copy. The next run hashes the file again, whatever its stamp says."""
        forget(file.uri.removesuffix(f"/{file.shard.name}"), file.shard.name, file.shard.index_name)
        return False

    def close(self) -> None:
        """Nothing was taken."""


@dataclass
class _Cached:
    """A file of the cache that this process holds: its purpose, the number of reads that use it, and a future for its arrival."""

    file: ShardFile
    rows: range | None
    readers: int
    ready: "Future[ShardFile]"


@dataclass
class _Held:
    """One read of one epoch: its size in bytes, the last step that uses it, and the file that it reads."""

    size: int
    last_step: int
    cached: _Cached


class Prefetcher:
    """Fetches a rank's shards in the order of their first use, as far ahead as the cache allows.

    Attributes:
        fetched_bytes: bytes read from the store for each epoch.
    """

    def __init__(
        self,
        uri: str,
        manifest: Manifest,
        shards: list[Shard],
        order: Order,
        *,
        rank: int,
        world_size: int,
        placement: Placement,
        start_step: int,
    ) -> None:
        """Start to fetch the shards for the steps from `start_step` on. Raises InputError if placement.cache_dir cannot be used."""
        self._uri, self._shards, self._order, self._rank, self._world_size = uri, shards, order, rank, world_size
        self._keep = sum(shard.size for shard in shards) <= placement.cache_bytes
        self._leave = self._keep and bool(placement.cache_dir)  # a folder that was named outlives the run
        self._budget = placement.cache_bytes // placement.processes_per_node
        self._sizes = {_file_name(shard.name): shard.size for shard in manifest.shards}
        base = Path(placement.cache_dir or Path(tempfile.gettempdir()) / f"firstsight-cache-{os.getuid()}")
        self._folder = join_cache(base, manifest.identity[:16], list(self._sizes), named=bool(placement.cache_dir))
        self.fetched_bytes: Counter[int] = Counter()
        self._held: dict[tuple[int, int, int], _Held] = {}  # by (epoch, run, shard)
        self._held_bytes = 0
        self._cached: dict[str, _Cached] = {}  # by path
        self._wanted = start_step  # the step that the consumer asks for
        self._stopped = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        # Daemons, not an executor: an exit must not wait until a store that is down has used up its retries.
        self._queue: queue.SimpleQueue[tuple[int, _Cached] | None] = queue.SimpleQueue()
        self._fetchers: list[threading.Thread] = []
        self._at_work = 1  # this loader and the threads that use the folder; the last one leaves it
        for _ in range(_CONNECTIONS):
            self._start_fetcher()
        self._thread = threading.Thread(target=self._plan, args=(start_step,), name="prefetch", daemon=True)
        self._thread.start()

    def file(self, epoch: int, run: int, shard: int, step: int) -> ShardFile:
        """The file of a shard for a run, once it is available. Raises the error if fetching it failed."""
        with self._changed:
            self._wanted = max(self._wanted, step)
            self._changed.notify_all()
            while (held := self._held.get((epoch, run, shard))) is None:
                if self._failure is not None:
                    raise self._failure
                if self._stopped:
                    raise RunError(f"{self._uri}: the loader was closed")
                self._changed.wait()
            late = not held.cached.ready.done() and not self._queue.empty()
            if late and not self._stopped and len(self._fetchers) < _MOST_CONNECTIONS:
                self._start_fetcher()  # the current connections are too slow for the consumer
        return held.cached.ready.result()

    def release(self, step: int) -> None:
        """Release the files that no step from `step` on needs."""
        with self._changed:
            if self._stopped:
                return
            for key in [key for key, held in self._held.items() if held.last_step < step and held.cached.ready.done()]:
                held = self._held.pop(key)
                self._held_bytes -= held.size
                held.cached.readers -= 1
                if not held.cached.readers and not self._keep:
                    self._let_go(self._cached.pop(held.cached.file.path))
            self._changed.notify_all()

    def heal(self, file: ShardFile) -> bool:
        """Fetch a damaged file of the cache again. Raises Corrupt if the store's copy is damaged too."""
        with self._changed:
            cached = self._cached.get(file.path)
            if cached is None or self._stopped:
                return False
            self._at_work += 1
        try:
            self._folder.heal(file, cached.rows, lambda: fetch_shard(file, cached.rows, self._is_stopped), self._is_stopped)
        finally:
            self._end_work()
        return True

    def close(self) -> None:
        """Stop fetching, and remove files that no other rank uses (unless the folder was configured and contains the whole split)."""
        with self._changed:
            if self._stopped:
                return
            self._stopped = True
            for cached in self._cached.values():
                if not cached.ready.done():
                    cached.ready.set_exception(RunError(f"{self._uri}: the loader was closed"))
            self._changed.notify_all()
        self._thread.join()
        for _ in self._fetchers:
            self._queue.put(None)
        deadline = time.monotonic() + _CLOSE_SECONDS
        for fetcher in self._fetchers:
            fetcher.join(max(0.0, deadline - time.monotonic()))
        self._end_work()

    def _plan(self, start_step: int) -> None:
        """The prefetcher's thread: submit every read in turn, as soon as there is room."""
        try:
            steps = self._order.steps_per_epoch
            for epoch in itertools.count(start_step // steps):
                reads = self._order.reads(epoch, self._rank, self._world_size)
                reads = [read for read in reads if epoch * steps + read.last_step >= start_step]
                if epoch == start_step // steps:
                    first = frozenset(Path(self._file(read)[0].path) for read in reads[:_SWEPT_AROUND])
                    self._folder.sweep(self._is_whole if self._keep else first.__contains__)
                for read in reads:
                    if not self._wait_for_room(epoch * steps + read.first_step, self._size(read), epoch):
                        return
                    with self._changed:
                        held = _Held(self._size(read), epoch * steps + read.last_step, self._submit(epoch, read))
                        self._held[epoch, read.run, read.shard] = held
                        self._held_bytes += self._size(read)
                        self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _wait_for_room(self, first_step: int, size: int, epoch: int) -> bool:
        """Wait until a read fits, or is what the consumer waits for; False when stopped. Never further than the next epoch."""
        with self._changed:
            while not self._stopped:
                near = epoch <= self._wanted // self._order.steps_per_epoch + 1
                if first_step <= self._wanted or (near and (self._keep or self._held_bytes + size <= self._budget)):
                    return True
                self._changed.wait()
            return False

    def _size(self, read: ShardRead) -> int:
        shard = self._shards[read.shard]
        return shard.size * (read.stop_row - read.first_row) // max(shard.num_samples, 1)

    def _file(self, read: ShardRead) -> tuple[ShardFile, range | None]:
        """The place of a read's shard, and the rows stored there; None: all rows, as for shards that later epochs will read too."""
        shard = self._shards[read.shard]
        rows = range(read.first_row, read.stop_row)
        whole = self._keep or rows == range(shard.num_samples)
        part = "" if whole else f"@{rows.start}-{rows.stop}"
        tar, index = (str(self._folder.path / f"{_file_name(name)}{part}") for name in (shard.name, shard.index_name))
        return ShardFile(shard=shard, path=tar, index=index, uri=join(self._uri, shard.name)), None if whole else rows

    def _is_whole(self, tar: Path) -> bool:
        """Whether a file of the folder has the name and size of a shard; its bytes are checked when it is used."""
        with suppress(OSError):
            return tar.stat().st_size == self._sizes.get(tar.name)
        return False

    def _submit(self, epoch: int, read: ShardRead) -> _Cached:
        """The file for a read; a fetcher provides it unless this process already holds it. Called with the lock held."""
        file, rows = self._file(read)
        cached = self._cached.get(file.path)
        if cached is None:
            cached = self._cached[file.path] = _Cached(file, rows, 0, Future())
            self._queue.put((epoch, cached))
        cached.readers += 1
        return cached

    def _start_fetcher(self) -> None:
        self._at_work += 1
        self._fetchers.append(threading.Thread(target=self._fetch_queued, name="fetch", daemon=True))
        self._fetchers[-1].start()

    def _fetch_queued(self) -> None:
        """A fetching thread."""
        while (item := self._queue.get()) is not None:
            epoch, cached = item
            error: BaseException | None = None
            try:
                if not self._stopped:
                    self._folder.take(cached.file, cached.rows, functools.partial(self._fetch, epoch, cached), self._is_stopped)
            except BaseException as raised:
                error = raised
            with self._changed:
                if cached.ready.done():  # closed in between
                    continue
                if error is None:
                    cached.ready.set_result(cached.file)
                else:
                    cached.ready.set_exception(error)
        self._end_work()

    def _fetch(self, epoch: int, cached: _Cached) -> None:
        fetched = fetch_shard(cached.file, cached.rows, self._is_stopped)
        with self._changed:
            self.fetched_bytes[epoch] += fetched

    def _is_stopped(self) -> bool:
        return self._stopped

    def _let_go(self, cached: _Cached) -> None:
        if cached.ready.exception() is None:
            self._folder.let_go(cached.file, remove=not self._keep)

    def _end_work(self) -> None:
        """Count one user of the folder less; the last one leaves the folder."""
        with self._changed:
            self._at_work -= 1
            if self._at_work:
                return
        with suppress(InputError, RunError):  # the next user removes what cannot be removed now
            if not self._keep:
                for cached in self._cached.values():
                    self._let_go(cached)
            self._folder.leave(self._is_whole if self._leave else lambda tar: False)


def check_cache(uri: str, shards: list[Shard], placement: Placement, *, runs: int, block_shards: int) -> None:
    """Refuse a cache too small for the shards that the order shuffles over: 2 C K shards over all nodes, or the whole split."""
    if local_path(uri) is not None:
        return
    total = sum(shard.size for shard in shards)
    needed = total
    if block_shards:
        on_node = min(runs, -(-runs // placement.nodes) + bool(runs % placement.nodes))
        needed = min(total, 2 * on_node * block_shards * max(shard.size for shard in shards))
    if needed > placement.cache_bytes:
        raise InputError(
            f"placement.cache_bytes must be at least {needed}: order_runs {runs} and order_block_shards {block_shards} shuffle over "
            f"that much of {uri} on each node; got {placement.cache_bytes}"
        )


def _file_name(name: str) -> str:
    """The file name in the cache for a shard, wherever the shard is below the data set's folder."""
    return quote(name, safe="")
