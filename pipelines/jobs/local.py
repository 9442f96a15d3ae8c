"""The local backend: `python -m trainer …` as a subprocess with a process group of its own."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from pipelines.jobs.base import JobSpec, LineSink, Outcome, placement_arguments
from trainer.logs import text_of
from trainer.progress import must_stop_at_once

COMMAND = (sys.executable, "-m", "trainer")
GRACE_SECONDS = 30.0
"""How long a cancelled job has to save its checkpoint before it is killed."""
_PR_SET_PDEATHSIG = 1


class LocalBackend:
    """Runs jobs on this machine, one process group each."""

    def __init__(self, command: Sequence[str] = COMMAND, grace_seconds: float = GRACE_SECONDS, keep_open: Sequence[int] = ()) -> None:
        self._command = tuple(command)
        self._grace_seconds = grace_seconds
        self._keep_open = tuple(keep_open)

    def submit(self, spec: JobSpec) -> "LocalJob":
        """Start the command. `keep_open` file descriptors stay open as long as it runs (pipelines/jobs/lock.py)."""
        placement = dict(spec.placement) | ({"resume": spec.resume} if spec.resume != "auto" else {})
        process = subprocess.Popen(
            [*self._command, *spec.arguments, *placement_arguments(placement)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **spec.environment, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # a terminal's Ctrl-C reaches only the step, which then asks the job to save
            preexec_fn=_die_with_parent,  # safe: the step has one thread when it starts a job
            pass_fds=self._keep_open,
        )
        return LocalJob(process, self._grace_seconds)


class LocalJob:
    """A running subprocess and the group it leads."""

    def __init__(self, process: "subprocess.Popen[str]", grace_seconds: float) -> None:
        self._process = process
        self._grace_seconds = grace_seconds
        self._last_line = ""

    @property
    def pid(self) -> int:
        """The ID of the process and of its group."""
        return self._process.pid

    def logs(self, sink: LineSink) -> None:
        """Pass every line of its output to `sink`, until the output ends."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._last_line = text_of(line.strip()) or self._last_line
                sink(line.rstrip("\n"))

    def watch(self) -> Outcome | None:
        """How it ended, or None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self._signal(signal.SIGKILL)  # kill what the job started and left behind
        if code == 0:
            return Outcome(exit_code=0, line="")
        if code < 0:
            why = " (by hand, or the machine ran out of memory)" if code == -signal.SIGKILL else ""
            return Outcome(exit_code=code, line=f"killed by {signal.Signals(-code).name}{why}")
        return Outcome(exit_code=2 if code == 2 else 1, line=self._last_line or f"ended with exit code {code} and no output")

    def cancel(self) -> None:
        """SIGTERM, then a grace period in which the trainer saves, then SIGKILL for the whole group; only SIGKILL if it must not save."""
        if self._process.poll() is None and not must_stop_at_once():
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            end = time.monotonic() + self._grace_seconds
            with contextlib.suppress(KeyboardInterrupt):  # on a second Ctrl-C, do not wait
                while self._process.poll() is None and time.monotonic() < end and not must_stop_at_once():
                    time.sleep(0.05)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def leave(self) -> None:
        """Same as cancel: nobody else waits for a process on this machine."""
        self.cancel()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _die_with_parent() -> None:
    """In the child, before exec: ask for SIGTERM, and thus a save, when the step that watches it is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
