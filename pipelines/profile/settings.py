"""How jobs look on a cluster: what `jobs:` of the chart's values and a run profile hold. Nothing here changes what is learned."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipelines.planning.request import MAX_GPUS_PER_NODE, MAX_NODES
from trainer.config import require
from trainer.errors import InputError
from trainer.redaction import holds_credentials, names_secret

_OWN_LABELS = frozenset(f"app.kubernetes.io/{name}" for name in ("name", "part-of", "component"))
PRIVATE_VARIABLE = "FIRSTSIGHT_PRIVATE_SOURCES"
"""By which staging is told `private_sources` (trainer/staging/remote/addresses.py)."""
_QUANTITY = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS = {"m": 1e-3, "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_RESOURCE = re.compile(r"(?!requests\.|([^/]*\.)?kubernetes\.io/)[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
MEETING_PORTS = (23456, 29400)
"""Where the processes of a PyTorchJob find each other (the training operator's default), and those of a TrainJob (shapes/trainjob.py)."""
OWN_TEMPLATES = {"train": "training_pod_template", "stage": "staging_pod_template", "evaluate": "evaluation_pod_template"}
"""By the purpose of a job the setting that holds a template for its pods alone."""

CORES_PER_GPU = 8
"""14 loader processes decoded 19,970 pairs/s, 1,430 a core, and the fastest step of an H100 takes 10,920 (docs/BENCHMARKS.md, M and L)."""
MEMORY_GIB_PER_GPU = 32
"""A rank beside a GPU, eight loader processes, five batches of decoded pictures, the checkpoint's host buffer, decoded triplets
(a quarter of what is free), /dev/shm: some 25 GiB for ViT-L/14 and 4,096 local pairs (docs/PERFORMANCE_NOTES.md)."""
SHARED_MEMORY_GIB_PER_GPU = 2
"""What NCCL takes of /dev/shm between the GPUs of a node; pictures do not go through it."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds that a job may spend on what usually passes; after them it is ended, and the reason is the last line.

    Attributes:
        unschedulable: no node has what a pod asks for, or no quota of its queue. Raise it where an autoscaler first has to make a node.
        rescheduling: any of these, of a job that has run before: its node, the registry or the operator may be coming back.
        image: it cannot be pulled.
        configuration: a Secret, ConfigMap or queue that is named is missing.
        refused: the job is there, and its pods are refused: a quota, a policy, a webhook.
        ignored: the job is there, and no controller makes pods, or admits it, or says why.
        volumes: one cannot be attached or mounted.
        starting: nothing of that, and still no container runs: large images take minutes.
        queued: suspended, as a queue holds a job until it admits it.
    """

    unschedulable: int = 120
    rescheduling: int = 1800
    image: int = 60
    configuration: int = 30
    refused: int = 60
    ignored: int = 120
    volumes: int = 180
    starting: int = 1800
    queued: int = 86400

    def __post_init__(self) -> None:
        """Check ranges."""
        for field_ in fields(self):
            value = getattr(self, field_.name)
            require(f"jobs.patience.{field_.name}", value, ">= 0", value >= 0)


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """Where jobs run and with what.

    Attributes:
        namespace: of the jobs; empty: the launcher's own (of its pod, or of the kubeconfig's context).
        image: the trainer's, with tag or digest.
        nodes: machines a training job takes.
        gpus_per_node: on each; 0: one CPU process a node.
        gpu_resource: name under which nodes offer GPUs: nvidia.com/gpu, a MIG slice such as nvidia.com/mig-1g.10gb, amd.com/gpu.
        ranks_per_node: processes on each; 0: one for each GPU, or one.
        gpu_memory: memory of one GPU (80Gi), by which a plan answers whether a recipe fits; empty: not known.
        cpu: CPU request of a training or evaluation pod, a Kubernetes quantity; empty: by its GPUs, see `cpu_of_pod`.
        memory: memory request and limit of such a pod; empty: by its GPUs, see `memory_of_pod`.
        shared_memory: size of /dev/shm, counted against the memory; empty: by its GPUs, see `shared_memory_of_pod`.
        staging_cpu: CPU request of a pod that stages data, which runs on no GPU node.
        staging_memory: its memory request and limit.
        ephemeral_storage: what a training or evaluation pod may write to its node, request and limit; empty: by its cache.
        staging_ephemeral_storage: likewise a pod that stages data.
        private_sources: CIDR blocks that staging may fetch from although they are not on the public Internet, such as a mirror's.
            No run can name them: whoever may press Run must not reach what is inside.
        store_secret: Secret whose keys are the store's environment (AWS_ACCESS_KEY_ID …); empty: none.
        service_account: of the jobs' pods, for a cloud's workload identity; empty: the namespace's default.
        token_audience: whom a token of that account is made out to, which the pods then have; empty: a webhook of the cloud's brings it.
        store_environment: what of the store's environment is no secret (AWS_ENDPOINT_URL_S3 …).
        ttl_seconds: how long a finished job stays to be looked at.
        queue_label: the label of a job by which its queue is named.
        labels: of the job itself, where a queue looks for its name; a pod's come by pod_template.
        annotations: of the job itself.
        scheduler_name: of a gang scheduler; empty: the cluster's own.
        run_as_user: user and group of the pods and of their volumes; None: whom the cluster chooses (OpenShift).
        pod_template: laid over each pod by strategic merge: topology, caches, priority.
        training_pod_template: laid over that, for pods that train: RDMA, NCCL, tolerations of GPU nodes.
        staging_pod_template: likewise for pods that stage data.
        evaluation_pod_template: likewise for pods that evaluate.
        metrics_port: Prometheus endpoint of each node.
        patience: with what may keep a job from starting.
        max_incidents: a job that was interrupted and resumed more often than this is ended. What happens within a minute is one
            incident: a restart of the group touches all its pods.
    """

    namespace: str = ""
    image: str = "firstsight/trainer:0.1.0"
    nodes: int = 1
    gpus_per_node: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    ranks_per_node: int = 0
    gpu_memory: str = ""
    cpu: str = ""
    memory: str = ""
    shared_memory: str = ""
    staging_cpu: str = "1"
    staging_memory: str = "4Gi"
    ephemeral_storage: str = ""
    staging_ephemeral_storage: str = ""
    private_sources: tuple[str, ...] = ()
    store_secret: str = ""
    service_account: str = ""
    token_audience: str = ""
    store_environment: dict[str, str] = field(default_factory=dict)
    ttl_seconds: int = 86400
    queue_label: str = "kueue.x-k8s.io/queue-name"
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    scheduler_name: str = ""
    run_as_user: int | None = 10001
    pod_template: dict[str, Any] = field(default_factory=dict)
    training_pod_template: dict[str, Any] = field(default_factory=dict)
    staging_pod_template: dict[str, Any] = field(default_factory=dict)
    evaluation_pod_template: dict[str, Any] = field(default_factory=dict)
    metrics_port: int = 9400
    patience: Patience = Patience()
    max_incidents: int = 10

    def __post_init__(self) -> None:
        """Check what can be checked without a cluster."""
        require("jobs.nodes", self.nodes, f"between 1 and {MAX_NODES}", 1 <= self.nodes <= MAX_NODES)
        gpus, rule = self.gpus_per_node, f"between 0 and {MAX_GPUS_PER_NODE}"
        require("jobs.gpus_per_node", gpus, rule, 0 <= gpus <= MAX_GPUS_PER_NODE)
        rule = f"0, or gpus_per_node ({self.gpus_per_node}) if there are GPUs"
        require("jobs.ranks_per_node", self.ranks_per_node, rule, self.ranks_per_node in (0, self.gpus_per_node) or not self.gpus_per_node)
        require("jobs.ranks_per_node", self.ranks_per_node, ">= 0", self.ranks_per_node >= 0)
        require("jobs.max_incidents", self.max_incidents, ">= 0", self.max_incidents >= 0)
        require("jobs.ttl_seconds", self.ttl_seconds, "between 0 and 2147483647", 0 <= self.ttl_seconds < 2**31)
        check_metrics_port("jobs.metrics_port", self.metrics_port)
        require("jobs.image", self.image, "the name of an image", bool(self.image.strip()))
        for variable, value in self.store_environment.items():
            ok = bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable)) and value.isprintable()
            require("jobs.store_environment", {variable: value}, "a mapping of variable names to single-line texts", ok)
            _require_no_secret(f"jobs.store_environment: {variable}", variable, value)
        for block in self.private_sources:
            require("jobs.private_sources", block, "CIDR blocks such as 10.0.0.0/8", _is_network(block))
        for name in ("pod_template", *OWN_TEMPLATES.values()):
            _require_template(name, getattr(self, name))
            _require_own_labels(name, getattr(self, name))
        rule = "the name of a node's resource, such as nvidia.com/gpu or nvidia.com/mig-1g.10gb"
        require("jobs.gpu_resource", self.gpu_resource, rule, bool(_RESOURCE.fullmatch(self.gpu_resource)))
        rule = f"0 or 1 if jobs.gpu_resource is {self.gpu_resource}: CUDA exposes only one MIG slice to a process (use more nodes instead)"
        require("jobs.gpus_per_node", gpus, rule, gpus <= 1 or "/mig-" not in self.gpu_resource)
        user = self.run_as_user
        require("jobs.run_as_user", user, "between 1 and 2147483647, or null", user is None or 1 <= user < 2**31)
        for name in ("staging_cpu", "staging_memory"):
            _require_quantity(name, getattr(self, name), "a Kubernetes quantity such as 4 or 16Gi")
        for name in ("gpu_memory", "cpu", "memory", "shared_memory", "ephemeral_storage", "staging_ephemeral_storage"):
            if getattr(self, name):
                _require_quantity(name, getattr(self, name), "a Kubernetes quantity such as 4 or 16Gi, or empty")

    def templates(self, purpose: str) -> dict[str, dict[str, Any]]:
        """What is laid over a pod of this purpose (train, stage, evaluate), one after the other, by the names of the settings."""
        return {name: getattr(self, name) for name in ("pod_template", OWN_TEMPLATES[purpose])}

    def node_selector(self, purpose: str) -> dict[str, Any]:
        """Labels of the nodes that a pod of this purpose may run on, by its templates."""
        selectors = ((template.get("spec") or {}).get("nodeSelector") or {} for template in self.templates(purpose).values())
        return {key: value for selector in selectors for key, value in selector.items()}

    @property
    def staging_environment(self) -> dict[str, str]:
        """Variables of staging alone."""
        return {PRIVATE_VARIABLE: ",".join(self.private_sources)} if self.private_sources else {}

    @property
    def processes_per_node(self) -> int:
        """Ranks on each node: one for each GPU, or one, unless `ranks_per_node` says otherwise."""
        return self.ranks_per_node or max(self.gpus_per_node, 1)

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.processes_per_node

    @property
    def cpu_of_pod(self) -> str:
        """CPU request of a pod: `cpu`, else CORES_PER_GPU for each of its GPUs, else one."""
        return self.cpu or str(max(CORES_PER_GPU * self.gpus_per_node, 1))

    @property
    def memory_of_pod(self) -> str:
        """Memory request and limit of a pod: `memory`, else MEMORY_GIB_PER_GPU for each of its GPUs, else 4 GiB."""
        return self.memory or f"{MEMORY_GIB_PER_GPU * self.gpus_per_node or 4}Gi"

    @property
    def shared_memory_of_pod(self) -> str:
        """Size of /dev/shm: `shared_memory`, else SHARED_MEMORY_GIB_PER_GPU for each GPU of the pod, else 1 GiB."""
        return self.shared_memory or f"{SHARED_MEMORY_GIB_PER_GPU * self.gpus_per_node or 1}Gi"

    @property
    def gpu_memory_bytes(self) -> int:
        """Bytes of one GPU's memory; 0: not known."""
        match = _QUANTITY.fullmatch(self.gpu_memory)
        return int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0


