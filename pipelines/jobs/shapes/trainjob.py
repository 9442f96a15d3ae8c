"""A training stage as a TrainJob of Kubeflow Trainer 2.0 to 2.3 (beta), with the TrainingRuntime `firstsight` that the chart ships.

A TrainJob says what runs and on how many nodes; the rest of the pod (ports, scheduler) comes from the runtime. Each minor version renamed
the field with which a job customises its pods, all under one API version, so the manifest follows the schema that the cluster serves.
Trainer has no elastic jobs: its PET_* variables say how many nodes there are, and ours add the rendezvous address, so that torchrun's
agents restart the group in place, as in a PyTorchJob (pipelines/jobs/shapes/pytorchjob.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pipelines.cluster.api import Api
from pipelines.cluster.connection import Kind
from pipelines.cluster.names import DOMAIN
from pipelines.cluster.schema import Schema, below, served_schema
from pipelines.jobs.base import JobSpec, placement_arguments
from pipelines.jobs.shapes.base import Phase, Shape, phase_of
from pipelines.jobs.shapes.indexed import is_of_index_0
from pipelines.jobs.shapes.pod import TEMPLATE_CONTAINER, pod_template
from pipelines.jobs.shapes.pytorchjob import ENVIRONMENT, placed
from pipelines.profile.settings import JobSettings
from trainer.errors import InputError

TRAINJOB = Kind(
    "trainer.kubeflow.org/v1alpha1", "trainjobs", "TrainJob", "Kubeflow Trainer v2", "jobset.sigs.k8s.io/jobset-name", remakes=True
)
RUNTIME = "firstsight"
CONTAINER = "node"
RENDEZVOUS_PORT = 29400
SECRET_KEYS = {"AWS_ACCESS_KEY_ID": False, "AWS_SECRET_ACCESS_KEY": False, "AWS_SESSION_TOKEN": True}
"""Keys of `jobs.store_secret`, and whether each may be missing: a TrainJob cannot use envFrom with a Secret."""
RUNTIMES = ("imagePullSecrets", "priorityClassName")
"""Fields that the chart writes into the runtime from the same values, as it does with jobs.scheduler_name."""
CONTAINER_KEYS = {"name", "image", "command", "args", "env", "resources"}
"""Fields of the trainer's container that a TrainJob sets outside the field for the rest of the pod."""
POD_IN = {
    "podSpecOverrides": (),
    "podTemplateOverrides": ("spec",),
    "runtimePatches": ("trainingRuntimeSpec", "template", "spec", "replicatedJobs", "template", "spec", "template", "spec"),
}
"""The field with which a TrainJob customises its pods in Trainer 2.0, in 2.1, and in 2.2 and 2.3, and the pod spec's path inside it."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What TrainJobs on a given cluster can express.

    Attributes:
        field: a key of POD_IN.
        labels: whether the job has a field for labels of the objects it creates.
        metadata: whether it can set labels and annotations of its pods.
        pod: keys of a pod's spec that it can set.
        container: keys of the trainer's container that it can set there.
    """

    field: str
    labels: bool
    metadata: bool
    pod: frozenset[str]
    container: frozenset[str]


NEWEST = Form(
    field="runtimePatches",
    labels=False,
    metadata=True,
    pod=frozenset(
        "affinity imagePullSecrets nodeSelector schedulingGates securityContext serviceAccountName terminationGracePeriodSeconds "
        "tolerations volumes".split()
    ),
    container=frozenset(("securityContext", "volumeMounts")),
)
"""The form of Trainer 2.3, which a dry run shows because it queries no cluster."""


def form_of(schema: Schema, server: str) -> Form:
    """The form of a served schema of TrainJobs.

    Raises:
        InputError: the schema matches no known form.
    """
    spec = below(schema, "spec").get("properties", {})
    field = next((name for name in POD_IN if name in spec), "")
    pod = below(schema, "spec", field, *POD_IN.get(field, ())).get("properties", {})
    if not pod or "trainer" not in spec or "runtimeRef" not in spec:
        raise InputError(
            f"{server} serves TrainJobs ({TRAINJOB.api_version}) of an unsupported version of Kubeflow Trainer: their spec has "
            f"{', '.join(sorted(spec)) or 'no fields'}, and with none of {', '.join(POD_IN)} (2.0 to 2.3) a job cannot have its volumes: "
            "install one of those, or choose the backend pytorchjob"
        )
    metadata = below(schema, "spec", field, *POD_IN[field][:-1], "metadata") if POD_IN[field] else {}
    return Form(
        field=field,
        labels="labels" in spec,
        metadata="labels" in metadata.get("properties", {}),
        pod=frozenset(pod) - {"containers", "initContainers", "targetJobs"},
        container=frozenset(below(pod["containers"]).get("properties", {})) - {"name", "env"},
    )


