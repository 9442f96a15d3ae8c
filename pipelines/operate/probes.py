"""What a cluster serves and what an account may do: the questions that checks and the chart's preflight ask, and the rights they expect."""

from collections.abc import Callable, Mapping, Sequence

from pipelines.cluster.api import Api
from pipelines.cluster.connection import WORKFLOW, Kind
from pipelines.cluster.kueue import QUEUE_LABEL
from pipelines.jobs.shapes import by_backend, job_kinds, registered, require_backend
from pipelines.jobs.shapes.indexed import JOB
from pipelines.profile.profile import Profile
from pipelines.profile.settings import JobSettings
from trainer.errors import InputError

Check = tuple[str, Callable[[], str]]
"""What is looked at, and the look: it says what it found, or raises."""
Rights = Mapping[str, Sequence[str]]

_FOLLOW = ("get", "list", "watch")
RUN_RIGHTS: Rights = {
    **{kind.resource: (*_FOLLOW, "create", "patch", "delete") for kind in job_kinds()},
    "pods": (*_FOLLOW, "delete"),
    "pods/log": ("get",),
    "events": _FOLLOW,
}
"""What the steps of a pipeline may do in their namespace. The chart's Roles are made from these tables by scripts/registry_files.py."""
QUEUE_RIGHTS: Rights = {"workloads.kueue.x-k8s.io": ("list",), "localqueues.kueue.x-k8s.io": ("get", "list")}
"""Likewise what they may do beside it where the profile names queues of Kueue's: whoever installs the chart must hold what it grants."""
REAPER_RIGHTS: Rights = {
    "workflows.argoproj.io": _FOLLOW,
    **{kind.resource: (*_FOLLOW, "patch", "delete") for kind in job_kinds()},
    "pods": (*_FOLLOW, "delete"),
}
"""Likewise the reaper."""
UNINSTALL_RIGHTS: Rights = {
    **{kind.resource: ("list",) for kind in job_kinds()},
    # Jobs and pods of hooks and tests that failed stay for their logs: uninstall takes them along.
    JOB.resource: ("list", "delete"),
    "pods": ("list", "delete"),
}
"""Likewise what runs before the chart is uninstalled."""


def needed_kinds(profile: Profile, *, kubeflow: bool) -> list[Kind]:
    """The kinds of object that a run with this profile makes or reads and that a cluster may lack."""
    require_backend(profile.backend)
    kinds = [shape.kind for name, shape in by_backend().items() if name == profile.backend]
    return [*kinds, WORKFLOW] if kubeflow else kinds


def kueues(profile: Profile) -> list[str]:
    """The queues of Kueue's that runs with this profile may name: its own, and those of `limits.queues`."""
    listed = profile.limits.queues if profile.jobs.queue_label == QUEUE_LABEL else ()
    return [name for name in dict.fromkeys((profile.jobs.labels.get(QUEUE_LABEL, ""), *listed)) if name]


def allowed(api: Api, verb: str, resource: str, namespace: str) -> bool:
    """Whether this account may; `resource` as `kubectl auth can-i` takes it, such as jobs.batch or pods/log."""
    name, _, group = resource.partition(".")
    name, _, part = name.partition("/")
    attributes = {"verb": verb, "group": group, "resource": name, "subresource": part, "namespace": namespace}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}
    answer = api.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
    return bool(answer["status"].get("allowed"))


def served(api: Api, kind: Kind, settings: JobSettings) -> str:
    """The version in which the cluster has this kind. InputError if it has not, or in a form in which no job like this can be made."""
    if not api.serves(kind.api_version, kind.plural):
        raise InputError(f"the cluster has no {kind.resource} in {kind.api_version}: install {kind.source}")
    for shape in registered():
        if shape.kind == kind:
            shape(settings).served_by(api)
    return kind.api_version
