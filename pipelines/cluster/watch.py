"""A list-and-watch loop that survives restarts of API servers and broken connections."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipelines.cluster.api import Expired, Unreachable
from trainer.errors import InputError
from trainer.storage.retries import Backoff

FORBIDDEN_SECONDS = 60.0
"""How long a refusal of what was allowed before is retried: a starting server refuses it for a while."""
MOST_SECONDS = 10.0
"""Pause between two tries."""
CALM_SECONDS = 5.0
"""A watch that lasted this long was not ended by a failing server."""

Object = dict[str, Any]
ADDED, MODIFIED, DELETED, SYNCED, BOOKMARK = "ADDED", "MODIFIED", "DELETED", "SYNCED", "BOOKMARK"


class Watch:
    """Lists, watches from there, and lists again if the server no longer has the version."""

    def __init__(self, objects: Callable[[bool], tuple[list[Object], str]], changes: Callable[[str], Iterator[tuple[str, Object]]]) -> None:
        """Connect lazily.

        Args:
            objects: lists them, with the version of the list; its argument says whether it must not retry by itself.
            changes: one watch from a version on; ends when the server ends it.
        """
        self._objects, self._changes = objects, changes
        self._known: dict[str, Object] = {}
        self._version = ""
        self._backoff = Backoff(most=MOST_SECONDS)

    def run(self, stop: threading.Event) -> Iterator[tuple[str, Object]]:
        """See Cluster.watch."""
        allowed = 0.0  # when the server last let us list or watch; 0: never yet
        while not stop.is_set():
            began = time.monotonic()
            try:
                if not self._version:
                    yield from self._list(once=bool(allowed))
                    allowed = time.monotonic()
                yield from self._follow(stop)
                allowed = time.monotonic()
            except Expired:
                self._version = ""
            except Unreachable:
                allowed = allowed and time.monotonic()  # what is away refuses nothing
            except InputError:
                if not allowed or time.monotonic() - allowed > FORBIDDEN_SECONDS:
                    raise
            if time.monotonic() - began > CALM_SECONDS:
                self._backoff.reset()
            stop.wait(self._backoff.seconds())

    def _list(self, *, once: bool) -> Iterator[tuple[str, Object]]:
        """Update the known objects from a new list, and report what changed."""
        objects, self._version = self._objects(once)
        listed = {thing["metadata"]["uid"]: thing for thing in objects}
        for uid in self._known.keys() - listed.keys():
            yield DELETED, self._known.pop(uid)
        for uid, thing in listed.items():
            change = MODIFIED if uid in self._known else ADDED
            self._known[uid] = thing
            yield change, thing
        yield SYNCED, {}

    def _follow(self, stop: threading.Event) -> Iterator[tuple[str, Object]]:
        for change, thing in self._changes(self._version):
            self._version = thing["metadata"]["resourceVersion"]
            self._backoff.reset()
            if change == DELETED:
                self._known.pop(thing["metadata"]["uid"], None)
            elif change != BOOKMARK:
                self._known[thing["metadata"]["uid"]] = thing
            if change != BOOKMARK:
                yield change, thing
            if stop.is_set():
                return
