"""A target of fuzzing: good bytes to begin with, and the reader that must answer, or refuse what became of them in one line."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import old_store
from trainer.errors import InputError, RunError

Read = Callable[[bytes, Path], object]
TARGETS: dict[str, "Target"] = {}


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: of the target, and of the folder of its findings in tests/data/fuzz.
        seeds: makes good inputs.
        read: gives one to the reader; the folder is its own.
        refusals: what a reader may raise.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Read
    refusals: tuple[type[Exception], ...] = (InputError, RunError)

    def outcome(self, data: bytes, place: Path) -> str:
        """`read`, or what kind of refusal it was; any other error is a finding, and so is a refusal of several lines."""
        try:
            self.read(data, place)
        except self.refusals as error:
            text = str(error)
            if "\n" in text:
                raise AssertionError(f"a refusal of several lines: {text[:500]!r}") from error
            return f"{type(error).__name__}: {''.join(letter for letter in text if not letter.isdigit())[-60:]}"
        return "read"


def target(name: str, seeds: Callable[[], list[bytes]], *refusals: type[Exception]) -> Callable[[Read], Read]:
    """Register a reader."""

    def register(read: Read) -> Read:
        TARGETS[name] = Target(name, seeds, read, (InputError, RunError, *refusals))
        return read

    return register


def as_file(place: Path, name: str, data: bytes) -> str:
    """Its path."""
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def found(pattern: str) -> Callable[[], list[bytes]]:
    """The files of a name in the store that an older firstsight wrote."""

    def read() -> list[bytes]:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            root = old_store.unpack(Path(folder))
            return [path.read_bytes() for path in sorted(root.rglob(pattern)) if path.is_file()][:6]

    return read


def as_value(data: bytes) -> Any:
    """JSON, or None."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(data)
    return None


def with_checksum(data: bytes) -> bytes:
    """A document under a checksum that fits, so that the reader sees what it says; other bytes as they are."""
    from trainer.storage.documents import encode_document

    value = as_value(data)
    if isinstance(value, dict) and "sha256" in value:
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            return encode_document({key: part for key, part in value.items() if key != "sha256"})
    return data
