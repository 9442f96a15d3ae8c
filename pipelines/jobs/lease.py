"""A lock kept in the store itself: one object that names its holder and changes with each heartbeat.

The holder is a random id, so that neither hostnames nor process numbers can be mistaken for one another. It takes the lock by
`create`, or by `replace` of a holder that is gone, and sends heartbeats by `replace`. No two machines' clocks are compared: the
age of a heartbeat is the difference between two times of the store's own clock, and a holder's lock is taken over only if, in
addition, its object does not change while this process watches it. docs/RUNBOOK.md says what that does not cover.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from trainer.errors import InputError, RunError
from trainer.storage import MissingObject, ObjectInfo, join, open_store, write_bytes
from trainer.storage.documents import CHECKSUM, checksum, encode_document
from trainer.storage.writers import beside

NAME = "run.lock"
FORMAT_VERSION = 2
"""Version 1 had no format_version, id or checksum. `time`, the holder's clock, is kept because an older firstsight reads it."""
HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 120.0
"""A holder whose last heartbeat is this old may be taken over, after `WATCH_SECONDS`."""
WATCH_SECONDS = 1.5 * HEARTBEAT_SECONDS
_TRIES = 20
_MAX_BYTES = 1 << 16

Holder = dict[str, Any]


class Taken(InputError):
    """Somebody else holds the lock."""


class Lost(RunError):
    """The lock is no longer this process's: it must write nothing more."""


