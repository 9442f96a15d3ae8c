"""Decides from the state of a job what to do: wait, report how it ended, or submit it again."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.cluster.api import Unreachable
from pipelines.cluster.connection import Cluster
from pipelines.cluster.kueue import Kueue
from pipelines.jobs.base import JobSpec, Outcome
from pipelines.jobs.incidents import Incidents
from pipelines.jobs.shapes.base import Phase, Shape
from pipelines.jobs.stuck import Clock, find_stuck
from pipelines.jobs.view import View, container_status, terminations
from pipelines.profile.settings import JobSettings
from trainer.errors import InputError, RunError
from trainer.logs import text_of
from trainer.storage.failures import read_failure

WRONG_INPUT = 2
LAST_LINES = 5
NEWS_SECONDS = 10.0
"""Anything that lasts this long is worth a line."""
REMIND_SECONDS = 600.0
ASK_SECONDS = 10.0
"""How often Kueue is asked why a suspended job is waiting."""


class Resubmit(Exception):
    """The job ended unfinished: submit it again."""


class Monitor:
    """Watches over one job, from its creation or adoption to its end."""

    def __init__(
        self,
        shape: Shape,
        spec: JobSpec,
        settings: JobSettings,
        view: View,
        incidents: Incidents,
        uid: str,
        say: Callable[[str], None],
        kueue: Kueue,
    ) -> None:
        self._shape, self._spec, self._settings, self._view, self._kueue = shape, spec, settings, view, kueue
        self._incidents, self._uid, self._say = incidents, uid, say
        self._clock = Clock(settings.patience)
        self._has_run = False
        self._reminded = self._asked = float("-inf")
        self._suspended = False

    def check(self) -> Outcome | None:
        """How the job ended; None: keep waiting.

        Raises:
            Resubmit: the job ended unfinished, and there is incident budget left.
            InputError: the permission to watch was withdrawn.
        """
        if not self._view.synced:
            return None
        job = self._view.job
        if job is None or job["metadata"]["uid"] != self._uid:
            return self._gone(job)
        phase = self._shape.phase(job)
        if phase.ended:
            return self._ended(phase)
        pods = self._view.pods()
        self._has_run = self._has_run or self._ran_before() or any(has_run(pod, self._shape.container) for pod in pods)
        if phase.name == "suspended":
            self._wait_for_queue(job)
            return self._permanent() or self._stuck()
        self._suspended = False
        return self._permanent() or self._interrupted() or self._stuck()

    def _gone(self, job: Mapping[str, Any] | None) -> Outcome:
        if self._shape.is_done(self._spec):
            return Outcome(exit_code=0, line="")
        if job is not None:
            raise Resubmit(f"{self._title} was replaced by another launcher")
        last = self._view.last
        if last is not None and last["metadata"]["uid"] == self._uid and (phase := self._shape.phase(last)).ended:
            return self._ended(phase)  # another launcher saw its end first, and is about to submit it again
        return Outcome(exit_code=1, line=f"{self._title} was deleted by someone else before it finished")

    def _ended(self, phase: Phase) -> Outcome:
        done = self._shape.is_done(self._spec)
        if done or (done is None and phase.name == "succeeded"):
            return Outcome(exit_code=0, line="")
        permanent = self._permanent() or self._recorded()
        if permanent is not None:
            return permanent
        if done is None:  # its controller has already retried as configured
            return Outcome(exit_code=1, line=f"{self._title} failed: {phase.message}{self._last_words()}")
        self._incidents.add(time.monotonic())
        how = "ended without its result" if phase.name == "succeeded" else f"failed: {phase.message}"
        over = self._over_budget(f"{self._title} {how}")
        if over is None:
            raise Resubmit(f"{self._title} {how}")
        return over

    def _permanent(self) -> Outcome | None:
        """A container that exited with 2 found its input wrong, and would do so again."""
        for pod in self._view.pods():
            for end in terminations(pod, self._shape.container):
                if end.get("exitCode") == WRONG_INPUT:
                    said = last_line(end) or f"{pod['metadata']['name']} exited with 2: its input is wrong"
                    return self._recorded() or Outcome(exit_code=WRONG_INPUT, line=said)
        return None

    def _recorded(self) -> Outcome | None:
        """What failure.json says, if the input is what is wrong."""
        try:
            failure = read_failure(self._spec.folder)
        except RunError:
            return None
        if failure is not None and failure.exit_code == WRONG_INPUT:
            return Outcome(exit_code=WRONG_INPUT, line=failure.line)
        return None

    def _wait_for_queue(self, job: Mapping[str, Any]) -> None:
        """A queue holds the job, or removed it from its nodes: the pods that disappear and those that replace them are not incidents."""
        if not self._suspended:  # only once: pods seen later may already belong to the next admission, if their watch was faster
            self._incidents.set_aside(self._view.pods())
        if not self._suspended or time.monotonic() - self._asked >= ASK_SECONDS:
            self._asked = time.monotonic()
            self._view.admission = self._kueue.why(job, self._shape.kind)
        if not self._suspended and self._has_run:
            self._reminded = time.monotonic()
            self._say(f"--- {self._title} was suspended, and resumes from its last checkpoint once admitted: {self._view.admission.text}")
        self._suspended = True

    def _interrupted(self) -> Outcome | None:
        if not self._incidents.observe(self._view.pods(), time.monotonic()):
            return None
        why = self._last_words()
        self._say(f"--- {self._title} was interrupted and resumed ({self._incidents.count} of {self._settings.max_incidents}){why}")
        return self._over_budget(f"{self._title} was interrupted again")

    def _ran_before(self) -> bool:
        """Whether it ran before according to its controller, for when the pods are gone."""
        status = (self._view.job or {}).get("status") or {}
        return any(entry["type"] == "Running" for entry in status.get("conditions") or [])

    def _over_budget(self, line: str) -> Outcome | None:
        if self._incidents.count <= self._settings.max_incidents:
            return None
        times = f"more than {self._settings.max_incidents} times (jobs.max_incidents)"
        return Outcome(exit_code=1, line=f"{line}, {times}{self._last_words()}")

    def _last_words(self) -> str:
        """The last line of the container that ended last."""
        ends = [(str(end.get("finishedAt", "")), end) for pod in self._view.pods() for end in terminations(pod, self._shape.container)]
        if not ends:
            return ""
        end = max(ends, key=lambda entry: entry[0])[1]
        return f": {last_line(end) or end.get('reason') or 'exit code ' + str(end.get('exitCode'))}"

    def _stuck(self) -> Outcome | None:
        found = find_stuck(self._view, self._shape, self._has_run)
        now = time.monotonic()
        overdue = self._clock.overdue(found, now)
        if overdue:
            return Outcome(exit_code=1, line=overdue)
        lasting = [stuck for stuck in found if stuck.cause != "starting" and self._clock.lasted(stuck, now) >= NEWS_SECONDS]
        if lasting and now - self._reminded > REMIND_SECONDS:
            self._reminded = now
            self._say(f"--- waiting: {lasting[0].text}")
        return None

    @property
    def _title(self) -> str:
        return f"{self._shape.kind.kind} {self._view.name}"


def last_line(end: Mapping[str, Any]) -> str:
    """The last line of a container's termination message."""
    lines = [line.strip() for line in str(end.get("message") or "").splitlines() if line.strip()]
    return text_of(lines[-1]) if lines else ""


def has_run(pod: Mapping[str, Any], container: str) -> bool:
    """Whether its container was started at least once."""
    status = container_status(pod, container)
    return bool({"running", "terminated"} & (status.get("state") or {}).keys() or status.get("restartCount"))


def last_lines(cluster: Cluster, pod: Mapping[str, Any], container: str) -> list[str]:
    """The last lines of a pod: from its termination message, otherwise from its log, if available."""
    ends = terminations(pod, container)
    said = str(ends[-1].get("message") or "") if ends else ""
    if not said and has_run(pod, container):
        try:
            said = "\n".join(cluster.log(pod["metadata"]["name"], container, follow=False, timestamps=False, tail=LAST_LINES))
        except (Unreachable, InputError):
            return []
    return [text_of(line) for line in said.splitlines() if line.strip()][-LAST_LINES:]
