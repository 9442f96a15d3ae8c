"""How jobs look on a cluster: what `jobs:` of the chart's values and a run profile hold. Nothing here changes what is learned."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipelines.planning.request import MAX_GPUS_PER_NODE, MAX_NODES
from trainer.config import require

_QUANTITY = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS = {"m": 1e-3, "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

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
        unschedulable: no node has what a pod asks for. Raise it where an autoscaler first has to make one.
        rescheduling: any of these, of a job that has run before: its node, the registry or the operator may be coming back.
        image: it cannot be pulled.
        configuration: a Secret or ConfigMap that the pod names is missing.
        refused: the job is there, and its pods are refused: a quota, a policy, a webhook.
        ignored: the job is there, and no controller makes pods or says why.
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
        ranks_per_node: processes on each; 0: one for each GPU, or one.
        gpu_memory: memory of one GPU (80Gi), by which a plan answers whether a recipe fits; empty: not known.
        cpu: CPU request of a training or evaluation pod, a Kubernetes quantity; empty: by its GPUs, see `cpu_of_pod`.
        memory: memory request and limit of such a pod; empty: by its GPUs, see `memory_of_pod`.
        shared_memory: size of /dev/shm, counted against the memory; empty: by its GPUs, see `shared_memory_of_pod`.
        staging_cpu: CPU request of a pod that stages data, which runs on no GPU node.
        staging_memory: its memory request and limit.
        store_secret: Secret whose keys are the store's environment (AWS_ACCESS_KEY_ID …); empty: none.
        service_account: of the jobs' pods, for a cloud's workload identity; empty: the namespace's default.
        token_audience: whom a token of that account is made out to, which the pods then have; empty: a webhook of the cloud's brings it.
        store_environment: what of the store's environment is no secret (AWS_ENDPOINT_URL_S3 …).
        ttl_seconds: how long a finished job stays to be looked at.
        queue_label: the label of a job by which its queue is named.
        labels: of the job itself, where a queue looks for its name; a pod's come by pod_template.
        annotations: of the job itself.
        scheduler_name: of a gang scheduler; empty: the cluster's own.
        pod_template: laid over the pod by strategic merge: RDMA, NCCL, topology, caches, tolerations.
        metrics_port: Prometheus endpoint of each node.
        patience: with what may keep a job from starting.
        max_incidents: a job that broke off and went on more often than this is ended. What happens within a minute is one
            incident: a restart of the group touches all its pods.
    """

    namespace: str = ""
    image: str = "firstsight/trainer:0.1.0"
    nodes: int = 1
    gpus_per_node: int = 0
    ranks_per_node: int = 0
    gpu_memory: str = ""
    cpu: str = ""
    memory: str = ""
    shared_memory: str = ""
    staging_cpu: str = "1"
    staging_memory: str = "4Gi"
    store_secret: str = ""
    service_account: str = ""
    token_audience: str = ""
    store_environment: dict[str, str] = field(default_factory=dict)
    ttl_seconds: int = 86400
    queue_label: str = "kueue.x-k8s.io/queue-name"
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    scheduler_name: str = ""
    pod_template: dict[str, Any] = field(default_factory=dict)
    metrics_port: int = 9400
    patience: Patience = Patience()
    max_incidents: int = 10

    def __post_init__(self) -> None:
        """Check what can be checked without a cluster."""
        require("jobs.nodes", self.nodes, f"between 1 and {MAX_NODES}", 1 <= self.nodes <= MAX_NODES)
        gpus, rule = self.gpus_per_node, f"between 0 and {MAX_GPUS_PER_NODE}"
        require("jobs.gpus_per_node", gpus, rule, 0 <= gpus <= MAX_GPUS_PER_NODE)
        rule = f"0, or gpus_per_node ({self.gpus_per_node}) where there are GPUs"
        require("jobs.ranks_per_node", self.ranks_per_node, rule, self.ranks_per_node in (0, self.gpus_per_node) or not self.gpus_per_node)
        require("jobs.ranks_per_node", self.ranks_per_node, ">= 0", self.ranks_per_node >= 0)
        require("jobs.max_incidents", self.max_incidents, ">= 0", self.max_incidents >= 0)
        require("jobs.ttl_seconds", self.ttl_seconds, ">= 0", self.ttl_seconds >= 0)
        require("jobs.metrics_port", self.metrics_port, "between 1024 and 65535", 1024 <= self.metrics_port <= 65535)
        require("jobs.image", self.image, "the name of an image", bool(self.image.strip()))
        for variable, value in self.store_environment.items():
            ok = bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable)) and value.isprintable()
            require("jobs.store_environment", {variable: value}, "names of variables with a line of text each", ok)
        _require_template(self.pod_template)
        for name in ("staging_cpu", "staging_memory"):
            _require_quantity(name, getattr(self, name), "a Kubernetes quantity such as 4 or 16Gi")
        for name in ("gpu_memory", "cpu", "memory", "shared_memory"):
            if getattr(self, name):
                _require_quantity(name, getattr(self, name), "a Kubernetes quantity such as 4 or 16Gi, or empty")

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


def _require_quantity(name: str, value: str, rule: str) -> None:
    found = _QUANTITY.fullmatch(value)
    require(f"jobs.{name}", value, rule, found is not None)
    if found and name.endswith("cpu"):
        require(f"jobs.{name}", value, "a number of cores such as 4 or 500m", found[2] in (None, "m"))


def _require_template(template: Mapping[str, Any]) -> None:
    """What this process itself reads of a pod template; the rest is the API server's to judge."""
    spec = template.get("spec") or {}
    require("jobs.pod_template.spec", spec, "a mapping", isinstance(spec, Mapping))
    selector = spec.get("nodeSelector") or {}
    require("jobs.pod_template.spec.nodeSelector", selector, "a mapping", isinstance(selector, Mapping))
    containers = spec.get("containers") or []
    named = isinstance(containers, list) and all(isinstance(one, Mapping) and "name" in one for one in containers)
    require("jobs.pod_template.spec.containers", containers, "a list of mappings with a name each", named)
    for one in containers:
        mounts = one.get("volumeMounts") or []
        ok = isinstance(mounts, list) and all(isinstance(mount, Mapping) for mount in mounts)
        require("jobs.pod_template.spec.containers: volumeMounts", mounts, "a list of mappings", ok)
