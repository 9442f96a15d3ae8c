"""COMMITTED.json: the seal of a folder. Rank 0 writes it last, and readers ignore a folder without it."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.errors import Corrupt
from trainer.storage import checked, layout
from trainer.storage.base import MissingObject, join, read_bytes, write_bytes
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
        facts: facts for readers that do not open the files (weights' hash, dataset identity, world size, …).
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
        Corrupt: the store does not return what was written.
    """
    write_document(join(folder, NAME), asdict(committed))
    stored = read_committed(folder)
    if stored is None or checksum(asdict(stored)) != checksum(asdict(committed)):
        raise Corrupt(f"{join(folder, NAME)}: the store did not return the seal that was just written")


def read_committed(folder: str) -> Committed | None:
    """The seal of `folder`, or None if it has none.

    Raises:
        InputError: it was written by a newer format.
        Corrupt: it is not a valid seal, or its checksum is wrong.
    """
    uri = join(folder, NAME)
    value = read_document(uri, "a seal", FORMAT_VERSION, checked_from=CHECKED_FROM)
    if value is None:
        return None
    try:
        seal = Committed(**value)
    except TypeError as error:
        raise Corrupt(f"{uri}: not a firstsight seal: {error}") from error
    if wrong := _wrong(seal):
        raise Corrupt(f"{uri}: not a firstsight seal: {wrong}")
    return seal


def read_final(stage_uri: str) -> tuple[Committed | None, dict[str, str]]:
    """The seal of a stage's final model, and which files of the stage do not match it.

    The stage is finished if there is a seal and nothing is wrong. Files that were found intact before and have not changed
    since are not read again (trainer/storage/checked.py).

    Returns:
        The seal, None if there is none or a damaged one; and URI -> what is wrong, in words that follow it.

    Raises:
        InputError: a newer firstsight wrote the seal.
    """
    folder = layout.final(stage_uri)
    try:
        seal = read_committed(folder)
    except Corrupt as error:
        uri = join(folder, NAME)
        return None, {uri: str(error).removeprefix(f"{uri}: ")}
    return seal, {} if seal is None else find_damage(stage_uri, seal)


def find_damage(stage_uri: str, seal: Committed) -> dict[str, str]:
    """Files that do not match the seal of a stage's final model: URI -> what is wrong, as words to follow it."""
    files = {f"{layout.FINAL}/{name}": facts for name, facts in (*seal.files.items(), *seal.beside.items())}
    damaged = checked.find_damaged(stage_uri, {**files, **seal.beside})
    return {join(stage_uri, name): why for name, why in damaged.items()}


def restore_beside(stage_uri: str, seal: Committed, damaged: Mapping[str, str]) -> dict[str, str]:
    """Restore damaged records from their other copy, which is verified by hash.

    Returns:
        URI -> the intact copy that it was restored from, of those that could be.
    """
    restored: dict[str, str] = {}
    for name in seal.beside:
        places = [join(stage_uri, name), join(layout.final(stage_uri), name)]
        broken = [place for place in places if place in damaged]
        with suppress(Corrupt):  # then neither copy is intact
            if len(broken) == 1:
                data, restored[broken[0]] = _read_copy(stage_uri, seal, name)
                write_bytes(broken[0], data)
    return restored


def read_beside(stage_uri: str, seal: Committed, name: str) -> bytes:
    """A record of a finished stage, as sealed; a seal of format 1 names none, so then the record in the folder.

    Raises:
        MissingObject: there is none.
        Corrupt: neither copy is what was sealed.
    """
    return _read_copy(stage_uri, seal, name)[0] if name in seal.beside else read_bytes(join(stage_uri, name))


def _read_copy(stage_uri: str, seal: Committed, name: str) -> tuple[bytes, str]:
    places = join(stage_uri, name), join(layout.final(stage_uri), name)
    for place, inside in zip(places, (name, f"{layout.FINAL}/{name}"), strict=True):
        try:
            data = read_bytes(place)
        except MissingObject:
            continue
        if hashlib.sha256(data).hexdigest() == seal.beside[name]["sha256"]:
            return data, place
        checked.forget(stage_uri, inside)
    raise Corrupt(f"{places[0]}: neither it nor {places[1]} matches what was sealed: train this stage again")


def _wrong(seal: Committed) -> str:
    """What is wrong with the first invalid field; empty if all are valid."""
    kinds = {"recipe_hash": str, "attempt": int, "step": int, "files": dict, "facts": dict, "beside": dict}
    for name, kind in kinds.items():
        if not isinstance(getattr(seal, name), kind):
            return f"{name} is {getattr(seal, name)!r}"
    for name, facts in (*seal.files.items(), *seal.beside.items()):
        if not checked.is_description(facts):
            return f"{name} has no size and sha256, but {facts!r}"
    return ""
