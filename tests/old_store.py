"""The store that commit ad127be wrote (tests/data/store-ad127be/README.md), unpacked where a test wants it."""

import json
import tarfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "store-ad127be"
TEXTS = (".json", ".jsonl", ".yaml", ".txt")


def unpack(into: Path) -> Path:
    """Its root, `into`/root, with its paths as if it had been written there; the sources are in `into`/source."""
    with tarfile.open(FOLDER / "store.tar.xz") as archive:
        archive.extractall(into, filter="data")
    for path in into.rglob("*"):
        if path.is_file() and path.suffix in TEXTS:
            text = path.read_bytes()
            path.write_bytes(text.replace(b"@ROOT@", str(into / "root").encode()).replace(b"@SOURCE@", str(into / "source").encode()))
    return into / "root"


def resolved() -> list[dict[str, Any]]:
    """Each stage and evaluation of the shipped recipes: recipe, arm, stage, recipe_hash, config; of evaluations version and untrained."""
    with tarfile.open(FOLDER / "store.tar.xz") as archive:
        lines = archive.extractfile("root/resolved.jsonl")
        assert lines is not None
        return [json.loads(line) for line in lines]


def unfinished() -> dict[str, Any]:
    """What the stopped stage ended with when ad127be ran it without a break."""
    found: dict[str, Any] = json.loads((FOLDER / "unfinished.json").read_text())
    return found
