"""Jobs, pods and Workflows as their controllers would have made them on the fake API server."""

import time
from datetime import UTC, datetime
from typing import Any

from pipelines.jobs.shapes import job_kinds
from tests.pipelines.fake_api import FakeApi

PYTORCHJOBS, JOBS, WORKFLOWS = "pytorchjobs.kubeflow.org", "jobs.batch", "workflows.argoproj.io"
OURS = {"app.kubernetes.io/part-of": "firstsight"}
Object = dict[str, Any]
_KINDS = {kind.resource: kind for kind in job_kinds()}


def ago(seconds: float) -> str:
    """A time as Kubernetes writes it."""
    return datetime.fromtimestamp(time.time() - seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def identity(experiment: str = "demo", arm: str = "random", seed: int = 0, stage: str = "contrastive") -> dict[str, str]:
    """The labels of a job of ours."""
    parts = {"experiment": experiment, "arm": arm, "seed": str(seed), "stage": stage}
    return {**OURS, **{f"firstsight.dev/{name}": value for name, value in parts.items()}}


def put_workflow(server: FakeApi, name: str = "run", **parts: Any) -> Object:
    """A Workflow that runs."""
    head = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": name}}
    return server.put(WORKFLOWS, {**head, "spec": {}, "status": {"phase": "Running"}, **parts})


def owner(run: Object) -> Object:
    """The reference by which a Workflow holds a job."""
    return {"apiVersion": run["apiVersion"], "kind": "Workflow", "name": run["metadata"]["name"], "uid": run["metadata"]["uid"]}


def put_job(
    server: FakeApi, *runs: Object, name: str = "j", resource: str = PYTORCHJOBS, labels: Object = OURS, pods: int = 1, **metadata: Any
) -> Object:
    """A job held by runs, and its pods, which nobody has started; what is not said of `status` and `spec` is left out."""
    kind = _KINDS[resource]
    head = {"apiVersion": kind.api_version, "kind": kind.kind}
    body = {part: metadata.pop(part) for part in ("spec", "status") if part in metadata}
    spec: Object = {"pytorchReplicaSpecs": {"Worker": {"replicas": pods}}} if resource == PYTORCHJOBS else {"parallelism": pods}
    metadata = {"name": name, "labels": labels, "ownerReferences": [owner(run) for run in runs], **metadata}
    made = server.put(resource, {**head, "metadata": metadata, "spec": spec, **body})
    reference = {**head, "name": name, "uid": made["metadata"]["uid"], "controller": True}
    for number in range(pods):
        pod = {"name": f"{name}-{number}", "labels": {**labels, kind.pod_label: name}, "ownerReferences": [reference]}
        server.put("pods", {"metadata": pod, "spec": {"terminationGracePeriodSeconds": 180}, "status": {"phase": "Pending"}})
    return made
