"""Who holds a job through the launcher: runs of Kubeflow, shells, several at once; leaving, and the last one out."""

import re
import threading

import pytest

from pipelines.cluster import ending
from pipelines.cluster.connection import Cluster
from pipelines.jobs import owners
from pipelines.jobs.holds import HELD_BY
from pipelines.jobs.shapes.pytorchjob import PYTORCHJOB
from tests.pipelines.launching import Scene, annotations, scene
from tests.pipelines.operator import JOBS, eventually
from trainer.errors import RunError

__all__ = ["scene"]


def workflow(scene: Scene, monkeypatch: pytest.MonkeyPatch, run: str) -> dict[str, str]:
    """From now on launchers are steps of this Workflow; the ownerReference that they will leave."""
    made = scene.api.put("workflows.argoproj.io", {"kind": "Workflow", "metadata": {"name": run}})
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": run, "uid": made["metadata"]["uid"]}
    scene.api.put("pods", {"metadata": {"name": f"{run}-step", "ownerReferences": [{**owner, "controller": True}]}})
    monkeypatch.setenv(owners.POD_VARIABLE, f"{run}-step")
    return owner


def test_a_run_of_kubeflow_holds_its_job_by_its_workflow(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    """Not as its controller: the operator's own logic must not see one."""
    owner = workflow(scene, monkeypatch, "run-1")
    scene.running()

    job = scene.job()
    assert job is not None
    assert job["metadata"]["ownerReferences"] == [owner]
    assert not [key for key in job["metadata"]["annotations"] if key.startswith(HELD_BY)]


def test_a_second_run_appends_itself_on_adoption(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    first = workflow(scene, monkeypatch, "run-1")
    scene.running()
    second = workflow(scene, monkeypatch, "run-2")
    scene.launch()

    job = scene.job()
    assert job is not None
    assert eventually(lambda: scene.job()["metadata"]["ownerReferences"] == [first, second])  # type: ignore[index]


def test_a_launcher_in_a_pod_that_is_told_to_stop_leaves_everything_as_it_is(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    """Whether the run was terminated or its node drained, the reaper finds out."""
    workflow(scene, monkeypatch, "run-1")
    launch = scene.running()
    before = scene.job()
    launch.job.leave()

    assert scene.job() == before


def test_leaving_from_a_shell_ends_the_job_and_its_pods(scene: Scene):
    launch = scene.running()
    launch.job.leave()

    assert scene.clean()


def test_pods_that_nobody_wants_get_little_grace(scene: Scene):
    launch = scene.running()
    scene.api.slow_pods = True
    leaving = threading.Thread(target=launch.job.leave)
    leaving.start()
    for index in (0, 1):
        pod = eventually(lambda index=index: scene.api.find("pods", scene.pod(index)))  # type: ignore[misc]
        eventually(lambda pod=pod: scene.api.find("pods", pod["metadata"]["name"])["metadata"].get("deletionGracePeriodSeconds") == 20)  # type: ignore
    eventually(lambda: "deletionTimestamp" in (scene.job() or {"metadata": {}})["metadata"])
    scene.api.finish_pods()
    leaving.join(20)

    assert scene.clean()


def test_the_last_one_out_ends_the_job(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    first = scene.running()
    monkeypatch.setenv(owners.HOLDER_VARIABLE, "ben")
    second = scene.launch()
    eventually(lambda: f"{HELD_BY}ben" in annotations(scene))
    first.job.leave()
    assert f"{HELD_BY}ana" not in annotations(scene)
    assert second.job.watch() is None
    second.job.leave()

    assert scene.clean()


def test_a_shell_that_died_long_ago_does_not_keep_a_job(scene: Scene):
    launch = scene.running()
    scene.api.change(JOBS, scene.name, metadata={"annotations": {f"{HELD_BY}old": "2020-01-01T00:00:00Z"}})
    launch.job.leave()

    assert scene.clean()


def test_a_shell_beats_while_it_waits(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.jobs.following.HEARTBEAT_SECONDS", 0.1)
    scene.running()
    scene.api.change(JOBS, scene.name, metadata={"annotations": {f"{HELD_BY}ana": "2020-01-01T00:00:00Z"}})

    assert eventually(lambda: not annotations(scene)[f"{HELD_BY}ana"].startswith("2020"))


def test_leaving_while_the_api_server_is_down_says_what_may_be_left(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.jobs.following.LEAVE_SECONDS", 0.3)
    launch = scene.running()
    scene.api.stop()

    with pytest.raises(RunError, match=rf"PyTorchJob {scene.name} may still be running \(python -m pipelines cancel stops it\): http"):
        launch.job.leave()


def test_cancel_ends_the_job_whoever_holds_it(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    first = scene.running()
    monkeypatch.setenv(owners.HOLDER_VARIABLE, "ben")
    scene.launch()
    eventually(lambda: f"{HELD_BY}ben" in annotations(scene))
    first.job.cancel()

    assert scene.clean()


def test_a_name_for_a_shell_is_a_valid_key_of_an_annotation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("getpass.getuser", lambda: "Ana Müller@corp")
    monkeypatch.setattr("socket.gethostname", lambda: "a-very-long-name-of-a-machine.with.many.parts.example.org" * 2)
    name = owners.shell_id()

    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name)
    assert len(f"held-by.{name}") <= 63


def test_a_job_made_anew_is_not_taken_for_one_that_does_not_go(scene: Scene):
    """Two launchers replace one job; the slower one must not delete the other's pods."""
    scene.running()
    job = scene.job()
    assert job is not None
    ending.wait_until_gone(Cluster.connect(), PYTORCHJOB, scene.name, seconds=5)

    assert scene.api.find("pods", scene.pod(0)) is not None
    assert ("delete", "pods") not in scene.api.requests


def test_leaving_does_not_wait_for_an_older_job_to_go(scene: Scene):
    """Nor does it end what is not this run's."""
    scene.running().job._halt()
    scene.api.slow_pods = True
    with scene.api._changed:
        scene.api._delete((JOBS, "team", scene.name), {"propagationPolicy": "Foreground"})
    second = scene.launch()
    eventually(lambda: "is being deleted: waiting" in second.text())
    second.job.leave()

    assert len(scene.operator.created) == 1
    assert second.outcome().exit_code == 1
