"""Who holds a job, and for how long: the part of the reaper (pipelines/operate/reap.py) that decides. Pure functions over plain objects.

A run in Kubeflow holds a job by a non-controller ownerReference to its Workflow, a run from a shell by an annotation
with the time of its last heartbeat. A hold *ends* at a moment that follows from the objects alone, so a reaper that was
restarted decides what its predecessor would have decided. A job that no one ever held was made by hand and is left alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pipelines.cluster.names import DOMAIN
from pipelines.jobs.shapes import shape_of

HELD_BY = f"{DOMAIN}/held-by."
"""Annotation of a shell's hold, before the holder's name; its value is the time of the last heartbeat."""
GRACE_SECONDS = 600.0
"""How long a job outlives the failure of its Workflow, so that a Retry can adopt it."""
STALE_SECONDS = 600.0
"""A shell without a heartbeat for this long is dead; it sends one every minute."""
_AT_ONCE = -math.inf
_SHORTEN_AGAIN_SECONDS = 5.0

Workflows = Mapping[tuple[str, str], Mapping[str, Any] | None]
"""By namespace and name; None: it is known to be gone. If one is missing here, its state is unknown, and its holds stay."""


@dataclass(frozen=True, kw_only=True)
class Hold:
    """One claim on a job.

    Attributes:
        holder: for people: `Workflow demo-x7k2p`, `shell ana@laptop-4711`.
        ends: POSIX time at which it ends, -inf if it has ended, inf if nothing says that it will.
        why: completes a sentence about the holder: `was terminated`.
        reference: uid of the ownerReference; empty for a shell's.
        annotation: key of the annotation; empty for a Workflow's.
    """

    holder: str
    ends: float
    why: str = ""
    reference: str = ""
    annotation: str = ""


@dataclass(frozen=True, kw_only=True)
class Action:
    """An action on one job.

    Attributes:
        what: release: take ended holds off it; others still hold it, or the job has ended and stays for its TTL.
            delete: its last hold has ended. shorten_grace: it is being deleted for that reason, and its pods need not use their whole
            grace period.
        job: the object as it was seen.
        why: a sentence.
        ended: the holds that have ended.
    """

    what: Literal["release", "delete", "shorten_grace"]
    job: Mapping[str, Any]
    why: str
    ended: tuple[Hold, ...]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The `actions` to take now, and the POSIX time `again` at which more may be due even if nothing changes (inf: none)."""

    actions: tuple[Action, ...]
    again: float


def decide(jobs: Sequence[Mapping[str, Any]], workflows: Workflows, now: float, grace_seconds: float = GRACE_SECONDS) -> Decision:
    """Decide what to do about the labelled jobs, given the known state of their Workflows.

    Args:
        jobs: of all kinds, with firstsight's label.
        workflows: those that the jobs' holds name.
        now: POSIX time.
        grace_seconds: between a Workflow's failure and the end of its holds.
    """
    actions, again = [], math.inf
    for job in jobs:
        found = holds(job, workflows, grace_seconds)
        ended = tuple(hold for hold in found if hold.ends <= now)
        again = min([again, *(hold.ends for hold in found if hold.ends > now)])
        if not ended:
            continue
        why = "; ".join(f"{hold.holder} {hold.why}" for hold in ended)
        being_deleted = "deletionTimestamp" in job["metadata"]
        if len(ended) < len(found) or foreign_owners(job) or has_ended(job):
            actions += [] if being_deleted else [Action(what="release", job=job, why=why, ended=ended)]
        else:
            # Ended holds stay on a job that is being deleted: they tell a restarted reaper why it is being deleted.
            actions.append(Action(what="shorten_grace" if being_deleted else "delete", job=job, why=why, ended=ended))
            again = min(again, now + _SHORTEN_AGAIN_SECONDS)
    return Decision(actions=tuple(actions), again=again)


