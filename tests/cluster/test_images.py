"""The images, built from their Dockerfiles, as pods of a namespace that enforces restricted Pod Security.

A step's pod is put together from the compiled pipeline as Kubeflow's driver does it: the executor's own command and
source, the ConfigMap and Secret that the parameter `profile` names, the security context of kfp-kubernetes. There is
no Kubeflow here; what only its back end could show is listed in docs/KUBEFLOW.md.
"""

import json
import re
from typing import Any

import pytest
import yaml

from pipelines.jobs.shapes.pod import INIT, pod_template
from pipelines.kubeflow.compiled import FOLDER
from pipelines.planning.request import FIELDS
from pipelines.profile.settings import JobSettings
from tests.cluster import chart, harness, node, settings, training, volumes
from tests.cluster.store import Store
from tests.images import local
from tests.locking import one_at_a_time

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

LINKS = {
    "run": "a-run", "request": "", **dict.fromkeys(FIELDS, ""),
    "profile": "firstsight", "experiment": "demo", "recipe": "smoke", "arms": "random", "seeds": "0",
}  # fmt: skip


@pytest.fixture(scope="session")
def pipelines_image(kubectl: Any) -> str:
    """The image's name, built and in the node's containerd."""
    return chart.pipelines_image()


@pytest.fixture
def namespace(restricted_namespace: str, store: Store) -> str:
    """A namespace with the ConfigMap and Secret of a run profile, as the chart makes them."""
    root = store.make_bucket()
    profile = {"root": root, "backend": "pytorchjob", "jobs": {"store_secret": "firstsight", "store_environment": store.pod_environment}}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "firstsight"},
        "data": {"profile.yaml": yaml.safe_dump(profile)},
    }
    harness.apply(config_map, restricted_namespace)
    store.put_secret(restricted_namespace, "firstsight")
    return restricted_namespace


def step_pod(name: str, image: str, parameters: dict[str, Any], profile: str = "firstsight") -> dict[str, Any]:
    """The pod of one component with these parameters; its artifact goes to /tmp."""
    specification, platform = yaml.safe_load_all((FOLDER / "firstsight.yaml").read_text())
    container = specification["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{name}"]
    page = {"name": "page", "type": {"schemaTitle": "system.Markdown", "schemaVersion": "0.0.1"}, "uri": "/tmp/page.md", "metadata": {}}
    stored = {"Output": {"outputFile": "/tmp/Output"}}
    outputs = {"artifacts": {"page": {"artifacts": [page]}}, "parameters": stored, "outputFile": "/tmp/output.json"}
    given = json.dumps({"inputs": {"parameterValues": parameters}, "outputs": outputs})
    (mounted,), (secret,), context = settings["configMapAsVolume"], settings["secretAsEnv"], settings["securityContext"]
    keys = [(entry["envVar"], {"name": profile, "key": entry["secretKey"], "optional": secret["optional"]}) for entry in secret["keyToEnv"]]
    resources = container["resources"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"step-{name}", **settings["podMetadata"]},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": container["command"],
                    "args": [given if part == "{{$}}" else part for part in container["args"]],
                    "env": [{"name": key, "valueFrom": {"secretKeyRef": reference}} for key, reference in keys]
                    + [{"name": "KFP_POD_NAME", "value": f"step-{name}"}],
                    "resources": {
                        "requests": {"cpu": resources["resourceCpuRequest"], "memory": resources["resourceMemoryRequest"]},
                        "limits": {"memory": resources["resourceMemoryLimit"]},
                    },
                    "securityContext": {
                        "runAsNonRoot": context["runAsNonRoot"],
                        "runAsUser": int(context["runAsUser"]),
                        "runAsGroup": int(context["runAsGroup"]),
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": profile, "mountPath": mounted["mountPath"]}],
                }
            ],
            "volumes": [{"name": profile, "configMap": {"name": profile, "optional": mounted["optional"]}}],
        },
    }


def command_pod(image: str, arguments: list[str], command: list[str] | None = None) -> dict[str, Any]:
    """A pod of the image as the chart runs it: no root to write to but /tmp."""
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    container: dict[str, Any] = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "securityContext": restricted,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    if command:
        container["command"] = command
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "command"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


