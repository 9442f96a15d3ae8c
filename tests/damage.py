"""Damage as disks, wires and people do it to objects of a file store, by a seed."""

import random
from pathlib import Path

KINDS = ("missing", "truncated", "flipped")


def damage(path: Path, how: str, seed: int) -> None:
    """Remove the file, cut it short, or flip one of its bits."""
    if how == "missing":
        path.unlink()
        return
    choose, data = random.Random(f"{seed} {path.name}"), bytearray(path.read_bytes())
    place = choose.randrange(len(data)) if data else 0
    if how == "truncated":
        del data[place:]
    elif data:
        data[place] ^= 1 << choose.randrange(8)
    path.write_bytes(data)


def files(folder: Path) -> list[Path]:
    """Every file below the folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
