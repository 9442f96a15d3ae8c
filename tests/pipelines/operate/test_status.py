"""What `status` says of jobs in every state, and what `cancel` ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main
from pipelines.cluster.connection import Cluster
from pipelines.cluster.kueue import QUEUE_LABEL
from pipelines.cluster.names import label_value
from pipelines.operate import status
from pipelines.operate.status import Row, survey
from tests.pipelines import fake_kueue
from tests.pipelines.fake_api import FakeApi, Status
from tests.pipelines.fake_jobs import JOBS, PYTORCHJOBS, ago, identity, put_job, put_workflow
from tests.pipelines.fake_kueue import NO_ROOM, PREEMPTED

Object = dict[str, Any]
GATED = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: Insufficient gpu"}]}
READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
pytestmark = pytest.mark.usefixtures("api_cluster")


def one(cluster: Cluster) -> Row:
    """The row of the only job."""
    (row,) = survey(cluster)
    return row


def waiting(reason: str, restarts: int = 0) -> Object:
    """The status of a pod whose container waits."""
    container = {
        "name": "pytorch",
        "image": "x:1",
        "restartCount": restarts,
        "state": {"waiting": {"reason": reason, "message": "no such image"}},
    }
    return {"phase": "Pending", "containerStatuses": [container]}


def test_a_job_whose_pods_are_ready_runs(api_server: FakeApi, api_cluster: Cluster):
    put_job(api_server, put_workflow(api_server, "demo-x1"), labels=identity(arm="perceptual", seed=2), pods=2, creationTimestamp=ago(100))
    for pod in ("j-0", "j-1"):
        api_server.change("pods", pod, status=READY)

    row = one(api_cluster)

    assert (row.experiment, row.arm, row.seed, row.stage, row.kind) == ("demo", "perceptual", "2", "contrastive", "PyTorchJob")
    assert (row.state, row.why, row.ready, row.wanted) == ("Running", "", 2, 2)
    assert row.held_by == ("Workflow demo-x1",)
    assert 99 <= row.age_seconds < 130


@pytest.mark.parametrize(
    ("pod", "state", "why"),
    [
        (GATED, "Pending", "j-0: no node accepts it: 0/3 nodes: Insufficient gpu"),
        (waiting("ErrImagePull"), "Pending", "j-0: image x:1 cannot be pulled: ErrImagePull: no such image"),
        (waiting("CrashLoopBackOff", restarts=4), "Restarting", ""),
        ({**READY, "containerStatuses": [{"name": "pytorch", "restartCount": 2, "state": {}}]}, "Running", "2 restarts of containers"),
    ],
)
def test_a_job_that_does_not_run_says_why(api_server: FakeApi, api_cluster: Cluster, pod: Object, state: str, why: str):
    put_job(api_server, labels=identity())
    api_server.change("pods", "j-0", status=pod)

    row = one(api_cluster)

    assert (row.state, row.why.startswith(why)) == (state, True)


@pytest.mark.parametrize(
    ("parts", "state", "why"),
    [
        (
            {"spec": {"runPolicy": {"suspend": True}, "pytorchReplicaSpecs": {"Worker": {}}}},
            "Queued",
            "it is suspended, and no queue has admitted it",
        ),
        ({"status": {"conditions": [{"type": "Succeeded", "status": "True", "message": "done"}]}}, "Succeeded", ""),
        ({"status": {"conditions": [{"type": "Failed", "status": "True", "message": "too many restarts"}]}}, "Failed", "too many restarts"),
        ({"deletionTimestamp": ago(3)}, "Ending", "1 pod left"),
    ],
)
def test_a_job_that_is_queued_or_has_ended_says_so(api_server: FakeApi, api_cluster: Cluster, parts: Object, state: str, why: str):
    put_job(api_server, labels=identity(), **parts)

    row = one(api_cluster)

    assert (row.state, row.why) == (state, why)


@pytest.mark.parametrize(
    ("conditions", "state", "why"),
    [
        ([("QuotaReserved", "False", "Pending", NO_ROOM)], "Queued", f"it waits in queue gpus: {NO_ROOM}"),
        ([("Evicted", "True", "Preempted", PREEMPTED)], "Preempted", f"preempted: {PREEMPTED}; it waits in queue gpus"),
    ],
)
def test_a_job_in_a_queue_is_shown_with_its_reason(
    api_server: FakeApi, api_cluster: Cluster, conditions: list[tuple[str, str, str, str]], state: str, why: str
):
    """One that waits for the first time is told from one that was preempted."""
    fake_kueue.serve(api_server, "v1beta2")
    suspended = {"runPolicy": {"suspend": True}, "pytorchReplicaSpecs": {"Worker": {}}}
    fake_kueue.workload(api_server, put_job(api_server, labels={**identity(), QUEUE_LABEL: "gpus"}, spec=suspended), *conditions)

    row = one(api_cluster)

    assert (row.state, row.why) == (state, why)


def test_how_far_it_is_stands_in_the_store(api_server: FakeApi, api_cluster: Cluster, tmp_path: Path):
    """The last line of progress.jsonl in the folder that the job names."""
    (tmp_path / "progress.jsonl").write_text('{"step": 10, "steps": 90}\n{"step": 20, "steps": 90, "samples_per_second": 512.5}\n')
    put_job(api_server, labels=identity(), annotations={"firstsight.dev/output": str(tmp_path)})

    row = one(api_cluster)

    assert (row.step, row.steps, row.samples_per_second) == (20, 90, 512.5)


@pytest.mark.parametrize("output", ["", "/nowhere", "gs://bucket/x"])
def test_a_store_that_cannot_be_read_from_here_leaves_gaps(api_server: FakeApi, api_cluster: Cluster, output: str):
    put_job(api_server, labels=identity(), annotations={"firstsight.dev/output": output})

    assert one(api_cluster).step is None


def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    import threading

    monkeypatch.setattr(status, "_last_line", lambda uri: threading.Event().wait(30))

    assert status.read_progress(["s3://bucket/a", "s3://bucket/b"], seconds=0.1) == {}


def test_a_shell_that_fell_silent_is_shown_as_such(api_server: FakeApi, api_cluster: Cluster):
    beats = {"firstsight.dev/held-by.ana": ago(30), "firstsight.dev/held-by.ben": ago(3600)}
    put_job(api_server, labels=identity(), annotations=beats)

    first, second = one(api_cluster).held_by

    assert first == "shell ana"
    assert second.startswith("shell ben (silent for 360")


def test_the_table_is_of_one_experiment_where_one_is_named(api_server: FakeApi, capsys: pytest.CaptureFixture[str]):
    """Sorted by arm, seed and stage; what is not ours is not there; reasons are below it."""
    api_server.served.discard("/apis/trainer.kubeflow.org/v1alpha1/trainjobs")
    put_job(
        api_server, name="b", labels=identity(arm="random"), spec={"runPolicy": {"suspend": True}, "pytorchReplicaSpecs": {"Worker": {}}}
    )
    put_job(api_server, name="a", labels=identity(arm="perceptual", stage="evaluate"), resource=JOBS)
    put_job(api_server, name="c", labels=identity(experiment="other"))
    put_job(api_server, name="d", labels={"app.kubernetes.io/part-of": "someone"})

    assert main(["status", "--experiment", "demo"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["experiment", "arm", "seed", "stage", "state", "pods", "step", "samples/s", "age", "held", "by", "job"]
    assert [line.split()[-1] for line in lines[1:3]] == ["a", "b"]
    assert "b: queued: it is suspended, and no queue has admitted it" in lines
    assert not any(line.endswith((" c", " d")) for line in lines)


def test_points_have_a_column_where_there_are_some(api_server: FakeApi, capsys: pytest.CaptureFixture[str]):
    """And jobs that say nothing of cell and point are listed beside those that do."""
    for dose in ("30", "10"):
        point = {"firstsight.dev/point": f"dose-{dose}", "firstsight.dev/cell": f"random-dose-{dose}-seed0"}
        put_job(api_server, name=f"j-{dose}", labels=identity() | point)
    put_job(api_server, name="old", labels=identity())

    assert main(["status"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert main(["status", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)

    assert lines[0][:5] == ["experiment", "arm", "point", "seed", "stage"]
    assert [line[1:3] for line in lines[1:4]] == [["random", "0"], ["random", "dose-10"], ["random", "dose-30"]]
    assert [(row["job"], row["cell"]) for row in rows] == [
        ("old", ""), ("j-10", "random-dose-10-seed0"), ("j-30", "random-dose-30-seed0"),
    ]  # fmt: skip


def test_json_holds_what_the_table_shows(api_server: FakeApi, capsys: pytest.CaptureFixture[str]):
    put_job(api_server, labels=identity())

    assert main(["status", "--json"]) == 0

    (row,) = json.loads(capsys.readouterr().out)
    assert (row["job"], row["state"], row["held_by"], row["step"]) == ("j", "Pending", [], None)


def test_without_jobs_it_says_where_it_looked(capsys: pytest.CaptureFixture[str]):
    assert main(["status", "--namespace", "default"]) == 0
    assert capsys.readouterr().out == "no jobs in namespace default\n"


def test_a_missing_permission_is_one_line(api_server: FakeApi, capsys: pytest.CaptureFixture[str]):
    api_server.refuse = lambda verb, resource, body: Status(
        403, "Forbidden", f'{resource} is forbidden: User "ana" cannot {verb} resource "{resource}" in API group'
    )

    assert main(["status"]) == 2
    assert "no permission to list pytorchjobs.kubeflow.org in namespace team as ana" in capsys.readouterr().err


def test_cancel_ends_the_jobs_of_an_experiment_and_waits_for_their_pods(api_server: FakeApi, capsys: pytest.CaptureFixture[str]):
    """Of all kinds, whoever holds them; what is another's stays."""
    put_job(api_server, put_workflow(api_server), name="a", labels=identity())
    put_job(api_server, name="b", labels=identity(stage="evaluate"), resource=JOBS)
    put_job(api_server, name="c", labels=identity(experiment="other"))

    assert main(["cancel", "demo"]) == 0

    assert capsys.readouterr().out.splitlines() == ["ended PyTorchJob team/a, held by Workflow run", "ended Job team/b"]
    assert (api_server.find(PYTORCHJOBS, "a"), api_server.find(JOBS, "b"), api_server.find("pods", "a-0")) == (None, None, None)
    assert api_server.find(PYTORCHJOBS, "c") is not None


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--arm", "random"], ["b", "c"]),
        (["--seed", "1"], ["a", "b"]),
        (["--stage", "posthoc"], ["a", "c"]),
        (["--seed", "0"], ["c"]),
        (["--point", "epochs=16"], ["a", "b"]),
    ],
)
def test_cancel_takes_less_where_less_is_named(api_server: FakeApi, arguments: list[str], left: list[str]):
    """By labels, which jobs of older versions have too; a value that no label takes is sought as jobs carry it."""
    put_job(api_server, name="a", labels=identity(arm="random"))
    put_job(api_server, name="b", labels=identity(arm="posthoc", stage="posthoc"))
    put_job(api_server, name="c", labels=identity(arm="perceptual", seed=1) | {"firstsight.dev/point": label_value("epochs=16")})

    assert main(["cancel", "demo", *arguments]) == 0

    assert [name for name in "abc" if api_server.find(PYTORCHJOBS, name)] == left


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no job of experiment nothing in namespace team"),
        (["demo", "--arm", "posthoc", "--seed", "7"], "no job of experiment demo, arm posthoc, seed 7 in namespace team"),
        (["a,b=c"], "experiment 'a,b=c' must be"),
        (["demo", "--arm", "x,firstsight.dev/arm=random"], "no job of experiment demo, arm x,firstsight.dev/arm=random in namespace team"),
    ],
)
def test_cancel_refuses_what_matches_nothing(api_server: FakeApi, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str):
    put_job(api_server, labels=identity())

    assert main(["cancel", *arguments]) == 2

    assert said in capsys.readouterr().err
    assert api_server.find(PYTORCHJOBS, "j") is not None
