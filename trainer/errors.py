"""The two ways a command of firstsight fails, and the exit code of each.

`InputError` is the user's to fix (exit 2): a typo in YAML, a wrong URI, unequal identities.
`RunError` is a failure during the run (exit 1): a store that stayed down, a full disk, bad bytes.
Both carry one line that names what, where and the rule, without the credentials of URLs in it; the command line prints just that line.
"""

import errno
import os
import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType

from trainer import logs
from trainer.redaction import without_credentials

_LONGEST = 4000  # characters of the line, which may quote what a file holds: of a longer one the middle is left out
_NO_MEMORY = (
    "out of memory",
    "can't start new thread",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "Cannot allocate memory",
)


class _OneLine(Exception):
    """An error whose message is one printable line without credentials, whatever text it quotes."""

    def __init__(self, *words: object) -> None:
        super().__init__(*(_printable(without_credentials(word)) if isinstance(word, str) else word for word in words))


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)


class InputError(_OneLine, ValueError):
    """Wrong input or configuration; nothing was written. Exit code 2, never retried."""

    exit_code = 2


class RunError(_OneLine, RuntimeError):
    """A failure during the run that the same command may survive when run again. Exit code 1."""

    exit_code = 1


class Corrupt(RunError):
    """The data read differ from the data written. The network is not the cause, so reading again would return the same bytes."""


class PeerLost(RunError):
    """Another rank is gone; it may have reported the reason itself."""


class Stopped(RunError):
    """Asked to stop (SIGTERM, Ctrl-C, a stop marker), and a checkpoint is saved. Exit code 143, as a shell says SIGTERM."""

    exit_code = 143


def words_of(error: BaseException) -> str:
    """The message of an error on one line, without credentials of URLs; its type if it has no message."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {reason_of(error)}"
    return " ".join(without_credentials(text).split()) or type(error).__name__


def reason_of(error: OSError) -> str:
    """Why the operating system refused something; for a full disk also what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.strerror}); make room and run the same command again"
    return error.strerror or str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: Python's own, or the errors that threads, torch's allocator, CUDA and C++ raise instead."""
    is_other = isinstance(error, RuntimeError) and not isinstance(error, RunError)
    return isinstance(error, MemoryError) or (is_other and any(words in str(error) for words in _NO_MEMORY))


def hide_credentials_in_tracebacks() -> None:
    """For a program's main module: hide credentials in the traceback of an unexpected error, which quotes whatever the error quotes."""

    def hook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        print(without_credentials("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr, flush=True)

    sys.excepthook = hook
    threading.excepthook = lambda given: hook(given.exc_type, given.exc_value or given.exc_type(), given.exc_traceback)


def exit_code(command: str, run: Callable[[], int], *, verbose: bool, component: str = "") -> int:
    """Run a command; if it fails, print one line on stderr that says why, and return the exit code of the failure.

    Args:
        command: program and command, with which the line begins.
        run: returns the exit code.
        verbose: also print the traceback of an error.
        component: name of the process in logs; empty: its output is for people and programs, and never becomes log records.
    """
    if not component:
        return _exit_code(command, run, verbose)
    try:
        logs.is_json()
    except ValueError as error:
        logs.say(f"{command}: {error}", "error")
        return InputError.exit_code
    with logs.speaking(component):
        return _exit_code(command, run, verbose)


def _exit_code(command: str, run: Callable[[], int], verbose: bool) -> int:
    shown = None
    try:
        return run()
    except (InputError, RunError, KeyboardInterrupt, OSError, MemoryError, RuntimeError) as error:
        no_memory = is_out_of_memory(error)
        if isinstance(error, RuntimeError) and not isinstance(error, RunError) and not no_memory:
            raise  # a bug in firstsight: for its developers
        shown = error if verbose else None
        line = "interrupted" if isinstance(error, KeyboardInterrupt) else words_of(error)
        line = f"out of memory: {error}".removesuffix(": ") if no_memory else line
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
    line = " ".join(without_credentials(line).split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
    logs.say(f"{command}: {line}", "error", shown)
    return code
