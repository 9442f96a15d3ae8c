"""Logs as JSON, one object per line with one schema for trainer, launcher and reaper, if FIRSTSIGHT_LOG_FORMAT is `json`.

Whatever is printed becomes a record, whoever prints it: standard output and error are replaced, also in worker processes. An exception
that nobody catches is a record with its traceback. Only what a C library writes to the file descriptor itself passes by.
docs/OPERATIONS.md has the schema.
"""

import contextlib
import io
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, cast

from trainer.redaction import without_credentials

FORMAT_VARIABLE = "FIRSTSIGHT_LOG_FORMAT"
Level = Literal["debug", "info", "warning", "error", "critical"]
REQUIRED = ("time", "level", "component", "message")
"""Every record begins with these fields, in this order; those of FIELDS that are known follow."""
FIELDS: dict[str, type] = {
    "experiment": str,
    "arm": str,
    "point": str,
    "seed": int,
    "stage": str,
    "rank": int,
    "step": int,
    "traceback": str,
}
_TOLD = "told_by_firstsight"
"""Attribute of a logger's record that was written."""
_process: dict[str, Any] = {}
_here: ContextVar[dict[str, Any]] = ContextVar("firstsight_log_fields", default={})  # noqa: B039 - never changed in place
_began: list["_Lines"] = []


def is_json() -> bool:
    """Whether logs are to be written as JSON records.

    Raises:
        ValueError: the variable is neither `text` nor `json`.
    """
    asked = os.environ.get(FORMAT_VARIABLE, "")
    if asked not in ("", "text", "json"):
        raise ValueError(f"{FORMAT_VARIABLE} must be text or json, got {asked!r}")
    return asked == "json"


@contextlib.contextmanager
def speaking(component: str) -> Iterator[None]:
    """Within this context the process logs as `component`, in JSON if requested, otherwise in plain text.

    Raises:
        ValueError: as `is_json`.
    """
    if not is_json() or _began:
        yield
        return
    streams, hook, emit = (sys.stdout, sys.stderr), threading.excepthook, logging.StreamHandler.emit
    handler = _begin(component)
    try:
        yield
    except Exception as error:  # now: when Python would print it, the streams have been restored
        say(f"{type(error).__name__}: {error}", "critical", error)
        raise SystemExit(1) from error
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)
        logging.StreamHandler.emit = emit  # type: ignore[method-assign]
        for stream in (sys.stdout, sys.stderr):
            cast(_Lines, stream).finish()
        sys.stdout, sys.stderr = streams
        threading.excepthook = hook
        _began.clear()


def _begin(component: str) -> logging.Handler:
    """Make records of all that this process says; returns what was added to the root logger."""
    _process.clear()
    bind(component=component)
    if os.environ.get("RANK", "").isdigit():
        bind(rank=int(os.environ["RANK"]))
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Lines(stream)) for stream in streams)
    _began.append(cast(_Lines, sys.stderr))
    threading.excepthook = _uncaught_in_thread
    handler, emit, shown = _Handler(), logging.StreamHandler.emit, {*map(id, (*streams, sys.stdout, sys.stderr))}

    def emit_record(self: "logging.StreamHandler[Any]", record: logging.LogRecord) -> None:
        """Of a library's own handler: its text would lose the level, or pass by where it holds the stream of before."""
        if id(self.stream) in shown:
            handler.emit(record)
        else:
            emit(self, record)

    logging.StreamHandler.emit = emit_record  # type: ignore[method-assign, assignment]
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    return handler


def spoken() -> dict[str, Any]:
    """What a worker process takes to `speak_as`; empty where this process makes no records."""
    return {**_process, **_here.get()} if _began else {}


def speak_as(fields: dict[str, Any]) -> None:
    """In a worker process that multiprocessing started: make records as its parent does, until its end."""
    if fields and not _began:
        _begin(fields["component"])
        bind(**fields)


def bind(**fields: Any) -> None:
    """Add these fields to every later record of the process, except empty ones."""
    _process.update(fields)


