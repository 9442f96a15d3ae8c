"""COMMITTED.json: what makes a folder count. It is written last, by rank 0, and readers see nothing without it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.errors import Corrupt
from trainer.storage.base import join
from trainer.storage.documents import checksum, read_document, write_document

FORMAT_VERSION = 2
CHECKED_FROM = 2
"""First format version that carries a checksum."""
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
        beside: of a final model, records in the stage's folder that belong to it, each with a copy in final/:
            name -> {"size": bytes, "sha256": hex}. Empty in format 1.
    """

    recipe_hash: str
    attempt: int
    step: int
    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def write_committed(folder: str, committed: Committed) -> None:
    """Seal `folder`. All its files must be there already.

    Raises:
        Corrupt: the store does not give back what was written.
    """
    write_document(join(folder, NAME), asdict(committed))
    stored = read_committed(folder)
    if stored is None or checksum(asdict(stored)) != checksum(asdict(committed)):
        raise Corrupt(f"{join(folder, NAME)}: the store does not give back the seal that was just written")


def read_committed(folder: str) -> Committed | None:
    """The seal of `folder`, or None where it has none.

    Raises:
        InputError: it was written by a newer format.
        Corrupt: it is not what a seal looks like, or its checksum is wrong.
    """
    uri = join(folder, NAME)
    value = read_document(uri, "a seal", FORMAT_VERSION, checked_from=CHECKED_FROM)
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
    kinds = {"recipe_hash": str, "attempt": int, "step": int, "files": dict, "facts": dict, "beside": dict}
    for name, kind in kinds.items():
        if not isinstance(getattr(seal, name), kind):
            return f"{name} is {getattr(seal, name)!r}"
    for name, facts in (*seal.files.items(), *seal.beside.items()):
        if not (isinstance(facts, dict) and isinstance(facts.get("size"), int) and isinstance(facts.get("sha256"), str)):
            return f"{name} has no size and sha256, but {facts!r}"
    return ""
