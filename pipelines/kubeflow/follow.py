"""Wait for a run on a Kubeflow server: its steps' states and logs as they come, Ctrl-C as a request to the server."""

import contextlib
import re
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from pipelines.kubeflow.client import Kubeflow

POLL_SECONDS = 5.0
ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
RUNNING = frozenset({"PENDING", "RUNNING", "CANCELING", "PAUSED"})
NOT_STEPS = re.compile(r"root|executor|.*-driver|for-loop-.*|exit-handler-.*|iteration-.*|.*-iteration.*")
"""Display names of what KFP makes around the steps."""
POD = "system-container-impl"
"""The template of a step's own pod: Argo names pods <workflow>-<template>-<hash>, KFP's API gives <workflow>-<hash>."""
Say = Callable[[str], None]


class RunFollower:
    """Follows one run until it has ended."""

    def __init__(self, server: Kubeflow, run: str, say: Say) -> None:
        """Nothing is asked yet.

        Args:
            server: its retry_seconds are how long a lost connection is waited for.
            run: the run's id.
            say: gets each line.
        """
        self._server, self._run, self._say = server, run, say
        self._states: dict[str, str] = {}
        self._streams: dict[str, threading.Thread] = {}
        self._interrupts = 0
        self._wake = threading.Event()

    def follow(self) -> tuple[Any, bool]:
        """Until the run has ended; the run, and whether Ctrl-C (or SIGTERM) asked for its end.

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
                self._show(run)
                if run.state in ENDED:
                    self._read_to_the_end()
                    return run, asked > 0
                self._wake.wait(POLL_SECONDS)
                self._wake.clear()

    def _end(self, asked: int) -> None:
        if asked:
            raise KeyboardInterrupt
        self._say("asking Kubeflow to terminate the run; once more to not wait for its end")
        self._server.terminate(self._run)

    def _show(self, run: Any) -> None:
        """Say what has changed since the last look, and begin to read the logs of steps that run."""
        self._say_change("run", "run", run.state)
        tasks = (run.run_details.task_details if run.run_details else None) or []
        order = sorted(tasks, key=lambda task: str(task.start_time or task.create_time or ""))
        for task in order:
            name = task.display_name or ""
            if not task.task_id or NOT_STEPS.fullmatch(name):
                continue
            self._say_change(task.task_id, name, task.state)
            if task.state == "RUNNING":
                for child in task.child_tasks or []:
                    self._stream(name, child.pod_name or "")

    def _say_change(self, key: str, name: str, state: str | None) -> None:
        if state and self._states.get(key) != state:
            self._states[key] = state
            self._say(f"{name}: {state.lower()}")

    def _stream(self, name: str, node: str) -> None:
        if node and node not in self._streams:
            thread = threading.Thread(target=self._read, args=(name, node), name=f"log of {name}", daemon=True)
            self._streams[node] = thread
            thread.start()

    def _read(self, name: str, node: str) -> None:
        workflow, _, number = node.rpartition("-")
        for pod in (f"{workflow}-{POD}-{number}", node):
            anything = False
            for line in self._server.log(self._run, pod):
                anything = True
                self._say(f"{name} | {line}")
            if anything:
                return

    def _read_to_the_end(self) -> None:
        for thread in self._streams.values():
            thread.join(timeout=5.0)

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