class TrainJobs(Shape):
    """How the launcher creates and reads TrainJobs."""

    kind = TRAINJOB
    container = CONTAINER
    backend = "trainjob"
    about = "Kubeflow Trainer 2.0 to 2.3, beta"
    longest_name = 46  # its JobSet's pods are called `<name>-node-0-<rank>-<5 letters>`, which fits in 63 up to 100 nodes

    def __init__(self, settings: JobSettings, form: Form = NEWEST) -> None:
        super().__init__(settings)
        self.form = form

    def served_by(self, api: Api) -> Self:
        """This shape in the form of the schema that the server serves.

        Raises:
            InputError: it is not known here, or cannot express what a pod template asks for.
        """
        form = form_of(served_schema(api, self.kind), api.server)
        _reject_unsupported(self._settings, form)
        return type(self)(self._settings, form)

    def manifest(self, spec: JobSpec, attempt: int) -> dict[str, Any]:
        """The job of one attempt.

        Raises:
            InputError: `jobs.pod_template` asks for something a TrainJob cannot express.
        """
        assert spec.identity is not None
        settings, name, labels = self._settings, spec.identity.name, spec.identity.labels()
        _reject_unsupported(settings, self.form)
        placement = placed(settings, spec.placement, attempt, spec.resume)
        arguments = [*spec.arguments, *placement_arguments(placement)]
        environment = {**ENVIRONMENT, **_rendezvous(name, int(placement["max_restarts"])), **spec.environment}
        template = pod_template(settings, CONTAINER, arguments, labels, {}, environment, placement=placement)
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
                **({"labels": labels} if self.form.labels else {}),
                "trainer": {
                    "image": container["image"],
                    "command": container["command"],
                    "args": container["args"],
                    "env": [*container["env"], *_secrets(settings.store_secret)],
                    "numNodes": settings.nodes,
                    "numProcPerNode": settings.processes_per_node,
                    "resourcesPerNode": container["resources"],
                },
                self.form.field: [_patch(self.form, labels, template, container)],
            },
        }

    def phase(self, job: Mapping[str, Any]) -> Phase:
        """The phase according to its conditions; a queue suspends it through a field."""
        return phase_of(job, bool(job["spec"].get("suspend")), succeeded="Complete")

    def pods_wanted(self, job: Mapping[str, Any]) -> int:
        """One per node."""
        return int(job["spec"]["trainer"]["numNodes"])

    def is_leader(self, pod: Mapping[str, Any]) -> bool:
        """Whether it is node 0, the rendezvous point; rank 0 is nearly always there."""
        return is_of_index_0(pod)


def _rendezvous(name: str, max_restarts: int) -> dict[str, str]:
    """Where torchrun's agents meet: node 0, under the name that its JobSet gives it. Trainer's own PET_* variables provide the rest."""
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


def _patch(form: Form, labels: Mapping[str, str], template: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, Any]:
    """What the job sets on its pods besides the trainer, in this form."""
    pod = {
        **{key: template["spec"][key] for key in sorted(form.pod) if key in template["spec"]},
        "containers": [{"name": CONTAINER, **{key: container[key] for key in sorted(form.container) if key in container}}],
    }
    if form.field == "podSpecOverrides":
        return {"targetJobs": [{"name": CONTAINER}], **pod}
    of_pods = {**({"metadata": template["metadata"]} if form.metadata else {}), "spec": pod}
    if form.field == "podTemplateOverrides":
        return {"targetJobs": [{"name": CONTAINER}], **of_pods}
    jobs = [{"name": CONTAINER, "template": {"metadata": {"labels": labels}, "spec": {"template": of_pods}}}]
    template_of_jobset = {"metadata": {"labels": labels}, "spec": {"replicatedJobs": jobs}}
    return {"manager": f"{DOMAIN}/launcher", "trainingRuntimeSpec": {"template": template_of_jobset}}


def _reject_unsupported(settings: JobSettings, form: Form) -> None:
    for name, template in settings.templates("train").items():
        unsaid = [f"metadata.{key}" for key in template.get("metadata") or {} if not (form.metadata and key in ("labels", "annotations"))]
        spec = template.get("spec") or {}
        unsaid += [f"spec.{key}" for key in spec if key not in (*form.pod, *RUNTIMES, "containers")]
        for container in spec.get("containers") or []:
            if container["name"] != TEMPLATE_CONTAINER:
                unsaid.append(f"spec.containers {container['name']!r}")
            else:
                unsaid += [f"spec.containers.{key}" for key in container if key not in CONTAINER_KEYS | form.container]
        if unsaid:
            raise InputError(f"jobs.{name}: a TrainJob cannot set {', '.join(unsaid)}: set it in the TrainingRuntime {RUNTIME!r}")


SHAPE = TrainJobs
