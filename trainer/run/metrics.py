"""What a run says of itself: where each step's time goes, progress.jsonl, and the lines of log.txt."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from trainer.storage import join, read_bytes, write_bytes
from trainer.storage.base import MissingObject, local_path

FLUSH_SECONDS = {"local": 2.0, "remote": 30.0}
"""An object store has no append: the whole log is written again, so less often …"""
FLUSH_BYTES = 256 << 10
"""… and the less often the longer it is: the interval doubles with so many bytes."""


class StepTimer:
    """Seconds since the last line of the log, split by what they went into."""

    def __init__(self) -> None:
        self.split: dict[str, float] = {}
        self.last_step = (0.0, 0.0)
        """Seconds of the last step, and those of them spent waiting for data."""
        self._began = time.perf_counter()

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step runs inside."""
        began, waited = time.perf_counter(), self.split.get("data_wait", 0.0)
        yield
        self.last_step = (time.perf_counter() - began, self.split.get("data_wait", 0.0) - waited)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Count the seconds inside as `part`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - began)

    def add(self, part: str, seconds: float) -> None:
        """Count `seconds` as `part`."""
        self.split[part] = self.split.get(part, 0.0) + seconds

    def take(self, steps: int, samples: int) -> dict[str, float]:
        """Mean seconds a step by part since the last call, and the rate; what no part claims is compute.

        Args:
            steps: optimiser steps since then, at least 1.
            samples: samples of all ranks since then.
        """
        now = time.perf_counter()
        total, self._began = now - self._began, now
        split, self.split = self.split, {}
        parts = {f"{part}_seconds": split.get(part, 0.0) / steps for part in ("data_wait", "communication", "saving", "evaluation")}
        seconds = {"step_seconds": total / steps, **parts}
        seconds["compute_seconds"] = max(0.0, seconds["step_seconds"] - sum(parts.values()))
        return {"samples_per_second": samples / total if total > 0 else 0.0, **seconds}


class StoredLines:
    """A text object of the stage's folder that grows line by line and is written whole, in the background.

    A run that resumes keeps the lines of earlier attempts: those that a checkpoint gave it, else those in the folder.
    """

    def __init__(self, output: str, name: str, before: bytes | None = None) -> None:
        self.name = name
        self._uri = join(output, name)
        self._every = FLUSH_SECONDS["remote" if local_path(output) is None else "local"]
        self._size = 0
        self._written = time.monotonic()
        self._thread = ThreadPoolExecutor(1, name)
        self._pending: Future[Any] | None = None
        self._written_whole = False
        if before is None:
            with suppress(MissingObject):
                before = read_bytes(self._uri)
        self._lines = [line + b"\n" for line in (before or b"").split(b"\n") if line]

    def keep_until(self, step: int) -> None:
        """Drop JSON lines of later steps than `step`, and a line cut short: those steps are done again."""
        self._lines = [line for line in self._lines if _step_of(line) <= step]

    def add(self, line: str) -> None:
        """Append one line; written within some seconds."""
        self._lines.append(line.encode() + b"\n")
        self._size += len(line) + 1
        every = self._every * (1 + self._size / FLUSH_BYTES)
        if time.monotonic() - self._written > every and (self._pending is None or self._pending.done()):
            self.flush()

    def data(self) -> bytes:
        """All of it."""
        return b"".join(self._lines)

    def flush(self) -> None:
        """Write what there is, in the background; raise what went wrong the last time."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        self._written = time.monotonic()
        self._pending = self._thread.submit(write_bytes, self._uri, self.data())

    def end(self) -> None:
        """No line follows, and the caller writes what there is: wait for what is being written, and write no more."""
        self._written_whole = True
        if self._pending is not None:
            self._pending.result()

    def close(self) -> None:
        """Write the rest and wait for it."""
        try:
            if not self._written_whole:
                self.flush()
            if self._pending is not None:
                self._pending.result()
        finally:
            self._thread.shutdown()


class StoredLogHandler(logging.Handler):
    """Sends the lines of a logger to log.txt."""

    def __init__(self, lines: StoredLines) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line."""
        self._lines.add(" ".join(self.format(record).splitlines()))


def json_line(figures: Mapping[str, Any]) -> str:
    """One object of progress.jsonl; a figure that is NaN or Inf is null, as JSON has no other word for it."""
    return json.dumps({key: None if isinstance(value, float) and not _finite(value) else value for key, value in figures.items()})


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
