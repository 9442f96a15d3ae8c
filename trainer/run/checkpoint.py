"""Checkpoints: safetensors and JSON, copied to host memory at once and stored by a background thread.

Only the copy into reused host buffers holds the training up. The thread then stores the files, reads the attempt fence
again, and writes COMMITTED.json last, so a reader sees a whole checkpoint or none. The buffers *are* the files' bytes:
safetensors' own writer would copy every tensor once more and hold the interpreter's lock while it writes.
"""

import hashlib
import io
import json
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from trainer.config import differing_keys
from trainer.errors import Corrupt, InputError, RunError
from trainer.model.towers import find_nonfinite
from trainer.storage import join, layout, open_store, read_bytes, write_bytes
from trainer.storage.base import MissingObject
from trainer.storage.committed import NAME, Committed, read_committed, write_committed
from trainer.storage.fence import Fence
from trainer.storage.recipes import shown

FORMAT_VERSION = 1
STATE_FILE, MODEL_FILE, OPTIMIZER_FILE = "state.json", "model.safetensors", "optimizer.safetensors"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
TensorFiles = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was read and verified.

    Attributes:
        uri: its folder.
        step: optimiser steps done.
        tensors: file name -> tensor name -> tensor on the CPU.
        state: what else a run needs to go on (state.json).
    """

    uri: str
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Writer:
    """Saves checkpoints below one stage's folder; only rank 0 has one."""

    def __init__(self, output: str, *, recipe_hash: str, fence: Fence, keep_last: int) -> None:
        self._output = output
        self._recipe_hash = recipe_hash
        self._fence = fence
        self._keep_last = keep_last
        self._images: dict[str, _FileImage] = {}
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[float] | None = None
        self.last_seconds = 0.0
        """Seconds from the call of the last finished save to its commit."""

    def save(
        self,
        step: int,
        tensors: TensorFiles,
        state: Mapping[str, Any],
        facts: Mapping[str, Any],
        *,
        beside: Mapping[str, bytes],
        keep: bool,
    ) -> None:
        """Copy `tensors` to host memory and return; the rest happens in the background.

        Args:
            step: optimiser steps done.
            tensors: file name -> tensors, on any device.
            state: goes to state.json.
            facts: go to COMMITTED.json.
            beside: objects of the stage's folder (logs) that must not be older than the checkpoint.
            keep: never delete this one.

        Raises:
            RunError: the previous save failed; what it says is its cause.
        """
        self.wait()
        began = time.monotonic()
        for name, part in tensors.items():
            image = self._images.get(name)
            if image is None or not image.fits(part):
                image = self._images[name] = _FileImage(part)
            image.fill(part)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        content = json.dumps({"format_version": FORMAT_VERSION, "step": step, **state}, indent=1, sort_keys=True).encode()
        seal = {"step": step, "facts": {**facts, "kept": keep}}
        self._pending = self._thread.submit(self._store, step, content, seal, dict(beside), began)

    def wait(self) -> None:
        """Wait until the last save is committed; raise what went wrong in it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self.last_seconds = pending.result()

    def close(self) -> None:
        """Wait for the last save, then end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _store(self, step: int, content: bytes, seal: dict[str, Any], beside: dict[str, bytes], began: float) -> float:
        folder = layout.checkpoint(self._output, step)
        store = open_store(folder)
        store.delete(join(folder, NAME))  # an earlier run's seal must not vouch for our files
        for name, image in self._images.items():
            if broken := find_nonfinite(image.views):
                raise RunError(f"{join(folder, name)}: {broken} holds numbers that are not finite: not saved")
        files = {STATE_FILE: _put(folder, STATE_FILE, memoryview(content))}
        for name, image in self._images.items():
            files[name] = _put(folder, name, image.bytes())
        for name, data in beside.items():
            write_bytes(join(self._output, name), data)
        self._fence.check()
        write_committed(folder, Committed(recipe_hash=self._recipe_hash, attempt=self._fence.attempt, files=files, **seal))
        self._prune(step)
        return time.monotonic() - began

    def _prune(self, step: int) -> None:
        """Keep the newest `keep_last` up to `step`, those marked kept, and whatever is newer; delete the rest, seal first."""
        found = {known: uris for known, uris in _listed(self._output).items() if known <= step}
        sealed = [known for known in sorted(found, reverse=True) if any(uri.endswith(f"/{NAME}") for uri in found[known])]
        keep = set(sealed[: self._keep_last]) | {known for known in sealed[self._keep_last :] if self._kept(known)}
        for known in sorted(found.keys() - keep):
            _delete(found[known])

    def _kept(self, step: int) -> bool:
        seal = read_committed(layout.checkpoint(self._output, step))
        return seal is not None and bool(seal.facts.get("kept"))


