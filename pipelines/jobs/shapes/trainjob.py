"""A training stage as a TrainJob of Kubeflow Trainer v2.0.0 (beta), with the TrainingRuntime `firstsight` that the chart ships.

A TrainJob says what runs and on how many nodes; the rest of the pod (security, ports, scheduler) is the runtime's. Trainer 2.0
has no elastic jobs: its PET_* variables say how many nodes there are, ours beside them where they meet, and so torchrun's
agents restart the group in place as in a PyTorchJob (pipelines/jobs/shapes/pytorchjob.py).
"""

from collections.abc import Mapping
from typing import Any

from pipelines.cluster.connection import Kind
from pipelines.jobs.base import JobSpec, placement_arguments
from pipelines.jobs.shapes.base import Phase, Shape, phase_of
from pipelines.jobs.shapes.indexed import is_of_index_0
from pipelines.jobs.shapes.pod import TEMPLATE_CONTAINER, pod_template
from pipelines.jobs.shapes.pytorchjob import ENVIRONMENT, placed
from pipelines.profile.settings import JobSettings
from trainer.errors import InputError

TRAINJOB = Kind("trainer.kubeflow.org/v1alpha1", "trainjobs", "TrainJob", "Kubeflow Trainer v2", "jobset.sigs.k8s.io/jobset-name")
RUNTIME = "firstsight"
CONTAINER = "node"
RENDEZVOUS_PORT = 29400
SECRET_KEYS = {"AWS_ACCESS_KEY_ID": False, "AWS_SECRET_ACCESS_KEY": False, "AWS_SESSION_TOKEN": True}
"""Keys of `jobs.store_secret`, and whether each may be missing: a TrainJob cannot take a Secret whole."""
OVERRIDABLE = ("nodeSelector", "tolerations", "serviceAccountName", "volumes", "schedulingGates")
"""What of a pod's spec a TrainJob can set beside its trainer."""
RUNTIMES = ("imagePullSecrets", "priorityClassName")
"""What the chart writes into the runtime from the same values, as it does jobs.scheduler_name."""
CONTAINER_KEYS = {"name", "image", "command", "args", "env", "resources", "volumeMounts"}


class TrainJobs(Shape):
    """How the launcher makes and reads TrainJobs."""

    kind = TRAINJOB
    container = CONTAINER
    backend = "trainjob"
    about = "Kubeflow Trainer v2, beta"
    longest_name = 46  # its JobSet's pods are called `<name>-node-0-<rank>-<5 letters>`, at most 63 up to 100 nodes

    def manifest(self, spec: JobSpec, attempt: int) -> dict[str, Any]:
        """The job of one attempt.

        Raises:
            InputError: `jobs.pod_template` asks for what a TrainJob cannot say.
        """
        assert spec.identity is not None
        settings, name, labels = self._settings, spec.identity.name, spec.identity.labels()
        _refuse_what_it_cannot_say(settings)
        placement = placed(settings, spec.placement, attempt, spec.resume)
        arguments = [*spec.arguments, *placement_arguments(placement)]
        template = pod_template(
            settings,
            CONTAINER,
            arguments,
            labels,
            {},
            {**ENVIRONMENT, **_rendezvous(name, int(placement["max_restarts"])), **spec.environment},
        )
        (container,) = [entry for entry in template["spec"]["containers"] if entry["name"] == CONTAINER]
        return {
            "apiVersion": TRAINJOB.api_version,
            "kind": TRAINJOB.kind,
            "metadata": {
                "name": name,
                "namespace": settings.namespace,
                "labels": {**settings.labels, **labels},
                "annotations": dict(settings.annotations),
            },
            "spec": {
                "runtimeRef": {"apiGroup": TRAINJOB.api_version.partition("/")[0], "kind": "TrainingRuntime", "name": RUNTIME},
                "labels": labels,
                "trainer": {
                    "image": container["image"],
                    "command": container["command"],
                    "args": container["args"],
                    "env": [*container["env"], *_secrets(settings.store_secret)],
                    "numNodes": settings.nodes,
                    "numProcPerNode": settings.processes_per_node,
                    "resourcesPerNode": container["resources"],
                },
                "podSpecOverrides": [
                    {
                        "targetJobs": [{"name": CONTAINER}],
                        **{key: template["spec"][key] for key in OVERRIDABLE if key in template["spec"]},
                        "containers": [{"name": CONTAINER, "volumeMounts": container["volumeMounts"]}],
                    }
                ],
            },
        }

    def phase(self, job: Mapping[str, Any]) -> Phase:
        """By its conditions; a queue suspends it by a field."""
        return phase_of(job, bool(job["spec"].get("suspend")), succeeded="Complete", failed="Failed")

    def pods_wanted(self, job: Mapping[str, Any]) -> int:
        """One a node."""
        return int(job["spec"]["trainer"]["numNodes"])

    def is_leader(self, pod: Mapping[str, Any]) -> bool:
        """Node 0 is where the others meet; rank 0 is nearly always there."""
        return is_of_index_0(pod)


def _rendezvous(name: str, max_restarts: int) -> dict[str, str]:
    """Where torchrun's agents meet: node 0, by the name that its JobSet gives it. The PET_* variables of Trainer's own say the rest."""
    return {
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"{name}-node-0-0.{name}:{RENDEZVOUS_PORT}",
        "PET_RDZV_ID": name,
        "PET_MAX_RESTARTS": str(max_restarts),
    }


def _secrets(name: str) -> list[dict[str, Any]]:
    """The store's credentials by reference, key by key."""
    if not name:
        return []
    return [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": name, "key": key, **({"optional": True} if optional else {})}}}
        for key, optional in SECRET_KEYS.items()
    ]


def _refuse_what_it_cannot_say(settings: JobSettings) -> None:
    template = settings.pod_template
    unsaid = [f"metadata.{key}" for key in template.get("metadata") or {}]
    spec = template.get("spec") or {}
    unsaid += [f"spec.{key}" for key in spec if key not in (*OVERRIDABLE, *RUNTIMES, "containers")]
    for container in spec.get("containers") or []:
        if container["name"] != TEMPLATE_CONTAINER:
            unsaid.append(f"spec.containers {container['name']!r}")
        else:
            unsaid += [f"spec.containers.{key}" for key in container if key not in CONTAINER_KEYS]
    if unsaid:
        raise InputError(f"jobs.pod_template: a TrainJob cannot set {', '.join(unsaid)}: put it into the TrainingRuntime {RUNTIME!r}")


SHAPE = TrainJobs
