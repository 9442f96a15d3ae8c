"""Plays the training operator and the kubelet on the fake API server: pods for jobs, what becomes of them, conditions."""

import threading
import time
from collections.abc import Callable
from typing import Any

from tests.pipelines.fake_api import FakeApi

JOBS = "pytorchjobs.kubeflow.org"
Object = dict[str, Any]


class Operator:
    """Makes the pods of PyTorchJobs; what else happens, a test says."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.phase = "Running"
        self.created: list[Object] = []
        api.on_change = self._see

    def _see(self, change: str, thing: Object) -> None:
        if change == "ADDED" and thing.get("kind") == "PyTorchJob":
            self.created.append(thing)
            if not thing["spec"]["runPolicy"].get("suspend"):
                threading.Thread(target=self.make_pods, args=(thing,), daemon=True).start()

    def make_pods(self, job: Object) -> None:
        """One pod a worker, in the phase of this operator; with phase "" none."""
        for index in range(job["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] if self.phase else 0):
            self.make_pod(job, index)

    def make_pod(self, job: Object, index: int) -> Object:
        """A worker's pod."""
        name = job["metadata"]["name"]
        labels = {"training.kubeflow.org/job-name": name, "training.kubeflow.org/replica-index": str(index)}
        owner = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": name, "uid": job["metadata"]["uid"], "controller": True}
        metadata = {"name": f"{name}-worker-{index}", "labels": labels, "ownerReferences": [owner]}
        return self.api.put("pods", {"kind": "Pod", "metadata": metadata, "spec": {}, "status": pod_status(self.phase)})

    def status(self, pod: str, **status: Any) -> None:
        """Change a pod's status."""
        self.api.change("pods", pod, status=status)

    def restart(self, pod: str, exit_code: int = 1, message: str = "", count: int = 1) -> None:
        """The kubelet starts a container again after it ended."""
        last = {"terminated": {"exitCode": exit_code, "message": message, "finishedAt": "2026-01-01T00:00:00Z"}}
        status = {"name": "pytorch", "state": {"running": {}}, "lastState": last, "restartCount": count}
        self.status(pod, containerStatuses=[status])

    def end(self, job: str, condition: str, message: str = "") -> None:
        """The job has ended."""
        entry = {"type": condition, "status": "True", "message": message, "reason": condition}
        self.api.change(JOBS, job, status={"conditions": [entry]})

    def warn(self, name: str, reason: str, message: str) -> None:
        """A Warning about an object."""
        about = {"kind": "Pod", "name": name, "namespace": "team"}
        event = {"metadata": {"name": f"{name}.{reason}"}, "involvedObject": about, "reason": reason, "message": message, "type": "Warning"}
        self.api.put("events", event)


def pod_status(phase: str) -> Object:
    """What the kubelet says of a pod whose container runs, or has not started."""
    state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}} if phase == "Running" else {"waiting": {"reason": "ContainerCreating"}}
    return {"phase": phase, "containerStatuses": [{"name": "pytorch", "state": state, "lastState": {}, "restartCount": 0}]}


def eventually(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of a question that is asked again and again."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)
    return value
