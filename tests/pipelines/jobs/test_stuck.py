"""Jobs that will never start: each cause has its patience, its reason in the last line, and leaves nothing on the cluster."""

import re
from typing import Any

import pytest

from pipelines.profile.settings import JobSettings
from tests.pipelines.fake_objects import Status
from tests.pipelines.launching import Scene, patience, scene
from tests.pipelines.operator import JOBS, eventually

__all__ = ["scene"]


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    """The status of a pod whose container waits."""
    status = {"name": "pytorch", "image": "reg/none:1", "state": {"waiting": {"reason": reason, "message": message}}, "restartCount": 0}
    return {"phase": "Pending", "containerStatuses": [status]}


def unscheduled(message: str, reason: str = "Unschedulable") -> dict[str, Any]:
    """The status of a pod that no node takes."""
    return {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}]}


@pytest.mark.parametrize(
    ("status", "short", "expected"),
    [
        pytest.param(
            unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
            {"unschedulable": 0},
            "no node accepts it: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
            id="unschedulable",
        ),
        pytest.param(
            waiting("ImagePullBackOff", "Back-off pulling image"),
            {"image": 0},
            "image reg/none:1 cannot be pulled: ImagePullBackOff: Back-off pulling image",
            id="image",
        ),
        pytest.param(waiting("InvalidImageName", "couldn't parse"), {}, "InvalidImageName: couldn't parse", id="image name"),
        pytest.param(
            waiting("CreateContainerConfigError", 'secret "store" not found'),
            {"configuration": 0},
            'CreateContainerConfigError: secret "store" not found',
            id="secret",
        ),
        pytest.param(waiting("ContainerCreating"), {"starting": 0}, "its container has not started", id="nothing said"),
        pytest.param(unscheduled("gated", "SchedulingGated"), {"queued": 0}, "no node accepts it: gated", id="gated"),
    ],
)
def test_a_pod_that_will_not_start(scene: Scene, status: dict[str, Any], short: dict[str, int], expected: str):
    scene.operator.phase = "Pending"
    launch = scene.running(settings=patience(**short))
    scene.operator.status(scene.pod(0), **status)

    outcome = launch.outcome()
    assert outcome.exit_code == 1
    assert f"{scene.pod(0)}: " in outcome.line or "starting" in short
    assert expected in outcome.line
    assert scene.clean()


def test_the_first_error_of_a_pull_is_told_and_not_the_back_off_behind_it(scene: Scene):
    scene.operator.phase = "Pending"
    scene.operator.warn(scene.pod(0), "Failed", 'Failed to pull image "reg/none:1": 404 manifest unknown')
    launch = scene.running(settings=patience(image=1))
    scene.operator.status(scene.pod(0), **waiting("ImagePullBackOff", "Back-off pulling image"))

    assert re.search(r"404 manifest unknown \(for 1 s: jobs.patience.image\)$", launch.outcome().line)


def test_a_volume_that_cannot_be_mounted(scene: Scene):
    scene.operator.phase = "Pending"
    launch = scene.launch(settings=patience(volumes=0))
    eventually(lambda: scene.api.find("pods", scene.pod(1)))
    scene.operator.warn(scene.pod(1), "FailedMount", 'configmap "store-ca" not found')

    assert launch.outcome().line == f'{scene.pod(1)}: FailedMount: configmap "store-ca" not found'


def test_pods_that_a_quota_refuses(scene: Scene):
    """The job is there, its pods are not, and the operator says why in an event."""
    scene.operator.phase = ""
    launch = scene.launch(settings=patience(refused=0))
    eventually(scene.job)
    scene.operator.warn(scene.name, "FailedCreatePod", f'Error creating: pods "{scene.pod(0)}" is forbidden: exceeded quota: gpus')

    assert "0 of 2 pods were created, the others are rejected: Error creating" in launch.outcome().line
    assert scene.clean()


def test_a_job_that_no_operator_looks_at(scene: Scene):
    scene.operator.phase = ""

    assert (
        "0 of 2 pods were created, and no reason is given: is the training operator v1 running?"
        in scene.launch(settings=patience(ignored=0)).outcome().line
    )


def test_a_suspended_job_waits_for_its_queue_and_says_so(scene: Scene):
    """And runs when the suspension is lifted."""
    scene.operator.phase = ""
    launch = scene.launch()
    job = eventually(scene.job)
    scene.api.change(JOBS, scene.name, spec={"runPolicy": {"suspend": True}})
    eventually(lambda: "waiting: it is suspended, and no queue has admitted it" in launch.text())
    scene.operator.phase = "Running"
    scene.api.change(JOBS, scene.name, spec={"runPolicy": {"suspend": False}})
    scene.operator.make_pods(job)
    scene.succeed()

    assert launch.outcome().exit_code == 0


def test_a_job_that_is_never_admitted(scene: Scene):
    scene.operator.phase = ""
    launch = scene.launch(settings=patience(queued=1))
    eventually(scene.job)
    scene.api.change(JOBS, scene.name, spec={"runPolicy": {"suspend": True}})

    assert launch.outcome().line == "it is suspended, and no queue has admitted it (for 1 s: jobs.patience.queued)"
    assert scene.clean()


def test_a_cause_that_passes_in_time_ends_nothing(scene: Scene):
    scene.operator.phase = "Pending"
    launch = scene.running(settings=patience(unschedulable=30))
    scene.operator.status(scene.pod(0), **unscheduled("0/3 nodes are available"))
    eventually(lambda: "waiting: " in launch.text())
    for index in (0, 1):
        running = {"name": "pytorch", "state": {"running": {}}, "restartCount": 0}
        scene.operator.status(scene.pod(index), phase="Running", conditions=[], containerStatuses=[running])
    scene.succeed()

    assert launch.outcome().exit_code == 0


