"""Who holds a job and for how long, as a table: what is known of jobs and Workflows -> what is done, and when to look again."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from pipelines.cluster.connection import Kind
from pipelines.jobs import holds
from pipelines.jobs.holds import decide
from pipelines.jobs.shapes import job_kinds
from pipelines.jobs.shapes.indexed import JOB
from pipelines.jobs.shapes.pytorchjob import PYTORCHJOB
from pipelines.jobs.shapes.trainjob import TRAINJOB

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
Object = dict[str, Any]


def rfc3339(seconds_ago: float) -> str:
    """A time as Kubernetes writes it."""
    return datetime.fromtimestamp(NOW - seconds_ago, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def workflow(uid: str = "u1", name: str = "run", deleted: bool = False, status: Object | None = None, **spec: Any) -> Object:
    """A Workflow that runs, with a few things changed."""
    metadata: Object = {"name": name, "namespace": "team", "uid": uid}
    if deleted:
        metadata["deletionTimestamp"] = rfc3339(1)
    return {"metadata": metadata, "spec": spec, "status": status or {"phase": "Running"}}


def failed(seconds_ago: float, phase: str = "Failed") -> Object:
    """The status of a Workflow that ended so long ago."""
    return {"phase": phase, "finishedAt": rfc3339(seconds_ago)}


def reference(uid: str = "u1", name: str = "run", kind: str = "Workflow") -> Object:
    """An ownerReference."""
    return {"apiVersion": "argoproj.io/v1alpha1" if kind == "Workflow" else "example.org/v1", "kind": kind, "name": name, "uid": uid}


def job(*owners: Object, beats: dict[str, float] | None = None, deleting: bool = False) -> Object:
    """A job held by owners, and by shells whose heartbeat is some seconds old."""
    annotations = {f"firstsight.dev/held-by.{name}": rfc3339(ago) for name, ago in (beats or {}).items()}
    metadata: Object = {
        "name": "j", "namespace": "team", "uid": "j1", "resourceVersion": "7", "annotations": annotations, "ownerReferences": list(owners),
    }  # fmt: skip
    if deleting:
        metadata["deletionTimestamp"] = rfc3339(1)
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": metadata, "spec": {}}


def done(item: Object, *workflows: Object | None) -> tuple[str, float]:
    """What is done with one job, and in how many seconds to look again. None: the Workflow `run` is known to be gone."""
    known = {("team", entry["metadata"]["name"] if entry else "run"): entry for entry in workflows}
    decision = decide([item], known, NOW)
    return "".join(action.what for action in decision.actions), decision.again - NOW


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(workflow(), "", id="running"),
        pytest.param(workflow(status={}), "", id="not begun"),
        pytest.param(workflow(activeDeadlineSeconds=0), "delete", id="terminated by Kubeflow"),
        pytest.param(workflow(activeDeadlineSeconds=0, status=failed(1)), "delete", id="terminated and so failed"),
        pytest.param(workflow(activeDeadlineSeconds=86400), "", id="with a deadline of its own"),
        pytest.param(workflow(shutdown="Terminate"), "delete", id="shut down by argo terminate"),
        pytest.param(workflow(shutdown="Stop"), "delete", id="shut down by argo stop"),
        pytest.param(workflow(status={"phase": "Succeeded", "finishedAt": rfc3339(0)}), "delete", id="succeeded"),
        pytest.param(workflow(uid="u2"), "delete", id="recreated under another uid"),
        pytest.param(workflow(deleted=True), "delete", id="being deleted"),
        pytest.param(None, "delete", id="gone"),
        pytest.param(workflow(status=failed(599)), "", id="failed, within the grace"),
        pytest.param(workflow(status=failed(600)), "delete", id="failed, grace over"),
        pytest.param(workflow(status=failed(601, "Error")), "delete", id="in error, grace over"),
        pytest.param(workflow(status={"phase": "Failed"}), "", id="failed, not yet said when"),
    ],
)
def test_what_a_workflow_does_to_the_job_that_it_alone_holds(seen: Object | None, expected: str):
    assert done(job(reference()), seen)[0] == expected


@pytest.mark.parametrize(
    ("kind", "condition", "status", "expected"),
    [
        (PYTORCHJOB, "Succeeded", "True", "release"), (TRAINJOB, "Complete", "True", "release"), (JOB, "Complete", "True", "release"),
        *((kind, "Failed", "True", "release") for kind in job_kinds()), (PYTORCHJOB, "Failed", "False", "delete"),
        (PYTORCHJOB, "Running", "True", "delete"),
    ],
)  # fmt: skip
def test_a_job_that_has_ended_is_let_go_of_and_stays_to_be_looked_at(kind: Kind, condition: str, status: str, expected: str):
    """It holds no GPU any more, and its TTL takes it away; each kind's controller has its own word for the end."""
    conditions = {"conditions": [{"type": condition, "status": status}]}
    ended = {**job(reference()), "apiVersion": kind.api_version, "kind": kind.kind, "status": conditions}

    assert done(ended, None)[0] == expected


