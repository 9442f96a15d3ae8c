"""COMMITTED.json: what makes a folder count. It is written last, by rank 0, and readers see nothing without it."""

from dataclasses import asdict, dataclass
from typing import Any

from trainer.errors import RunError
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
        RunError: it is not what a seal looks like.
    """
    uri = join(folder, NAME)
    value = read_versioned(uri, "a seal", FORMAT_VERSION)
    if value is None:
        return None
    try:
        return Committed(**value)
    except TypeError as error:
        raise RunError(f"{uri}: not a seal of firstsight: {error}") from error
