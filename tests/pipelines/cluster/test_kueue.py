"""What is made of Kueue's words about a job and a queue, in each version of its API."""

from typing import Any

import pytest

from pipelines.cluster.connection import Cluster, Kind, MissingKind
from pipelines.cluster.kueue import QUEUE_LABEL, UNQUEUED, Admission, Kueue
from pipelines.jobs.shapes import job_kinds
from tests.pipelines import fake_kueue
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.fake_jobs import put_job
from tests.pipelines.fake_kueue import NEVER, NO_ROOM, PREEMPTED
from tests.pipelines.fake_objects import Status
from trainer.errors import InputError

KINDS = {kind.kind: kind for kind in job_kinds()}
WAITS = "it waits in queue gpus"
PENDING, NO_QUOTA = ("QuotaReserved", "False", "Pending", NO_ROOM), ("QuotaReserved", "False", "Pending", NEVER)
EVICTED = ("Evicted", "True", "Preempted", PREEMPTED)


def why(cluster: Cluster, job: dict[str, Any], kind: Kind = KINDS["PyTorchJob"]) -> Admission:
    """What a launcher that begins to follow the job is told."""
    return Kueue(cluster).why(job, kind)


@pytest.fixture
def job(api_server: FakeApi) -> dict[str, Any]:
    """A job that names a queue, of a cluster with that queue."""
    fake_kueue.serve(api_server, "v1beta2")
    fake_kueue.queue(api_server, "gpus")
    return put_job(api_server, labels={QUEUE_LABEL: "gpus"})


@pytest.mark.parametrize("versions", [("v1beta1",), ("v1beta2",), ("v1beta1", "v1beta2"), ("v1",)])
def test_the_version_is_the_one_that_the_cluster_serves(api_server: FakeApi, api_cluster: Cluster, versions: tuple[str, ...]):
    """Whatever it is called: labels and conditions are the same."""
    fake_kueue.serve(api_server, *versions)
    fake_kueue.queue(api_server, "gpus")
    job = put_job(api_server, labels={QUEUE_LABEL: "gpus"})
    fake_kueue.workload(api_server, job, PENDING)

    assert Kueue(api_cluster).require("gpus") == "LocalQueue team/gpus of ClusterQueue all"
    assert why(api_cluster, job) == Admission(text=f"{WAITS}: {NO_ROOM}")


def test_a_cluster_that_does_not_say_what_it_serves_has_not_said_that_it_has_no_kueue(api_server: FakeApi, api_cluster: Cluster):
    """The run goes on, as where the queue itself may not be read."""
    fake_kueue.serve(api_server, "v1beta2")
    api_server.refuse = lambda verb, resource, body: Status(403, "Forbidden", "no discovery") if verb == "discover" else None
    job = put_job(api_server, labels={QUEUE_LABEL: "gpus"})
    said = f"{api_cluster.server} does not say what it serves (/apis/kueue.x-k8s.io): no discovery"

    assert Kueue(api_cluster).require("gpus").startswith(f"not checked: {said}")
    assert why(api_cluster, job).text.startswith(f"{WAITS}; the reason cannot be read: {said}")


def test_a_version_that_is_withdrawn_in_mid_run_is_asked_for_again(api_server: FakeApi, api_cluster: Cluster, job: dict[str, Any]):
    """Kueue was upgraded."""
    kueue = Kueue(api_cluster)
    fake_kueue.workload(api_server, job, PENDING)
    assert kueue.why(job, KINDS["PyTorchJob"]).text.endswith(NO_ROOM)
    api_server.served -= {path for path in api_server.served if "/v1beta2/" in path}
    fake_kueue.serve(api_server, "v1")

    kueue.why(job, KINDS["PyTorchJob"])

    assert kueue.why(job, KINDS["PyTorchJob"]).text.endswith(NO_ROOM)


@pytest.mark.parametrize(
    ("conditions", "status", "expected"),
    [
        ((), {}, Admission(text=WAITS)),
        ((PENDING,), {}, Admission(text=f"{WAITS}: {NO_ROOM}")),
        ((NO_QUOTA,), {}, Admission(text=f"{WAITS}: {NEVER}", cause="unschedulable")),
        ((("QuotaReserved", "False", "Pending", f"{NEVER}, {NO_ROOM}"),), {}, Admission(text=f"{WAITS}: {NEVER}, {NO_ROOM}")),
        ((EVICTED, PENDING), {}, Admission(text=f"preempted: {PREEMPTED}; {WAITS}: {NO_ROOM}", preempted=True)),
        (
            (EVICTED, ("QuotaReserved", "False", "Pending", PREEMPTED)),
            {},
            Admission(text=f"preempted: {PREEMPTED}; {WAITS}", preempted=True),
        ),
        (
            (("Evicted", "True", "LocalQueueStopped", "The LocalQueue is stopped"), PENDING),
            {},
            Admission(text=f"evicted: The LocalQueue is stopped; {WAITS}: {NO_ROOM}", preempted=True),
        ),
        ((("Evicted", "False", "QuotaReserved", "x"), PENDING), {}, Admission(text=f"{WAITS}: {NO_ROOM}")),
        (
            (("QuotaReserved", "True", "QuotaReserved", "x"),),
            {"admissionChecks": [{"name": "a", "state": "Ready"}, {"name": "nodes", "state": "Pending"}]},
            Admission(text=f"{WAITS}: its quota is reserved, and it is waiting for admission checks nodes"),
        ),
        ((("QuotaReserved", "True", "QuotaReserved", "x"),), {}, Admission(text=f"{WAITS}: its quota is reserved")),
    ],
)
def test_why_a_job_waits(
    api_server: FakeApi,
    api_cluster: Cluster,
    job: dict[str, Any],
    conditions: tuple[tuple[str, str, str, str], ...],
    status: dict[str, Any],
    expected: Admission,
):
    """In Kueue's words; a request above the whole quota is told from one that only has to wait."""
    fake_kueue.workload(api_server, job, *conditions, **status)

    assert why(api_cluster, job) == expected


