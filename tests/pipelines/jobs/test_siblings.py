"""Two launchers of one run that follow one job, as two lanes do that need the same tower: each of them failed, then the job."""

import pytest

from pipelines.jobs import incidents, owners
from pipelines.jobs.base import Outcome
from pipelines.jobs.launcher import INCIDENTS
from pipelines.profile.settings import JobSettings
from tests.pipelines.jobs.test_owners import workflow
from tests.pipelines.launching import Launch, Scene, annotations, patience, scene
from tests.pipelines.operator import eventually
from trainer.errors import RunError

__all__ = ["scene"]
DONE = Outcome(exit_code=0, line="")


def _marks(scene: Scene) -> list[str]:
    return [key for key in annotations(scene) if key.startswith(owners.FOLLOWED_BY)]


def _two(scene: Scene, settings: JobSettings | None = None) -> list[Launch]:
    """Two launchers that both follow the job."""
    both = [scene.launch(settings), scene.launch(settings)]
    eventually(lambda: scene.api.find("pods", scene.pod(1)) and len(_marks(scene)) == 2)
    return both


def _break(launch: Launch) -> None:
    """Its launcher fails, for a reason that is no fault of the job's."""

    def fail(view: object) -> None:
        raise RunError("its connection is gone")

    launch.job._given_up = fail  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("which", [0, 1])
def test_a_launcher_that_fails_leaves_the_job_to_the_other(scene: Scene, which: int):
    both = _two(scene)
    _break(both[which])

    assert "its connection is gone" in both[which].outcome().line
    assert "is kept: still needed by another step of this run" in both[which].text()
    assert len(_marks(scene)) == 1
    scene.succeed()
    assert both[1 - which].outcome() == DONE
    assert len(scene.operator.created) == 1


def test_the_last_launcher_that_fails_takes_the_job_along(scene: Scene):
    both = _two(scene)
    for launch in both:
        _break(launch)

    assert {launch.outcome().exit_code for launch in both} == {1}
    assert scene.clean()


@pytest.mark.parametrize("which", [0, 1])
def test_a_launcher_that_stops_leaves_the_run_s_hold(scene: Scene, which: int):
    both = _two(scene)
    both[which].job.leave()

    assert scene.job()
    scene.succeed()
    assert both[1 - which].outcome() == DONE


def test_a_job_that_fails_is_submitted_again_by_one_of_them(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    """Its incident is one, though both saw it; and the job that takes its place says so."""
    monkeypatch.setattr(incidents, "INCIDENT_SECONDS", 0.0)
    both = _two(scene, JobSettings(nodes=2, max_incidents=1))
    scene.operator.end(scene.name, "Failed", "x")
    eventually(lambda: len(scene.operator.created) == 2 and scene.job() and len(_marks(scene)) == 2)

    assert annotations(scene)[INCIDENTS] == "1"
    scene.operator.end(scene.name, "Failed", "x")
    outcomes = [launch.outcome() for launch in both]
    assert all("more than 1 times (jobs.max_incidents)" in outcome.line for outcome in outcomes)
    assert len(scene.operator.created) == 2
    assert eventually(scene.clean)


def test_what_one_of_them_has_counted_holds_for_one_that_comes_later(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(incidents, "INCIDENT_SECONDS", 0.0)
    settings = JobSettings(nodes=2, max_incidents=1)
    first = scene.running(settings=settings)
    eventually(lambda: len(first.job._incidents._uids) == 2)
    scene.operator.restart(scene.pod(0), count=1)
    eventually(lambda: annotations(scene).get(INCIDENTS) == "1")
    second = scene.launch(settings)
    eventually(lambda: len(second.job._incidents._uids) == 2)
    scene.operator.restart(scene.pod(0), count=2)

    assert "more than 1 times" in first.outcome().line
    assert "more than 1 times" in second.outcome().line
    assert eventually(scene.clean)


def test_the_patience_of_the_one_that_waited_longest_ends_the_job_for_both(scene: Scene):
    scene.operator.phase = ""
    other = scene.launch(patience(ignored=600))
    eventually(lambda: scene.job())
    first = scene.launch(patience(ignored=1))

    line = first.outcome().line
    assert "no reason is given" in line
    assert other.outcome() == Outcome(exit_code=1, line=line)
    assert eventually(scene.clean)


def test_a_step_that_kubeflow_starts_again_is_the_launcher_that_it_was(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    """Its pod has the same name: what its predecessor left on the job keeps no one from letting go of it."""
    workflow(scene, monkeypatch, "run-1")
    killed = scene.running()
    killed.job._halt()
    again = scene.launch()
    eventually(lambda: "adopted" in again.text())

    assert len(_marks(scene)) == 1
    _break(again)
    again.outcome()
    assert scene.job() is None


def test_a_launcher_that_was_killed_counts_until_its_signs_are_old(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    both = _two(scene)
    both[0].job._halt()  # as a kill leaves it: with its mark on the job
    monkeypatch.setattr(owners, "SILENT_SECONDS", 0.0)
    _break(both[1])
    both[1].outcome()

    assert scene.clean()
