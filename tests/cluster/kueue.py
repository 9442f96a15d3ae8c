"""Kueue on the tests' cluster: its controller from its module's own manifests, and queues with a quota for the tests to fill."""

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.cluster import addons, harness, programs, settings

API = "kueue.x-k8s.io/v1beta2"
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
NAMESPACES = {"firsttest/queues": "here"}
"""Of the namespaces whose jobs Kueue's webhooks see: no other test stands on them."""
QUEUE, URGENT = "gpus", "urgent"


@dataclass(frozen=True)
class Queue:
    """A LocalQueue `gpus` with a ClusterQueue of its own.

    Attributes:
        namespace: of the jobs.
        cluster_queue: name of the ClusterQueue.
    """

    namespace: str
    cluster_queue: str

    def fill(self, name: str, cpu: str, seconds: int = 3600, **labels: str) -> None:
        """A Job that holds so much of the quota, once admitted."""
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "runAsUser": 1000}
        container = {
            "name": "sleeps",
            "image": settings.BASE_IMAGE,
            "command": ["sleep", str(seconds)],
            "resources": {"requests": {"cpu": cpu, "memory": "8Mi"}},
            "securityContext": {**security, "seccompProfile": {"type": "RuntimeDefault"}},
        }
        spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}
        metadata = {"name": name, "labels": {QUEUE_LABEL: QUEUE, **labels}}
        harness.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": spec}}}, self.namespace)

    def free(self, name: str) -> None:
        """Delete such a Job."""
        harness.kubectl("-n", self.namespace, "delete", "job", name)

    def stop(self, policy: str) -> None:
        """Hold the LocalQueue, or let it go on: Hold, HoldAndDrain or None."""
        patch = f'{{"spec": {{"stopPolicy": "{policy}"}}}}'
        harness.kubectl("-n", self.namespace, "patch", "localqueue", QUEUE, "--type=merge", "-p", patch)


def deploy() -> None:
    """Kueue into namespace kueue-system; returns when it is ready."""
    started = time.monotonic()
    module = programs.module_folder("kueue", "sigs.k8s.io/kueue")
    rendered = addons.kustomize(settings.HERE / "manifests/kueue", {"config": module / "config"})
    harness.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=rendered)
    harness.wait_for_kind("clusterqueues.kueue.x-k8s.io")
    harness.kubectl("-n", "kueue-system", "rollout", "status", "deploy/kueue-controller-manager", "--timeout=300s")
    print(f"cluster: Kueue ready after {time.monotonic() - started:.0f} s", flush=True)


@contextlib.contextmanager
def integrations(*frameworks: str) -> Iterator[None]:
    """Kueue manages these kinds only, as far as this goes; it reads its configuration when it starts."""
    path = settings.HERE / "manifests/kueue/controller_manager_config.yaml"
    configuration = yaml.safe_load(path.read_text())
    try:
        _configure(yaml.safe_dump({**configuration, "integrations": {"frameworks": [*frameworks]}}))
        yield
    finally:
        _configure(path.read_text())


def _configure(text: str) -> None:
    data = {"controller_manager_config.yaml": text}
    harness.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kueue-manager-config"}, "data": data}, "kueue-system")
    for command in ("restart", "status"):
        harness.kubectl("-n", "kueue-system", "rollout", command, "deploy/kueue-controller-manager")


def prepare() -> None:
    """What all queues share: a flavor and a priority."""
    objects = [
        {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "small"}},
        {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": URGENT}, "value": 1000},
    ]
    harness.wait_until("Kueue's webhooks", lambda: _applied(objects), 120)


@contextlib.contextmanager
def queue(namespace: str, cpu: str) -> Iterator[Queue]:
    """A queue for the jobs of a namespace: so many CPUs, lower priorities are preempted by higher ones."""
    harness.ensure_namespace(namespace, {**harness.RESTRICTED, **NAMESPACES})
    made = Queue(namespace, f"{namespace}-{secrets.token_hex(2)}")
    harness.apply(cluster_queue(made.cluster_queue, cpu))
    local = {"apiVersion": API, "kind": "LocalQueue", "metadata": {"name": QUEUE}, "spec": {"clusterQueue": made.cluster_queue}}
    harness.apply(local, namespace)
    try:
        yield made
    finally:
        harness.kubectl("delete", "clusterqueue", made.cluster_queue, "--wait=false")


def cluster_queue(name: str, cpu: str) -> dict[str, Any]:
    """A ClusterQueue with one flavor, and memory enough for all."""
    resources = [{"name": "cpu", "nominalQuota": cpu}, {"name": "memory", "nominalQuota": "1000Gi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": "small", "resources": resources}]}
    spec = {"namespaceSelector": {}, "resourceGroups": [group], "preemption": {"withinClusterQueue": "LowerPriority"}}
    return {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": spec}


def _applied(objects: list[dict[str, Any]]) -> bool:
    """Its Service may take a moment to reach the pod that is ready."""
    with contextlib.suppress(AssertionError):
        harness.apply(objects)
        return True
    return False
