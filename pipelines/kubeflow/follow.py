"""Wait for a run on a Kubeflow server: its steps' states and logs as they come, Ctrl-C as a request to the server."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from pipelines.kubeflow.client import Kubeflow
from pipelines.kubeflow.nodes import Step, steps
from pipelines.kubeflow.runninglogs import RunningLogs
from pipelines.kubeflow.steplog import StepLog

POLL_SECONDS = 5.0
ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
_ARCHIVE_TRIES = 5
"""Looks at a step that has ended until its archived log is given up: Argo writes it a moment later."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Followed:
    """How following a run ended.

    Attributes:
        run: kfp_server_api.V2beta1Run that has ended.
        stopped: its end was asked for from here.
        reasons: of each step that failed, what its log said last.
    """

    run: Any
    stopped: bool
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass
class _Followed:
    """What is known of one step."""

    log: StepLog
    state: str = ""
    last: str = ""
    tries: int = 0
    complete: bool = False


class RunFollower:
    """Follows one run until it has ended."""

    def __init__(self, server: Kubeflow, run: str, say: Say, *, noise: bool = False) -> None:
        """Nothing is asked yet.

        Args:
            server: its retry_seconds are how long a lost connection is waited for.
            run: the run's id.
            say: gets each line.
            noise: also show what KFP says itself in the steps' logs.
        """
        self._server, self._run, self._say, self._noise = server, run, say, noise
        self._state, self._steps = "", dict[str, _Followed]()
        self._lanes = 0
        self._running = RunningLogs(server, run, say)
        self._interrupts = 0
        self._wake = threading.Event()

    def follow(self) -> Followed:
        """Until the run has ended.

        Raises:
            RunError: the server could not be reached for longer than its retry_seconds; the run goes on.
            KeyboardInterrupt: a second Ctrl-C, which does not want to wait for the end.
        """
        with self._interrupted_by_signals():
            asked = 0
            while True:
                if self._interrupts > asked:
                    self._end(asked)
                    asked += 1
                run = self._server.run(self._run)
                found = self._look(run)
                if run.state in ENDED:
                    self._finish(found)
                    self._say_run(run.state)
                    return Followed(run=run, stopped=asked > 0, reasons=self._reasons(found))
                self._wait()

    def _wait(self) -> None:
        self._wake.wait(POLL_SECONDS)
        self._wake.clear()

    def _end(self, asked: int) -> None:
        if asked:
            raise KeyboardInterrupt
        self._say("asking Kubeflow to terminate the run; once more to not wait for its end")
        self._server.terminate(self._run)

    def _look(self, run: Any) -> list[Step]:
        """Say what has changed since the last look, and what the steps' logs say by now."""
        if run.state not in ENDED:
            self._say_run(run.state)
        found = steps((run.run_details.task_details if run.run_details else None) or [])
        self._lanes = max([self._lanes, *(step.lane + 1 for step in found)])
        for step in found:
            known = self._steps.get(step.node)
            if known is None or (known.complete and step.state == "RUNNING"):  # a Retry runs it again under its old id
                known = self._steps[step.node] = _Followed(StepLog(noise=self._noise))
            if known.state != step.state and step.state == "RUNNING":
                self._say(f"{self._title(step)}: running")
            known.state = step.state
            if step.state == "RUNNING":
                self._take(step, self._running.read(step), ended=False)
            elif step.state in ENDED and not known.complete:
                self._complete(step)
        return found

    def _finish(self, found: list[Step]) -> None:
        """The rest of the logs of a run that has ended."""
        for _ in range(_ARCHIVE_TRIES):
            for step in found:
                if step.state in ENDED and not self._steps[step.node].complete:
                    self._complete(step)
            if all(self._steps[step.node].complete for step in found if step.state in ENDED):
                return
            self._wait()

    def _complete(self, step: Step) -> None:
        """The rest of an ended step's log, then its state."""
        known = self._steps[step.node]
        known.tries += 1
        text = self._server.ended_log(self._run, step.node)
        if text is None and known.tries < _ARCHIVE_TRIES:
            return
        known.complete = True
        if text is None:
            self._say(f"{self._title(step)}: Kubeflow did not give the rest of its log")
        self._take(step, text, ended=True)
        self._say(f"{self._title(step)}: {step.state.lower()}{f': {known.last}' if step.state == 'FAILED' and known.last else ''}")

    def _take(self, step: Step, text: str | None, *, ended: bool) -> None:
        known = self._steps[step.node]
        for line in known.log.take(text, ended=ended) if text is not None else []:
            self._say(f"{self._title(step)} | {line}")
            known.last = line.strip() or known.last

    def _title(self, step: Step) -> str:
        return f"{step.name} lane {step.lane + 1}" if self._lanes > 1 and step.lane >= 0 else step.name

    def _reasons(self, found: list[Step]) -> dict[str, str]:
        failed = [step for step in found if step.state == "FAILED"]
        return {self._title(step): self._steps[step.node].last for step in failed if self._steps[step.node].last}

    def _say_run(self, state: str | None) -> None:
        if state and state != self._state:
            self._state = state
            self._say(f"run: {state.lower()}")

    @contextlib.contextmanager
    def _interrupted_by_signals(self) -> Iterator[None]:
        def handle(number: int, frame: FrameType | None) -> None:
            self._interrupts += 1
            self._wake.set()

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def was_terminated(run: Any) -> bool:
    """Whether somebody asked for the end of a run: it goes CANCELING and then says FAILED, like any other that failed."""
    return run.state == "CANCELED" or any(status.state == "CANCELING" for status in run.state_history or [])