@pytest.mark.parametrize(
    "status", [unscheduled("1 node(s) were unschedulable"), waiting("ImagePullBackOff"), None], ids=["node", "registry", "operator"]
)
def test_a_job_that_ran_is_given_longer_than_one_that_never_did(scene: Scene, status: dict[str, Any] | None):
    """A drained node comes back, a registry is restarted, an operator moves."""
    launch = scene.running(settings=patience(unschedulable=0, image=0, ignored=0))
    eventually(lambda: len(launch.job._incidents._uids) == 2)
    if status is None:
        scene.api.remove("pods", scene.pod(1))
    else:
        scene.operator.status(scene.pod(1), **{"containerStatuses": [], **status})
    eventually(lambda: "waiting: " in launch.text())

    assert launch.job.watch() is None


def test_more_gpus_than_any_node_has_are_refused_before_anything_is_made(scene: Scene):
    for name, count in (("a", "4"), ("b", "8")):
        scene.api.put("nodes", {"metadata": {"name": name, "namespace": ""}, "status": {"allocatable": {"nvidia.com/gpu": count}}})

    outcome = scene.launch(settings=JobSettings(gpus_per_node=16)).outcome()
    assert outcome.exit_code == 2
    assert outcome.line == "jobs.gpus_per_node must be at most 8, the nvidia.com/gpu count of the largest node, got 16"
    assert ("create", JOBS) not in scene.api.requests


def test_gpus_of_another_name_are_counted_by_it(scene: Scene):
    allocatable = {"nvidia.com/gpu": "8", "amd.com/gpu": "4"}
    scene.api.put("nodes", {"metadata": {"name": "a", "namespace": ""}, "status": {"allocatable": allocatable}})

    outcome = scene.launch(settings=JobSettings(gpus_per_node=8, gpu_resource="amd.com/gpu")).outcome()
    assert outcome.line == "jobs.gpus_per_node must be at most 4, the amd.com/gpu count of the largest node, got 8"


def test_who_may_not_list_nodes_goes_on_without(scene: Scene):
    forbidden = 'nodes is forbidden: User "ana" cannot list resource "nodes" in API group "" at the cluster scope'
    scene.api.refuse = lambda verb, resource, body: Status(403, "Forbidden", forbidden, "nodes") if resource == "nodes" else None
    scene.launch(settings=JobSettings(gpus_per_node=16))

    assert eventually(scene.job)


@pytest.mark.parametrize(
    ("code", "message", "exit_code"),
    [
        (400, 'admission webhook "validator.pytorchjob" denied the request: spec.pytorchReplicaSpecs is wrong', 2),
        (403, 'pytorchjobs.kubeflow.org "j" is forbidden: exceeded quota: jobs, requested: count=1, used: count=1, limited: count=1', 1),
        (403, 'pytorchjobs.kubeflow.org is forbidden: User "ana" cannot create resource "pytorchjobs" in API group "kubeflow.org"', 2),
    ],
)
def test_a_job_that_the_api_server_refuses(scene: Scene, code: int, message: str, exit_code: int):
    """A wrong request is the user's to fix; a quota may be free later."""
    scene.api.refuse = lambda verb, resource, body: Status(code, "Forbidden", message, JOBS) if verb == "create" else None

    outcome = scene.launch().outcome()
    assert outcome.exit_code == exit_code
    assert message in outcome.line or "no permission to create pytorchjobs.kubeflow.org in namespace team as ana" in outcome.line


@pytest.mark.parametrize("resource", ["pods", JOBS])
def test_a_launcher_that_may_not_watch_says_so_and_leaves_nothing(scene: Scene, resource: str):
    message = f'{resource} is forbidden: User "ana" cannot list resource "{resource}" in API group ""'
    scene.api.refuse = lambda verb, what, body: Status(403, "Forbidden", message, "x") if (verb, what) == ("list", resource) else None

    outcome = scene.launch().outcome()
    assert outcome.exit_code == 2
    assert f"no permission to list {resource} in namespace team as ana" in outcome.line
    assert scene.api.find(JOBS, scene.name) is None or "could not be deleted" in outcome.line


def test_without_permission_to_read_events_and_logs_a_job_is_followed_all_the_same(scene: Scene):
    def refuse(verb: str, what: str, body: object) -> Status | None:
        message = f'{what} is forbidden: User "ana" cannot {verb} resource "{what}" in API group ""'
        return Status(403, "Forbidden", message, "x") if what in ("events", "pods/log") else None

    scene.api.refuse = refuse
    launch = scene.running()
    eventually(lambda: "the log cannot be read: no permission to get pods/log" in launch.text())
    scene.succeed()

    assert launch.outcome().exit_code == 0


def test_a_cluster_without_the_operators_crd(scene: Scene):
    scene.api.served.remove("/apis/kubeflow.org/v1/pytorchjobs")

    outcome = scene.launch().outcome()
    assert outcome.exit_code == 2
    assert "has no pytorchjobs.kubeflow.org (kubeflow.org/v1): install the training operator v1" in outcome.line


def test_a_namespace_that_is_missing(scene: Scene):
    scene.api.namespaces.clear()

    assert "namespace team does not exist" in scene.launch().outcome().line
