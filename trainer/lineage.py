"""Where weights come from and what they are: hashes, lineage.json, and the hand-off that fails closed. No torch.

A stage that starts from another's weights reads them here. Nothing is loaded unless the seal, the recipe
hash, the file's checksum and the weights' own hash all agree; missing or extra keys are caught by the strict
load in models.py.
"""

import functools
import hashlib
import os
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from trainer.config import StartConfig, StartKind
from trainer.errors import Corrupt, InputError
from trainer.storage import join
from trainer.storage.base import MissingObject
from trainer.storage.checked import forget, read_hashed
from trainer.storage.committed import Committed, read_committed
from trainer.storage.recipes import what_differs

FORMAT_VERSION = 1
TOWER_FILE = "vision.safetensors"
MODEL_FILE = "open_clip_model.safetensors"
VISION_PREFIX = "visual."
GIT_SECONDS = 5.0
"""Longest wait for git: no run is worth failing over the code version."""
Weights = dict[str, NDArray[Any]]


def weights_sha256(state: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 (hex) over each tensor's name, dtype, shape and bytes, sorted by name: equal weights have equal hashes, whatever the file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.require(state[name], requirements="C")  # keeps 0-d arrays 0-d
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def vision_weights(state: Mapping[str, NDArray[Any]]) -> Weights:
    """The vision tower's part of a whole model, keys without `visual.`."""
    return {name.removeprefix(VISION_PREFIX): array for name, array in state.items() if name.startswith(VISION_PREFIX)}


def check_start(start: StartConfig) -> Committed | None:
    """Check a start before any expensive work: its seal exists and is the planned one.

    Returns:
        The seal; None for a random start and for a bare `.safetensors` file, which has none.

    Raises:
        InputError: no seal, a seal of another recipe, or a whole model requested from a tower.
        Corrupt: the seal is damaged; the stage that must be run again is named.
    """
    if start.kind == "random" or start.uri.endswith(".safetensors"):
        return None
    try:
        seal = read_committed(start.uri)
    except Corrupt as error:
        raise Corrupt(f"start.uri {error}; {_remedy(start)}") from error
    if seal is None:
        raise InputError(f"start.uri {start.uri}: no COMMITTED.json, so there is no finished model here; {_remedy(start)}")
    known = (seal.recipe_hash, seal.facts.get("vision_sha256"), seal.facts.get("weights_sha256"))
    if start.recipe_hash not in known:
        differing = what_differs(_stage_folder(start), seal.recipe_hash, start.recipe_hash)
        raise InputError(f"start.recipe_hash must be that of {start.uri}{differing}")
    file = _weights_file(start.kind, seal)
    if file not in seal.files:
        raise InputError(f"start.uri {start.uri}: start.kind {start.kind} needs {file}, but its COMMITTED.json names {sorted(seal.files)}")
    return seal


def read_start(start: StartConfig) -> tuple[Weights, str]:
    """The weights that a stage starts from, verified.

    Args:
        start: a start whose kind is not random.

    Returns:
        For `tower` and `permuted` the vision tower's weights (keys without `visual.`), for `model` all of them; and their
        hash, as computed by `weights_sha256`.

    Raises:
        InputError: something differs from what was planned.
        Corrupt: the model is damaged; the stage that must be run again is named, and will detect that it is incomplete.
    """
    seal = check_start(start)
    if seal is None:
        state, digest = _read_bare(start)
    else:
        try:
            state, digest = _read_sealed(start, seal)
        except (MissingObject, Corrupt) as error:
            forget(_stage_folder(start))
            raise Corrupt(f"{error}; {_remedy(start)}") from error
    if start.kind == "model":
        return state, digest
    if any(name.startswith(VISION_PREFIX) for name in state):
        state = vision_weights(state)
        digest = weights_sha256(state)
    return state, digest


@functools.cache
def code_facts() -> dict[str, Any]:
    """Which code this process runs, as it was at the first call: the package's version, and the commit of the image or checkout.

    What git does not report in time is unknown: `git_commit` empty, `dirty` None. Never fails.
    """
    try:
        version = metadata.version("firstsight")
    except metadata.PackageNotFoundError:
        version = "checkout"
    commit = os.environ.get("FIRSTSIGHT_GIT_COMMIT", "")
    if commit:
        return {"version": version, "git_commit": commit.removesuffix("-dirty"), "dirty": commit.endswith("-dirty")}
    ours = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None  # not a repository that merely contains the environment
    commit = (_git("rev-parse", "HEAD") or "") if ours else ""
    changes = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"version": version, "git_commit": commit, "dirty": None if changes is None else bool(changes)}


def image_digest() -> str:
    """The digest of the image this runs in, as passed by the job; empty outside an image."""
    return os.environ.get("FIRSTSIGHT_IMAGE_DIGEST", "")


def _weights_file(kind: StartKind, seal: Committed) -> str:
    return TOWER_FILE if kind != "model" and TOWER_FILE in seal.files else MODEL_FILE


def _stage_folder(start: StartConfig) -> str:
    return start.uri.rstrip("/").rpartition("/")[0]


def _remedy(start: StartConfig) -> str:
    return f"run the stage in {_stage_folder(start)} again (running its experiment does that), then this one"


def _read_sealed(start: StartConfig, seal: Committed) -> tuple[Weights, str]:
    file = _weights_file(start.kind, seal)
    uri = join(start.uri, file)
    data, found = read_hashed(uri, seal.files[file]["sha256"])
    if found != seal.files[file]["sha256"]:
        raise Corrupt(f"{uri}: its SHA-256 does not match COMMITTED.json")
    state = _parse(uri, data)
    digest = weights_sha256(state)
    fact = "vision_sha256" if file == TOWER_FILE else "weights_sha256"
    if digest != seal.facts.get(fact):
        raise Corrupt(f"{uri}: hash of the weights is {digest[:12]}, but COMMITTED.json says {fact} {seal.facts.get(fact)}")
    return state, digest


def _read_bare(start: StartConfig) -> tuple[Weights, str]:
    """A `.safetensors` file without a seal: the hash in the configuration is its bytes' SHA-256."""
    data, found = read_hashed(start.uri, start.recipe_hash)
    if found != start.recipe_hash:
        planned = start.recipe_hash[:12]
        raise InputError(f"{start.uri}: SHA-256 is {found[:12]}, but {planned} was planned: the file was changed or cut short")
    state = _parse(start.uri, data)
    return state, weights_sha256(state)


def _parse(uri: str, data: bytes) -> Weights:
    try:
        return load(data)
    except SafetensorError as error:
        raise InputError(f"{uri}: not a safetensors file: {error}") from error


def _git(*arguments: str) -> str | None:
    """Output of git; None if it is missing, fails, or takes too long."""
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
