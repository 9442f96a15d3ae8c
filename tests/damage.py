"""Damage stored objects as disks, networks and people may."""

import random
from pathlib import Path

KINDS = ("missing", "truncated", "flipped")


def flip(data: bytes, bit: int) -> bytes:
    """The bytes with one bit flipped."""
    place = bit // 8
    return data[:place] + bytes([data[place] ^ 1 << bit % 8]) + data[place + 1 :]


def rewrite(path: Path, data: bytes) -> None:
    """Replace the file's bytes through a new file: ext4 waits for the disk whenever one is overwritten in place."""
    path.unlink()
    path.write_bytes(data)


def damage(path: Path, kind: str, seed: int | None = None) -> None:
    """Remove the file, cut it short, or flip one of its bits: in its middle, or where the seed says."""
    data = path.read_bytes()
    bit = 4 * len(data) if seed is None else random.Random(f"{seed} {path.name}").randrange(8 * len(data) or 1)
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(data[: bit // 8])
    elif data:
        path.write_bytes(flip(data, bit))


def files(folder: Path) -> list[Path]:
    """Every file below the folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def restore(root: Path, kept: dict[Path, bytes]) -> None:
    """Make the files below `root` what they were when `kept` was taken."""
    for file in files(root):
        if file not in kept:
            file.unlink()
    for file, data in kept.items():
        if not file.exists() or file.read_bytes() != data:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
