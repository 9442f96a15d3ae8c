"""What may happen to a stored object."""

from pathlib import Path

KINDS = ("missing", "truncated", "flipped")


def flip(data: bytes, bit: int) -> bytes:
    """The bytes with one bit flipped."""
    place = bit // 8
    return data[:place] + bytes([data[place] ^ 1 << bit % 8]) + data[place + 1 :]


def damage(path: Path, kind: str) -> None:
    """Remove the file, cut it in half, or flip a bit in its middle."""
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if kind == "truncated" else flip(data, 4 * len(data)))
