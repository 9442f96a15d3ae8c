"""The leader's log as it is written, each line once, whatever happens to connections, containers and pods in between."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pipelines.cluster.api import Unreachable
from pipelines.cluster.connection import Cluster
from pipelines.jobs.shapes.base import Shape
from pipelines.jobs.view import View, container_status
from trainer.errors import InputError
from trainer.logs import text_of
from trainer.progress import progress, read_step_line
from trainer.storage.retries import Backoff

MINUTE = 60.0
NEWS_SECONDS = 2.0
"""How long to wait for the kubelet to report that it has restarted a container."""
StampedSink = Callable[[str, str], None]
"""Gets the kubelet's time (empty for our own remarks) and the line."""


class LogFollower:
    """Follows the log of a job's leader from one pod to the next. Lines are identified by the kubelet's timestamps."""

    def __init__(self, cluster: Cluster, shape: Shape, view: View, sink: StampedSink, whole: str) -> None:
        """Nothing is read yet.

        Args:
            cluster: where the job is.
            shape: which pod leads, and which container's log to read.
            view: of the job.
            sink: gets each line.
            whole: where the complete log is, named in the lines that mark gaps.
        """
        self._cluster, self._shape, self._view, self._sink, self._whole = cluster, shape, view, sink, whole
        self._uid, self._restarts = "", 0
        self._last, self._repeats = "", 0  # timestamp of the last line, and how many lines had it
        self._continues = False  # whether the log to be read next holds that line
        self._drained = ("", 0)  # the pod and its restarts whose log was read to the end
        self._waited = False  # whether we have already waited a moment for news of a new container
        self._stop, self._finish = threading.Event(), threading.Event()

    def start(self) -> threading.Thread:
        """Follow in a thread of its own."""
        thread = threading.Thread(target=self.run, name="job log", daemon=True)
        thread.start()
        return thread

    def finish(self) -> None:
        """Read what there is up to the end of the container, and no further."""
        self._finish.set()

    def stop(self) -> None:
        """Stop following; the caller must close the cluster's streams."""
        self._stop.set()

    def run(self) -> None:
        """Follow until stopped."""
        backoff = Backoff(most=10.0)
        try:
            while not self._stop.is_set():
                pod = self._leader()
                if pod is not None and self._begin(pod):
                    began = time.monotonic()
                    try:
                        if not self._read(pod, follow=True):
                            self._stop.wait(NEWS_SECONDS)
                            continue
                        ended = "terminated" in (container_status(pod, self._shape.container).get("state") or {})
                    except Unreachable:
                        ended = False
                    if time.monotonic() - began > 1.0:
                        backoff.reset()
                    if not ended:
                        self._stop.wait(backoff.seconds())
                        continue
                    self._drained = (self._uid, self._restarts)
                if self._finish.is_set():
                    return
                self._stop.wait(0.2)
        except InputError as error:
            self._mark(f"the log cannot be read: {error}")

    def _leader(self) -> Mapping[str, Any] | None:
        """The newest leading pod whose container has started at least once, with something new to read."""
        pods = [pod for pod in self._view.pods() if self._shape.is_leader(pod)]
        pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
        for pod in reversed(pods):
            status = container_status(pod, self._shape.container)
            state = status.get("state") or {}
            if "running" in state or "terminated" in state or status.get("restartCount"):
                return pod
        return None

    def _begin(self, pod: Mapping[str, Any]) -> bool:
        """Catch up with what happened to the pod; return whether there is a container to follow now."""
        status = container_status(pod, self._shape.container)
        name, uid, restarts = pod["metadata"]["name"], pod["metadata"]["uid"], int(status.get("restartCount", 0))
        if uid != self._uid:
            if self._uid:
                self._mark(f"{name} was replaced by a new pod; the end of its predecessor's log may be missing here")
            self._uid, self._restarts, self._last, self._repeats, self._continues = uid, 0, "", 0, False
        if restarts != self._restarts or (restarts and not self._last):
            self._continues = self._continues and restarts == self._restarts + 1
            self._read(pod, previous=True)
            self._mark(f"{name} was restarted ({restarts} times so far)")
            self._continues = False
        self._restarts = restarts
        return "waiting" not in (status.get("state") or {}) and self._drained != (uid, restarts)

    def _read(self, pod: Mapping[str, Any], *, follow: bool = False, previous: bool = False) -> bool:
        """Pass on the lines after the last one that was passed on.

        Returns:
            False, once, if that line is not in the log any more: perhaps this is the log of a container whose start has
            not been reported yet, and a moment later the end of the previous container's log can be read.
        """
        before, seen, found = self._last, 0, not self._continues
        lines = self._cluster.log(
            pod["metadata"]["name"], self._shape.container, since=self._last, follow=follow, previous=previous, stop=self._stop
        )
        for line in lines:
            stamp, _, text = line.partition(" ")
            if _posix(stamp) is None:
                continue  # the kubelet's own message about a log that it cannot find
            if before and stamp <= before:
                seen += stamp == before
                found = True
                if stamp < before or seen <= self._repeats:
                    continue
            if not found and not self._waited:
                self._waited = True
                return False
            if not found:
                found = True
                self._mark("lines may be missing here")
            self._repeats = self._repeats + 1 if stamp == self._last else 1
            self._last, self._continues, self._waited = stamp, True, False
            self._sink(stamp, text)
        return True

    def _mark(self, text: str) -> None:
        self._sink("", f"--- {text}; complete: {self._whole}")


class Progress:
    """Reads step lines: moves the progress bar for a person who waits, and writes one line a minute to a log."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._steps: deque[tuple[float, int]] = deque()
        self._said = float("-inf")

    def take(self, stamp: str, text: str) -> None:
        """Look at one line of the log.

        Args:
            stamp: the kubelet's time.
            text: the line.
        """
        figures = read_step_line(text_of(text))
        now = _posix(stamp)
        if figures is None or now is None:
            return
        step, steps, loss, rate = figures
        progress(self._name, step, steps, "steps", loss=loss, samples_per_second=rate)
        if self._steps and (step <= self._steps[-1][1] or now - self._steps[-1][0] > MINUTE):
            self._steps.clear()  # it went back to a checkpoint, or made no progress
        self._steps.append((now, step))
        while len(self._steps) > 2 and self._steps[1][0] < now - MINUTE:
            self._steps.popleft()
        if now - self._said >= MINUTE and len(self._steps) > 1:
            self._said = now
            self._say(
                f"--- {100 * step // steps} %, step {step:,} of {steps:,}, loss {loss:.4f}, {rate:,.1f} samples/s, {self._left(steps)}"
            )

    def _left(self, steps: int) -> str:
        (first, start), (last, end) = self._steps[0], self._steps[-1]
        if last <= first or end <= start:
            return "time left not known"
        minutes, seconds = divmod(round((steps - end) * (last - first) / (end - start)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d} left" if hours else f"{minutes}:{seconds:02d} left"


def _posix(stamp: str) -> float | None:
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return None
