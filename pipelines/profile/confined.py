"""Runs kept to their profile: below its root and what it lists, with no more machines, images and queues than it allows.

The addresses of a request are found in its declared fields, whatever their names, so one that is added later is found too.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipelines.planning.arms import FROM
from pipelines.planning.request import FIELDS, MAX_GPUS_PER_NODE, MAX_NODES, Request
from trainer.config import require
from trainer.errors import InputError
from trainer.storage.confined import LISTED, is_below, is_local, refusal

_SCRATCH = {"placement": "/tmp"}
"""Fields that may name a folder of the pod's own, in which no tenant keeps anything."""
_NO_DATA = ("profile",)
"""Fields that name what holds before any bound is known."""
_STORE = re.compile(r"(?<![a-z0-9+.-])(?!https?:)[a-z][a-z0-9+.-]*:/", re.IGNORECASE)
_PATH = re.compile(r"[/~\\]|(.*[/\\])?\.\.?([/\\]|$)|%2[ef]|%5c", re.IGNORECASE)
_FETCHED = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a run may ask for; 0, or an empty list: as much as any profile.

    Attributes:
        nodes: machines of one job.
        gpus_per_node: GPUs on each of them.
        gpus: GPUs of all jobs of a run that train at once.
        images: how the name of the trainer's image may begin, up to a whole part of it: `registry.example.org/ml`.
        queues: the queues that may admit its jobs; where there are some, a job needs one.
    """

    nodes: int = 0
    gpus_per_node: int = 0
    gpus: int = 0
    images: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, most in (("nodes", MAX_NODES), ("gpus_per_node", MAX_GPUS_PER_NODE), ("gpus", MAX_NODES * MAX_GPUS_PER_NODE)):
            value = getattr(self, name)
            require(f"limits.{name}", value, f"between 0 (no limit) and {most}", 0 <= value <= most)
        for item in fields(self)[3:]:
            require(f"limits.{item.name}", getattr(self, item.name), "a list of names", all(map(str.strip, getattr(self, item.name))))

    def check(self, *, nodes: tuple[str, int], gpus_per_node: tuple[str, int], cells: tuple[str, int], image: str, queue: str) -> None:
        """Refuse what is more than the profile allows.

        Args:
            nodes: of a training job, after what says so.
            gpus_per_node: likewise.
            cells: that train at once, likewise.
            image: that a request names; empty: the profile's own.
            queue: of the jobs; empty: none.

        Raises:
            InputError: the value's path, the limit, and what helps.
        """
        for (path, value), limit in ((nodes, "nodes"), (gpus_per_node, "gpus_per_node")):
            _most(path, value, limit, getattr(self, limit))
        path = ", ".join(path for path, _ in (nodes, gpus_per_node, cells))
        _most(f"{path}: GPUs at once", nodes[1] * gpus_per_node[1] * cells[1], "gpus", self.gpus)
        if image and self.images and not any(_begins(image, one) for one in self.images):
            allowed = ", ".join(self.images)
            raise InputError(
                f"image is {image!r}, but the profile only allows images under {allowed} (limits.images): use one of those, or none"
            )
        if self.queues and queue not in self.queues:
            named = f"is {queue!r}" if queue else "is not given"
            raise InputError(f"queue {named}, but the profile only allows {' or '.join(self.queues)} (limits.queues): use one of them")


def check_places(named: str, value: Any, places: tuple[str, ...], *, paths: bool = True, remedy: str = LISTED) -> None:
    """Refuse an address in `value` that lies outside of `places`; http(s) is no store, and staging has bounds of its own for it.

    Args:
        named: where it stands, to begin an error with.
        value: text, or lists and mappings of it.
        places: below which addresses may lie.
        paths: whether to judge paths too; where nothing runs in a pod they are this machine's own.
        remedy: what helps.

    Raises:
        InputError: path of the value, the rule, and what helps.
    """
    for path, address in _addresses(named, value):
        if (paths or not is_local(address)) and not is_below(address, places):
            raise InputError(f"{path}: {refusal(address, places, remedy)}")


def check_request(request: Request, places: tuple[str, ...], *, paths: bool) -> None:
    """`check_places` for each declared field of a request."""
    for name in FIELDS:
        if name not in _NO_DATA:
            scratch = (_SCRATCH[name],) if name in _SCRATCH else ()
            check_places(name, getattr(request, name), (*places, *scratch), paths=paths)


def _addresses(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _addresses(f"{path}.{key}", part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _addresses(path, part)
    elif isinstance(value, str):
        text = value.strip().removeprefix(FROM).strip()
        stores = list(_STORE.finditer(text))
        yield from ((path, text[found.start() :]) for found in stores)
        if not stores and _PATH.match(text) and not _FETCHED.match(text):
            yield path, text


def _begins(image: str, prefix: str) -> bool:
    """Whether an image's name begins with a prefix that ends where a part of it does: a tag is one, a host's port is not.

    After a tag no digest may follow: it would win, and mean any image of the repository.
    """
    rest, tagged = image[len(prefix) :], ":" in prefix.rpartition("/")[2]
    ends = ("", "/") if tagged else ("", "/", "@")
    whole = prefix[-1] in "/:@" or rest[:1] in ends or (rest[0] == ":" and "/" not in rest)
    return image.startswith(prefix) and whole and ".." not in image.split("/")


def _most(path: str, value: int, limit: str, most: int) -> None:
    if most and value > most:
        raise InputError(f"{path} is {value}, but the profile allows only {most} (limits.{limit}): request less, or have the limit raised")
