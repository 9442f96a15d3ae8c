"""Parse an experiment's arms and seeds, as a user types them, comma-separated. The arms are those of trainer/arms/."""

import hashlib
from collections.abc import Iterator

from trainer.arms import Arm, registered
from trainer.errors import InputError
from trainer.storage.base import absolute

__all__ = ["ACCEPTED", "ARMS", "Arm", "parse_arms", "parse_seeds"]
ARMS = registered()
ACCEPTED = (*ARMS, "from:<uri>")
"""Accepted values of `arms`, for help texts and messages."""
FROM = "from:"
"""Prefix of an arm that starts from the tower at a URI."""
MAX_SEED = 2**31 - 1


def parse_arms(text: str) -> tuple[Arm, ...]:
    """The arms of `text`, such as `random,perceptual,from:s3://bucket/tower`, in its order.

    Raises:
        InputError: an empty, unknown or repeated arm.
    """
    arms = tuple(_arm(item) for item in _items("arms", text, f"any of {', '.join(ACCEPTED)}"))
    _refuse_repeated("arms", [arm.name for arm in arms])
    return arms


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of `text`, such as `0,1,2`, in its order.

    Raises:
        InputError: an item is empty, not a whole number, out of range, or repeated.
    """
    rule = f"whole numbers from 0 to {MAX_SEED}"
    seeds = []
    for item in _items("seeds", text, rule):
        if not (item.isascii() and item.isdigit()) or len(item) > len(str(MAX_SEED)) or int(item) > MAX_SEED:
            raise InputError(f"seeds must be {rule}, got {item[:40]!r}")
        seeds.append(int(item))
    _refuse_repeated("seeds", [str(seed) for seed in seeds])
    return tuple(seeds)


def _arm(item: str) -> Arm:
    if item.startswith(FROM) and len(item) > len(FROM):
        source = absolute(item.removeprefix(FROM))
        return Arm(name=f"from-{hashlib.sha256(source.encode()).hexdigest()[:8]}", start="tower", source=source)
    if item not in ARMS:
        raise InputError(f"arms must be any of {', '.join(ACCEPTED)}, got {item!r}")
    return ARMS[item]


def _items(what: str, text: str, rule: str) -> Iterator[str]:
    for item in text.split(","):
        if not item.strip():
            raise InputError(f"{what} must be {rule}, got an empty item in {text!r}")
        yield item.strip()


def _refuse_repeated(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{what} must be distinct, got {name!r} {names.count(name)} times")
