"""The pod in which the trainer runs, whatever kind of job makes it, with the cluster's own template laid over it."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cluster.merge import strategic_merge
from pipelines.profile.settings import JobSettings
from trainer.errors import InputError

TEMPLATE_CONTAINER = "pytorch"
"""In `jobs.pod_template` this name means the trainer's container, whatever a kind of job has to call it."""
GRACE_SECONDS = 180
USER = 10001
TOKEN, TOKEN_SECONDS = "/var/run/secrets/firstsight/token", 3600
"""Of the pod's account, for who gives credentials; the kubelet renews it after four fifths of that time."""
WRITABLE = {
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    "TRITON_CACHE_DIR": "/tmp/triton",
}
"""Where libraries write under a read-only root: in the pod's scratch volume, whatever the image's own environment says."""


def pod_template(
    settings: JobSettings,
    container: str,
    arguments: Sequence[str],
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    environment: Mapping[str, str],
    *,
    metrics: bool = True,
) -> dict[str, Any]:
    """The template of a pod that runs `python -m trainer <arguments>`, good under restricted Pod Security.

    Args:
        settings: where and with what it runs.
        container: what the kind's controller wants the trainer's container to be called.
        arguments: of `python -m trainer`.
        labels: of the pod.
        annotations: of the pod.
        environment: variables beside those of the settings.
        metrics: whether it serves them, and is to be scraped.

    Raises:
        InputError: `jobs.pod_template` takes the container away.
    """
    no_sidecar = {"sidecar.istio.io/inject": "false"}  # a mesh's sidecar never ends, and the job would not either
    template: dict[str, Any] = {
        "metadata": {"labels": {**labels, **no_sidecar}, "annotations": {**annotations, **no_sidecar}},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container(settings, container, arguments, environment, metrics)],
            "volumes": [
                {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory_of_pod}},
                {"name": "scratch", "emptyDir": {}},
            ],
        },
    }
    if settings.service_account:  # for the cloud alone: a token for Kubernetes stays out
        template["spec"]["serviceAccountName"] = settings.service_account
    if settings.token_audience:
        _add_token(template["spec"], settings.token_audience)
    if settings.scheduler_name:
        template["spec"]["schedulerName"] = settings.scheduler_name
    merged = strategic_merge(template, _renamed(settings.pod_template, container))
    if container not in [entry["name"] for entry in merged["spec"]["containers"]]:
        raise InputError(f"jobs.pod_template must keep the container {TEMPLATE_CONTAINER!r}: no kind of job runs without it")
    return merged


def _add_token(spec: dict[str, Any], audience: str) -> None:
    """Give the pod a token of its account for this audience, which the kubelet renews, and say where it is."""
    token = {"serviceAccountToken": {"audience": audience, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN.rpartition("/")[2]}}
    spec["volumes"].append({"name": "identity", "projected": {"sources": [token]}})
    (container,) = spec["containers"]
    container["volumeMounts"].append({"name": "identity", "mountPath": TOKEN.rpartition("/")[0], "readOnly": True})
    container["env"].append({"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": TOKEN})


def _renamed(template: Mapping[str, Any], container: str) -> dict[str, Any]:
    """The cluster's template with the trainer's container called as this kind of job calls it."""
    spec = dict(template.get("spec") or {})
    if "containers" in spec:
        spec["containers"] = [
            {**entry, "name": container} if entry.get("name") == TEMPLATE_CONTAINER else entry for entry in spec["containers"]
        ]
    return {**template, "spec": spec}


def _container(settings: JobSettings, name: str, arguments: Sequence[str], environment: Mapping[str, str], metrics: bool) -> dict[str, Any]:
    variables = {"PYTHONUNBUFFERED": "1", **WRITABLE, **settings.store_environment, **environment}
    limits = {"memory": settings.memory_of_pod}
    if settings.gpus_per_node:
        limits["nvidia.com/gpu"] = str(settings.gpus_per_node)
    container: dict[str, Any] = {
        "name": name,
        "image": settings.image,
        "command": ["python", "-m", "trainer"],
        "args": list(arguments),
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "resources": {"requests": {"cpu": settings.cpu_of_pod, "memory": settings.memory_of_pod}, "limits": limits},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}, {"name": "scratch", "mountPath": "/tmp"}],
    }
    if metrics:
        container["ports"] = [{"name": "metrics", "containerPort": settings.metrics_port}]
    if settings.store_secret:
        container["envFrom"] = [{"secretRef": {"name": settings.store_secret}}]
    return container
