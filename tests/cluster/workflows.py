"""Runs of Kubeflow without Kubeflow: a stand-in Workflow that owns a launcher's pod, and the reaper as a process."""

import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.cluster.merge import strategic_merge
from pipelines.steps.running import in_run
from tests.cluster import harness, settings, volumes
from tests.cluster.training import Experiment
from tests.servers import free_ports

MANIFESTS = settings.HERE / "manifests"


class Workflow:
    """A run: its Workflow object and the pod of its launch step."""

    def __init__(self, namespace: str, experiment: Experiment, profile: str, store: dict[str, str]) -> None:
        self.namespace, self.experiment = namespace, experiment
        self.name = f"run-{secrets.token_hex(3)}"
        harness.kubectl("apply", "--server-side", "-f", str(MANIFESTS / "workflow-crd.yaml"))
        harness.wait_for_kind("workflows.argoproj.io")
        harness.kubectl("-n", namespace, "apply", "-f", str(MANIFESTS / "launcher.yaml"))
        workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": self.name}}
        harness.apply({**workflow, "spec": {}, "status": {"phase": "Running"}}, namespace)
        found = harness.get("workflow", namespace, self.name)
        assert found is not None
        self._owner = {key: found[key] for key in ("apiVersion", "kind")} | {"name": self.name, "uid": found["metadata"]["uid"]}
        data = {"profile.yaml": Path(profile).read_text()}
        harness.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "profile"}, "data": data}, namespace)
        self._profile, self._store = profile, store
        self.pod = ""

    def another(self) -> "Workflow":
        """A second run of the same experiment."""
        return Workflow(self.namespace, self.experiment, self._profile, self._store)

    def launch(self, lane: str = "lane-1-of-1") -> None:
        """Start a lane's step `contrastive` in a pod, as Kubeflow would, and again at a Retry."""
        self.pod = f"{self.name}-{secrets.token_hex(2)}"
        arguments = {"request": in_run(self.experiment.request, self.name), "lane": lane}
        container: dict[str, Any] = {
            "name": "main",
            "image": settings.BASE_IMAGE,
            "command": ["python", "-c", f"from pipelines.steps import lanes; lanes.work('contrastive', **{arguments!r})"],
            "env": [{"name": key, "value": value} for key, value in self._store.items()]
            + [{"name": "KFP_POD_NAME", "value": self.pod}, {"name": "FIRSTSIGHT_PROFILE", "value": "/etc/firstsight/profile.yaml"}],
            "envFrom": [{"secretRef": {"name": "store"}}],
            "volumeMounts": [{"name": "profile", "mountPath": "/etc/firstsight"}, {"name": "tmp", "mountPath": "/tmp"}],
            "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        }
        spec = {
            "serviceAccountName": "launcher",
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 5,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "profile", "configMap": {"name": "profile"}}, {"name": "tmp", "emptyDir": {}}],
        }
        owner = {**self._owner, "controller": True, "blockOwnerDeletion": True}
        metadata = {"name": self.pod, "ownerReferences": [owner], "labels": {"test": "launcher"}}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        harness.apply(strategic_merge(pod, volumes.pod_template("main")), self.namespace)

    def change(self, patch: dict[str, Any]) -> None:
        """Merge into the Workflow, as Kubeflow or Argo does."""
        harness.kubectl("-n", self.namespace, "patch", "workflow", self.name, "--type=merge", "-p", json.dumps(patch))

    def kill_launcher(self) -> None:
        """The launcher's pod, at once."""
        harness.kubectl("-n", self.namespace, "delete", "pod", self.pod, "--force", "--grace-period=0")

    def phase(self) -> str:
        """Of the launcher's pod; empty if it is gone."""
        pod = harness.get("pod", self.namespace, self.pod)
        return str(pod["status"].get("phase", "")) if pod else ""

    def log(self) -> str:
        """What the launcher said so far."""
        return harness.kubectl("-n", self.namespace, "logs", self.pod)


@contextlib.contextmanager
def reaper(namespace: str, grace_seconds: int, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`python -m pipelines reap --watch` over one namespace, ended by SIGKILL: it needs no farewell."""
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "pipelines", "reap", "--watch", "--namespace", namespace]
    command += ["--grace-seconds", str(grace_seconds), "--port", str(port)]
    log = folder / f"reaper-{secrets.token_hex(3)}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=harness.environment(), cwd=volumes.REPOSITORY)
    try:
        harness.wait_until("the reaper to watch", lambda: "watching" in log.read_text(), 60)
        yield process
    finally:
        process.kill()
        process.wait()
