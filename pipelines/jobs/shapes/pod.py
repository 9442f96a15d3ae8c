"""The pod in which the trainer runs, whatever kind of job creates it, with the cluster's own template merged on top."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cluster.merge import strategic_merge
from pipelines.jobs.base import Purpose
from pipelines.profile.settings import JobSettings
from trainer.config import Placement
from trainer.errors import InputError

TEMPLATE_CONTAINER = "pytorch"
"""In `jobs.pod_template` this name means the trainer's container, whatever a kind of job has to call it."""
GRACE_SECONDS = 180
INIT = ["/usr/bin/catatonit", "--"]
"""Process 1 of each pod: it reaps orphaned processes and forwards SIGTERM, even to a process that is still starting."""
STORAGE, STORAGE_REQUEST = "ephemeral-storage", "1Gi"
STORAGE_GIB_BESIDE_CACHE = 16
"""Compiled kernels, logs and what an evaluation unpacks, beyond the shards counted by `placement.cache_bytes`: a generous assumption."""
STORAGE_GIB_OF_STAGING = 100
"""A plan of YFCC15M joins its lists on disk, and tars are written before they are uploaded: a generous assumption."""
TOKEN, TOKEN_SECONDS = "/var/run/secrets/firstsight/token", 3600
"""Path and lifetime of the pod's service-account token, for whoever issues credentials; the kubelet renews it after 80 % of that time."""
WRITABLE = {
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    "TRITON_CACHE_DIR": "/tmp/triton",
}
"""Where libraries write under a read-only root: in the pod's scratch volume, whatever the image's own environment says."""
DIGEST_VARIABLE = "FIRSTSIGHT_IMAGE_DIGEST"
"""Read by trainer/lineage.py."""


def pod_template(
    settings: JobSettings,
    container: str,
    arguments: Sequence[str],
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    environment: Mapping[str, str],
    *,
    purpose: Purpose = "train",
    placement: Mapping[str, Any] | None = None,
    metrics: bool = True,
) -> dict[str, Any]:
    """The template of a pod that runs `python -m trainer <arguments>`, valid under the restricted Pod Security Standard.

    Args:
        settings: where and with what it runs.
        container: the name that the kind's controller requires for the trainer's container.
        arguments: of `python -m trainer`.
        labels: of the pod.
        annotations: of the pod.
        environment: variables beside those of the settings.
        purpose: what the pod does; selects the template to merge in addition to the common one.
        placement: the trainer's placement fields that were set, used for the size of its cache.
        metrics: whether the pod serves metrics and should be scraped.

    Raises:
        InputError: a template in the settings removes the container.
    """
    no_sidecar = {"sidecar.istio.io/inject": "false"}  # a mesh sidecar never exits, so the job would never finish
    template: dict[str, Any] = {
        "metadata": {"labels": {**labels, **no_sidecar}, "annotations": {**annotations, **no_sidecar}},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "securityContext": _security(settings.run_as_user),
            "containers": [_container(settings, container, arguments, environment, metrics)],
            "volumes": [
                {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory_of_pod}},
                {"name": "scratch", "emptyDir": {}},
            ],
        },
    }
    if settings.service_account:  # only for the cloud: no Kubernetes token is mounted
        template["spec"]["serviceAccountName"] = settings.service_account
    if settings.token_audience:
        _add_token(template["spec"], settings.token_audience)
    if settings.scheduler_name:
        template["spec"]["schedulerName"] = settings.scheduler_name
    for name, theirs in settings.templates(purpose).items():
        template = strategic_merge(template, _renamed(theirs, container), f"jobs.{name}")
        if container not in [entry["name"] for entry in template["spec"]["containers"]]:
            raise InputError(f"jobs.{name} must keep the container {TEMPLATE_CONTAINER!r}: no kind of job runs without it")
    _name_digest(template, container)
    return _bounded(template, container, settings, purpose, placement or {})


def _security(user: int | None) -> dict[str, Any]:
    """The security context for the restricted Pod Security Standard; without a user, the cluster assigns one and the volumes' group."""
    fixed = {} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return {"runAsNonRoot": True, **fixed, "seccompProfile": {"type": "RuntimeDefault"}}


def _bounded(
    template: dict[str, Any], container: str, settings: JobSettings, purpose: Purpose, placement: Mapping[str, Any]
) -> dict[str, Any]:
    """The template with a limit on what the pod writes to its node, if it sets none: a pod over it is evicted instead of its neighbours.

    A template with an emptyDir of its own gets no such limit unless the settings give one, since nobody knows what is meant to go there.
    Neither does a job in a queue, since the queue admits no job that requests resources not named in its quotas.
    """
    (trainer,) = [one for one in template["spec"]["containers"] if one["name"] == container]
    resources = {kind: dict((trainer.get("resources") or {}).get(kind) or {}) for kind in ("requests", "limits")}
    if any(STORAGE in named for named in resources.values()):
        return template
    given = settings.staging_ephemeral_storage if purpose == "stage" else settings.ephemeral_storage
    volumes = [volume for volume in template["spec"].get("volumes") or [] if volume.get("name") not in ("scratch", "shared-memory")]
    if not given and settings.labels.get(settings.queue_label):
        return template
    if not given and any("emptyDir" in volume and (volume["emptyDir"] or {}).get("medium") != "Memory" for volume in volumes):
        return template
    cache = -(-int(placement.get("cache_bytes", Placement().cache_bytes)) // 2**30)
    gibibytes = STORAGE_GIB_OF_STAGING if purpose == "stage" else cache + STORAGE_GIB_BESIDE_CACHE
    resources["requests"][STORAGE], resources["limits"][STORAGE] = given or STORAGE_REQUEST, given or f"{gibibytes}Gi"
    containers = [
        {**one, "resources": {**one.get("resources", {}), **resources}} if one is trainer else one for one in template["spec"]["containers"]
    ]
    return {**template, "spec": {**template["spec"], "containers": containers}}


def _name_digest(template: dict[str, Any], container: str) -> None:
    """Tell the trainer the digest of its image, if the image is given by one: a process cannot find it out, and a run records it."""
    (trainer,) = [one for one in template["spec"]["containers"] if one["name"] == container]
    digest = str(trainer.get("image") or "").partition("@")[2]
    if digest and DIGEST_VARIABLE not in [variable.get("name") for variable in trainer["env"]]:
        trainer["env"] = [*trainer["env"], {"name": DIGEST_VARIABLE, "value": digest}]


def _add_token(spec: dict[str, Any], audience: str) -> None:
    """Mount a token of the pod's service account for this audience, renewed by the kubelet, and set the variable that says where it is."""
    token = {"serviceAccountToken": {"audience": audience, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN.rpartition("/")[2]}}
    spec["volumes"].append({"name": "identity", "projected": {"sources": [token]}})
    (container,) = spec["containers"]
    container["volumeMounts"].append({"name": "identity", "mountPath": TOKEN.rpartition("/")[0], "readOnly": True})
    container["env"].append({"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": TOKEN})


def _renamed(template: Mapping[str, Any], container: str) -> dict[str, Any]:
    """The cluster's template with the trainer's container renamed as this kind of job requires."""
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
        limits[settings.gpu_resource] = str(settings.gpus_per_node)
    container: dict[str, Any] = {
        "name": name,
        "image": settings.image,
        "command": [*INIT, "python", "-m", "trainer"],
        "args": [
            argument.replace("$(", "$$(") for argument in arguments
        ],  # otherwise the kubelet expands variables, including the store's key
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