def test_a_workload_that_was_deactivated(api_server: FakeApi, api_cluster: Cluster, job: dict[str, Any]):
    """It is not requeued by itself."""
    fake_kueue.workload(api_server, job, ("Evicted", "True", "Deactivated", "by an administrator"), active=False)

    assert why(api_cluster, job) == Admission(text="Kueue has deactivated it: by an administrator", preempted=True)


def test_the_workload_of_another_job_says_nothing_of_this_one(api_server: FakeApi, api_cluster: Cluster, job: dict[str, Any]):
    """They are told apart by uid: a job of an earlier attempt had the same name."""
    fake_kueue.workload(api_server, {"metadata": {"name": job["metadata"]["name"], "uid": "another"}}, PENDING)

    assert why(api_cluster, job).cause == "ignored"


@pytest.mark.parametrize(
    ("kind", "framework"),
    [("PyTorchJob", "kubeflow.org/pytorchjob"), ("TrainJob", "trainer.kubeflow.org/trainjob"), ("Job", "batch/job")],
)
def test_an_integration_that_is_switched_off(api_cluster: Cluster, job: dict[str, Any], kind: str, framework: str):
    """Then Kueue makes no Workload and says nothing."""
    text = f"{WAITS}, but Kueue has created no Workload for it: is {framework} among its integrations.frameworks?"
    assert why(api_cluster, job, KINDS[kind]) == Admission(text=text, cause="ignored")


def test_a_queue_that_went_away(api_server: FakeApi, api_cluster: Cluster, job: dict[str, Any]):
    api_server.remove(fake_kueue.QUEUES, "gpus")

    found = why(api_cluster, job)

    assert (found.cause, found.text) == ("configuration", "queue must name a LocalQueue of namespace team, got 'gpus': there is none")


def test_a_job_that_names_no_queue(api_cluster: Cluster, api_server: FakeApi):
    """Another's label, or none: Kueue is not asked."""
    assert why(api_cluster, put_job(api_server, labels={"volcano.sh/queue-name": "gpus"})) == UNQUEUED


def test_no_kueue(api_server: FakeApi, api_cluster: Cluster):
    job = put_job(api_server, labels={QUEUE_LABEL: "gpus"})

    found = why(api_cluster, job)

    assert found == Admission(
        text=f"{WAITS}, but the cluster does not serve kueue.x-k8s.io: install Kueue, or set no queue", cause="ignored"
    )
    with pytest.raises(MissingKind, match=r"has no localqueues.kueue.x-k8s.io: install Kueue, or name no queue"):
        Kueue(api_cluster).require("gpus")


def test_who_may_not_look_is_told_so(api_server: FakeApi, api_cluster: Cluster, job: dict[str, Any]):
    """The Role of an older chart: the job waits all the same, and no queue is refused for it."""
    message = f'workloads is forbidden: User "ana" cannot list resource "workloads" in API group "{fake_kueue.GROUP}"'
    objects = (fake_kueue.WORKLOADS, fake_kueue.QUEUES)
    api_server.refuse = lambda verb, resource, body: Status(403, "Forbidden", message) if resource in objects else None

    assert why(api_cluster, job).text.startswith(f"{WAITS}; the reason cannot be read: no permission to list workloads.kueue.x-k8s.io")
    assert Kueue(api_cluster).require("nights").startswith("not checked: no permission to get localqueues.kueue.x-k8s.io")


def test_a_queue_that_is_not_there_is_refused_with_those_that_are(api_server: FakeApi, api_cluster: Cluster, job: dict[str, Any]):
    """Those of the namespace: another's cannot be named."""
    fake_kueue.queue(api_server, "days")
    fake_kueue.queue(api_server, "nights", namespace="default")

    with pytest.raises(InputError, match=r"namespace team, got 'nights': there are days, gpus$"):
        Kueue(api_cluster).require("nights")


@pytest.mark.parametrize("message", ["LocalQueue is stopped", "Can't submit new workloads to clusterQueue"])
def test_a_queue_that_takes_no_jobs(api_server: FakeApi, api_cluster: Cluster, job: dict[str, Any], message: str):
    """Refused before a run, waited for in one."""
    fake_kueue.queue(api_server, "days", stopped=message)

    with pytest.raises(InputError, match=rf"LocalQueue team/days of ClusterQueue all accepts no jobs: {message}"):
        Kueue(api_cluster).require("days")
    assert Kueue(api_cluster).require("days", active=False) == "LocalQueue team/days of ClusterQueue all"
