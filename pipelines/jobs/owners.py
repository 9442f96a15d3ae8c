"""How this run holds the jobs that it waits for, so that the last run to leave deletes them. Other holders: pipelines/jobs/holds.py.

A run in Kubeflow holds a job by an ownerReference to its Workflow, one from a shell by an annotation with the time of its
last heartbeat. A finished job is released but not deleted: it is kept for its TTL so that it can be inspected.

Several launchers of one run may follow one job, such as a tower that two lanes need. They share the run's hold: each leaves a mark of
its own on the job, and only the run's last live launcher releases or deletes the job. A launcher
that finds that the job has exhausted its patience or its incident budget records this on the job for the others.
"""

import getpass
import hashlib
import os
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines.cluster.api import Conflict
from pipelines.cluster.connection import POD, Cluster, Kind
from pipelines.cluster.ending import end
from pipelines.cluster.names import DOMAIN
from pipelines.jobs.holds import HELD_BY, holds, posix_time
from trainer.errors import InputError

HOLDER_VARIABLE = "FIRSTSIGHT_HOLDER"
"""Name of the shell's run, under which its steps, which are separate processes, hold jobs."""
POD_VARIABLE = "KFP_POD_NAME"
HEARTBEAT_SECONDS = 60.0
MAX_ID = 63 - len("held-by.")
FOLLOWED_BY, GIVEN_UP = f"{DOMAIN}/followed-by.", f"{DOMAIN}/given-up."
"""Prefixes of the launchers' annotations: the first is followed by run and launcher and holds the time of the last sign of
life; the second is followed by the run and holds the reason."""
SILENT_SECONDS = 300.0
"""A launcher that gives no sign for this long is considered dead."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """This run, as jobs know it.

    Attributes:
        name: for a run from a shell, the key of its annotation.
        reference: for a run in Kubeflow, the ownerReference to its Workflow.
        launcher: identifies this launcher among those of the run. A step restarted by Kubeflow keeps its pod's name, and so its launcher.
    """

    name: str = ""
    reference: Mapping[str, Any] = field(default_factory=dict)
    launcher: str = field(default_factory=lambda: secrets.token_hex(5))

    @property
    def in_pod(self) -> bool:
        """Whether this is a step of Kubeflow."""
        return bool(self.reference)

    def claim(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """What to merge into a job's metadata so that this run holds it."""
        annotations = {self._mark: _now(), self._given_up: None}
        if not self.in_pod:
            return {"annotations": {**annotations, f"{HELD_BY}{self.name}": _now()}}
        others = [entry for entry in metadata.get("ownerReferences") or [] if entry["uid"] != self.reference["uid"]]
        return {"ownerReferences": [*others, dict(self.reference)], "annotations": annotations}

    def unclaim(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """What to merge into a job's metadata so that this run does not hold it any more."""
        annotations = {key: None for key in metadata.get("annotations") or {} if key.startswith(self._marks)}
        if not self.in_pod:
            return {"annotations": {**annotations, f"{HELD_BY}{self.name}": None}}
        kept = [entry for entry in metadata.get("ownerReferences") or [] if entry["uid"] != self.reference["uid"]]
        return {"ownerReferences": kept, "annotations": annotations}

    def sign(self) -> dict[str, Any]:
        """What to merge into a job's metadata as a sign of life."""
        hold = {} if self.in_pod else {f"{HELD_BY}{self.name}": _now()}
        return {"annotations": {self._mark: _now(), **hold}}

    def stop_following(self, verdict: str) -> dict[str, Any]:
        """What to merge into a job's metadata so that this launcher does not follow it any more, and the others know why."""
        return {"annotations": {self._mark: None, **({self._given_up: verdict} if verdict else {})}}

    def siblings(self, job: Mapping[str, Any], now: float) -> int:
        """How many other live launchers of this run follow the job."""
        marks = {key: value for key, value in _annotations(job).items() if key.startswith(self._marks) and key != self._mark}
        return sum((posix_time(value) or 0.0) + SILENT_SECONDS > now for value in marks.values())

    def verdict(self, job: Mapping[str, Any]) -> str:
        """Why another launcher of this run gave up on the job; empty if none has."""
        return str(_annotations(job).get(self._given_up, ""))

    @property
    def _run(self) -> str:
        return hashlib.sha256((self.reference.get("uid", "") or self.name).encode()).hexdigest()[:8]

    @property
    def _marks(self) -> str:
        return f"{FOLLOWED_BY}{self._run}."

    @property
    def _mark(self) -> str:
        return f"{self._marks}{self.launcher}"

    @property
    def _given_up(self) -> str:
        return f"{GIVEN_UP}{self._run}"

    def holds(self, job: Mapping[str, Any]) -> bool:
        """Whether this run holds the job."""
        metadata = job["metadata"]
        if self.in_pod:
            return self.reference["uid"] in [entry["uid"] for entry in metadata.get("ownerReferences") or []]
        return f"{HELD_BY}{self.name}" in (metadata.get("annotations") or {})

    def others(self, job: Mapping[str, Any], now: float) -> list[str]:
        """Names of those who hold the job too. Holders that controllers will remove (a Workflow that is gone) count until they do."""
        mine = self.reference.get("uid", "") or f"{HELD_BY}{self.name}"
        workflows = [entry for entry in job["metadata"].get("ownerReferences") or [] if entry["uid"] != mine]
        shells = [hold.holder for hold in holds(job, {}) if hold.annotation and hold.annotation != mine and hold.ends > now]
        return [f"{entry['kind']} {entry['name']}" for entry in workflows] + shells


def find_holder(cluster: Cluster) -> Holder:
    """This run: the Workflow of the current pod, otherwise the shell's.

    Raises:
        InputError: in a pod of Kubeflow that cannot be read, or has no Workflow, or has it in another namespace than the jobs.
    """
    pod_name = os.environ.get(POD_VARIABLE, "")
    if not pod_name:
        return Holder(name=os.environ.get(HOLDER_VARIABLE) or shell_id())
    namespace = cluster.home
    pod = cluster.get(POD, pod_name, namespace)
    if pod is None:
        raise InputError(f"pod {namespace}/{pod_name} ({POD_VARIABLE}) does not exist, so it cannot be determined which run this is")
    owners = pod["metadata"].get("ownerReferences") or []
    workflow = next((owner for owner in owners if owner.get("controller") and owner["kind"] == "Workflow"), None)
    if workflow is None:
        raise InputError(f"pod {namespace}/{pod_name} belongs to no Workflow, so it cannot be determined which run this is")
    if namespace != cluster.namespace:
        raise InputError(
            f"jobs.namespace must be {namespace}, the run's namespace, got {cluster.namespace}: a Workflow can hold jobs only in its own "
            "namespace"
        )
    reference = {key: workflow[key] for key in ("apiVersion", "kind", "name", "uid")}
    return Holder(reference=reference, launcher=hashlib.sha256(pod_name.encode()).hexdigest()[:10])


def is_in_pod() -> bool:
    """Whether this process is a step of Kubeflow."""
    return bool(os.environ.get(POD_VARIABLE))


def shell_id() -> str:
    """A name for this process among all shells: user, host and process, in the characters allowed in an annotation key."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name
        user = str(os.getuid())
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{user}-{socket.gethostname()}").strip("-._") or "shell"
    number = str(os.getpid())
    return f"{words[: MAX_ID - len(number) - 1].rstrip('-._')}-{number}"


def take(cluster: Cluster, kind: Kind, job: Mapping[str, Any], holder: Holder) -> dict[str, Any] | None:
    """Take a hold on an existing job; returns the job as it is afterwards, or None if it is gone or being deleted."""
    current: Mapping[str, Any] | None = job
    while current is not None and "deletionTimestamp" not in current["metadata"]:
        metadata = current["metadata"]
        try:
            taken = cluster.patch(
                kind, metadata["name"], {"metadata": holder.claim(metadata)}, resource_version=metadata["resourceVersion"]
            )
            return None if taken is None or "deletionTimestamp" in taken["metadata"] else taken
        except Conflict:
            current = cluster.get(kind, metadata["name"])
    return None


def send_heartbeat(cluster: Cluster, kind: Kind, name: str, holder: Holder) -> None:
    """Record that this launcher still follows the job. Raises Unreachable if nothing responds: the next heartbeat is soon enough."""
    cluster.patch(kind, name, {"metadata": holder.sign()}, once=True)


def release(
    cluster: Cluster, kind: Kind, name: str, holder: Holder, now: float, keep: bool = False, verdict: str = "", all_steps: bool = False
) -> tuple[bool, list[str]]:
    """Stop following a job; the run's last launcher releases it, and the last run to leave deletes it. Does not wait for its pods.

    Args:
        cluster: where it is.
        kind: of the job.
        name: of the job.
        holder: this run.
        now: POSIX time.
        keep: the job has done its work: keep it for its TTL so that it can be inspected.
        verdict: why it cannot succeed, recorded for the run's other launchers.
        all_steps: ignore the run's other launchers, because the run is over.

    Returns:
        Whether it is being deleted, and who still holds it.
    """
    while True:
        job = cluster.get(kind, name)
        if job is None or "deletionTimestamp" in job["metadata"]:
            return job is not None, []
        metadata, others = job["metadata"], holder.others(job, now)
        version = metadata["resourceVersion"]
        try:
            if not all_steps and holder.siblings(job, now):
                cluster.patch(kind, name, {"metadata": holder.stop_following(verdict)}, resource_version=version)
                return False, ["another step of this run", *others]
            if not others and not keep:
                # keep the hold on it, so that a reaper knows why the job is being deleted if this process dies here
                end(cluster, kind, name, resource_version=version)
                return True, []
            if holder.holds(job):
                cluster.patch(kind, name, {"metadata": holder.unclaim(metadata)}, resource_version=version)
            return False, others
        except Conflict:
            continue


def _annotations(job: Mapping[str, Any]) -> Mapping[str, Any]:
    return job["metadata"].get("annotations") or {}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
