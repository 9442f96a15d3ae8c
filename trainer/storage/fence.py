"""The fence of a stage's folder: which attempt may commit there.

attempt.json holds the number of the newest attempt and a random token of the process that claimed the folder last. A writer reads
it again before each commit: if it finds a higher number or another token, it has been taken over and must not commit. A claim
between that check and the commit itself goes unnoticed, since no store writes two objects at once.
"""

import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass

from trainer.errors import Corrupt, InputError, RunError
from trainer.storage import layout
from trainer.storage.base import open_store
from trainer.storage.committed import NAME as COMMITTED
from trainer.storage.committed import read_committed
from trainer.storage.documents import encode_document, read_document

FORMAT_VERSION = 2
"""Version 1 was {"attempt": n}, without format_version, token or checksum."""
_TRIES = 20
_log = logging.getLogger("trainer")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The content of attempt.json.

    Attributes:
        attempt: number of the newest attempt.
        token: of the process that claimed the folder last; empty if none has yet.
        stamp: of the object; empty if there is none.
        damaged: why it cannot be read; empty if it can.
    """

    attempt: int = 0
    token: str = ""
    stamp: str = ""
    damaged: str = ""


def read_claim(output: str) -> Claim:
    """The newest claim of a stage's folder; attempt 0 if there is none, or a damaged one."""
    uri = layout.attempt(output)
    info = open_store(uri).head(uri)  # before its content: a claim made meanwhile then has another stamp
    if info is None:
        return Claim()
    try:
        value = read_document(uri, "a claim", FORMAT_VERSION, checked_from=FORMAT_VERSION, bare=True)
        if value is None:
            return Claim()
        if type(value.get("attempt")) is not int or value["attempt"] < 0:
            raise Corrupt(f"{uri}: not an attempt number")
        return Claim(attempt=value["attempt"], token=str(value.get("token", "")), stamp=info.stamp)
    except Corrupt as error:
        return Claim(stamp=info.stamp, damaged=str(error))


def newest_attempt(output: str) -> int:
    """The number of a stage's newest attempt: that of attempt.json, or a higher one of a seal where attempt.json was lost; 0: none."""
    numbers = [read_claim(output).attempt]
    for info in open_store(output).list(output):
        folder, _, name = info.uri.rpartition("/")
        if name == COMMITTED:
            with suppress(Corrupt, InputError):  # a damaged seal counts as absent
                seal = read_committed(folder)
                numbers.append(seal.attempt if seal is not None else 0)
    return max(numbers)


def raise_attempt(output: str, attempt: int) -> None:
    """Make `attempt` the newest attempt's number, unless a newer one is known: writers of older ones cannot commit any more."""
    for _ in range(_TRIES):
        known = read_claim(output)
        if known.attempt >= attempt or _write(output, known, attempt, ""):
            return
    raise RunError(f"{layout.attempt(output)}: changed {_TRIES} times meanwhile: attempt {attempt} could not be written")


class Fence:
    """One process's right to commit in a stage's folder. Of several that claim it, the last one has it.

    Args:
        output: the stage's folder.
        attempt: number that the launcher gave this job; 0: none, and only the claim counts.
    """

    def __init__(self, output: str, attempt: int) -> None:
        self._output = output
        self.attempt = attempt
        self._token = secrets.token_hex(16)
        self._claimed: int | None = None  # the number that the claim was written with

    def claim(self) -> None:
        """Take the folder over. RunError if a newer attempt has claimed it."""
        for _ in range(_TRIES):
            known = read_claim(self._output)
            if self._claimed is not None and known.token == self._token:  # also where the answer to the write got lost
                return
            if self.attempt and known.attempt > self.attempt:
                raise RunError(self._refusal(known))
            if known.damaged:
                _log.warning("%s; written again", known.damaged)
            self._claimed = max(known.attempt, self.attempt)
            if _write(self._output, known, self._claimed, self._token):
                return
        raise RunError(f"{layout.attempt(self._output)}: changed {_TRIES} times meanwhile: attempt {self.attempt} could not claim it")

    def check(self) -> None:
        """Check again, before a commit. RunError if another process has taken the folder over.

        A claim that is missing, damaged or older than ours is written again, since it is not a takeover.
        """
        if self._claimed is not None:
            known = read_claim(self._output)
            if known.token == self._token:
                return
            if known.attempt > self._claimed or (known.attempt == self._claimed and known.token):
                raise RunError(self._refusal(known))
            _log.warning("%s; claimed again", known.damaged or f"{layout.attempt(self._output)}: missing, or older than before")
        self.claim()

    def _refusal(self, known: Claim) -> str:
        uri = layout.attempt(self._output)
        if known.attempt > self.attempt > 0:
            return f"{uri}: attempt {known.attempt} has taken over, attempt {self.attempt} may no longer commit"
        return f"{uri}: a later start of this stage has taken over, this one may no longer commit"


def _write(output: str, known: Claim, attempt: int, token: str) -> bool:
    """Put a claim in the place of the `known` one; False if it has changed since."""
    uri = layout.attempt(output)
    data = encode_document({"format_version": FORMAT_VERSION, "attempt": attempt, "token": token})
    return open_store(uri).replace(uri, data, known.stamp) if known.stamp else open_store(uri).create(uri, data)
