"""Targets: what servers say, and what a cluster keeps for us."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipelines.cluster.connection import Kind, Object
from pipelines.cluster.kueue import UNQUEUED, Admission, Kueue
from tests.fuzz.registry import as_value, target
from trainer.errors import InputError, RunError


@target("jobs and Workflows", lambda: list(_cluster_objects()))
def _objects(data: bytes, place: Path) -> None:
    """As the API server's schemas let them be: names are texts, lists are lists; a Workflow's status may be anything."""
    from pipelines.cluster.connection import POD
    from pipelines.jobs.holds import decide
    from pipelines.jobs.shapes import job_kinds
    from pipelines.operate.status import _row

    value = as_value(data)
    if not isinstance(value, dict) or not fits(value, json.loads(next(_cluster_objects()))):
        return
    job, workflow, pod = value["job"], value["workflow"], value["pod"]
    assert POD
    kind = next((kind for kind in job_kinds() if (kind.kind, kind.api_version) == (job["kind"], job["apiVersion"])), None)
    if kind is None:
        return
    decide([job], {("team", "run"): workflow}, 1.8e9)
    _row(cast(Kueue, _NoKueue()), kind, job, [pod], {}, 1.8e9)


class _NoKueue:
    """What `status` asks about a suspended job."""

    def why(self, job: Object, kind: Kind) -> Admission:
        """Nothing is known."""
        return UNQUEUED


def _cluster_objects() -> Iterator[bytes]:
    when = "2026-11-30T08:00:00Z"
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run", "uid": "u1"}
    for api, kind, spec in (
        ("kubeflow.org/v1", "PyTorchJob", {"pytorchReplicaSpecs": {"Worker": {"replicas": 2, "template": {}}}}),
        ("batch/v1", "Job", {"completions": 2, "parallelism": 2, "suspend": False, "template": {}}),
    ):
        metadata = {
            "name": "j", "namespace": "team", "uid": "j1", "resourceVersion": "7", "creationTimestamp": when, "ownerReferences": [owner],
            "labels": {"firstsight.dev/experiment": "e"},
            "annotations": {"firstsight.dev/held-by.ana": when, "firstsight.dev/incidents": "3", "firstsight.dev/attempt": "2"},
        }  # fmt: skip
        conditions = [{"type": "Running", "status": "True", "reason": "x", "message": "y", "lastTransitionTime": when}]
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}
        container = {"name": "pytorch", "restartCount": 1, "state": waiting, "image": "i"}
        scheduled = {"type": "PodScheduled", "status": "False", "message": "m"}
        status = {"phase": "Pending", "conditions": [scheduled], "containerStatuses": [container]}
        pod = {"metadata": {"name": "p", "labels": {"training.kubeflow.org/replica-index": "0"}}, "spec": {}, "status": status}
        ended = {"phase": "Failed", "finishedAt": when}
        run = {"metadata": {"name": "run", "namespace": "team", "uid": "u1"}, "spec": {"shutdown": ""}, "status": ended}
        job = {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec, "status": {"conditions": conditions}}
        yield json.dumps({"job": job, "workflow": run, "pod": pod}).encode()


_REQUIRED = {
    "metadata": {"name", "namespace", "uid", "creationTimestamp"}, "job": {"metadata", "spec", "kind", "apiVersion"},
    "workflow": {"metadata"}, "pod": {"metadata"}, "conditions": {"type", "status"}, "References": {"name", "kind", "uid", "apiVersion"},
}  # fmt: skip
"""What a schema asks for below a key that ends so."""


def fits(value: Any, like: Any, where: str = "") -> bool:
    """Whether a value has the types of another, as a schema would ask; what the schema leaves open may be anything."""
    if where in ("workflow.status", "workflow.spec"):
        return isinstance(value, dict)
    if isinstance(like, dict):
        if not isinstance(value, dict):
            return False
        required = {"job", "workflow", "pod", "pytorchReplicaSpecs", "Worker"}
        for end, names in _REQUIRED.items():
            required |= names if where.endswith(end) else set()
        if (required & like.keys()) - value.keys():
            return False
        free = where.endswith(("labels", "annotations"))
        if free and not all(isinstance(part, str) for part in value.values()):
            return False
        return free or all(fits(part, like[key], f"{where}.{key}".lstrip(".")) for key, part in value.items() if key in like)
    if isinstance(like, list):
        return isinstance(value, list) and all(fits(part, like[0], where) for part in value)
    return type(value) is type(like)


_WATCH = b'{"type": "ADDED", "object": {"metadata": {"name": "a", "resourceVersion": "3"}}}'


_LISTED = b'{"metadata": {"resourceVersion": "3", "continue": ""}, "items": [{"metadata": {"name": "a"}}]}'
_REFUSED = b'{"kind": "Status", "code": 410, "message": "gone", "details": {"retryAfterSeconds": 3}}'


@target("answers of Kubernetes", lambda: [_WATCH, _LISTED, _REFUSED])
def _kubernetes(data: bytes, place: Path) -> None:
    from pipelines.cluster.api import Api, _refusal
    from pipelines.cluster.connection import POD, Cluster

    for status in (403, 500):
        _refusal(status, data, 0.0)
    api = Api.__new__(Api)
    api.server, api.namespace, api.home = "https://api", "team", "team"
    api._streams, api._lock = set(), threading.Lock()
    pages = iter([data] * 3)
    api._open = lambda *_: _Body(next(pages, b'{"metadata": {}}'))  # type: ignore[method-assign]
    api.call = api.once  # type: ignore[method-assign]
    cluster = Cluster(api)
    for ask in (
        lambda: cluster.list(POD),
        lambda: cluster.get(POD, "a"),
        lambda: list(cluster._changes(POD, "team", {}, "1", threading.Event(), None)),
    ):
        with contextlib.suppress(InputError, RunError):
            ask()


@dataclass(eq=False)
class _Body:
    data: bytes

    def read(self) -> bytes:
        return self.data

    def stream(self, size: int) -> Iterator[bytes]:
        yield self.data

    def release_conn(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _kubeflow_answers() -> list[bytes]:
    from tests.pipelines.kubeflow import recordings

    return [recordings.answer(f"{name}/run.v2beta1.http").body for name in ("product-succeeded", "product-failed", "product-training")]


@target("answers of Kubeflow", _kubeflow_answers)
def _kubeflow(data: bytes, place: Path) -> None:
    from pipelines.kubeflow.client import Kubeflow
    from pipelines.kubeflow.endpoint import Endpoint
    from pipelines.kubeflow.follow import RunFollower

    server = Kubeflow(Endpoint(host="http://127.0.0.1:9", ui="http://127.0.0.1:9"), retry_seconds=0)
    server._client.last_response = _Answer()  # type: ignore[assignment]
    answer = type("Answer", (), {"data": data.decode(errors="replace")})()
    server._runs.run_service_get_run = lambda run, **_: server._client.deserialize(answer, "V2beta1Run")
    run = server.run("run")
    follower = RunFollower(server, "run", lambda line: None)
    follower._take = lambda *a, **k: None  # type: ignore[method-assign]
    follower._complete = lambda step: None  # type: ignore[method-assign]
    follower._running.read = lambda step: None  # type: ignore[method-assign]
    follower._followed(run, follower._look(run))


class _Answer:
    def getheader(self, name: str) -> str:
        return "application/json"


@target("log of a step", lambda: [b"links: hello\n{'a': 1}\nI0101 12:00:00 launcher.go:1] x\nexit status 2\n"])
def _steplog(data: bytes, place: Path) -> None:
    from pipelines.kubeflow.steplog import StepLog

    log, text = StepLog(), data.decode(errors="replace")
    for end in (len(text) // 3, len(text) // 2, len(text)):
        log.take(text[:end])
    log.take(text, ended=True)
