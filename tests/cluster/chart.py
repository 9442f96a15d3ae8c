"""What the chart's tests share: an image with the pipelines in it, values for this cluster, Helm, and step pods as Kubeflow makes them."""

import base64
import contextlib
import functools
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import harness, node, programs, settings, store, training, volumes
from tests.images import local
from tests.locking import one_at_a_time

CHART = volumes.REPOSITORY / "charts/firstsight"
OLDER = volumes.REPOSITORY / "tests/data/chart-ad127be.tar.xz"
"""`git archive` of the chart at that commit, without its README, dashboard and tests."""
PIPELINES_VARIABLE = "FIRSTSIGHT_E2E_PIPELINES"
"""Image of the pipelines on a cluster given by KUBECONFIG."""
RELEASE = "fs"
STORAGE_CLASS = "firsttest"


def pipelines_image() -> str:
    """The pipelines image: of this checkout, built and imported into the tests' cluster; another cluster pulls its own."""
    if harness.own_cluster():
        with one_at_a_time(settings.TESTS_LOCK):
            local.pipelines_archive()
            node.import_images()
    return pipelines_image_name()


def store_volume(namespace: str, folder: Path, claim: str = f"{RELEASE}-firstsight-minio") -> None:
    """A volume for the bundled store's claim, in a class of its own: what the cluster provisions only root may write."""
    folder.chmod(0o777)
    volume, _ = volumes.local_volume(namespace, claim, folder, "ReadWriteOnce")
    volume["spec"]["storageClassName"] = STORAGE_CLASS
    storage_class = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": STORAGE_CLASS}}
    harness.apply([{**storage_class, "provisioner": "kubernetes.io/no-provisioner"}, volume])


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
    images = {"pipelines": pipelines_image(), "trainer": training.trainer_image(), "minio": store.minio_image()}
    persistence = {"size": "1Gi"}
    if harness.own_cluster():
        persistence["storageClass"] = STORAGE_CLASS
        jobs["podTemplate"] = volumes.pod_template("pytorch")
    small = {"requests": {"cpu": "20m", "memory": "96Mi"}, "limits": {"memory": "512Mi"}}
    return {
        "images": {name: dict(zip(("repository", "tag"), image.rsplit(":", 1), strict=True)) for name, image in images.items()},
        "jobs": jobs,
        "objectStore": {"bundled": {"persistence": persistence, "resources": small}},
        "profileDefaults": {"stagingSlices": 2, "inReleaseNamespace": True},
        "reaper": {"resources": small, "graceSeconds": 20},
        "pods": {"resources": small},
        "metrics": {
            "podMonitor": {"enabled": True, "interval": "5s"},
            "prometheusRule": {"enabled": True, "stallSeconds": 20},
            "dashboard": {"enabled": True},
        },
        **more,
    }


def older(folder: Path) -> str:
    """The chart of ad127be, unpacked into an empty folder."""
    with tarfile.open(OLDER) as archive:
        archive.extractall(folder, filter="data")
    return str(folder / "charts/firstsight")


def helm(*arguments: str, given: dict[str, Any] | None = None, binary: str = "helm", fails: bool = False) -> str:
    """Run Helm with values on stdin; what it said. It must fail where `fails`."""
    command = [str(programs.program(binary)), *arguments, *(["--values", "-"] if given is not None else [])]
    text = None if given is None else json.dumps(given)
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=harness.environment(), cwd=volumes.REPOSITORY)
    said = done.stdout + done.stderr
    if (done.returncode != 0) != fails:
        raise AssertionError(f"{' '.join(command)}: {said}\n{harness.describe(arguments[arguments.index('-n') + 1])}")
    return said


def step(namespace: str, name: str, call: str, profile: str = "firstsight") -> None:
    """Start a pod that calls one function of pipelines.steps, as a component of the pipeline does: account, Secret, profile.

    Args:
        namespace: of the run.
        name: of the pod.
        call: such as `planning.make_plan(request="s3://…", …)`.
        profile: the run profile's name.
    """
    program = f"from pipelines.steps import finish, lanes, links, planning, staging; print('returned', {call})"
    container: dict[str, Any] = {
        "name": "main", "image": pipelines_image_name(), "command": ["python", "-c", program],
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
    harness.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": _step_labels()}, "spec": spec}, namespace)


@functools.cache
def _step_labels() -> dict[str, str]:
    """As the compiled pipeline gives them to its steps' pods."""
    _, platform = yaml.safe_load_all((volumes.REPOSITORY / "pipelines/kubeflow/compiled/firstsight.yaml").read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return dict(executors["exec-plan"]["podMetadata"]["labels"])


def pipelines_image_name() -> str:
    """The image, which values() has brought into the cluster."""
    return local.PIPELINES_IMAGE if harness.own_cluster() else os.environ[PIPELINES_VARIABLE]


def finish(namespace: str, name: str, seconds: float = 420) -> str:
    """Wait until a step pod has ended well; its log, whose last line is `returned <what the function returned>`."""

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


def allowed(account: str, home: str, questions: list[str], place: str) -> set[str]:
    """Which of `verb resource` the API server allows the account in a namespace (`kubectl auth can-i` loses groups it does not know)."""
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{home}", "system:authenticated"]
    reviews = []
    for question in questions:
        verb, resource = question.split()
        name, _, group = resource.partition(".")
        name, _, part = name.partition("/")
        attributes = {"verb": verb, "group": group, "resource": name, "subresource": part, "namespace": place}
        spec = {"user": f"system:serviceaccount:{home}:{account}", "groups": groups, "resourceAttributes": attributes}
        reviews.append({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec})
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    answers = harness.kubectl("create", "-f", "-", "-o", 'jsonpath={.status.allowed}{"\\n"}', text=text).split()
    return {question for question, answer in zip(questions, answers, strict=True) if answer == "true"}


@contextlib.contextmanager
def forwarded(namespace: str, target: str, port: int) -> Iterator[str]:
    """`kubectl port-forward` to a Service while the context lasts; the address on this machine."""
    command = [str(programs.program("kubectl")), "-n", namespace, "port-forward", "--address", "127.0.0.1", target, f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=harness.environment()) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert found, f"{' '.join(command)} ended with {process.wait()}"
            yield f"127.0.0.1:{found[1]}"
        finally:
            process.kill()


def living(namespace: str, experiment: str) -> dict[str, tuple[str, str, list[int]]]:
    """The pods of a run, of its launcher and of the store: by name its UID, its phase, and how often its containers have restarted."""
    pods = harness.listed("pods", namespace, f"firstsight.dev/experiment={experiment}")
    pods += harness.listed("pods", namespace, "app.kubernetes.io/component=minio")
    pods += [pod for pod in harness.listed("pods", namespace) if pod["metadata"]["name"] == experiment]
    found = {}
    for pod in pods:
        restarts = [one["restartCount"] for one in pod["status"]["containerStatuses"]]
        found[pod["metadata"]["name"]] = (pod["metadata"]["uid"], pod["status"]["phase"], restarts)
    return found