def test_a_workflow_of_which_nothing_is_known_holds():
    """As where its namespace cannot be read: a job is never deleted for lack of knowledge."""
    assert done(job(reference())) == ("", math.inf)


def test_the_grace_is_a_timer_computed_from_the_object():
    """So a reaper that was restarted in between waits for the rest alone."""
    assert done(job(reference()), workflow(status=failed(450))) == ("", 150.0)


def test_of_two_workflows_the_last_one_out_deletes_the_job():
    """The first one's reference is dropped, and the job runs on."""
    held = job(reference(), reference("u2", "second"))

    assert done(held, workflow(shutdown="Terminate"), workflow("u2", "second")) == ("release", math.inf)
    assert done(held, workflow(shutdown="Terminate"), workflow("u2", "second", status=failed(700)))[0] == "delete"


@pytest.mark.parametrize(("ago", "expected"), [(59, ""), (599, ""), (600, "delete"), (-30, "")])
def test_a_shell_holds_as_long_as_its_heart_beats(ago: float, expected: str):
    assert done(job(beats={"ana": ago}))[0] == expected


def test_a_stale_shell_beside_a_running_workflow_is_dropped_alone():
    """And the other way round the shell's next look comes when its heartbeat would be stale."""
    assert done(job(reference(), beats={"ana": 700}), workflow()) == ("release", math.inf)
    assert done(job(reference(), beats={"ana": 100}), None) == ("release", 500.0)


def test_a_heartbeat_that_is_no_time_is_nobodys():
    """No shell of ours wrote it, so none will write it again."""
    held = job()
    held["metadata"]["annotations"]["firstsight.dev/held-by.ana"] = "yesterday"

    assert done(held)[0] == "delete"


@pytest.mark.parametrize("item", [job(), job(deleting=True), job(reference(kind="Sweep"))])
def test_a_job_that_nobody_ever_held_is_left_alone(item: Object):
    """It was made by hand, or is another controller's."""
    assert done(item) == ("", math.inf)


def test_a_job_that_is_anothers_too_is_released_but_not_deleted():
    assert done(job(reference(), reference("s1", "sweep", "Sweep")), None)[0] == "release"


def test_the_pods_of_a_job_that_goes_for_want_of_holds_are_hurried_by_any_reaper():
    """One that was restarted between the job's deletion and its pods' sees the dead hold still on the job."""
    assert done(job(reference(), deleting=True), workflow(shutdown="Terminate"))[0] == "shorten_grace"
    assert done(job(reference(), deleting=True), workflow())[0] == ""  # a person deleted it: its pods have their grace


def test_releasing_takes_off_what_has_ended_and_nothing_else():
    """The list of owners is written whole, annotations by key."""
    held = job(reference(), reference("u2", "second"), reference("s1", "sweep", "Sweep"), beats={"ana": 700, "ben": 1})
    (action,) = decide([held], {("team", "run"): None, ("team", "second"): workflow("u2", "second")}, NOW).actions

    assert holds.without(held, action.ended) == {
        "metadata": {
            "ownerReferences": [reference("u2", "second"), reference("s1", "sweep", "Sweep")],
            "annotations": {"firstsight.dev/held-by.ana": None},
        }
    }
    assert action.why == f"Workflow run is gone; shell ana sent its last heartbeat at {rfc3339(700)}"


def test_one_decision_covers_all_jobs_and_waits_for_the_soonest():
    other = {**job(reference()), "metadata": {**job(reference())["metadata"], "namespace": "elsewhere"}}
    known = {("team", "run"): workflow(status=failed(500)), ("elsewhere", "run"): workflow(status=failed(550))}

    assert decide([job(reference()), other], known, NOW).again == NOW + 50
