"""Wait for a run on a Kubeflow server: its steps' states and logs as they come, Ctrl-C as a request to the server."""

import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from pipelines.kubeflow.client import Kubeflow, NotFound
from pipelines.kubeflow.nodes import BEFORE, Step, steps
from pipelines.kubeflow.runninglogs import RunningLogs
from pipelines.kubeflow.steplog import StepLog
from trainer.errors import InputError, RunError
from trainer.logs import text_of

POLL_SECONDS = 5.0
_NAP_SECONDS = 0.2
"""Between looks whether somebody pressed Ctrl-C."""
EVERYTHING = re.compile(r"- everything: `(.+)`")
"""The line of the first step's log that names the experiment's folder (pipelines/steps/links.py)."""
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
        exit_codes: of the steps that failed, where their logs tell it.
        experiment: URI of the experiment's folder, as the first step's log tells it; empty if it did not get so far.
    """

    run: Any
    stopped: bool
    reasons: dict[str, str] = field(default_factory=dict)
    exit_codes: tuple[int, ...] = ()
    experiment: str = ""


class RunLost(RunError):
    """The server no longer knows the run."""


@dataclass
class _Followed:
    """What is known of one step."""

    log: StepLog
    state: str = ""
    last: str = ""
    waits_for: str = ""
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
        self._experiment, self._strange = "", False
        self._interrupts = 0
        self.stopped = False
        """Whether the server took our request to end the run."""

    def follow(self) -> Followed:
        """Until the run has ended.

        Raises:
            RunError: the server could not be reached for longer than its retry_seconds; the run continues.
            RunLost: the server no longer knows the run.
            InputError: the server refuses the login; the run continues.
            KeyboardInterrupt: a second Ctrl-C, which does not want to wait for the end.
        """
        with self._interrupted_by_signals():
            asked = False
            while True:
                if self._interrupts and not asked:
                    asked = True
                    self._end()
                run = self._ask()
                found = self._look(run)
                if run.state in ENDED:
                    self._finish(found)
                    self._say_run(run.state)
                    return self._followed(run, found)
                self._wait(asked)

    def _ask(self) -> Any:
        try:
            return self._server.run(self._run)
        except NotFound as error:
            raise RunLost(
                f"Kubeflow no longer knows run {self._run}: it was deleted; submit the same experiment again to resume"
            ) from error

    def _wait(self, asked: bool = True) -> None:
        """POLL_SECONDS, or until the first Ctrl-C."""
        end = time.monotonic() + POLL_SECONDS
        while (asked or not self._interrupts) and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_SECONDS))

    def _end(self) -> None:
        self._say("asking Kubeflow to terminate the run; press Ctrl-C again to stop waiting for it to end")
        try:
            self._server.terminate(self._run)
            self.stopped = True
        except InputError as error:  # it ended in this moment, or is being terminated, or we may not
            self._say(f"Kubeflow did not accept it: {error}")

    def _look(self, run: Any) -> list[Step]:
        """Say what has changed since the last look, and what the steps' logs say by now."""
        if run.state not in ENDED:
            self._say_run(run.state)
        tasks = (run.run_details.task_details if run.run_details else None) or []
        found = steps(tasks)
        self._say_strange(tasks, found)
        self._lanes = max([self._lanes, *(step.lane + 1 for step in found)])
        for step in found:
            known = self._steps.get(step.node)
            if known is None or (known.complete and step.state == "RUNNING"):  # a Retry runs it again under its old id
                known = self._steps[step.node] = _Followed(StepLog(noise=self._noise))
            if known.state != step.state and step.state == "RUNNING":
                self._say(f"{self._title(step)}: running")
            known.state = step.state
            if step.state in ("PENDING", "RUNNING") and not known.last:
                self._say_waiting(step, known)
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
            self._say(f"{self._title(step)}: Kubeflow did not return the rest of its log")
        self._take(step, text, ended=True)
        self._say(f"{self._title(step)}: {step.state.lower()}{f': {known.last}' if step.state == 'FAILED' and known.last else ''}")

    def _take(self, step: Step, text: str | None, *, ended: bool) -> None:
        known = self._steps[step.node]
        for line in known.log.take(text, ended=ended) if text is not None else []:
            self._say(f"{self._title(step)} | {line}")
            known.last = line.strip() or known.last
            told = EVERYTHING.fullmatch(text_of(line).strip()) if step.name == BEFORE[0] else None
            self._experiment = told[1] if told else self._experiment

    def _say_waiting(self, step: Step, known: _Followed) -> None:
        why = self._running.waits_for(step)
        if why and why != known.waits_for:
            self._say(f"{self._title(step)}: waiting: {why}")
        known.waits_for = why

    def _say_strange(self, tasks: list[Any], found: list[Step]) -> None:
        """Another version of Kubeflow may number its nodes in another way."""
        ended = any(task.display_name in BEFORE and task.state in ENDED for task in tasks)
        if ended and not found and not self._strange:
            self._strange = True
            self._say("this Kubeflow numbers its steps in a way unknown to firstsight: only the run's own state is shown (known: 2.17.0)")

    def _title(self, step: Step) -> str:
        return f"{step.name} lane {step.lane + 1}" if self._lanes > 1 and step.lane >= 0 else step.name

    def _followed(self, run: Any, found: list[Step]) -> Followed:
        failed = {self._title(step): self._steps[step.node] for step in found if step.state == "FAILED"}
        reasons = {title: known.last for title, known in failed.items() if known.last}
        codes = tuple(known.log.exit_code for known in failed.values() if known.log.exit_code is not None)
        return Followed(run=run, stopped=self.stopped, reasons=reasons, exit_codes=codes, experiment=self._experiment)

    def _say_run(self, state: str | None) -> None:
        if state and state != self._state:
            self._state = state
            self._say(f"run: {str(state).lower()}")

    @contextlib.contextmanager
    def _interrupted_by_signals(self) -> Iterator[None]:
        def handle(number: int, frame: FrameType | None) -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def was_terminated(run: Any) -> bool:
    """Whether somebody asked for the end of a run: it goes CANCELING and then says FAILED, like any other that failed.

    Only the last end counts: what came before it a Retry has made good. Some entries of the history have no state.
    """
    states = [status.state for status in run.state_history or [] if status.state]
    return run.state == "CANCELED" or (run.state == "FAILED" and states[-2:] == ["CANCELING", "FAILED"])