def holds(job: Mapping[str, Any], workflows: Workflows, grace_seconds: float = GRACE_SECONDS) -> list[Hold]:
    """All holds on the job, including ended ones."""
    namespace = job["metadata"].get("namespace", "")
    return [
        *(_workflow_hold(reference, namespace, workflows, grace_seconds) for reference in workflow_references(job)),
        *(_shell_hold(key, heartbeat) for key, heartbeat in (job["metadata"].get("annotations") or {}).items() if key.startswith(HELD_BY)),
    ]


def workflow_references(job: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The job's ownerReferences to Workflows."""
    return (reference for reference in job["metadata"].get("ownerReferences") or [] if _is_workflow(reference))


def foreign_owners(job: Mapping[str, Any]) -> bool:
    """Whether something other than a Workflow also owns the job: then it is not ours to delete."""
    return any(not _is_workflow(reference) for reference in job["metadata"].get("ownerReferences") or [])


def has_ended(job: Mapping[str, Any]) -> bool:
    """Whether its controller reports it as finished."""
    return shape_of(job).phase(job).ended


def without(job: Mapping[str, Any], ended: Sequence[Hold]) -> dict[str, Any]:
    """The merge patch that takes the holds off the job; to be sent with the job's resourceVersion, as the patch has the whole list."""
    uids = {hold.reference for hold in ended if hold.reference}
    metadata: dict[str, Any] = {}
    if uids:
        metadata["ownerReferences"] = [entry for entry in job["metadata"]["ownerReferences"] if entry["uid"] not in uids]
    annotations = {hold.annotation: None for hold in ended if hold.annotation}
    if annotations:
        metadata["annotations"] = annotations
    return {"metadata": metadata}


def _is_workflow(reference: Mapping[str, Any]) -> bool:
    return reference["kind"] == "Workflow" and str(reference["apiVersion"]).startswith("argoproj.io/")


def _workflow_hold(reference: Mapping[str, Any], namespace: str, workflows: Workflows, grace_seconds: float) -> Hold:
    ends, why = _workflow_end(reference, namespace, workflows, grace_seconds)
    return Hold(holder=f"Workflow {reference['name']}", ends=ends, why=why, reference=reference["uid"])


def _workflow_end(reference: Mapping[str, Any], namespace: str, workflows: Workflows, grace_seconds: float) -> tuple[float, str]:
    key = (namespace, reference["name"])
    if key not in workflows:
        return math.inf, ""
    workflow = workflows[key]
    # one of the same name but another uid is a later run: Kubeflow's Retry recreates a deleted Workflow
    if workflow is None or workflow["metadata"]["uid"] != reference["uid"]:
        return _AT_ONCE, "is gone"
    if "deletionTimestamp" in workflow["metadata"]:
        return _AT_ONCE, "is being deleted"
    spec, status = workflow.get("spec") or {}, workflow.get("status") or {}
    if spec.get("activeDeadlineSeconds") == 0 or spec.get("shutdown"):
        return _AT_ONCE, "was terminated"
    if status.get("phase") == "Succeeded":
        return _AT_ONCE, "has succeeded"
    if status.get("phase") in ("Failed", "Error"):
        finished = posix_time(status.get("finishedAt") or "")
        ends = math.inf if finished is None else finished + grace_seconds
        return ends, f"failed, and no Retry adopted the job within {grace_seconds:.0f} s"
    return math.inf, ""


def _shell_hold(key: str, value: str) -> Hold:
    heartbeat = posix_time(value)
    # a time that cannot be parsed was not written by one of our shells, so no heartbeat will follow
    ends = _AT_ONCE if heartbeat is None else heartbeat + STALE_SECONDS
    return Hold(holder=f"shell {key.removeprefix(HELD_BY)}", ends=ends, why=f"sent its last heartbeat at {value}", annotation=key)


def posix_time(text: object) -> float | None:
    """An RFC 3339 time as seconds since 1970; None if it is not one: the status of a Workflow may hold anything."""
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return None
