"""End a job, for launchers, `cancel` and the reaper alike: first its pods, with a short grace period, then the job."""

import contextlib
import threading
import time
from typing import Any

from pipelines.cluster.api import Conflict
from pipelines.cluster.connection import POD, Cluster, Kind
from trainer.errors import RunError

POD_GRACE_SECONDS = 20
"""Grace period for pods that are no longer needed, instead of their 180 s; trainers save what they can in it."""
GONE_SECONDS = 120.0
POLL_SECONDS = 1.0


def pods_of(cluster: Cluster, kind: Kind, name: str, namespace: str | None = None) -> list[dict[str, Any]]:
    """The job's pods, including those that are being deleted."""
    return cluster.list(POD, labels=f"{kind.pod_label}={name}", namespace=namespace)


def end(cluster: Cluster, kind: Kind, name: str, namespace: str | None = None, resource_version: str = "") -> None:
    """Delete the job and its pods; does not wait. The job stays, being deleted, until its pods are gone.

    The pods come first: a kubelet that has begun to wait for 180 s does not hear of less (seen with 1.34 and containerd
    1.6), and once the job is deleted its garbage collector asks for just that.

    Kubeflow Trainer (2.0.0 and 2.3.0) recreates the JobSet of a TrainJob if it is deleted before the TrainJob is: its pods would
    begin after the job is gone, so such a job is suspended.

    Raises:
        Conflict: the job has another version than the one given.
    """
    if resource_version:
        job = cluster.get(kind, name, namespace)
        if job is not None and job["metadata"]["resourceVersion"] != resource_version:
            raise Conflict(f"{kind.resource} {name} has changed since it was read")
    shorten_grace(cluster, kind, name, namespace)
    cluster.delete(kind, name, namespace=namespace, resource_version=resource_version)
    if kind.remakes:
        _suspend_going(cluster, kind, name, namespace)
    shorten_grace(cluster, kind, name, namespace)  # those that its controller made meanwhile


def _suspend_going(cluster: Cluster, kind: Kind, name: str, namespace: str | None) -> None:
    """Suspend the job that is being deleted: what its controller still makes for it has no pods."""
    job = cluster.get(kind, name, namespace)
    if job is not None and "deletionTimestamp" in job["metadata"]:
        with contextlib.suppress(Conflict):  # by now another job has the name
            cluster.patch(kind, name, {"metadata": {"uid": job["metadata"]["uid"]}, "spec": {"suspend": True}}, namespace)


def shorten_grace(cluster: Cluster, kind: Kind, name: str, namespace: str | None = None, *, only_going: bool = False) -> None:
    """Shorten the grace period of the job's pods to POD_GRACE_SECONDS; may be repeated, and never lengthens it.

    Args:
        cluster: where they are.
        kind: of the job.
        name: of the job.
        namespace: None: the cluster's own.
        only_going: skip pods that are not being deleted: they may belong to a new job of this name.
    """
    for pod in pods_of(cluster, kind, name, namespace):
        if only_going and "deletionTimestamp" not in pod["metadata"]:
            continue
        if pod["metadata"].get("deletionGracePeriodSeconds", POD_GRACE_SECONDS + 1) > POD_GRACE_SECONDS:
            cluster.delete(POD, pod["metadata"]["name"], namespace=namespace, grace_seconds=POD_GRACE_SECONDS, propagation="Background")


def wait_until_gone(
    cluster: Cluster,
    kind: Kind,
    name: str,
    seconds: float = GONE_SECONDS,
    stop: threading.Event | None = None,
) -> None:
    """Wait until neither the job nor a pod of it is left; one that was recreated under the name is another job.

    Raises:
        RunError: something is left after the time limit, or `stop` was set; the message names it.
    """
    stop, began = stop or threading.Event(), time.monotonic()
    while True:
        job = cluster.get(kind, name)
        if job is not None and "deletionTimestamp" not in job["metadata"]:
            return
        left = [pod["metadata"]["name"] for pod in pods_of(cluster, kind, name)]
        if job is None and not left:
            return
        waited = time.monotonic() - began
        if waited > seconds or stop.is_set():
            what = f"pods {', '.join(left)}" if left else f"{kind.kind} {name}"
            raise RunError(f"{what}: still there {waited:.0f} s after {kind.kind} {name} was deleted")
        shorten_grace(cluster, kind, name, only_going=job is None)
        stop.wait(POLL_SECONDS)
