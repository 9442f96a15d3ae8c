"""Decode in threads of the trainer, or in worker processes that return pictures through shared memory.

Sent through the pool's pipe, or as tensors (each with a file descriptor), pictures would keep a thread of the trainer's
interpreter busy, and every kernel launch would wait for it.
"""

import copy
import dataclasses
import functools
import mmap
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import reduction
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from trainer import logs
from trainer.config import Placement, unless_auto
from trainer.data.machine import available_cores

DecodedT = TypeVar("DecodedT")
DecodedT_co = TypeVar("DecodedT_co", covariant=True)
ChunkT_contra = TypeVar("ChunkT_contra", contravariant=True)


class ChunkDecoder(Protocol[ChunkT_contra, DecodedT_co]):
    """What turns a chunk into arrays; it is sent to worker processes, so it must pickle."""

    def decode(self, chunk: ChunkT_contra) -> DecodedT_co:
        """Decode one chunk. Raises RunError naming shard and sample."""
        ...


class Threads(Generic[DecodedT]):
    """Decodes in threads of this process."""

    def __init__(self, decoder: ChunkDecoder[Any, DecodedT], processes_per_node: int) -> None:
        self._decoder = decoder
        cores = available_cores() // processes_per_node
        self._pool: Executor = ThreadPoolExecutor(min(max(cores, 1), 16), "decode")

    def submit(self, chunk: Any) -> Callable[[], DecodedT]:
        """Begin a chunk; the result waits for it."""
        return self._pool.submit(self._decoder.decode, chunk).result

    def decode_here(self, chunk: Any) -> DecodedT:
        """Decode one chunk in this thread."""
        return self._decoder.decode(chunk)

    def close(self) -> None:
        """Wait for what runs, drop what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class Processes(Threads[DecodedT]):
    """Decodes in worker processes.

    A chunk's pictures lie in one slot of a ring until `slots` more chunks were submitted; by then they must have been copied.
    """

    def __init__(self, decoder: ChunkDecoder[Any, DecodedT], workers: int, *, slots: int, slot_bytes: int) -> None:
        # not in /dev/shm, which has 64 MB in a pod; a page takes memory when it is first written
        file = os.memfd_create("firstsight-pictures")
        os.ftruncate(file, slots * slot_bytes)
        self._slots, self._submitted = _mapped(file, slots, slot_bytes), 0
        context = multiprocessing.get_context("forkserver")  # a fork of a process with threads and a GPU may hang
        context.set_forkserver_preload(["trainer.data.loader"])
        self._file, self._decoder = file, copy.copy(decoder)  # workers that start later get one that has opened nothing
        begin = functools.partial(_begin_worker, decoder, _Descriptor(file), slots, slot_bytes, logs.spoken())
        self._pool = ProcessPoolExecutor(workers, context, begin)

    def submit(self, chunk: Any) -> Callable[[], DecodedT]:
        """Begin a chunk; the result waits for it. Raises BrokenProcessPool if a worker has died."""
        slot = self._submitted % len(self._slots)
        self._submitted += 1
        future: Future[Any] = self._pool.submit(_decode_in_worker, slot, chunk)

        def result() -> DecodedT:
            kind, shape, others = future.result()
            images = self._slots[slot, : shape.numel()].view(shape)
            arrived = {name: value if isinstance(value, list) else torch.from_numpy(value) for name, value in others.items()}
            decoded: DecodedT = kind(images=images, **arrived)
            return decoded

        return result

    def close(self) -> None:
        """As in threads; the memory goes when its last batch does."""
        super().close()
        os.close(self._file)


def open_workers(
    placement: Placement, decoder: ChunkDecoder[Any, DecodedT], *, processes: bool, slots: int, slot_bytes: int
) -> Threads[DecodedT]:
    """The decoding pool: placement.loader_workers processes if `processes` is set and there are any, else threads."""
    workers = unless_auto(placement.loader_workers)
    if processes and workers:
        return Processes(decoder, workers, slots=slots, slot_bytes=slot_bytes)
    return Threads(decoder, placement.processes_per_node)


def _mapped(file: int, slots: int, slot_bytes: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(file, slots * slot_bytes), dtype=torch.uint8).view(slots, slot_bytes)


class _Descriptor:
    """A file descriptor that travels with a process that is being started, and arrives as a number."""

    def __init__(self, file: int) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self._file),)


def _received(duplicate: Any) -> int:
    file: int = duplicate.detach()
    return file


# ------------------------------------------------------------------------------------------ in a worker process

_worker: tuple[ChunkDecoder[Any, Any], Tensor] | None = None


def _begin_worker(decoder: ChunkDecoder[Any, Any], file: Any, slots: int, slot_bytes: int, spoken: dict[str, Any]) -> None:
    """Set up a worker process: one thread, logs as its parent's, Ctrl-C left to the parent, and an end when the parent has ended."""
    global _worker
    logs.speak_as(spoken)
    _worker = decoder, _mapped(file, slots, slot_bytes)
    os.close(file)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _decode_in_worker(slot: int, chunk: Any) -> tuple[type, torch.Size, dict[str, Any]]:
    """Pictures into the slot; kind, their shape, and the other fields as arrays and lists."""
    assert _worker is not None
    decoder, slots = _worker
    decoded = decoder.decode(chunk)
    fields = {field.name: getattr(decoded, field.name) for field in dataclasses.fields(decoded)}
    images: Tensor = fields.pop("images")
    slots[slot, : images.numel()].view(images.shape).copy_(images)
    return type(decoded), images.shape, {name: value.numpy() if isinstance(value, Tensor) else value for name, value in fields.items()}
