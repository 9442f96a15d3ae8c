"""Is the run alive, and how near the limit: a watchdog over steps, model FLOPs utilisation, a profiler's trace."""

import faulthandler
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainer.config import profiled_steps
from trainer.configs.sizes import PEAK_FLOPS
from trainer.run.failure import best_effort
from trainer.storage import join, write_bytes
from trainer.storage.scratch import temporary_folder

_LAST_RESORT_SECONDS = 60.0


def peak_flops(device: torch.device) -> float | None:
    """What the device could do at most; None where no data sheet is known (CPUs among them), and then no MFU is told."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)


class Skips:
    """Which steps were skipped; on a GPU known one step later, so that its queue never runs dry while the next is prepared."""

    def __init__(self, device: torch.device) -> None:
        self._lag = 1 if device.type == "cuda" else 0
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, skipped: Tensor) -> None:
        """Step number `step` (from 1) was skipped if `skipped`, a boolean on the device, holds."""
        if skipped.device.type != "cuda":
            self._pending.append((step, skipped, None))
            return
        told = torch.empty((), dtype=torch.bool, pin_memory=True)
        told.copy_(skipped, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending.append((step, told, event))

    def known(self, wait: bool) -> list[int]:
        """The skipped steps among those that have ended, each told once; `wait` for the last one too."""
        found = []
        while len(self._pending) > (0 if wait else self._lag):
            step, skipped, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            if bool(skipped):
                found.append(step)
        return found


class Watchdog:
    """Ends a process whose step hangs: a lost peer inside a collective would else hold its GPUs for ever.

    Every rank has its own, so each dumps its own stack. A thread does it; should the interpreter itself hang, the
    timer of faulthandler, which needs no interpreter, does the same a minute later.
    """

    def __init__(self, seconds: float, name: str, say: Callable[[str], None]) -> None:
        """Watch from now on. `say` gets the one line that becomes failure.json."""
        self._seconds = seconds
        self._name = name
        self._say = say
        self._stop = threading.Event()
        self._beat = time.monotonic()
        self.beat()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """A step has ended."""
        self._beat = time.monotonic()
        faulthandler.dump_traceback_later(self._seconds + _LAST_RESORT_SECONDS, exit=True, file=sys.__stderr__ or 2)

    def close(self) -> None:
        """Watch no longer."""
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(max(0.01, self._beat + self._seconds - time.monotonic())):
            if time.monotonic() - self._beat >= self._seconds:
                limit = f"placement.watchdog_seconds {self._seconds:g}"
                try:
                    faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
                    self._say(f"{self._name}: a step took longer than {limit}; every rank's stack is in its log")
                finally:
                    os._exit(1)


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
