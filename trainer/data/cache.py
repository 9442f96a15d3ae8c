"""Shards on this machine: in place where the root is a folder, else fetched ahead of their use into a bounded cache.

The ranks of a node share one folder. A file's lock tells who uses it: whoever finds it missing fetches it under
the exclusive lock, all who read it hold the shared one, and the last to let go removes it. Where the whole split
fits into `placement.cache_bytes` nothing is removed, and later epochs fetch nothing.
"""

import contextlib
import errno
import fcntl
import functools
import itertools
import os
import queue
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import google_crc32c

from trainer.config import Placement
from trainer.data.order import ShardRead
from trainer.data.shards import ShardFile
from trainer.errors import InputError, RunError
from trainer.storage.base import MIN_RANGE_BYTES, join, local_path, open_store, read_bytes
from trainer.storage.manifest import Manifest, Shard
from trainer.storage.samples import read_index

_CONNECTIONS = 4
_LOCK_POLL_SECONDS = 0.05
_ABANDONED_SECONDS = 3600.0


class Order(Protocol):
    """What the cache must know of an order: see CanonicalOrder."""

    steps_per_epoch: int

    def reads(self, epoch: int, rank: int, world_size: int) -> list[ShardRead]:
        """What a rank reads in an epoch, in the order of its first use."""
        ...


class Source(Protocol):
    """Where a loader finds its shards."""

    def file(self, epoch: int, run: int, shard: int, step: int) -> ShardFile:
        """The file of a shard for a run, waited for; `step` (of all steps) needs it."""
        ...

    def release(self, step: int) -> None:
        """No step before `step` will be asked for again."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class InPlace:
    """Shards of a local folder, used where they lie."""

    def __init__(self, folder: str, shards: list[Shard]) -> None:
        self._files = [
            ShardFile(shard=shard, path=str(local_path(join(folder, shard.name))), folder=folder, uri=join(folder, shard.name))
            for shard in shards
        ]

    def file(self, epoch: int, run: int, shard: int, step: int) -> ShardFile:
        """The shard's own file."""
        return self._files[shard]

    def release(self, step: int) -> None:
        """Nothing was taken."""

    def close(self) -> None:
        """Nothing was taken."""


@dataclass
class _Held:
    """One read of one epoch: its size in bytes, the last step that uses it, and what fetching it gives."""

    size: int
    last_step: int
    fetched: "Future[tuple[ShardFile, BinaryIO]]"