class Lease:
    """The lock of an experiment, taken and kept by heartbeats.

    Args:
        experiment_uri: its folder.
        facts: what the lock says about this process, for people and for `ended`.
        ended: whether this machine knows that a holder's process has ended.
        say: gets a line if taking the lock takes time.
    """

    def __init__(
        self,
        experiment_uri: str,
        facts: Mapping[str, Any],
        *,
        ended: Callable[[Holder], bool],
        say: Callable[[str], None],
    ) -> None:
        self._experiment, self._uri = experiment_uri, join(experiment_uri, NAME)
        self._facts, self._ended, self._say = dict(facts), ended, say
        self._store = open_store(self._uri)
        self.id = secrets.token_hex(16)
        self.replaced: list[Holder] = []
        """Holders whose lock this process has tried to take over."""
        self._beats = 0
        self._last = 0.0  # when the last heartbeat that succeeded was sent, by time.monotonic()

    def take(self) -> None:
        """Take the lock.

        Raises:
            Taken: another process holds it, or may hold it.
            RunError: the store failed.
        """
        for _ in range(_TRIES):
            found = self._look()
            if found is not None and found[1].get("id") == self.id:
                return
            if found is None:
                self._last = time.monotonic()
                self._store.create(self._uri, self._content())
            elif self._ended(found[1]) or self._is_gone(*found):
                self._last = time.monotonic()
                self.replaced.append(found[1])
                self._store.replace(self._uri, self._content(), found[0].stamp)
            # the next look tells whether that succeeded: a response can get lost
        raise RunError(
            f"{self._uri}: the lock could not be acquired: it changed {_TRIES} times in the meantime; run the same command again"
        )

    def beat(self) -> None:
        """Send a heartbeat. A lock object that is missing or damaged is written again.

        Raises:
            Lost: another process has the lock, or may have taken it because no heartbeat could be written for too long.
            RunError: this heartbeat failed; the next one may succeed.
        """
        sent, reached = time.monotonic(), False
        try:
            for _ in range(3):
                found = self._look()
                reached = True
                if self._beat_over(found):
                    self._last = sent
                    return
            cause = "the object was changed by others each time"
        except Lost:
            raise
        except Exception as error:  # whatever the error is: all that matters is who holds the lock
            reached = reached or not isinstance(error, RunError)
            cause = str(error)
        # Cut off from the store altogether, this process and its jobs write nothing. The first look that succeeds decides.
        if reached and time.monotonic() - self._last > STALE_SECONDS:
            raise Lost(f"no heartbeat could be written to {self._uri} for {time.monotonic() - self._last:.0f} s ({cause})")
        raise RunError(cause)

    def release(self) -> None:
        """Delete the lock if it is still this process's.

        Raises:
            Lost: it is another's.
            RunError: the store failed; the lock stays until it is stale.
        """
        self.beat()  # from now on nobody can have taken it over
        self._store.delete(self._uri)

    def impatient(self) -> None:
        """From now on fail within a heartbeat or two: a request that is retried for minutes would hide that the lock is lost."""
        if self._uri.startswith("s3://"):
            from trainer.storage.s3 import S3Store

            self._store = S3Store.from_environment(self._uri).patient_for(HEARTBEAT_SECONDS)

    def _beat_over(self, found: tuple[ObjectInfo, Holder] | None) -> bool:
        info, holder = found or (None, {})
        if holder and holder.get("id") != self.id:
            raise Lost(refusal(self._experiment, holder))
        silent = time.monotonic() - self._last
        if not holder and silent > STALE_SECONDS:  # whoever took it over may have ended by now
            raise Lost(f"{self._uri} is missing or damaged, and no heartbeat was written for {silent:.0f} s")
        if info is None:
            return self._store.create(self._uri, self._content())
        return self._store.replace(self._uri, self._content(), info.stamp)

    def _content(self) -> bytes:
        self._beats += 1  # equal bytes would have equal stamps
        value = {**self._facts, "format_version": FORMAT_VERSION, "id": self.id, "beats": self._beats, "time": time.time()}
        return encode_document(value)

    def _look(self) -> tuple[ObjectInfo, Holder] | None:
        """The lock object and its holder, who is empty if the object is damaged; None if there is no object.

        The stamp is not newer than the content: whoever replaces the object by this stamp knows what is replaced.
        """
        info = self._store.head(self._uri)
        if info is None:
            return None
        try:
            return info, parse_holder(self._store.get(self._uri)) if info.size <= _MAX_BYTES else {}
        except MissingObject:
            return None

    def _is_gone(self, info: ObjectInfo, holder: Holder) -> bool:
        """Whether no heartbeat has come for so long that the holder must be gone.

        Raises:
            Taken: one has come recently.
        """
        age = self._age(info)
        # A store clock that was set back tells us nothing: then only watching the object helps.
        seconds = WATCH_SECONDS if age >= STALE_SECONDS else STALE_SECONDS if age < -HEARTBEAT_SECONDS else 0.0
        if not seconds:
            left = min(STALE_SECONDS, STALE_SECONDS - age)
            told = f"its last heartbeat is {max(0.0, age):.0f} s old: if it was killed, try again in {left:.0f} s"
            raise Taken(f"{refusal(self._experiment, holder)}; {told}")
        self._say(f"{self._experiment}: the heartbeat of {who(holder)} expired: taking over in {seconds:.0f} s unless it sends one")
        time.sleep(seconds)
        return True  # if it did send a heartbeat, its object can no longer be replaced by this stamp

    def _age(self, info: ObjectInfo) -> float:
        """Seconds since the object was written, by the store's clock."""
        probe = beside(self._uri, "clock")  # never listed; swept if it is left behind
        try:
            write_bytes(probe, self.id.encode())
            written = self._store.head(probe)
        finally:
            self._store.delete(probe)
        if written is None:
            raise RunError(f"{probe}: missing just after it was written: check what else writes to this folder")
        return written.modified - info.modified


def parse_holder(data: bytes) -> Holder:
    """What a lock object says about its holder; empty if it is damaged."""
    try:
        value = json.loads(data)
        if not isinstance(value, dict):
            return {}
        checked = "format_version" in value or CHECKSUM in value
        return {} if checked and value.get(CHECKSUM) != checksum(value) else value
    except (ValueError, RecursionError):
        return {}


def who(holder: Holder) -> str:
    """A holder, described for people."""
    if not holder:
        return "a process that the damaged lock does not identify"
    told = {name: "".join(filter(str.isprintable, str(holder.get(name, "?"))))[:64] for name in ("pid", "host", "user", "started")}
    return f"process {told['pid']} on {told['host']} (user {told['user']}), started {told['started']}"


def refusal(experiment_uri: str, holder: Holder) -> str:
    """What a run is told if it wants an experiment that has this holder."""
    return f"{experiment_uri} is being run by {who(holder)}: wait for it to finish, or choose another name for EXPERIMENT"
