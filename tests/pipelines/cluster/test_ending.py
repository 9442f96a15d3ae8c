"""How a job is deleted while its controller would recreate its pods."""

from typing import Any

import pytest

from pipelines.cluster.connection import POD, Cluster, Kind
from pipelines.cluster.ending import end
from pipelines.jobs.shapes.indexed import JOB
from pipelines.jobs.shapes.pytorchjob import PYTORCHJOB
from pipelines.jobs.shapes.trainjob import TRAINJOB
from tests.pipelines.fake_api import FakeApi


@pytest.fixture
def server(api_server: FakeApi) -> FakeApi:
    """An API server whose deleted pods stay for a while, and with them the jobs that own them."""
    api_server.slow_pods = True
    return api_server


@pytest.fixture
def cluster(server: FakeApi, api_cluster: Cluster) -> Cluster:
    """A connection to it."""
    return api_cluster


def make(cluster: Cluster, kind: Kind) -> None:
    """A job with one pod."""
    job = cluster.create(kind, {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": "j"}, "spec": {"x": 1}})
    owner = {"apiVersion": kind.api_version, "kind": kind.kind, "name": "j", "uid": job["metadata"]["uid"]}
    labels = {kind.pod_label: "j"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": labels, "ownerReferences": [owner]}}
    cluster.create(POD, pod)


@pytest.mark.parametrize(("kind", "spec"), [(TRAINJOB, {"x": 1, "suspend": True}), (PYTORCHJOB, {"x": 1}), (JOB, {"x": 1})])
def test_a_trainjob_that_goes_is_suspended(cluster: Cluster, kind: Kind, spec: dict[str, Any]) -> None:
    """Its controller recreates the JobSet of a TrainJob that is being deleted; the other kinds' controllers recreate nothing."""
    make(cluster, kind)

    end(cluster, kind, "j")

    going = cluster.get(kind, "j")
    assert going is not None
    assert "deletionTimestamp" in going["metadata"]
    assert going["spec"] == spec


def test_the_next_job_of_the_name_is_left_alone(cluster: Cluster, server: FakeApi) -> None:
    """It may have been made as soon as the first was gone."""
    server.slow_pods = False
    name, following = (
        TRAINJOB.resource,
        {"apiVersion": TRAINJOB.api_version, "kind": "TrainJob", "metadata": {"name": "j"}, "spec": {"x": 2}},
    )
    server.on_change = lambda change, thing: change == "DELETED" and thing["spec"] == {"x": 1} and server.put(name, following)
    make(cluster, TRAINJOB)

    end(cluster, TRAINJOB, "j")

    assert (found := cluster.get(TRAINJOB, "j"))
    assert found["spec"] == {"x": 2}