def check_metrics_port(path: str, port: int) -> None:
    """Refuse a port that a pod may not open, or that its job already uses."""
    require(path, port, "between 1024 and 65535 if jobs run on a cluster", 1024 <= port <= 65535)
    ports = " or ".join(map(str, MEETING_PORTS))
    require(path, port, f"another than {ports}, at which the processes of a job find each other", port not in MEETING_PORTS)


def _is_network(block: str) -> bool:
    try:
        return bool(ipaddress.ip_network(block))
    except ValueError:
        return False


def _require_no_secret(where: str, variable: str, value: str) -> None:
    """Refuse a credential in a profile, which is a ConfigMap and becomes part of every job; the refusal does not repeat it."""
    if names_secret(variable) or holds_credentials(value):
        raise InputError(
            f"{where} must not contain a credential, which everyone who can read profiles and jobs would see: put it into the Secret "
            "that jobs.store_secret names, or into another one that the pod template refers to"
        )


def _require_quantity(name: str, value: str, rule: str) -> None:
    found = _QUANTITY.fullmatch(value)
    require(f"jobs.{name}", value, rule, found is not None)
    if found and name.endswith("cpu"):
        require(f"jobs.{name}", value, "a number of cores such as 4 or 500m", found[2] in (None, "m"))


def _require_own_labels(name: str, template: Mapping[str, Any]) -> None:
    """Labels by which pods are selected: one that loses them escapes network policies, or a launcher that counts its pods."""
    labels = (template.get("metadata") or {}).get("labels") or {}
    for label in sorted(labels):
        rule = "without labels by which network policies, Prometheus and launchers find pods"
        require(f"jobs.{name}.metadata.labels", label, rule, label not in _OWN_LABELS and not label.startswith("firstsight.dev/"))


def _require_template(name: str, template: Mapping[str, Any]) -> None:
    """What this process itself reads of a pod template; the rest is the API server's to judge."""
    spec = template.get("spec") or {}
    require(f"jobs.{name}.spec", spec, "a mapping", isinstance(spec, Mapping))
    selector = spec.get("nodeSelector") or {}
    require(f"jobs.{name}.spec.nodeSelector", selector, "a mapping", isinstance(selector, Mapping))
    containers = spec.get("containers") or []
    named = isinstance(containers, list) and all(isinstance(one, Mapping) and "name" in one for one in containers)
    require(f"jobs.{name}.spec.containers", containers, "a list of mappings, each with a name", named)
    for one in containers:
        for entry in one.get("env") or []:
            if isinstance(entry, Mapping) and isinstance(entry.get("value"), str):
                _require_no_secret(f"jobs.pod_template: env {entry.get('name')}", str(entry.get("name")), entry["value"])
        mounts = one.get("volumeMounts") or []
        ok = isinstance(mounts, list) and all(isinstance(mount, Mapping) for mount in mounts)
        require(f"jobs.{name}.spec.containers: volumeMounts", mounts, "a list of mappings", ok)
