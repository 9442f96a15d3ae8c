"""Is the run alive, and how near the limit: a watchdog over steps, model FLOPs utilisation, a profiler's trace."""

import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from trainer import logs
from trainer.config import profiled_steps
from trainer.configs.sizes import PEAK_FLOPS
from trainer.run.failure import best_effort
from trainer.storage import join, write_bytes
from trainer.storage.scratch import temporary_folder

_LAST_RESORT_SECONDS = 60.0
_UNUSUAL_STEPS = 50
"""A process's first steps compile and fill the loader: how long they take says nothing of the others."""
_SLOWEST_STEPS = 20
_STORE_SECONDS = 300.0
"""How long a store that is down is waited for, unless FIRSTSIGHT_S3_RETRY_SECONDS says otherwise; others wait for that rank meanwhile."""


def peak_flops(device: torch.device) -> float | None:
    """What the device could do at most; None if no data sheet is known (CPUs among them), and then no MFU is told."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)


class Watchdog:
    """Ends a process whose step hangs: a lost peer inside a collective would else hold its GPUs for ever.

    A step may take `seconds`; once the usual pace is known, a multiple of the slowest one so far, but never less than twice the
    time that a store has to come back. Every rank has its own, so each tells its own stack. A thread does it; should the
    interpreter itself hang, the timer of faulthandler, which needs no interpreter, ends the process a minute later.

    Attributes:
        limit: seconds that the present step may take.
    """

    def __init__(self, seconds: float, name: str, say: Callable[[str, str], None]) -> None:
        """Watch from now on. `say` gets the one line that becomes failure.json, and the stacks of all threads."""
        self.limit = self._seconds = seconds
        self._name = name
        self._say = say
        self._stop = threading.Event()
        self._steps, self._slowest = 0, 0.0
        self._floor = 2 * max(_STORE_SECONDS, float(os.environ.get("FIRSTSIGHT_S3_RETRY_SECONDS") or 0))
        self._beat = time.monotonic()
        self._arm()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """A step has ended."""
        now = time.monotonic()
        self._steps += 1
        if self._steps > _UNUSUAL_STEPS:
            self._slowest = max(self._slowest, now - self._beat)
        if self._steps >= 2 * _UNUSUAL_STEPS:
            self.limit = min(self._seconds, max(self._floor, _SLOWEST_STEPS * self._slowest))
        self._beat = now
        self._arm()

    def close(self) -> None:
        """Watch no longer."""
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()
        self._thread.join()

    def _arm(self) -> None:
        faulthandler.dump_traceback_later(self.limit + _LAST_RESORT_SECONDS, exit=True, file=sys.__stderr__ or 2)

    def _watch(self) -> None:
        while not self._stop.wait(max(0.01, self._beat + self.limit - time.monotonic())):
            if time.monotonic() - self._beat >= self.limit:
                try:
                    line, stacks = f"{self._name}: a step took longer than {self._reason()}", _stacks()
                    if not logs.record(line, "critical", stacks):
                        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
                    self._say(line, stacks)
                finally:
                    os._exit(1)

    def _reason(self) -> str:
        if self.limit == self._seconds:
            return f"placement.watchdog_seconds {self._seconds:g}"
        return f"{self.limit:g} s; the slowest one before it took {self._slowest:.3g} s"


def _stacks() -> str:
    """What every thread of this process is doing."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


class Profiler:
    """Writes a torch profiler trace of some steps to profile/ in the stage's folder (`placement.profile_steps: A:B`)."""

    def __init__(self, steps: str, output: str) -> None:
        self._first, self._last = profiled_steps(steps)
        self._output = output
        self._running: Any = None

    def before(self, step: int) -> None:
        """Step number `step` (from 1) is about to run."""
        if step != self._first:
            return
        with best_effort(f"placement.profile_steps {self._first}:{self._last}"):
            activities = [torch.profiler.ProfilerActivity.CPU]
            activities += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            running = torch.profiler.profile(activities=activities)
            running.__enter__()  # type: ignore[no-untyped-call]
            self._running = running

    def after(self, step: int) -> None:
        """Step number `step` has run."""
        if step != self._last or self._running is None:
            return
        running, self._running = self._running, None
        with best_effort(f"placement.profile_steps {self._first}:{self._last}"):
            running.__exit__(None, None, None)
            with temporary_folder("trace") as folder:
                trace = folder / "trace.json"
                running.export_chrome_trace(str(trace))
                write_bytes(join(self._output, "profile", f"steps-{self._first}-{self._last}.json"), trace.read_bytes())
