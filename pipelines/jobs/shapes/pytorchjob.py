"""A training stage as a PyTorchJob of the training operator v1, in the one form that survives node failures, preemption and restarts.

Worker-only and elastic with min = max: torchrun's agents find each other by c10d, and when a rank dies the
group restarts in place. Success is never read from the job's conditions (with an elastic policy the first
worker that ends makes it Succeeded) but from COMMITTED.json. The job is plain data; tests check it against
kubeflow-training's models and the operator's CRD, and that it has no fields that differ between versions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cluster.connection import Kind
from pipelines.cluster.names import DOMAIN, Identity
from pipelines.jobs.base import JobSpec, placement_arguments
from pipelines.jobs.shapes.base import Phase, Shape, phase_of
from pipelines.jobs.shapes.pod import pod_template
from pipelines.profile.settings import JobSettings
from trainer.config import canonical_hash

PYTORCHJOB = Kind("kubeflow.org/v1", "pytorchjobs", "PyTorchJob", "the training operator v1", "training.kubeflow.org/job-name")
CONTAINER = "pytorch"  # the operator's webhook requires this name
MAX_RESTARTS = 10
ENVIRONMENT = {
    # Without it a replaced pod stalls the group for a minute and then restarts every container.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"
}


class PyTorchJobs(Shape):
    """How the launcher creates and reads PyTorchJobs."""

    kind = PYTORCHJOB
    container = CONTAINER
    backend = "pytorchjob"
    about = "training operator v1"
    suspended_by = ("runPolicy", "suspend")
    longest_name = 54  # at 55 the job is reported as Running, but its Services are never created

    def manifest(self, spec: JobSpec, attempt: int) -> dict[str, Any]:
        """The job of one attempt."""
        assert spec.identity is not None
        placement = placed(self._settings, spec.placement, attempt, spec.resume)
        return manifest(spec.identity, self._settings, spec.arguments, spec.recipe_hash, spec.environment, placement)

    def phase(self, job: Mapping[str, Any]) -> Phase:
        """From the job's conditions; a queue suspends it with a field."""
        return phase_of(job, bool(job["spec"].get("runPolicy", {}).get("suspend")), succeeded="Succeeded")

    def pods_wanted(self, job: Mapping[str, Any]) -> int:
        """One a node."""
        return int(job["spec"]["pytorchReplicaSpecs"]["Worker"].get("replicas", 1))

    def is_leader(self, pod: Mapping[str, Any]) -> bool:
        """Worker 0 hosts the rendezvous; rank 0 is nearly always there."""
        return bool(pod["metadata"].get("labels", {}).get("training.kubeflow.org/replica-index") == "0")


def manifest(
    identity: Identity,
    settings: JobSettings,
    arguments: Sequence[str],
    recipe_hash: str,
    environment: Mapping[str, str] | None = None,
    placement: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The PyTorchJob that runs `python -m trainer <arguments>` on every node.

    Args:
        identity: gives the name and the labels.
        settings: where and with what resources it runs.
        arguments: arguments of `python -m trainer`.
        recipe_hash: hash of the stage, kept in an annotation; a job of this name with another hash is refused.
        environment: variables in addition to those of the settings.
        placement: fields of the trainer's placement, as `placed` gives them; None: those of a first attempt.

    Raises:
        InputError: a setting would change this form.
    """
    placement = placed(settings, {}, 0, "auto") if placement is None else placement
    max_restarts = int(placement["max_restarts"])
    labels, annotations = identity.labels(), {f"{DOMAIN}/recipe-hash": recipe_hash}
    spec = {
        "runPolicy": {
            "cleanPodPolicy": "Running",
            "ttlSecondsAfterFinished": settings.ttl_seconds,
            "backoffLimit": max_restarts * settings.nodes,  # only a safety limit: one restart of the group counts once per pod
        },
        "elasticPolicy": {
            "minReplicas": settings.nodes,
            "maxReplicas": settings.nodes,
            "rdzvBackend": "c10d",
            "maxRestarts": max_restarts,
        },
        "nprocPerNode": str(settings.processes_per_node),
        "pytorchReplicaSpecs": {
            "Worker": {
                "replicas": settings.nodes,
                "restartPolicy": "OnFailure",
                "template": pod_template(
                    settings,
                    CONTAINER,
                    [*arguments, *placement_arguments(placement)],
                    labels,
                    annotations,
                    {**ENVIRONMENT, **(environment or {})},
                    placement=placement,
                ),
            }
        },
    }
    metadata = {
        "name": identity.name,
        "namespace": settings.namespace,
        "labels": {**settings.labels, **labels},
        "annotations": {**settings.annotations, **annotations, f"{DOMAIN}/spec-hash": canonical_hash(spec)},
    }
    return {"apiVersion": PYTORCHJOB.api_version, "kind": PYTORCHJOB.kind, "metadata": metadata, "spec": spec}


def placed(settings: JobSettings, given: Mapping[str, Any], attempt: int, resume: str) -> dict[str, Any]:
    """The trainer's placement: a job's defaults, overridden by profile and request, then by values that only the launcher knows."""
    return {
        "max_restarts": MAX_RESTARTS,
        "preflight": True,
        **given,
        "nodes": settings.nodes,
        "processes_per_node": settings.processes_per_node,
        "metrics_port": settings.metrics_port,
        "attempt": attempt,
        "resume": resume,
    }


SHAPE = PyTorchJobs