@contextlib.contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Within this context, add these fields to the records of this thread; `level` applies to printed text."""
    token = _here.set({**_here.get(), **fields})
    try:
        yield
    finally:
        _here.reset(token)


def say(line: str, level: Level = "info", error: BaseException | None = None) -> None:
    """Write a line to standard error; with an `error` also its traceback, which has its own field in a record."""
    told = "".join(traceback.format_exception(error)) if error is not None else ""
    if not record(line, level, told):  # which hides credentials itself
        print(without_credentials(told) + line, file=sys.stderr, flush=True)


def record(message: str, level: Level, traceback: str = "") -> bool:
    """Write one record. Returns False without writing anything if JSON logs are off."""
    if _began:
        _began[-1].record(message, level, traceback=traceback)
    return bool(_began)


def handlers() -> list[logging.Handler]:
    """The handlers that a logger needs, besides the root logger's, to write to standard error."""
    return [] if _began else [logging.StreamHandler()]


def record_of(line: str) -> dict[str, Any] | None:
    """The record in a line; None if the line is not a record."""
    if not line.startswith('{"time": '):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and all(name in found for name in REQUIRED) else None


def text_of(line: str) -> str:
    """The text of a line: a record's message, or the line itself."""
    record = record_of(line)
    return str(record["message"]) if record else line


class _Lines(io.TextIOBase):
    """A stream that writes each line as a record. A line that already is one, such as a forwarded line of a job, is not changed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begun: dict[int, str] = {}  # by thread: the beginning of an unfinished line
        self._lock = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's."""
        return self._stream.encoding

    def fileno(self) -> int:
        """The stream's file descriptor, which a child process may inherit."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Always False, so that libraries print no progress bars and no colours."""
        return False

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Buffer text, and write each line that it completes."""
        thread = threading.get_ident()
        with self._lock:
            *lines, rest = (self._begun.pop(thread, "") + text).split("\n")
            if rest:
                self._begun[thread] = rest
            for line in lines:
                shown = line.rstrip("\r").rpartition("\r")[2]  # of a bar that is drawn over itself the last
                if shown.strip():
                    self.record(shown, "info")
        return len(text)

    def flush(self) -> None:
        """Flush the stream; an unfinished line stays buffered."""
        self._stream.flush()

    def finish(self) -> None:
        """Write unfinished lines, since no more text follows."""
        with self._lock:
            for rest in self._begun.values():
                self.record(rest, "info")
            self._begun.clear()

    def record(self, message: str, level: str, **more: Any) -> None:
        """Write one record."""
        written = message
        if record_of(message) is None:
            fields = {**_process, **_here.get(), **more}
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            record = {"time": now, "level": fields.pop("level", level), "component": fields.pop("component", ""), "message": message}
            record |= {name: fields[name] for name in FIELDS if fields.get(name, "") not in ("", None)}
            record |= {name: without_credentials(record[name]) for name in ("message", "traceback") if name in record}
            written = json.dumps(record)  # in ASCII: no letter of a message can end the line, or fail in the stream's encoding
        with self._lock:
            self._stream.write(f"{written}\n")
            self._stream.flush()


class _Handler(logging.Handler):
    """Log records of any library."""

    def emit(self, record: logging.LogRecord) -> None:
        """As one of ours, once, whichever handlers it passes."""
        if not _began or hasattr(record, _TOLD):
            return
        setattr(record, _TOLD, True)
        error = record.exc_info[1] if record.exc_info else None
        try:
            message = record.getMessage().rstrip("\n")
        except Exception as wrong:  # arguments that do not fit: a mistake of the library's, which Python only reports
            message, error = f"{record.msg} {record.args}", error or wrong
        told = "".join(traceback.format_exception(error)) if error is not None else record.exc_text or record.stack_info or ""
        _began[-1].record(message, _level(record.levelno), traceback=told)


def _level(number: int) -> Level:
    """The level of the schema for one of a logger's, which libraries may add to."""
    if number >= logging.ERROR:
        return "critical" if number >= logging.CRITICAL else "error"
    return "warning" if number >= logging.WARNING else "info" if number >= logging.INFO else "debug"


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):  # SystemExit ends a thread silently, as in Python itself
        name = args.thread.name if args.thread else "a thread"
        say(f"{name}: {type(args.exc_value).__name__}: {args.exc_value}", "error", args.exc_value)
