"""Why a job does not start: a table of causes, each with its own time limit and the message of the component that blocks it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.jobs.shapes.base import Shape
from pipelines.jobs.view import View
from pipelines.profile.settings import Patience

IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable", "ImageInspectError")
CONFIGURATION_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "ContainerCannotRun")
VOLUME_EVENTS = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
NEVER = ("InvalidImageName", "ErrImageNeverPull")
"""Waiting will not fix these."""

Warnings = Callable[[str], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Stuck:
    """One cause.

    Attributes:
        cause: a field of Patience.
        text: what is stuck, and why.
        hopeless: whether waiting is pointless.
    """

    cause: str
    text: str
    hopeless: bool = False


def find_stuck(view: View, shape: Shape, has_run: bool) -> list[Stuck]:
    """Everything that keeps the job from running now, most informative first.

    Args:
        view: the job, its pods and warnings.
        shape: how to read them.
        has_run: whether it ran before; if so, lost resources may come back, and it gets more time.
    """
    job = view.job
    if job is None or shape.phase(job).ended:
        return []
    if shape.phase(job).name == "suspended" and has_run and view.admission.cause != "queued":
        return [Stuck("rescheduling", view.admission.text)]
    if shape.phase(job).name == "suspended":
        return [Stuck(view.admission.cause, view.admission.text)]
    pods = [pod for pod in view.pods() if "deletionTimestamp" not in pod["metadata"]]
    found = [stuck for pod in pods if (stuck := stuck_pod(pod, view.warnings))]
    if len(pods) < shape.pods_wanted(job):
        found.append(_no_pods(view, job, shape, len(pods)))
    if has_run:
        found = [stuck if stuck.hopeless or stuck.cause == "queued" else replace(stuck, cause="rescheduling") for stuck in found]
    order = list(Patience.__dataclass_fields__)
    return sorted(found, key=lambda stuck: (stuck.cause == "starting", order.index(stuck.cause)))


class Clock:
    """Measures how long each cause has lasted without a break."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since: dict[str, float] = {}

    def lasted(self, stuck: Stuck, now: float) -> float:
        """Seconds since the cause was first seen."""
        return now - self._since.get(stuck.cause, now)

    def overdue(self, found: list[Stuck], now: float) -> str:
        """The text of a cause that has lasted longer than its patience; empty if none has."""
        causes = {stuck.cause for stuck in found}
        self._since = {cause: self._since.get(cause, now) for cause in causes}
        for stuck in found:
            patience = 0 if stuck.hopeless else getattr(self._patience, stuck.cause)
            if now - self._since[stuck.cause] >= patience:
                return stuck.text + (f" (for {patience} s: jobs.patience.{stuck.cause})" if patience else "")
        return ""


def stuck_pod(pod: Mapping[str, Any], warnings: Warnings) -> Stuck | None:
    """What currently keeps a pod from running; None if it runs or has ended.

    Args:
        pod: the pod.
        warnings: gives the warning events about an object of this name, the oldest first.
    """
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
        if reason in IMAGE_REASONS:
            image = container.get("image", "")
            return Stuck(
                "image", f"{name}: image {image} cannot be pulled: {reason}: {_pull_error(warnings(name), message)}", reason in NEVER
            )
        if reason in CONFIGURATION_REASONS:
            return Stuck("configuration", f"{name}: {reason}: {message}")
    if status.get("phase") not in (None, "Pending"):
        return None
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            cause = "queued" if condition.get("reason") == "SchedulingGated" else "unschedulable"
            return Stuck(cause, f"{name}: no node accepts it: {condition.get('message', condition.get('reason', ''))}")
    for event in reversed(warnings(name)):
        if event.get("reason") in VOLUME_EVENTS:
            return Stuck("volumes", f"{name}: {event['reason']}: {event.get('message', '')}")
    return Stuck("starting", f"{name}: its container has not started")


def _pull_error(warnings: Sequence[Mapping[str, Any]], message: str) -> str:
    """The text of the first error: the back-off after it carries no information."""
    for event in reversed(warnings):
        if event.get("reason") == "Failed" and "pull" in str(event.get("message", "")) and "BackOff" not in str(event.get("message", "")):
            return str(event["message"])
    return message


def _no_pods(view: View, job: Mapping[str, Any], shape: Shape, count: int) -> Stuck:
    name, wanted = job["metadata"]["name"], shape.pods_wanted(job)
    for event in reversed(view.warnings(name)):
        if str(event.get("reason", "")).startswith("FailedCreate"):
            return Stuck("refused", f"{name}: {count} of {wanted} pods were created, the others are rejected: {event.get('message', '')}")
    who = shape.kind.source or "its controller"
    return Stuck("ignored", f"{name}: {count} of {wanted} pods were created, and no reason is given: is {who} running?")
