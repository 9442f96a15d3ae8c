"""What the chart's tests share: an image with the pipelines in it, values for this cluster, Helm, and step pods as Kubeflow makes them."""

import base64
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.cluster import harness, images, node, settings, volumes

CHART = volumes.REPOSITORY / "charts/firstsight"
PIPELINES_IMAGE = "docker.io/firstsight/pipelines:e2e"
PIPELINES_VARIABLE = "FIRSTSIGHT_E2E_PIPELINES"
"""Image of the pipelines on a cluster of one's own (KUBECONFIG)."""
RELEASE = "fs"
_PYTHON = """#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/firstsight:/opt/packages PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec /opt/python/bin/python3 "$@"
"""


def pipelines_image() -> str:
    """An image of Debian, this Python, requirements/pipelines.txt and the source as it is now, imported into the cluster."""
    if not harness.own_cluster():
        return os.environ[PIPELINES_VARIABLE]
    root = settings.CACHE / "pipelines-root"
    if not (root / "opt/packages").exists():
        partial = root.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(settings.ROOTFS, partial, symlinks=True)
        shutil.copytree(
            sys.base_prefix, partial / "opt/python", symlinks=True, ignore=shutil.ignore_patterns("test", "site-packages", "__pycache__")
        )
        _copy_packages(partial / "opt/packages")
        wrapper = partial / "usr/local/bin/python"
        wrapper.write_text(_PYTHON)
        wrapper.chmod(0o755)
        partial.rename(root)
    for name in ("trainer", "pipelines"):
        shutil.rmtree(root / "opt/firstsight" / name, ignore_errors=True)
        shutil.copytree(volumes.REPOSITORY / name, root / "opt/firstsight" / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["chmod", "-R", "a+rX", str(root / "opt")], check=True)
    images.write_image(settings.IMAGES / "pipelines.tar", PIPELINES_IMAGE, root, [])
    node.import_images()
    return PIPELINES_IMAGE


def _copy_packages(target: Path) -> None:
    """The distributions that the pipelines image has, and no torch."""
    lines = (volumes.REPOSITORY / "requirements/pipelines.txt").read_text().splitlines()
    for name in re.findall(r"^([A-Za-z0-9._-]+)==", "\n".join(lines), re.MULTILINE):
        for file in importlib.metadata.distribution(name).files or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and "__pycache__" not in file.parts and source.is_file():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target / file)


def values(**more: Any) -> dict[str, Any]:
    """Values for the tests' cluster: small, two CPU nodes, scraped often, alerts that do not take an hour."""
    jobs: dict[str, Any] = {
        "nodes": 2,
        "cpu": "100m",
        "memory": "1Gi",
        "sharedMemory": "64Mi",
        "stagingCpu": "100m",
        "stagingMemory": "1Gi",
    }
    pipelines, _, tag = pipelines_image().rpartition(":")
    image = {"pipelines": {"repository": pipelines, "tag": tag}}
    if harness.own_cluster():
        jobs["podTemplate"] = volumes.pod_template("pytorch")
        for name, reference in (("trainer", settings.BASE_IMAGE), ("minio", settings.MINIO_IMAGE)):
            repository, _, tag = reference.rpartition(":")
            image[name] = {"repository": repository, "tag": tag}
    small = {"requests": {"cpu": "20m", "memory": "96Mi"}, "limits": {"memory": "512Mi"}}
    return {
        "images": image,
        "jobs": jobs,
        "objectStore": {"bundled": {"persistence": {"size": "1Gi"}, "resources": small}},
        "profileDefaults": {"stagingSlices": 2},
        "reaper": {"resources": small, "graceSeconds": 20},
        "pods": {"resources": small},
        "metrics": {
            "podMonitor": {"enabled": True, "interval": "5s"},
            "prometheusRule": {"enabled": True, "stallSeconds": 20},
            "dashboard": {"enabled": True},
        },
        **more,
    }


def helm(*arguments: str, given: dict[str, Any] | None = None, binary: str = "helm", fails: bool = False) -> str:
    """Run Helm with values on stdin; what it said. It must fail where `fails`."""
    command = [binary, *arguments, *(["--values", "-"] if given is not None else [])]
    text = None if given is None else json.dumps(given)
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=harness.environment(), cwd=volumes.REPOSITORY)
    said = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, f"{' '.join(command)}: {said}"
    return said


def step(namespace: str, name: str, call: str, profile: str = "firstsight") -> None:
    """Start a pod that calls one function of pipelines.steps, as a component of the pipeline does: account, Secret, profile.

    Args:
        namespace: of the run.
        name: of the pod.
        call: such as `make_plan(root="", …)`.
        profile: the run profile's name.
    """
    container: dict[str, Any] = {
        "name": "main", "image": pipelines_image_name(), "command": ["python", "-c", f"from pipelines import steps; steps.{call}"],
        "imagePullPolicy": "IfNotPresent", "envFrom": [{"secretRef": {"name": profile}}],
        "env": [{"name": "FIRSTSIGHT_PROFILE", "value": "/etc/firstsight/profile.yaml"}, {"name": "HOME", "value": "/tmp"}],
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "profile", "mountPath": "/etc/firstsight"}, {"name": "scratch", "mountPath": "/tmp"}],
    }  # fmt: skip
    spec: dict[str, Any] = {
        "serviceAccountName": profile, "restartPolicy": "Never", "containers": [container],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "profile", "configMap": {"name": profile}}, {"name": "scratch", "emptyDir": {}}],
    }  # fmt: skip
    harness.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}, namespace)


def pipelines_image_name() -> str:
    """The image, which values() has brought into the cluster."""
    return PIPELINES_IMAGE if harness.own_cluster() else os.environ[PIPELINES_VARIABLE]


def finish(namespace: str, name: str, seconds: float = 420) -> str:
    """Wait until a step pod has ended well; its log."""

    def phase() -> str:
        pod = harness.get("pod", namespace, name)
        found = "" if pod is None else str(pod["status"].get("phase", ""))
        return found if found in ("Succeeded", "Failed") else ""

    try:
        ended = harness.wait_until(f"step {name}", phase, seconds, every=1)
        log = harness.kubectl("-n", namespace, "logs", name)
        assert ended == "Succeeded", log
    except AssertionError as error:
        raise AssertionError(f"{error}\n{harness.describe(namespace)}") from None
    return log


def keys(namespace: str, secret: str) -> dict[str, str]:
    """The values of a Secret."""
    found = harness.get("secret", namespace, secret)
    assert found, f"no Secret {namespace}/{secret}"
    return {name: base64.b64decode(value).decode() for name, value in found["data"].items()}


@contextlib.contextmanager
def forwarded(namespace: str, target: str, port: int) -> Iterator[str]:
    """`kubectl port-forward` to a Service while the context lasts; the address on this machine."""
    command = ["kubectl", "-n", namespace, "port-forward", "--address", "127.0.0.1", target, f":{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=harness.environment())
    try:
        assert process.stdout is not None
        line, deadline = "", time.monotonic() + 30
        while not (found := re.search(r"127\.0\.0\.1:(\d+)", line)):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            line = process.stdout.readline()
        yield f"127.0.0.1:{found[1]}"
    finally:
        process.kill()
        process.wait()
