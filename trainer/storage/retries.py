"""Retry temporary failures with growing pauses, up to a time limit. All retries take their pauses from here."""

import logging
import math
import random
import time

from trainer.errors import RunError
from trainer.redaction import without_credentials

PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP answers after which the same request may succeed."""

FIRST_SECONDS = 0.2
"""The first pause before another try."""
JITTER = random.SystemRandom()
"""Not the interpreter's generator, which others may have seeded alike, or count on."""

_log = logging.getLogger(__name__)


class Backoff:
    """Pauses that double, with jitter, so that clients hit by one outage do not all come back at once."""

    def __init__(self, first: float | None = None, most: float = 20.0) -> None:
        self._first, self._most = FIRST_SECONDS if first is None else first, most
        self._next = self._first

    def seconds(self) -> float:
        """The next pause."""
        pause, self._next = self._next * JITTER.uniform(0.5, 1.0), min(self._next * 2, self._most)
        return pause

    def reset(self) -> None:
        """A request succeeded: begin with the first pause again."""
        self._next = self._first


class Retries:
    """Growing pauses between tries of one thing, until a time has passed without success.

    Attributes:
        failures: tries since the last success.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._backoff = seconds, Backoff()
        self.restart()

    def restart(self) -> None:
        """A request succeeded: the next failure has the whole time again."""
        self.failures, self._start = 0, time.monotonic()
        self._backoff.reset()

    def wait(self, cause: str, *, at_least: float = 0.0, seconds: float | None = None) -> None:
        """Sleep before the next try; RunError with `cause` if the time (or `seconds`, if less) would run out."""
        self.failures += 1
        allowed = self._seconds if seconds is None else min(seconds, self._seconds)
        pause = max(at_least, self._backoff.seconds())
        waited = time.monotonic() - self._start
        if waited + pause > allowed:
            raise RunError(f"{cause} (given up after {self.failures} tries in {waited:.0f} s)")
        if self.failures == 4:  # a hiccup is not worth a line, an outage is
            _log.warning("%s; trying again for up to %.0f s", without_credentials(cause), allowed)
        time.sleep(pause)


def retry_after(header: str, most: float = math.inf) -> float:
    """The seconds that a Retry-After header asks for, at most `most`; 0 if it names none."""
    return min(float(header), most) if header.isdecimal() else 0.0
