"""Whole runs from a shell with jobs on a cluster: the real pipeline, kfp.local and launcher; a played cluster runs a pretended trainer."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cluster.names import Identity
from pipelines.jobs.holds import HELD_BY
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.local.test_run import FAKE, REPOSITORY
from tests.pipelines.operator import JOBS, eventually, pod_status

LABELS = {"PyTorchJob": "training.kubeflow.org/job-name", "Job": "batch.kubernetes.io/job-name"}
RESOURCES = {"PyTorchJob": JOBS, "Job": "jobs.batch"}
END = {"PyTorchJob": "Succeeded", "Job": "Complete"}


class Kubelet:
    """Runs the first pod of every job as a process of this machine."""

    def __init__(self, api: FakeApi, **variables: str) -> None:
        self.api = api
        self.created: list[str] = []
        self.processes: list[subprocess.Popen[str]] = []
        self._variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FAKE), str(REPOSITORY)]), **variables}
        api.on_change = self._see

    def _see(self, change: str, thing: dict[str, Any]) -> None:
        if thing.get("kind") in LABELS and change == "ADDED":
            self.created.append(thing["metadata"]["name"])
            threading.Thread(target=self._run, args=(thing,), daemon=True).start()

    def _run(self, job: dict[str, Any]) -> None:
        kind, name, spec = job["kind"], job["metadata"]["name"], job["spec"]
        template = spec["template"] if kind == "Job" else spec["pytorchReplicaSpecs"]["Worker"]["template"]
        (container,) = template["spec"]["containers"]
        labels = {LABELS[kind]: name, "training.kubeflow.org/replica-index": "0", "batch.kubernetes.io/job-completion-index": "0"}
        owner = {"apiVersion": job["apiVersion"], "kind": kind, "name": name, "uid": job["metadata"]["uid"], "controller": True}
        status = pod_status("Running")
        status["containerStatuses"][0]["name"] = container["name"]
        pod = f"{name}-worker-0"
        self.api.put("pods", {"metadata": {"name": pod, "labels": labels, "ownerReferences": [owner]}, "status": status})
        said = ["container started"]
        self.api.log(pod, said[0], container["name"])
        with subprocess.Popen(
            [sys.executable, "-m", "trainer", *container["args"]],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._variables,
        ) as process:  # fmt: skip
            self.processes.append(process)
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line.rstrip())
                self.api.log(pod, said[-1], container["name"])
        self.api.end_log(pod)
        code = process.wait()
        status["containerStatuses"][0]["state"] = {"terminated": {"exitCode": code, "message": "\n".join(said)}}
        if self.api.find("pods", pod):
            self.api.change("pods", pod, status=status)
        if self.api.find(RESOURCES[kind], name):
            condition = END[kind] if code == 0 else "Failed"
            entry = {"type": condition, "status": "True", "message": f"exit code {code}"}
            self.api.change(RESOURCES[kind], name, status={"conditions": [entry]})


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    """An API server, its kubeconfig at tmp_path/kubeconfig, and a profile whose pods mount the root."""
    mount = {"name": "root", "mountPath": str(tmp_path / "root")}
    template = {"spec": {"containers": [{"name": "pytorch", "volumeMounts": [mount]}]}}
    profile = {"root": str(tmp_path / "root"), "backend": "pytorchjob", "jobs": {"pod_template": template}}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    with FakeApi() as fake:
        fake.kubeconfig(tmp_path / "kubeconfig")
        yield fake


def start(tmp_path: Path) -> subprocess.Popen[str]:
    """`python -m pipelines run` on that cluster."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(FAKE), str(REPOSITORY)]),
        "KUBECONFIG": str(tmp_path / "kubeconfig"),
    }
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "run",
        "--profile",
        str(tmp_path / "profile.yaml"),
        "--recipe",
        "smoke",
        "--arms",
        "random",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, start_new_session=True, **pipes)


def contrastive(tmp_path: Path) -> str:
    """The name of the random arm's job."""
    root, cell = str(tmp_path / "root"), "random-seed0"
    output = f"{root}/experiments/smoke/{cell}/contrastive"
    return Identity(root=root, output=output, experiment="smoke", cell=cell, arm="random", seed=0, stage="contrastive").name


@pytest.mark.slow
def test_an_experiment_runs_on_a_cluster_from_a_shell(api: FakeApi, tmp_path: Path):
    """Its jobs have ended, stay to be looked at, and nobody holds them."""
    kubelet = Kubelet(api)
    run = start(tmp_path)
    out, error = run.communicate(timeout=200)

    assert (run.returncode, error) == (0, ""), out
    assert out.splitlines()[-1] == f"report: {tmp_path}/root/experiments/smoke/report/index.html"
    jobs = [thing for key, thing in api.objects.items() if key[0] in RESOURCES.values()]
    assert sorted(job["metadata"]["labels"]["firstsight.dev/stage"] for job in jobs) == ["contrastive", "evaluate", "stage", "stage"]
    assert len(kubelet.created) == 4
    assert not [key for job in jobs for key in job["metadata"]["annotations"] if key.startswith(HELD_BY)]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_on_the_cluster(api: FakeApi, tmp_path: Path):
    """But what has ended, and stays for its TTL."""
    kubelet = Kubelet(api, FAKE_SECONDS="60")
    run = start(tmp_path)
    try:
        name = contrastive(tmp_path)
        eventually(lambda: api.find("pods", f"{name}-worker-0"), seconds=120)
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        out, error = run.communicate(timeout=100)
    finally:
        for process in kubelet.processes:
            process.kill()

    assert run.returncode == 130, out + error
    assert "stopped; run the same command again to resume" in error
    assert api.find(JOBS, name) is None
    assert not [key for key in api.objects if key[0] == "pods" and key[2].startswith(name)]


@pytest.mark.slow
def test_a_job_that_fails_fails_the_run_with_its_reason(api: FakeApi, tmp_path: Path):
    """Wrong input is exit code 2, through the job's pods and two processes."""
    Kubelet(api, FAKE_FAIL="contrastive random-seed0:2")
    run = start(tmp_path)
    out, error = run.communicate(timeout=200)

    assert run.returncode == 2, out
    assert error == "contrastive random-seed0: trainer train contrastive: contrastive random-seed0 was told to fail\n"
    assert api.find(JOBS, contrastive(tmp_path)) is None
