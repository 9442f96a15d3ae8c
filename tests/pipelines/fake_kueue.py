"""Plays Kueue on the fake API server: queues, and what it says of the jobs that wait in them."""

from typing import Any

from tests.pipelines.fake_api import FakeApi
from tests.pipelines.operator import JOBS

GROUP = "kueue.x-k8s.io"
WORKLOADS, QUEUES = f"workloads.{GROUP}", f"localqueues.{GROUP}"
NO_ROOM = "couldn't assign flavors to pod set worker: insufficient unused quota for cpu in flavor small, 100m more needed"
NEVER = (
    "couldn't assign flavors to pod set worker: insufficient quota for cpu in flavor small, previously considered podsets "
    "requests (0) + current podset request (4) > maximum capacity (2)"
)
PREEMPTED = "Preempted to accommodate a workload (UID: 1, JobUID: 2) due to prioritization in the ClusterQueue"
Object = dict[str, Any]


def serve(api: FakeApi, *versions: str) -> None:
    """Let the cluster have Kueue in these versions of its API."""
    api.served |= {f"/apis/{GROUP}/{version}/{plural}" for version in versions for plural in ("workloads", "localqueues")}


def queue(api: FakeApi, name: str, stopped: str = "", namespace: str = "team") -> None:
    """A LocalQueue; `stopped`: why it takes no jobs."""
    active = {"type": "Active", "status": "False" if stopped else "True", "reason": "x", "message": stopped or "Can submit"}
    head = {"kind": "LocalQueue", "metadata": {"name": name, "namespace": namespace}}
    api.put(QUEUES, {**head, "spec": {"clusterQueue": "all"}, "status": {"conditions": [active]}})


def workload(api: FakeApi, job: Object, *conditions: tuple[str, str, str, str], active: bool = True, **status: Any) -> None:
    """What Kueue made of a job, with these conditions: type, status, reason, message."""
    metadata = {"name": f"w-{job['metadata']['name']}", "labels": {f"{GROUP}/job-uid": job["metadata"]["uid"]}}
    said = [dict(zip(("type", "status", "reason", "message"), one, strict=True)) for one in conditions]
    api.put(WORKLOADS, {"kind": "Workload", "metadata": metadata, "spec": {"active": active}, "status": {"conditions": said, **status}})


def suspend(api: FakeApi, name: str, *, suspended: bool = True) -> None:
    """Kueue takes a PyTorchJob off its nodes, or admits it."""
    api.change(JOBS, name, spec={"runPolicy": {"suspend": suspended}})