def write_final(output: str, local: Path, *, recipe_hash: str, step: int, fence: Fence, facts: Mapping[str, Any]) -> None:
    """Store the files of `local` as final/ and seal it."""
    folder = layout.final(output)
    open_store(folder).delete(join(folder, NAME))
    files = {path.name: _put(folder, path.name, memoryview(path.read_bytes())) for path in sorted(local.iterdir())}
    fence.check()
    write_committed(folder, Committed(recipe_hash=recipe_hash, attempt=fence.attempt, step=step, files=files, facts=dict(facts)))


def clear(output: str) -> None:
    """Delete every checkpoint of a stage's folder (`resume: never`)."""
    for uris in _listed(output).values():
        _delete(uris)


def written_by(output: str, attempt: int) -> bool:
    """Whether this attempt (not 0, which is none) has committed a checkpoint: then even `resume: never` goes on from it.

    A pod that was restarted gets the same arguments again; without this it would start from the beginning each time.
    """
    if not attempt:
        return False
    seals = (read_committed(layout.checkpoint(output, step)) for step in _listed(output))
    return any(seal is not None and seal.attempt == attempt for seal in seals)


def find(output: str, resume: str, *, recipe_hash: str, recipe: Mapping[str, Any]) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to go on from.

    Args:
        output: the stage's folder.
        resume: auto (newest that verifies), never, or a checkpoint's URI.
        recipe_hash: of this run; a checkpoint of any other is refused.
        recipe: the recipe fields behind the hash, to name what differs.

    Returns:
        The checkpoint, or None where the run starts from the beginning; and the reason for each that was passed over.

    Raises:
        InputError: another recipe, data set or architecture, a newer format, a URI without a seal or with changed files; or
            there are sealed checkpoints, but none of them verifies.
    """
    if resume == "never":
        return None, []
    if resume != "auto":
        try:
            return read(resume, recipe_hash=recipe_hash, recipe=recipe), []
        except Corrupt as error:
            raise InputError(f"placement.resume: {error}") from error
    skipped: list[str] = []
    for step in sorted(_listed(output), reverse=True):
        folder = layout.checkpoint(output, step)
        try:
            if read_committed(folder) is not None:
                return read(folder, recipe_hash=recipe_hash, recipe=recipe), skipped
        except (Corrupt, MissingObject) as error:
            skipped.append(f"{folder}: {error}")
    if skipped:
        raise InputError(
            f"{output}: none of {len(skipped)} checkpoints can be read, the newest for this: {skipped[0]}; "
            f"placement.resume=never starts afresh"
        )
    return None, []


def read(folder: str, *, recipe_hash: str, recipe: Mapping[str, Any]) -> Checkpoint:
    """Read one checkpoint, every file verified against the seal.

    Raises:
        InputError: no seal, a newer format, or another recipe's.
        Corrupt: a file is missing in the seal, its size or checksum is not the sealed one, or it is not what it should be.
    """
    seal = read_committed(folder)
    if seal is None:
        raise InputError(f"{folder}: no COMMITTED.json, so this is no finished checkpoint")
    missing = {STATE_FILE, MODEL_FILE, OPTIMIZER_FILE} - seal.files.keys()
    if missing:
        raise Corrupt(f"{folder}: COMMITTED.json does not name {', '.join(sorted(missing))}")
    contents = {name: _verified(join(folder, name), facts) for name, facts in seal.files.items()}
    state = _state(join(folder, STATE_FILE), contents.pop(STATE_FILE))
    if state.get("step") != seal.step:
        raise Corrupt(f"{folder}: COMMITTED.json says step {seal.step}, {STATE_FILE} step {state.get('step')}")
    if seal.recipe_hash != recipe_hash:
        differing = shown(differing_keys(state["recipe"], recipe)) if state.get("recipe") else f"{STATE_FILE} does not record which"
        raise InputError(f"{folder}: checkpoint of another recipe, refused: {differing}")
    return Checkpoint(
        uri=folder, step=seal.step, tensors={name: _tensors(join(folder, name), data) for name, data in contents.items()}, state=state
    )


def _state(uri: str, data: bytes) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(data)
        newer = state["format_version"] > FORMAT_VERSION
    except (ValueError, TypeError, KeyError) as error:
        raise Corrupt(f"{uri}: not a checkpoint's state: {type(error).__name__}: {error}") from error
    if newer:
        raise InputError(f"{uri}: checkpoint format {state['format_version']} is newer than this firstsight reads ({FORMAT_VERSION})")
    return state


def _tensors(uri: str, data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except SafetensorError as error:
        raise Corrupt(f"{uri}: not a safetensors file: {error}") from error


def _verified(uri: str, facts: Mapping[str, Any]) -> bytes:
    data = read_bytes(uri)
    if len(data) != facts["size"]:
        raise Corrupt(f"{uri}: {len(data)} bytes, COMMITTED.json says {facts['size']}")
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise Corrupt(f"{uri}: checksum is not the one in COMMITTED.json: the file was changed")
    return data


def _put(folder: str, name: str, data: memoryview) -> dict[str, Any]:
    uri = join(folder, name)
    open_store(uri).put_stream(uri, cast(BinaryIO, _MemoryFile(data)), len(data))
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _listed(output: str) -> dict[int, list[str]]:
    """Step -> URIs of the objects in its folder, sealed or not."""
    prefix = join(output, "checkpoints")
    found: dict[int, list[str]] = {}
    for info in open_store(prefix).list(prefix):
        match = re.search(r"/checkpoints/step-(\d+)/", info.uri)
        if match:
            found.setdefault(int(match[1]), []).append(info.uri)
    return found


def _delete(uris: list[str]) -> None:
    """The seal first: a reader must not find a seal over files that are gone."""
    for uri in sorted(uris, key=lambda uri: not uri.endswith(f"/{NAME}")):
        with suppress(MissingObject):
            open_store(uri).delete(uri)


class _FileImage:
    """The bytes of one safetensors file in host memory: laid out once, refilled at each save."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._layout = self._describe(tensors)
        header: dict[str, Any] = {}
        position = 0
        for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):  # wide types first keep all aligned
            tensor = tensors[name]
            end = position + tensor.numel() * tensor.element_size()
            header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        prefix = len(text).to_bytes(8, "little") + text
        self._buffer = torch.empty(len(prefix) + position, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        self._buffer[: len(prefix)] = torch.frombuffer(bytearray(prefix), dtype=torch.uint8)
        self.views = {}
        for name, entry in header.items():
            start, end = (len(prefix) + offset for offset in entry["data_offsets"])
            self.views[name] = self._buffer[start:end].view(tensors[name].dtype).view(tensors[name].shape)

    @staticmethod
    def _describe(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
        return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the layout is still that of `tensors`."""
        return self._layout == self._describe(tensors)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy in; from a GPU without waiting for each tensor."""
        for name, view in self.views.items():
            view.copy_(tensors[name].detach(), non_blocking=True)

    def bytes(self) -> memoryview:
        """The file."""
        return self._buffer.numpy().data


class _MemoryFile(io.RawIOBase):
    """A readable, seekable file over memory, without a copy of it."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)
