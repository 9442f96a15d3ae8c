"""Checkpoints: safetensors and JSON, copied to host memory immediately and stored by a background thread.

Only the copy into reused host buffers stalls training. The thread then stores the files, reads the attempt fence again,
and writes COMMITTED.json last, so a reader sees a complete checkpoint or none. A checkpoint with a damaged seal or file also
counts as none: it is skipped, and pruned like one that was never sealed.
"""

import json
import logging
import mmap
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from trainer.config import canonical_hash, differing_keys
from trainer.errors import Corrupt, InputError, RunError
from trainer.model.towers import find_nonfinite
from trainer.run.hostcopy import FileImage, put_file
from trainer.storage import checked, join, layout, open_store, write_bytes
from trainer.storage.base import MissingObject
from trainer.storage.committed import NAME, Committed, find_damage, read_committed, write_committed
from trainer.storage.fence import Fence
from trainer.storage.recipes import shown

FORMAT_VERSION = 1
CHECKPOINTS = "checkpoints"
STATE_FILE, MODEL_FILE, OPTIMIZER_FILE = "state.json", "model.safetensors", "optimizer.safetensors"
TensorFiles = Mapping[str, Mapping[str, Tensor]]
log = logging.getLogger("trainer")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was read and verified.

    Attributes:
        uri: its folder.
        step: optimiser steps done.
        tensors: file name -> tensor name -> tensor on the CPU.
        state: what else a run needs to resume (state.json).
        records: file name -> text of a file in the stage's folder at this step; empty in a checkpoint of format 1.
    """

    uri: str
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    records: dict[str, bytes] = field(default_factory=dict)


class Writer:
    """Saves checkpoints below one stage's folder; only rank 0 has one."""

    def __init__(self, output: str, *, recipe_hash: str, fence: Fence, keep_last: int) -> None:
        self._output = output
        self._recipe_hash = recipe_hash
        self._fence = fence
        self._keep_last = keep_last
        self._images: dict[str, FileImage] = {}
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
        keep: bool = False,
    ) -> None:
        """Copy `tensors` to host memory and return; the rest happens in the background.

        Args:
            step: optimiser steps done.
            tensors: file name -> tensors, on any device.
            state: goes to state.json.
            facts: go to COMMITTED.json.
            beside: text of files in the stage's folder at this step, sealed with the checkpoint; progress.jsonl is also
                written to that folder, where people look for it.
            keep: also keep the weights alone, as `keep` does.

        Raises:
            RunError: the previous save failed; what it says is its cause.
        """
        began = self._copy(tensors)
        content = json.dumps({"format_version": FORMAT_VERSION, "step": step, **state}, indent=1, sort_keys=True).encode()

        def store() -> float:
            if keep:  # first, so that no run resumes from a checkpoint whose weights should have been kept but were not
                self._store_kept(step, facts)
            self._store(step, content, facts, beside)
            return time.monotonic() - began

        self._pending = self._thread.submit(store)

    def keep(self, step: int, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Copy the weights to host memory and return; they are stored and sealed in the background, and never deleted.

        Args:
            step: optimiser steps done.
            weights: tensors by name, on any device.
            facts: go to COMMITTED.json.

        Raises:
            RunError: the previous save failed; what it says is its cause.
        """
        began = self._copy({MODEL_FILE: weights})

        def store() -> float:
            self._store_kept(step, facts)
            return time.monotonic() - began

        self._pending = self._thread.submit(store)

    def wait(self) -> None:
        """Wait until the last save is committed; raise its error if it failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self.last_seconds = pending.result()

    def close(self) -> None:
        """Wait for the last save, then end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _copy(self, tensors: TensorFiles) -> float:
        """Copy `tensors` to host memory once the last save is finished; returns the time when the copy began."""
        self.wait()
        began = time.monotonic()
        for name, part in tensors.items():
            image = self._images.get(name)
            if image is None or not image.fits(part):
                image = self._images[name] = FileImage(part)
            image.fill(part)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return began

    def _store(self, step: int, content: bytes, facts: Mapping[str, Any], beside: Mapping[str, bytes]) -> None:
        folder = layout.checkpoint(self._output, step)
        others = {STATE_FILE: memoryview(content), **{name: memoryview(data) for name, data in beside.items()}}
        files = self._put_all(folder, self._images, others)
        if layout.PROGRESS in beside:
            write_bytes(layout.progress(self._output), beside[layout.PROGRESS])
        self._seal(folder, step, files, facts)
        self._prune(step)

    def _store_kept(self, step: int, facts: Mapping[str, Any]) -> None:
        folder = layout.kept(self._output, step)
        self._seal(folder, step, self._put_all(folder, {MODEL_FILE: self._images[MODEL_FILE]}, {}), facts)

    def _put_all(self, folder: str, images: Mapping[str, FileImage], others: Mapping[str, memoryview]) -> dict[str, dict[str, Any]]:
        """Store the files of a folder before its seal is written. Returns name -> facts about the file for the seal."""
        open_store(folder).delete(join(folder, NAME))  # an earlier run's seal must not vouch for our files
        for name, image in images.items():
            if broken := find_nonfinite(image.views):
                raise RunError(f"{join(folder, name)}: {broken} contains NaN or Inf: not saved")
        contents = {**others, **{name: image.bytes() for name, image in images.items()}}
        return {name: put_file(folder, name, data)[0] for name, data in contents.items()}

    def _seal(self, folder: str, step: int, files: dict[str, dict[str, Any]], facts: Mapping[str, Any]) -> None:
        self._fence.check()
        own, attempt = self._recipe_hash, self._fence.attempt
        write_committed(folder, Committed(recipe_hash=own, attempt=attempt, step=step, files=files, facts=dict(facts)))

    def _prune(self, step: int) -> None:
        """Keep the newest `keep_last` up to `step`, those that 0.1.0 marked as kept, and whatever is newer; delete the rest, seal first."""
        found = {known: uris for known, uris in _listed(self._output).items() if known <= step}
        newest: list[int] = []
        for known in sorted(found, reverse=True):
            folder = layout.checkpoint(self._output, known)
            try:
                seal = _seal_unless_damaged(folder) if join(folder, NAME) in found[known] else None
            except InputError as error:  # written by a newer firstsight: leave it alone
                log.warning("%s: kept", error)
                continue
            if seal is not None and len(newest) < self._keep_last:
                newest.append(known)
            elif seal is None or not seal.facts.get("kept"):
                _delete(found[known])


def write_final(
    output: str,
    local: Path,
    *,
    recipe_hash: str,
    step: int,
    fence: Fence,
    facts: Mapping[str, Any],
    beside: Mapping[str, bytes],
    copies: Mapping[str, bytes],
) -> None:
    """Store the files of `local` as final/, check what the store now contains, and seal it.

    Args:
        output: the stage's folder.
        local: folder with the files.
        recipe_hash: recipe hash of the stage.
        step: optimiser steps done.
        fence: nothing is sealed if a newer attempt has claimed the folder.
        facts: go to the seal.
        beside: records of the stage's folder that belong to the model: written there, copied into final/ and sealed.
        copies: further files of final/, which the seal does not cover.

    Raises:
        Corrupt: the store does not contain what was written.
    """
    folder = layout.final(output)
    open_store(folder).delete(join(folder, NAME))
    for name, data in copies.items():
        write_bytes(join(folder, name), data)
    names = [path.name for path in sorted(local.iterdir())]
    written = {f"{layout.FINAL}/{name}": put_file(folder, name, _mapped(local / name)) for name in names}
    for name, data in beside.items():
        written |= {place: put_file(output, place, memoryview(data)) for place in (f"{layout.FINAL}/{name}", name)}
    seal = Committed(
        recipe_hash=recipe_hash,
        attempt=fence.attempt,
        step=step,
        files={name: written[f"{layout.FINAL}/{name}"][0] for name in names},
        facts=dict(facts),
        beside={name: written[name][0] for name in beside},
    )
    checked.remember(output, {name: (info.stamp, sealed["sha256"]) for name, (sealed, info) in written.items()})
    for uri, why in find_damage(output, seal).items():
        raise Corrupt(f"{uri}: {why}: it was changed while the final model was being sealed: is another run active here?")
    fence.check()
    write_committed(folder, seal)


def clear(output: str) -> None:
    """Delete every checkpoint of a stage's folder, and the weights that were kept (`resume: never`)."""
    for folder in (CHECKPOINTS, layout.TRAJECTORY):
        for uris in _listed(output, folder).values():
            _delete(uris)


def written_by(output: str, attempt: int) -> bool:
    """Whether this attempt (not 0, which is none) has committed a checkpoint: then even `resume: never` resumes from it.

    A pod that was restarted gets the same arguments again; without this it would start from the beginning each time.
    """
    if not attempt:
        return False
    seals = (_seal_unless_damaged(layout.checkpoint(output, step)) for step in _listed(output))
    return any(seal is not None and seal.attempt == attempt for seal in seals)


def find(output: str, resume: str, *, recipe_hash: str, recipe: Mapping[str, Any]) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to resume from.

    Args:
        output: the stage's folder.
        resume: auto (newest that is intact), never, or a checkpoint's URI.
        recipe_hash: recipe hash of this run; a checkpoint with a different one is refused.
        recipe: the recipe fields behind the hash, to name the differences.

    Returns:
        The checkpoint, or None if the run starts from the beginning; and the reason for each that was skipped.

    Raises:
        InputError: another recipe, data set or architecture, a newer format, or a URI without a seal or with changed files.
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
            skipped.append(f"{folder}: no {NAME}: its save was cut short, or the seal was lost")
        except (Corrupt, MissingObject) as error:
            skipped.append(str(error))
    return None, skipped


def read(folder: str, *, recipe_hash: str, recipe: Mapping[str, Any]) -> Checkpoint:
    """Read one checkpoint, every file verified against the seal.

    Raises:
        InputError: there is no seal, or the checkpoint has a newer format or a different recipe.
        Corrupt: a file is missing in the seal, its size or checksum differs from the sealed one, or its content is invalid.
    """
    seal = read_committed(folder)
    if seal is None:
        raise InputError(f"{folder}: no COMMITTED.json, so this is not a finished checkpoint")
    missing = {STATE_FILE, MODEL_FILE, OPTIMIZER_FILE} - seal.files.keys()
    if missing:
        raise Corrupt(f"{folder}: COMMITTED.json does not name {', '.join(sorted(missing))}")
    contents = {name: _verified(join(folder, name), facts) for name, facts in seal.files.items()}
    state = _state(join(folder, STATE_FILE), contents.pop(STATE_FILE))
    if state.get("step") != seal.step:
        raise Corrupt(f"{folder}: COMMITTED.json says step {seal.step}, but {STATE_FILE} says step {state.get('step')}")
    if seal.recipe_hash != recipe_hash:
        if state.get("recipe") and canonical_hash(state["recipe"]) == recipe_hash:  # format 1 has no checksum
            raise Corrupt(f"{join(folder, NAME)}: recipe_hash is not that of the recipe in {STATE_FILE}")
        differing = shown(differing_keys(state["recipe"], recipe)) if state.get("recipe") else f"{STATE_FILE} does not record which"
        raise InputError(f"{folder}: checkpoint belongs to a different recipe, rejected: {differing}")
    tensors = {name: _tensors(join(folder, name), data) for name, data in contents.items() if name.endswith(".safetensors")}
    records = {name: data for name, data in contents.items() if name not in tensors}
    return Checkpoint(uri=folder, step=seal.step, tensors=tensors, state=state, records=records)


def _seal_unless_damaged(folder: str) -> Committed | None:
    """The seal of a checkpoint; None if it has none or a damaged one. InputError if a newer firstsight wrote it."""
    try:
        return read_committed(folder)
    except Corrupt as error:
        log.warning("%s: this checkpoint is ignored", error)
        return None


def _state(uri: str, data: bytes) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(data)
        newer = state["format_version"] > FORMAT_VERSION
    except (ValueError, TypeError, KeyError) as error:
        raise Corrupt(f"{uri}: not a checkpoint's state: {type(error).__name__}: {error}") from error
    if newer:
        raise InputError(f"{uri}: checkpoint format {state['format_version']} is newer than this firstsight can read ({FORMAT_VERSION})")
    return state


def _tensors(uri: str, data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except SafetensorError as error:
        raise Corrupt(f"{uri}: not a safetensors file: {error}") from error


def _verified(uri: str, facts: Mapping[str, Any]) -> bytes:
    data, digest = checked.read_hashed(uri, facts["sha256"])
    if len(data) != facts["size"]:
        raise Corrupt(f"{uri}: {len(data)} bytes, but COMMITTED.json says {facts['size']}")
    if digest != facts["sha256"]:
        raise Corrupt(f"{uri}: checksum does not match COMMITTED.json: the file was changed")
    return data


def _mapped(path: Path) -> memoryview:
    """The bytes of a local file."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if path.stat().st_size else b"")


def _listed(output: str, folder: str = CHECKPOINTS) -> dict[int, list[str]]:
    """Step -> URIs of the objects in its folder, sealed or not."""
    prefix = join(output, folder)
    found: dict[int, list[str]] = {}
    for info in open_store(prefix).list(prefix):
        match = re.search(rf"/{folder}/step-(\d+)/", info.uri)
        if match:
            found.setdefault(int(match[1]), []).append(info.uri)
    return found


def _delete(uris: list[str]) -> None:
    """Delete the seal first, so that a reader never finds a seal whose files are gone."""
    for uri in sorted(uris, key=lambda uri: not uri.endswith(f"/{NAME}")):
        with suppress(MissingObject):
            open_store(uri).delete(uri)
