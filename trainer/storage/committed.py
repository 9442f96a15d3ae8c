"""COMMITTED.json: what makes a folder count. It is written last, by rank 0, and readers see nothing without it."""

from dataclasses import asdict, dataclass
from typing import Any

from trainer.errors import Corrupt
from trainer.storage.base import join, read_versioned, write_json

FORMAT_VERSION = 1
NAME = "COMMITTED.json"


@dataclass(frozen=True, kw_only=True)
class Committed:
    """The seal of a checkpoint or a final model.

    Attributes:
        recipe_hash: of the stage that wrote it.
        attempt: which attempt wrote it (0: unfenced).
        step: optimiser steps done.
        files: name -> {"size": bytes, "sha256": hex}.
        facts: what readers want without opening a file (weights' hash, dataset identity, world size, …).
    """

    recipe_hash: str
    attempt: int
    step: int
    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    format_version: int = FORMAT_VERSION


def write_committed(folder: str, committed: Committed) -> None:
    """Seal `folder`. All its files must be there already."""
    write_json(join(folder, NAME), asdict(committed))


def read_committed(folder: str) -> Committed | None:
    """The seal of `folder`, or None where it has none.

    Raises:
        InputError: it was written by a newer format.
        Corrupt: it is not what a seal looks like.
    """
    uri = join(folder, NAME)
    value = read_versioned(uri, "a seal", FORMAT_VERSION)
    if value is None:
        return None
    try:
        seal = Committed(**value)
    except TypeError as error:
        raise Corrupt(f"{uri}: not a seal of firstsight: {error}") from error
    if wrong := _wrong(seal):
        raise Corrupt(f"{uri}: not a seal of firstsight: {wrong}")
    return seal


def _wrong(seal: Committed) -> str:
    """What is not of the kind that it should be; empty where all is."""
    for name, kind in (("recipe_hash", str), ("attempt", int), ("step", int), ("files", dict), ("facts", dict)):
        if not isinstance(getattr(seal, name), kind):
            return f"{name} is {getattr(seal, name)!r}"
    for name, facts in seal.files.items():
        if not (isinstance(facts, dict) and isinstance(facts.get("size"), int) and isinstance(facts.get("sha256"), str)):
            return f"{name} has no size and sha256, but {facts!r}"
    return ""