def run(namespace: str, pod: dict[str, Any], seconds: float = 180) -> tuple[int, str]:
    """Exit code and log of a pod."""
    harness.apply(pod, namespace)
    name = pod["metadata"]["name"]

    def ended() -> Any:
        found = harness.get("pod", namespace, name)
        return found if found and found["status"].get("phase") in ("Succeeded", "Failed") else None

    try:
        found = harness.wait_until(f"pod {name} to end", ended, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{harness.describe(namespace)}") from None
    (status,) = found["status"]["containerStatuses"]
    return status["state"]["terminated"]["exitCode"], harness.kubectl("-n", namespace, "logs", name)


def test_the_first_step_runs_as_its_pod_with_the_profile_and_the_secret(pipelines_image: str, namespace: str):
    """The executor's own source, kfp from the image, root from the profile, credentials from the Secret."""
    code, log = run(namespace, step_pod("links", pipelines_image, LINKS))

    assert code == 0, log
    assert "1 cell: `random-seed0`" in log
    assert f"kubectl -n {namespace} get pytorchjobs,jobs,pods" in log


def test_the_first_step_refuses_what_cannot_be_meant(pipelines_image: str, namespace: str, store: Store):
    """With one line in its log and failure.json in the store for the caller."""
    code, log = run(namespace, step_pod("links", pipelines_image, {**LINKS, "arms": "percetual"}))

    assert code != 0
    assert "arms must be any of" in log
    assert "Traceback" not in log


def test_a_profile_that_is_not_there_is_said_by_the_pod_itself(pipelines_image: str, namespace: str):
    """Not by a pod that waits for a mount while the UI shows nothing."""
    code, log = run(namespace, step_pod("links", pipelines_image, {**LINKS, "profile": "other"}, profile="other"))

    assert code != 0
    assert "there is no ConfigMap 'other'" in log


def test_the_image_runs_on_a_read_only_root_as_its_own_user(pipelines_image: str, restricted_namespace: str):
    """As the chart's hooks and the reaper do; the report's room is there, torch is not."""
    script = (
        "import importlib.util, os, sys, kfp, kubernetes, pipelines.steps.cells, trainer.report.write;"
        "print(os.getuid(), importlib.util.find_spec('torch'), importlib.util.find_spec('pip'))"
    )

    code, log = run(restricted_namespace, command_pod(pipelines_image, ["-c", script], command=["python"]))

    assert (code, log.strip().splitlines()[-1]) == (0, "10001 None None"), log


def test_the_entry_point_is_the_command_line(pipelines_image: str, restricted_namespace: str):
    """Arguments alone are enough, and a wrong one ends with 2."""
    code, log = run(restricted_namespace, command_pod(pipelines_image, ["upload", "--image", "x/y:1", "--endpoint", "nowhere"]))

    assert code == 2
    assert "KFP_ENDPOINT must be the http(s):// address" in log


ORPHAN = """
import contextlib, pathlib, subprocess, time
def names():
    for entry in pathlib.Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            yield entry.read_text().strip()
subprocess.run(["sh", "-c", "sleep 0.1 & exit 0"])
while "sleep" in names():
    time.sleep(0.05)
print(pathlib.Path("/proc/1/comm").read_text().strip(), "reaped")
"""
"""A process whose parent has ended, and that ends: without an init it would stay a zombie for ever."""
SIGNAL = "import os, signal, time; os.kill(1, signal.SIGTERM); time.sleep(600)"
"""What the kubelet does to process 1, and nobody handles: of a process 1 itself the kernel drops it."""


@pytest.mark.parametrize(("script", "code", "says"), [(ORPHAN, 0, "catatonit reaped"), (SIGNAL, 128 + 15, "")])
def test_process_1_reaps_and_passes_signals_on(pipelines_image: str, restricted_namespace: str, script: str, code: int, says: str):
    """Also to a Python that has not come as far as a handler of its own."""
    ended, log = run(restricted_namespace, command_pod(pipelines_image, ["python", "-c", script], command=INIT))

    assert (ended, log.strip()) == (code, says)


def test_labels_say_version_and_commit(pipelines_image: str):
    """What runs can be traced to bytes."""
    if not harness.own_cluster():
        pytest.skip(f"{pipelines_image} was not built here")
    described: Any = local.configuration(local.settings.IMAGES / "pipelines.tar")

    assert described["User"] == "10001:10001"
    assert described["Entrypoint"] == [*INIT, "python", "-m", "pipelines"]
    assert described["Labels"]["org.opencontainers.image.version"] == "0.1.0"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", described["Labels"]["org.opencontainers.image.revision"])


COMPILES = """
import os, torch
from trainer.config import ModelConfig
from trainer.model import encoding, towers
sizes = dict(image_size=32, patch_size=8, vision_layers=2, vision_width=32, vision_head_width=16, embed_dim=32)
model = towers.build_model(ModelConfig(**sizes, text_layers=1, text_width=32, text_heads=2), 0)
images = torch.rand(4, 3, 32, 32)
with torch.no_grad():
    plain, compiled = (encoding.encode_image(model, images, compiled=flag) for flag in (False, True))
torch.testing.assert_close(plain, compiled)
libraries = [name for _, _, names in os.walk(os.environ["TORCHINDUCTOR_CACHE_DIR"]) for name in names if name.endswith(".so")]
print("user", os.getuid(), "read-only root", bool(os.statvfs("/").f_flag & os.ST_RDONLY), "compiled", bool(libraries))
"""
"""A block of a vision tower through torch.compile; what it built lies where the pod lets it write."""


@pytest.fixture(scope="session")
def trainer_image(kubectl: Any) -> str:
    """What has the trainer image's compiler: its runtime stage, in the node's containerd; elsewhere the whole image."""
    if not harness.own_cluster():
        return training.trainer_image()
    with one_at_a_time(settings.TESTS_LOCK):
        local.trainer_runtime_archive()
        node.import_images()
    return local.TRAINER_RUNTIME


def test_the_trainers_pod_compiles_a_block_of_a_tower(trainer_image: str, restricted_namespace: str):
    """With the compiler and headers of the image, as its user, on a root that nobody can write to."""
    overlay = volumes.pod_template("pytorch", python=False) if harness.own_cluster() else {}
    small = JobSettings(image=trainer_image, cpu="50m", memory="3Gi", shared_memory="64Mi", pod_template=overlay)
    template = pod_template(small, "pytorch", [], {}, {}, {}, metrics=False)
    (container,) = template["spec"]["containers"]
    container.update(command=["python3", "-W", "ignore", "-c", COMPILES], args=[], imagePullPolicy="IfNotPresent")
    spec = {**template["spec"], "restartPolicy": "Never"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "compile", **template["metadata"]}, "spec": spec}

    code, log = run(restricted_namespace, pod, seconds=600)

    assert (code, log.strip().splitlines()[-1]) == (0, "user 10001 read-only root True compiled True"), log
