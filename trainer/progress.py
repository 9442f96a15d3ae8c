"""What a step tells the person who waits: lines of JSON to a file that the parent process follows.

A step runs as a grandchild whose output goes to a pipe, so it cannot draw a bar. It appends records to
the file named by FIRSTSIGHT_PROGRESS instead, and the parent (pipelines/local/progress.py) draws them.
"""

import json
import os
import re
import time
from contextlib import suppress
from typing import Any

from trainer.errors import RunError

PROGRESS_VARIABLE = "FIRSTSIGHT_PROGRESS"
STOP_VARIABLE = "FIRSTSIGHT_STOP"
STOP_AT_ONCE = "at once"
"""Content of the stop marker where jobs must not save either: the experiment is another run's by now."""


def progress(step: str, done: int, total: int, unit: str, **figures: float | str) -> None:
    """Say that `done` of `total` units of `step` are done. Figures (loss, samples_per_second …) go beside it. Never fails.

    Args:
        step: what is running, unique in the run, such as `contrastive perceptual-seed0`.
        done: units done; equal to `total` when the step has ended.
        total: units in all; 0 if it is not known.
        unit: their name in the plural: images, triplets, samples.
        **figures: shown beside the bar.
    """
    _append(step, {"done": done, "total": total, "unit": unit, **figures})


def tell(step: str, note: str, *, detail: bool = False) -> None:
    """Say one thing about `step` to the person who waits, such as what is rebuilt; a detail is shown with -v only. Never fails."""
    _append(step, {"note": note, "detail": detail})


def _append(step: str, record: dict[str, Any]) -> None:
    path = os.environ.get(PROGRESS_VARIABLE)
    if not path:
        return
    line = json.dumps({"time": time.time(), "step": step, **record}) + "\n"
    # O_APPEND and one write: lines of several processes do not mix. A bar is worth no run: a full disk, a parent that is gone
    with suppress(OSError), open(path, "ab", buffering=0) as stream:
        stream.write(line.encode())


def read_record(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None if its line was cut short, as on a full disk, or the next one was appended to such a line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`, `1,024 rows`."""
    return f"{number:,} {noun if number == 1 else f'{noun}s'}"


def step_line(name: str, step: int, steps: int, loss: float, rate: float) -> str:
    """The line of a training log that says how far it is; `read_step_line` reads it again, in a launcher far away.

    Args:
        name: of the run.
        step: optimiser steps done.
        steps: in all.
        loss: of the last one.
        rate: samples per second.
    """
    return f"{name}: step {step} of {steps}, loss {loss:.4f}, {rate:.1f} samples/s"


def read_step_line(line: str) -> tuple[int, int, float, float] | None:
    """Step, steps, loss and samples per second of a line that `step_line` made; None of any other."""
    match = re.search(r": step (\d+) of (\d+), loss (\S+), (\S+) samples/s$", line)
    return (int(match[1]), int(match[2]), float(match[3]), float(match[4])) if match else None


def check_stop() -> None:
    """Raise RunError if the parent has asked its steps to stop (Ctrl-C)."""
    path = os.environ.get(STOP_VARIABLE)
    if path and os.path.exists(path):
        raise RunError("stopped on request; run the same command again to resume")


def must_stop_at_once() -> bool:
    """Whether the parent has asked its steps to stop, and their jobs not to save."""
    with suppress(OSError), open(os.environ.get(STOP_VARIABLE, "")) as marker:
        return marker.read() == STOP_AT_ONCE
    return False
