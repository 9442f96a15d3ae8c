"""The state of Kueue's queues and of the jobs that wait in them, in whichever API version the cluster serves.

Kueue admits a job by lifting its suspension, and preempts it by suspending it again. Its messages about a job are in the
conditions of a Workload that has the job's uid as a label; those about a queue are in the conditions of the LocalQueue.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.cluster.connection import Cluster, Kind, MissingKind
from trainer.errors import InputError, RunError

GROUP = "kueue.x-k8s.io"
QUEUE_LABEL = f"{GROUP}/queue-name"
JOB_LABEL = f"{GROUP}/job-uid"
"""Label of a Workload with the uid of its job."""
_NEVER, _NOT_NOW = "> maximum capacity", "insufficient unused quota"
"""Kueue's messages for a request above a flavor's whole quota, and for one that only has to wait (flavorassigner.go)."""

Object = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Why a suspended job does not run.

    Attributes:
        text: the reason, in the words of the component that keeps it waiting.
        cause: the field of the profile's `jobs.patience` that limits how long this may last.
        preempted: whether it was admitted before, and a job of higher priority, or another queue, took its place.
    """

    text: str
    cause: Literal["queued", "unschedulable", "configuration", "ignored"] = "queued"
    preempted: bool = False


UNQUEUED = Admission(text="it is suspended, and no queue has admitted it")


def queue_of(job: Object) -> str:
    """The LocalQueue that a job names; empty if it names none of Kueue's."""
    return str((job["metadata"].get("labels") or {}).get(QUEUE_LABEL, ""))


class Kueue:
    """Reads Kueue's objects in one cluster; queries once which version it serves."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._kinds: dict[str, Kind] = {}

    def require(self, queue: str, namespace: str | None = None, *, active: bool = True) -> str:
        """Refuse a LocalQueue that could not admit a job.

        Args:
            queue: its name.
            namespace: namespace of the jobs; None: the cluster's own.
            active: whether a queue that is stopped for now is refused, too.

        Returns:
            What is known about it, or a note that it could not be checked for lack of permission.

        Raises:
            InputError: there is no Kueue or no such queue, or the queue accepts no jobs.
        """
        place = self._cluster.namespace if namespace is None else namespace
        try:
            kind = self._kind("localqueues", "LocalQueue")
            found = self._cluster.get(kind, queue, namespace)
            there = [] if found else sorted(one["metadata"]["name"] for one in self._cluster.list(kind, namespace=namespace))
        except MissingKind:
            raise
        except InputError as error:
            return f"not checked: {error}"
        if found is None:
            which = f"there are {', '.join(there)}" if there else "there is none"
            raise InputError(f"queue must name a LocalQueue of namespace {place}, got {queue!r}: {which}")
        whole = f"LocalQueue {place}/{queue} of ClusterQueue {found['spec'].get('clusterQueue', '')}"
        stopped = _condition(found, "Active")
        if active and stopped.get("status") == "False":
            raise InputError(f"{whole} accepts no jobs: {_words(stopped)}: have it started, or use another queue")
        return whole

    def why(self, job: Object, kind: Kind) -> Admission:
        """Why this suspended job does not run. Never raises, since the caller waits for the job, not for Kueue."""
        queue, metadata = queue_of(job), job["metadata"]
        if not queue:
            return UNQUEUED
        waits = f"it waits in queue {queue}"
        try:
            label = f"{JOB_LABEL}={metadata['uid']}"
            workloads = self._cluster.list(self._kind("workloads", "Workload"), label, metadata["namespace"], once=True)
            if not workloads:
                return self._unseen(queue, waits, metadata["namespace"], kind)
        except MissingKind:
            self._kinds.clear()  # another version is served by now, or none
            return Admission(text=f"{waits}, but the cluster does not serve {GROUP}: install Kueue, or set no queue", cause="ignored")
        except (InputError, RunError) as error:
            return Admission(text=f"{waits}; the reason cannot be read: {error}")
        return _of_workload(workloads[0], waits)

    def _unseen(self, queue: str, waits: str, namespace: str, kind: Kind) -> Admission:
        """The reason if Kueue does not know the job: its queue is missing, or Kueue does not manage its kind."""
        try:
            self.require(queue, namespace, active=False)
        except InputError as error:
            return Admission(text=str(error), cause="configuration")
        framework = f"{kind.api_version.rpartition('/')[0]}/{kind.kind.lower()}"
        asked = f"is {framework} among its integrations.frameworks?"
        return Admission(text=f"{waits}, but Kueue has created no Workload for it: {asked}", cause="ignored")

    def _kind(self, plural: str, kind: str) -> Kind:
        """The kind in the version that the cluster prefers. MissingKind if it serves none."""
        if plural not in self._kinds:
            versions = self._cluster.api.versions(GROUP, plural)
            if not versions:
                raise MissingKind(f"{self._cluster.server} has no {plural}.{GROUP}: install Kueue, or name no queue")
            self._kinds[plural] = Kind(f"{GROUP}/{versions[0]}", plural, kind, "Kueue")
        return self._kinds[plural]


def _of_workload(workload: Object, waits: str) -> Admission:
    evicted, reserved = _condition(workload, "Evicted"), _condition(workload, "QuotaReserved")
    parts, preempted = [waits], evicted.get("status") == "True"
    if preempted:
        parts = [f"{'preempted' if evicted.get('reason') == 'Preempted' else 'evicted'}: {_words(evicted)}", waits]
    if not workload["spec"].get("active", True):
        return Admission(text=f"Kueue has deactivated it: {_words(evicted)}", preempted=preempted)
    if reserved.get("status") == "True":
        states = workload.get("status", {}).get("admissionChecks") or []
        checks = ", ".join(entry["name"] for entry in states if entry.get("state") != "Ready")
        parts[-1] += ": its quota is reserved" + (f", and it is waiting for admission checks {checks}" if checks else "")
        return Admission(text="; ".join(parts), preempted=preempted)
    said = str(reserved.get("message", ""))
    if said and said != evicted.get("message"):
        parts[-1] += f": {_words(reserved)}"
    never = _NEVER in said and _NOT_NOW not in said
    return Admission(text="; ".join(parts), cause="unschedulable" if never else "queued", preempted=preempted)


def _condition(thing: Object, name: str) -> Object:
    return next((entry for entry in thing.get("status", {}).get("conditions") or [] if entry["type"] == name), {})


def _words(condition: Object) -> str:
    """The message of a condition, on one line."""
    return " ".join(str(condition.get("message") or condition.get("reason") or "no reason is given").split())
