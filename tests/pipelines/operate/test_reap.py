"""The reaper before an API server: seconds from a Workflow's end to pods that are told to go, and what it must never do."""

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import generate_latest

from pipelines.__main__ import main
from pipelines.cluster import connection, watch
from pipelines.cluster.connection import Cluster
from pipelines.jobs.shapes.pytorchjob import PYTORCHJOB
from pipelines.operate import reap
from pipelines.operate.reap import Reaper
from pipelines.operate.reaper_server import serve
from tests.logged import records
from tests.pipelines.fake_api import FakeApi, Status
from tests.pipelines.fake_jobs import JOBS, PYTORCHJOBS, WORKFLOWS, ago, identity, owner, put_job, put_workflow
from trainer.logs import FORMAT_VARIABLE

Object = dict[str, Any]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch):
    """What takes half a minute on a cluster takes a tenth of a second here."""
    monkeypatch.setattr(reap, "LOOK_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(reap, "TURN_SECONDS", 0.1)


@pytest.fixture
def server(api_server: FakeApi) -> FakeApi:
    """An API server whose pods take their time to go."""
    api_server.slow_pods = True
    return api_server


@pytest.fixture
def reaper(api_cluster: Cluster) -> Iterator[Callable[..., list[str]]]:
    """Starts a reaper that watches; what it says is in the list."""
    started: list[tuple[threading.Event, threading.Thread]] = []

    def start(namespaces: tuple[str, ...] = ("",), grace_seconds: float = 600) -> list[str]:
        said: list[str] = []
        stop = threading.Event()
        thread = threading.Thread(target=Reaper(api_cluster, namespaces, grace_seconds, said.append).watch, args=(stop,))
        thread.start()
        started.append((stop, thread))
        return said

    yield start
    for stop, thread in started:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


def grace(server: FakeApi, pod: str = "j-0") -> int | None:
    """Seconds that the pod has from its deletion on; None if it is not being deleted, -1 if it is gone."""
    found = server.find("pods", pod)
    return found["metadata"].get("deletionGracePeriodSeconds") if found else -1


@pytest.mark.parametrize("resource", [PYTORCHJOBS, JOBS])
def test_a_terminated_workflow_frees_its_job_and_hurries_its_pods(server: FakeApi, reaper: Callable[..., list[str]], resource: str):
    """The job goes in foreground and its pods get 20 s in place of their 180."""
    put_job(server, put_workflow(server), resource=resource)
    said = reaper()
    until(lambda: said)
    assert grace(server) is None

    server.change(WORKFLOWS, "run", spec={"activeDeadlineSeconds": 0})

    until(lambda: grace(server) == 20)
    until(lambda: "deletionTimestamp" in server.find(resource, "j")["metadata"])
    server.finish_pods()
    until(lambda: server.find(resource, "j") is None)
    until(lambda: any(line.endswith("team/j: Workflow run was terminated: deleted with its pods") for line in said))


def test_a_workflow_that_is_gone_or_came_back_as_another_frees_its_job(server: FakeApi, reaper: Callable[..., list[str]]):
    """Kubernetes' own collector would do the first; a Retry of a deleted run has the old name and a new uid."""
    old = put_workflow(server)
    server.remove(WORKFLOWS, "run")
    put_job(server, {**old, "metadata": {**old["metadata"], "uid": "gone"}})
    put_workflow(server)

    reaper()

    until(lambda: grace(server) == 20)


def test_a_job_that_two_runs_hold_loses_one_hold_and_runs_on(server: FakeApi, reaper: Callable[..., list[str]]):
    second = put_workflow(server, "second")
    put_job(server, put_workflow(server), second)
    said = reaper()

    server.change(WORKFLOWS, "run", spec={"shutdown": "Terminate"})

    until(lambda: any("released; others hold it" in line for line in said))
    assert server.find(PYTORCHJOBS, "j")["metadata"]["ownerReferences"] == [owner(second)]
    assert grace(server) is None


def test_a_failed_run_keeps_its_job_through_the_grace_and_no_longer(server: FakeApi, reaper: Callable[..., list[str]]):
    """The timer starts at the run's end, not at the reaper's: of two seconds one is over when it comes."""
    put_job(server, put_workflow(server, status={"phase": "Failed", "finishedAt": ago(1)}))
    began = time.time()

    reaper(grace_seconds=4)

    until(lambda: grace(server) == 20)
    assert time.time() - began > 1.9


def test_a_second_launcher_that_adopts_within_the_grace_keeps_the_job(server: FakeApi, reaper: Callable[..., list[str]]):
    """Kubeflow's Retry makes the same Workflow run again."""
    put_job(server, put_workflow(server, status={"phase": "Failed", "finishedAt": ago(0)}))
    said = reaper(grace_seconds=2)
    until(lambda: said)

    server.change(WORKFLOWS, "run", status={"phase": "Running", "finishedAt": None})

    time.sleep(3)
    assert grace(server) is None


def test_jobs_that_are_not_firstsights_or_that_nobody_held_are_left_alone(server: FakeApi, reaper: Callable[..., list[str]]):
    """The first has the terminated run as its owner, but not the label."""
    ended = put_workflow(server, spec={"activeDeadlineSeconds": 0})
    put_job(server, ended, name="other", labels={"app.kubernetes.io/part-of": "someone"})
    put_job(server, name="by-hand")
    put_job(server, ended, name="ours")
    reaper()

    until(lambda: grace(server, "ours-0") == 20)

    assert grace(server, "other-0") is grace(server, "by-hand-0") is None


def test_workflows_are_listed_by_the_page_and_kept_without_their_bulk(server: FakeApi, api_cluster: Cluster):
    """A thousand whole ones would be a gigabyte of memory."""
    for number in range(2 * connection.PAGE + 1):
        put_workflow(server, f"run-{number}", spec={"templates": ["x" * 1000]}, status={"phase": "Running", "nodes": {"a": "x" * 1000}})
    stop, seen = threading.Event(), []
    for change, thing in api_cluster.watch(connection.WORKFLOW, namespace="", stop=stop, keep=reap._essence):
        if change == watch.SYNCED:
            stop.set()
        else:
            seen.append(thing)

    assert len(seen) == 2 * connection.PAGE + 1
    assert server.requests.count(("list", WORKFLOWS)) == 3
    assert all(len(json.dumps(thing)) < 400 for thing in seen)
    assert seen[0]["status"] == {"phase": "Running"}


def test_it_lives_through_a_restart_of_the_api_server(server: FakeApi, reaper: Callable[..., list[str]]):
    """What changed meanwhile is acted on when the server is back."""
    put_job(server, put_workflow(server))
    said = reaper()
    until(lambda: said)
    server.stop()
    server.change(WORKFLOWS, "run", spec={"activeDeadlineSeconds": 0})
    server.compact()

    server.start()

    until(lambda: grace(server) == 20)


def test_a_reaper_that_was_restarted_finishes_what_the_first_began(server: FakeApi, reaper: Callable[..., list[str]]):
    """The job is being deleted, its pods still have three minutes."""
    put_job(server, put_workflow(server, spec={"activeDeadlineSeconds": 0}))
    server.objects[(PYTORCHJOBS, "team", "j")]["metadata"]["deletionTimestamp"] = ago(1)

    reaper()

    until(lambda: grace(server) == 20)


def test_pods_of_a_job_that_kubernetes_deleted_with_its_workflow_are_hurried_too(server: FakeApi, reaper: Callable[..., list[str]]):
    """Its garbage collector leaves them three minutes; a new job of the same name keeps its pods."""
    put_job(server, put_workflow(server), pods=2)
    reaper()
    until(lambda: ("watch", PYTORCHJOBS) in server.requests)

    server.remove(WORKFLOWS, "run")

    until(lambda: grace(server, "j-0") == grace(server, "j-1") == 20)
    second = put_workflow(server, "second")
    put_job(server, second, name="j", pods=1)  # its pod takes the name of one that is going; nobody deletes it
    server.put("pods", {"metadata": {"name": "j-9", "labels": {"training.kubeflow.org/job-name": "j"}}})
    time.sleep(0.5)
    assert grace(server, "j-9") is None


def test_a_job_adopted_at_the_last_moment_is_not_deleted(server: FakeApi, api_cluster: Cluster):
    """The deletion is bound to the version that was read."""
    put_job(server, put_workflow(server, spec={"activeDeadlineSeconds": 0}))
    slow = Reaper(api_cluster, [""], 600, lambda line: None)
    for seen in api_cluster.list(PYTORCHJOB, namespace=""):
        slow._jobs[seen["metadata"]["uid"]] = (PYTORCHJOB, seen)
    second = put_workflow(server, "second")
    server.change(PYTORCHJOBS, "j", metadata={"ownerReferences": [owner(second)]})

    slow._round()

    assert "deletionTimestamp" not in server.find(PYTORCHJOBS, "j")["metadata"]


def test_kinds_that_the_cluster_lacks_are_waited_for_without_an_error(server: FakeApi, reaper: Callable[..., list[str]]):
    """TrainJobs may never come; Workflows come when Kubeflow is installed."""
    server.served -= {"/apis/trainer.kubeflow.org/v1alpha1/trainjobs", "/apis/argoproj.io/v1alpha1/workflows"}
    put_job(server, put_workflow(server, spec={"activeDeadlineSeconds": 0}))
    said = reaper()
    until(lambda: len(said) == 3)
    assert grace(server) is None

    server.served.add("/apis/argoproj.io/v1alpha1/workflows")

    until(lambda: grace(server) == 20)
    assert sorted(line for line in said if "waits for them" in line) == [
        "reap: the cluster has no trainjobs.trainer.kubeflow.org: the reaper waits for them",
        "reap: the cluster has no workflows.argoproj.io: the reaper waits for them",
    ]


def test_a_permission_that_is_missing_is_named_and_other_namespaces_are_served(server: FakeApi, reaper: Callable[..., list[str]]):
    server.namespaces.add("closed")
    put_job(server, put_workflow(server, spec={"activeDeadlineSeconds": 0}))
    forbidden = Status(403, "Forbidden", 'workflows.argoproj.io is forbidden: User "reaper" cannot list resource "workflows" in API group')
    denied = {"count": 0}

    def refuse(verb: str, resource: str, body: Object | None) -> Status | None:
        if resource == WORKFLOWS and verb == "list" and denied["count"] == 0:
            denied["count"] += 1
            return forbidden
        return None

    server.refuse = refuse
    said = reaper(("closed", "team"))

    until(lambda: grace(server) == 20)
    until(lambda: any("no permission to list workflows.argoproj.io in namespace" in line for line in said))


def test_workflows_that_may_not_be_read_hold_their_jobs(server: FakeApi, reaper: Callable[..., list[str]]):
    """A job is never ended for lack of knowledge."""
    put_job(server, put_workflow(server, spec={"activeDeadlineSeconds": 0}))
    forbidden = Status(403, "Forbidden", 'workflows.argoproj.io is forbidden: User "reaper" cannot get resource "workflows" in API group')
    server.refuse = lambda verb, resource, body: forbidden if resource == WORKFLOWS else None
    said = reaper()

    until(lambda: any("no permission to get workflows.argoproj.io in namespace team as reaper" in line for line in said))

    assert grace(server) is None


def test_once_does_what_there_is_to_do_and_ends(server: FakeApi, api_cluster: Cluster, capsys: pytest.CaptureFixture[str]):
    """Without --watch, as from a shell; the second time there is nothing left."""
    server.served.discard("/apis/trainer.kubeflow.org/v1alpha1/trainjobs")
    put_job(server, **{"annotations": {"firstsight.dev/held-by.ana": ago(700)}})

    assert main(["reap"]) == 0
    assert grace(server) == 20
    server.finish_pods()
    assert main(["reap", "--namespace", "team"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("reap: PyTorchJob team/j: shell ana sent its last heartbeat at ")
    assert lines[-1] == "reap: 0 jobs, nothing to do"


def test_the_reaper_logs_records(server: FakeApi, api_cluster: Cluster, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Whose job it freed, in fields; what it could not do is an error."""
    monkeypatch.setenv(FORMAT_VARIABLE, "json")
    put_job(server, labels=identity(seed=3), **{"annotations": {"firstsight.dev/held-by.ana": ago(700)}})
    server.refuse = lambda verb, resource, body: Status(403, "Forbidden", "no") if resource == JOBS else None

    assert main(["reap"]) == 1

    out, err = capfd.readouterr()
    found = records(out) + records(err)
    (freed,) = [one for one in found if "deleted with its pods" in one["message"]]
    assert {name: freed[name] for name in ("component", "level", "experiment", "arm", "seed", "stage")} == {
        "component": "reaper", "level": "info", "experiment": "demo", "arm": "random", "seed": 3, "stage": "contrastive",
    }  # fmt: skip
    assert {one["level"] for one in found} == {"info", "error"}


def test_wrong_arguments_are_refused_in_one_line(api_cluster: Cluster, capsys: pytest.CaptureFixture[str]):
    assert main(["reap", "--grace-seconds", "-1"]) == 2
    assert capsys.readouterr().err == "pipelines reap: --grace-seconds must be 0 or more, got -1.0\n"


def test_health_and_metrics_are_served(server: FakeApi, api_cluster: Cluster):
    """Prometheus finds what was done, the kubelet whether it is alive."""
    put_job(server, put_workflow(server, spec={"activeDeadlineSeconds": 0}))
    one = Reaper(api_cluster, [""], 600, lambda line: None)
    one.once()

    with serve(0, one.metrics, one.healthy) as port:

        def get(path: str) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
                return str(response.read().decode())

        assert get("/healthz") == "200 OK\n"
        metrics = get("/metrics")
    assert "firstsight_reaper_released_total 1.0" in metrics
    assert "firstsight_reaper_deleted_jobs_total 1.0" in metrics
    assert "firstsight_reaper_jobs 1.0" in metrics
    assert json.dumps(one.metrics.count) == '{"released": 1, "deleted": 1, "errors": 0}'


def test_jobs_and_failed_runs_are_shown_while_they_are_there(server: FakeApi, api_cluster: Cluster):
    """By phase, with the labels of a run; a run that somebody terminated, or a foreign one, has not failed."""
    failed = {"phase": "Failed", "finishedAt": "2026-11-30T12:00:00Z"}
    put_job(server, put_workflow(server), labels=identity(seed=3))
    put_job(server, put_workflow(server, "two"), name="k", status={"conditions": [{"type": "Failed", "status": "True"}]})
    put_workflow(server, "firstsight-abcde", status=failed)
    put_workflow(server, "firstsight-ended", status=failed, spec={"shutdown": "Terminate"})
    put_workflow(server, "other-abcde", status=failed)
    one, stop = Reaper(api_cluster, [""], 600, lambda line: None), threading.Event()
    watching = threading.Thread(target=one.watch, args=(stop,))
    watching.start()

    def shown() -> list[str]:
        text = generate_latest(one.metrics.registry).decode()
        return sorted(line for line in text.splitlines() if line.startswith(("firstsight_job_phase", "firstsight_run_failed")))

    try:
        until(lambda: len(shown()) == 3)
        assert shown() == [
            'firstsight_job_phase{arm="",cell="",experiment="",job_name="k",phase="failed",point="",run_namespace="team",'
            'seed="",stage=""} 1.0',
            'firstsight_job_phase{arm="random",cell="",experiment="demo",job_name="j",phase="active",point="",run_namespace="team",seed="3",'
            'stage="contrastive"} 1.0',
            'firstsight_run_failed_timestamp_seconds{run="firstsight-abcde",run_namespace="team"} 1.79604e+09',
        ]
        server.remove(PYTORCHJOBS, "k")
        until(lambda: len(shown()) == 2)
    finally:
        stop.set()
        watching.join(20)


def test_health_says_when_a_watch_has_died(api_cluster: Cluster):
    one = Reaper(api_cluster, [""], 600, lambda line: None)
    dead = threading.Thread(target=lambda: None)
    dead.start()
    dead.join()
    one._threads.append(dead)

    with serve(0, one.metrics, one.healthy) as port, pytest.raises(urllib.error.HTTPError, match="503") as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10)
    refused.value.close()
