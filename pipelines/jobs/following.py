"""A job on a cluster from the moment it is requested to its end: found or created, followed, resubmitted and released.

One supervisor thread takes all decisions (pipelines/jobs/monitor.py); the step that waits only reads
lines and asks whether there is an outcome.
"""

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from pipelines.cluster.api import Unreachable
from pipelines.cluster.ending import end, wait_until_gone
from pipelines.jobs.base import JobSpec, LineSink, Outcome
from pipelines.jobs.incidents import Incidents
from pipelines.jobs.launcher import Launcher, incidents_of
from pipelines.jobs.loglines import LogFollower, Progress
from pipelines.jobs.monitor import Monitor, Resubmit, last_lines
from pipelines.jobs.owners import HEARTBEAT_SECONDS, release, send_heartbeat
from pipelines.jobs.view import View, terminations
from trainer.errors import InputError, RunError
from trainer.storage import layout

TICK_SECONDS = 1.0
LEAVE_SECONDS = 30.0
MOST_PODS = 8
"""Number of pods whose last lines are reported; failed ones come first."""
LAST_LOG_SECONDS = 3.0
"""How long the end of a log may take to arrive after its job has ended."""


class ClusterBackend:
    """Submits jobs of one kind; see pipelines.jobs.base.Backend."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def submit(self, spec: JobSpec) -> "ClusterJob":
        """Begin to find, adopt or create the job, in the background; `watch` reports what happens."""
        return ClusterJob(self.launcher, spec)


class ClusterJob:
    """See pipelines.jobs.base.Job."""

    def __init__(self, launcher: Launcher, spec: JobSpec) -> None:
        assert spec.identity is not None
        self._launcher, self._spec, self._name = launcher, spec, spec.identity.name
        self._cluster, self._kind = launcher.cluster, launcher.shape.kind
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._acting = threading.Lock()  # held while the job is made or deleted, so that `leave` cannot miss a job that is being created
        self._held = False
        self._outcome: Outcome | None = None
        self._incidents = Incidents()
        self._progress = Progress(spec.name, self._say)
        self._last_heartbeat = time.monotonic()
        threading.Thread(target=self._supervise, name=f"job {spec.name}", daemon=True).start()

    def logs(self, sink: LineSink) -> None:
        """Pass every line of the leader's output, and remarks about the job, to `sink` until the job ends."""
        while (line := self._lines.get()) is not None:
            sink(line)

    def watch(self) -> Outcome | None:
        """How it ended, or None while it runs."""
        return self._outcome

    def cancel(self) -> None:
        """Delete the job, whoever else holds it, and wait until nothing of it is left."""
        self._halt()
        with self._acting:
            job = self._launcher.find(self._spec)
            name = str(job["metadata"]["name"]) if job is not None else self._name
            end(self._cluster, self._kind, name)
            wait_until_gone(self._cluster, self._kind, name, seconds=LEAVE_SECONDS)

    def leave(self) -> None:
        """In a pod, do nothing: the reaper knows more. In a shell, drop this run's hold; the last run to leave deletes the job."""
        self._halt()
        if self._launcher.in_pod:
            return
        try:
            with self._acting:
                self._release()
        except (InputError, RunError) as error:
            raise RunError(f"{self._kind.kind} {self._name} may still be running (python -m pipelines cancel stops it): {error}") from error

    def _halt(self) -> None:
        self._stop.set()
        self._cluster.limit_retries(LEAVE_SECONDS)
        self._cluster.close_streams()

    def _supervise(self) -> None:
        try:
            outcome = self._run()
        except (InputError, RunError) as error:
            outcome = self._release_unfinished(Outcome(exit_code=error.exit_code, line=str(error)))
        except Exception as error:  # otherwise others would wait forever for a thread that died silently
            outcome = Outcome(exit_code=1, line=f"{self._kind.kind} {self._name}: {type(error).__name__}: {error}")
        self._lines.put(None)
        self._outcome = outcome

    def _release_unfinished(self, outcome: Outcome, verdict: str = "") -> Outcome:
        """Release a job that did not do its work, even if following it is what failed; then no `verdict` is left on the job."""
        if self._stop.is_set():
            return outcome
        self._cluster.limit_retries(LEAVE_SECONDS)
        try:
            with self._acting:
                self._release(verdict=verdict)
        except (InputError, RunError) as error:
            return Outcome(exit_code=outcome.exit_code, line=f"{outcome.line}; the job could not be deleted either: {error}")
        return outcome

    def _run(self) -> Outcome:
        """Retry until there is a result, or no further attempt can give one."""
        while True:
            if self._launcher.shape.is_done(self._spec):
                return Outcome(exit_code=0, line="")
            with self._acting:
                job = self._launcher.adopt_or_create(self._spec, self._say, self._stop, self._incidents.count)
                self._held = job is not None
                if job is not None:
                    self._name = str(job["metadata"]["name"])  # an older version may have given it a different name
            if job is None:
                return Outcome(exit_code=1, line="stopped on request")
            self._incidents.learn(incidents_of(job))
            try:
                return self._attempt(job)
            except Resubmit as resubmit:
                self._say(f"--- {resubmit}; starting it again")
                self._incidents.forget_pods()
                if self._spec.resume != "auto" and self._launcher.has_checkpoint(self._spec, job):
                    self._spec = dataclasses.replace(self._spec, resume="auto")

    def _attempt(self, job: Mapping[str, Any]) -> Outcome:
        """Follow one job to its end. Raises Resubmit if it ended unfinished."""
        launcher, spec = self._launcher, self._spec
        with View(self._cluster, self._kind, self._name) as view:
            follower = LogFollower(self._cluster, launcher.shape, view, self._take_line, layout.log(spec.folder))
            reader = follower.start()
            uid = str(job["metadata"]["uid"])
            monitor = Monitor(launcher.shape, spec, launcher.settings, view, self._incidents, uid, self._say, launcher.kueue)
            counted = self._incidents.count
            try:
                while not self._stop.is_set():
                    view.wait(TICK_SECONDS)
                    self._send_heartbeat()
                    outcome = self._given_up(view) or monitor.check()
                    if self._incidents.count > counted:
                        counted = self._incidents.count
                        launcher.note_incidents(self._name, counted)
                    if outcome is not None:
                        follower.finish()
                        reader.join(LAST_LOG_SECONDS)
                        return self._conclude(outcome, view)
                return Outcome(exit_code=1, line="stopped on request")
            finally:
                follower.stop()

    def _given_up(self, view: View) -> Outcome | None:
        """The outcome, if another launcher of this run gave the job up."""
        verdict = self._launcher.holder.verdict(view.job) if view.job is not None else ""
        return Outcome(exit_code=1, line=verdict) if verdict and not self._launcher.shape.is_done(self._spec) else None

    def _send_heartbeat(self) -> None:
        if time.monotonic() - self._last_heartbeat >= HEARTBEAT_SECONDS:
            self._last_heartbeat = time.monotonic()
            with contextlib.suppress(Unreachable):  # while an operator's webhook is down, every change is rejected
                send_heartbeat(self._cluster, self._kind, self._name, self._launcher.holder)

    def _conclude(self, outcome: Outcome, view: View) -> Outcome:
        """Release the job. A job that did its work is kept for its TTL; for one that did not, the other pods' last lines are reported."""
        shape, done = self._launcher.shape, outcome.exit_code == 0
        if not done:
            others = [pod for pod in view.pods() if not shape.is_leader(pod)]
            failed = [pod for pod in others if any(end.get("exitCode") for end in terminations(pod, shape.container))]
            for pod in (failed or others)[:MOST_PODS]:
                for line in last_lines(self._cluster, pod, shape.container):
                    self._say(f"{pod['metadata']['name']}: {line}")
        if not done:
            return self._release_unfinished(outcome, outcome.line if outcome.exit_code == 1 else "")
        try:
            with self._acting:
                if not self._stop.is_set():
                    self._release(keep=True)
        except (InputError, RunError) as error:
            self._say(f"--- {self._kind.kind} {self._name} could not be released; the reaper will release it: {error}")
        return outcome

    def _release(self, *, keep: bool = False, verdict: str = "") -> None:
        if not self._held:
            return  # a job with this name is not ours
        self._held = False
        deleting, others = release(self._cluster, self._kind, self._name, self._launcher.holder, time.time(), keep, verdict)
        if others and not keep:
            self._say(f"--- {self._kind.kind} {self._name} is kept: still needed by {', '.join(others)}")
        if deleting:
            wait_until_gone(self._cluster, self._kind, self._name, seconds=LEAVE_SECONDS)

    def _take_line(self, stamp: str, text: str) -> None:
        self._lines.put(text)
        if stamp:
            self._progress.take(stamp, text)

    def _say(self, text: str) -> None:
        self._lines.put(text)