class Prefetcher:
    """Fetches a rank's shards in the order of their first use, as far ahead as the cache allows.

    Attributes:
        fetched_bytes: what was read from the store for each epoch.
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
        """Begin to fetch what the steps from `start_step` on need."""
        self._uri, self._shards, self._order, self._rank, self._world_size = uri, shards, order, rank, world_size
        base = Path(placement.cache_dir or Path(tempfile.gettempdir()) / f"firstsight-cache-{os.getuid()}")
        self._folder = base / manifest.identity[:16]
        self._keep = sum(shard.size for shard in shards) <= placement.cache_bytes
        self._leave = self._keep and bool(placement.cache_dir)  # a folder that was named outlives the run
        self._budget = placement.cache_bytes // placement.processes_per_node
        self.fetched_bytes: Counter[int] = Counter()
        self._held: dict[tuple[int, int, int], _Held] = {}  # by (epoch, run, shard)
        self._held_bytes = 0
        self._wanted = start_step  # the step that the consumer asks for
        self._stopped = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        # Daemons, not an executor: an exit must not wait until a store that is down has used up its retries.
        self._queue: queue.SimpleQueue[tuple[int, ShardRead, Future[tuple[ShardFile, BinaryIO]]] | None] = queue.SimpleQueue()
        for _ in range(_CONNECTIONS):
            threading.Thread(target=self._fetch_queued, name="fetch", daemon=True).start()
        self._thread = threading.Thread(target=self._plan, args=(start_step,), name="prefetch", daemon=True)
        self._thread.start()

    def file(self, epoch: int, run: int, shard: int, step: int) -> ShardFile:
        """The file of a shard for a run, waited for. Raises what went wrong in fetching it."""
        with self._changed:
            self._wanted = max(self._wanted, step)
            self._changed.notify_all()
            while (held := self._held.get((epoch, run, shard))) is None:
                if self._failure is not None:
                    raise self._failure
                if self._stopped:
                    raise RunError(f"{self._uri}: the loader was closed")
                self._changed.wait()
        return held.fetched.result()[0]

    def release(self, step: int) -> None:
        """Let go of what no step from `step` on needs."""
        with self._changed:
            done = [key for key, held in self._held.items() if held.last_step < step and held.fetched.done()]
            finished = [self._held.pop(key) for key in done]
            self._held_bytes -= sum(held.size for held in finished)
            self._changed.notify_all()
        for held in finished:
            self._release(held.fetched, remove=not self._keep)

    def close(self) -> None:
        """Stop fetching, and remove what no other rank uses (unless the folder was named and holds the whole split)."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        for _ in range(_CONNECTIONS):
            self._queue.put(None)
        with self._changed:  # the consumer's thread may still release what it has used
            left, self._held = list(self._held.values()), {}
        for held in left:
            if not held.fetched.cancel():  # what is just being fetched lets go of itself when it ends
                held.fetched.add_done_callback(functools.partial(self._release, remove=not self._leave))

    def _plan(self, start_step: int) -> None:
        """The prefetcher's thread: submit every read in turn, as soon as there is room."""
        try:
            steps = self._order.steps_per_epoch
            for epoch in itertools.count(start_step // steps):
                reads = self._order.reads(epoch, self._rank, self._world_size)
                reads = [read for read in reads if epoch * steps + read.last_step >= start_step]
                if epoch == start_step // steps:
                    self._remove_stale({self._name(read) for read in reads[: len(reads) if self._keep else 64]})
                for read in reads:
                    if not self._wait_for_room(epoch * steps + read.first_step, self._size(read), epoch):
                        return
                    with self._changed:
                        fetched: Future[tuple[ShardFile, BinaryIO]] = Future()
                        self._queue.put((epoch, read, fetched))
                        self._held[epoch, read.run, read.shard] = _Held(self._size(read), epoch * steps + read.last_step, fetched)
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

    def _name(self, read: ShardRead) -> str:
        shard = self._shards[read.shard]
        whole = (read.first_row, read.stop_row) == (0, shard.num_samples)
        return shard.name if whole else f"{shard.name}@{read.first_row}-{read.stop_row}"

    def _fetch_queued(self) -> None:
        """A fetching thread."""
        while (item := self._queue.get()) is not None:
            epoch, read, fetched = item
            if fetched.set_running_or_notify_cancel():
                try:
                    fetched.set_result(self._fetch(epoch, read))
                except BaseException as error:
                    fetched.set_exception(error)

    def _fetch(self, epoch: int, read: ShardRead) -> tuple[ShardFile, BinaryIO]:
        """The file of one read, with the lock that keeps it from being removed."""
        shard = self._shards[read.shard]
        path = self._folder / self._name(read)
        file = ShardFile(shard=shard, path=str(path), folder=str(self._folder), uri=join(self._uri, shard.name))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                lock = stack.enter_context(open(f"{path}.lock", "wb"))
                while True:
                    fcntl.flock(lock, fcntl.LOCK_SH)  # waits while another rank fetches it
                    if path.exists():
                        stack.pop_all()  # held until the file is let go
                        return file, lock
                    fcntl.flock(lock, fcntl.LOCK_UN)
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        if not path.exists():
                            self._download(epoch, shard, read, path)
                        continue
                    time.sleep(_LOCK_POLL_SECONDS)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RunError(f"{path}: the disk is full: lower placement.cache_bytes, or name another placement.cache_dir") from error
            raise RunError(f"{path}: {error.strerror or error}") from error

    def _download(self, epoch: int, shard: Shard, read: ShardRead, path: Path) -> None:
        """Write a shard, or the rows of it that a run needs, and its index. Whole shards are checked against the manifest."""
        index_path = self._folder / shard.index_name
        if not index_path.exists():
            data = read_bytes(join(self._uri, shard.index_name))
            self.fetched_bytes[epoch] += len(data)
            _write_whole(index_path, data)
        start, stop = 0, shard.size
        if path.name.removeprefix(Path(shard.name).name):
            index = read_index(str(self._folder), shard)
            rows = slice(read.first_row, read.stop_row)
            start = int(index.offsets[rows].min())
            stop = int((index.offsets[rows] + index.sizes[rows]).max())
            short = max(MIN_RANGE_BYTES - (stop - start), 0)
            stop = min(stop + short, shard.size)
        uri, partial, checksum = join(self._uri, shard.name), path.with_name(f"{path.name}.{os.getpid()}.part"), 0
        with open(partial, "wb") as stream:
            stream.truncate(shard.size)
            stream.seek(start)
            for piece in open_store(uri).stream(uri, start, stop - start):
                stream.write(piece)
                checksum = google_crc32c.extend(checksum, piece)
                self.fetched_bytes[epoch] += len(piece)
                if self._stopped:
                    raise RunError(f"{uri}: the loader was closed while it was fetched")
        if stop - start == shard.size and checksum != shard.crc32c:
            partial.unlink()
            raise RunError(f"{uri}: checksum is not the manifest's: the shard was changed or is damaged")
        os.replace(partial, path)

    def _release(self, fetched: "Future[tuple[ShardFile, BinaryIO]]", *, remove: bool) -> None:
        """Drop the lock of a file, and the file where nobody else holds it."""
        if fetched.exception() is not None:
            return
        file, lock = fetched.result()
        with lock:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if remove:
                    Path(file.path).unlink(missing_ok=True)

    def _remove_stale(self, names: set[str]) -> None:
        """Remove what a run that was killed left behind and this one does not begin with; check the rest of it."""
        sizes = {shard.name: shard for shard in self._shards}
        for path in sorted(self._folder.rglob("*")):
            name = str(path.relative_to(self._folder))
            if path.is_dir() or path.suffix in (".lock", ".index"):
                continue
            if path.suffix == ".part":  # perhaps another rank is just writing it
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink(missing_ok=True)
                continue
            with open(f"{path}.lock", "wb") as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if name not in names or (name in sizes and _checksum(path) != sizes[name].crc32c):
                    path.unlink()


def shard_source(
    uri: str,
    manifest: Manifest,
    shards: list[Shard],
    order: Order,
    *,
    rank: int,
    world_size: int,
    placement: Placement,
    start_step: int,
) -> Source:
    """Where a loader that begins at `start_step` finds its shards."""
    if local_path(uri) is not None:
        return InPlace(uri, shards)
    return Prefetcher(uri, manifest, shards, order, rank=rank, world_size=world_size, placement=placement, start_step=start_step)


def check_cache(uri: str, shards: list[Shard], placement: Placement, *, runs: int, block_shards: int) -> None:
    """Refuse a cache that cannot hold what the order shuffles over: 2 C K shards over all nodes, or the whole split."""
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
            f"so much of {uri} on each node; got {placement.cache_bytes}"
        )


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            checksum = google_crc32c.extend(checksum, piece)
    return checksum


def _write_whole(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    partial.write_bytes(data)
    os.replace(partial, path)
