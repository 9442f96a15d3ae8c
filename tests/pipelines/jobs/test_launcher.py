"""The launcher against a fake API server: done, created, adopted, replaced, refused; restarts and ends."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.jobs import incidents
from pipelines.jobs.base import Outcome
from pipelines.jobs.holds import HELD_BY
from pipelines.jobs.launcher import annotated, differing_arguments, spec_hash
from pipelines.jobs.shapes.indexed import IndexedJobs
from pipelines.jobs.shapes.pytorchjob import PyTorchJobs
from pipelines.profile.settings import JobSettings
from tests.damage import KINDS, damage
from tests.pipelines.fake_objects import Status
from tests.pipelines.launching import RECIPE, Scene, annotations, scene
from tests.pipelines.operator import JOBS, eventually
from trainer.config import ContrastiveConfig, StageConfig, recipe_hash
from trainer.configs import dump_yaml
from trainer.storage import join, layout, write_bytes, write_json
from trainer.storage.committed import Committed, write_committed
from trainer.storage.fence import read_claim

DONE = Outcome(exit_code=0, line="")
__all__ = ["scene"]


def test_a_stage_that_is_sealed_is_done_before_any_object_is_looked_at(scene: Scene):
    scene.seal()

    assert scene.launch().outcome() == DONE
    assert scene.api.requests == []


def test_a_job_is_created_followed_to_its_end_and_let_go_of(scene: Scene):
    """It stays for its TTL, to be looked at, and nobody holds it any more."""
    launch = scene.running()
    scene.api.log(scene.pod(0), "hello")
    eventually(lambda: "hello" in launch.lines)
    assert annotations(scene)[f"{HELD_BY}ana"]
    scene.succeed()

    assert launch.outcome() == DONE
    assert f"{HELD_BY}ana" not in annotations(scene)


def test_a_job_says_whose_it_is_and_what_it_makes(scene: Scene):
    """For launchers that come later, for the reaper and for `status`."""
    scene.running()

    found = {key.removeprefix("firstsight.dev/"): value for key, value in annotations(scene).items()}
    assert found["recipe-hash"] == RECIPE
    assert found["root"] == scene.identity.root
    assert found["output"] == scene.folder
    assert found["attempt"] == "1"


def test_watching_costs_the_api_server_one_watch_each_and_no_polling(scene: Scene):
    launch = scene.running()
    scene.api.log(scene.pod(0), "hello")
    eventually(lambda: "hello" in launch.lines and sum(verb == "watch" for verb, _ in list(scene.api.requests)) == 3)
    before = len(scene.api.requests)
    with pytest.raises(AssertionError):
        eventually(launch.job.watch, seconds=0.5)

    assert len(scene.api.requests) == before
    watches = [what for verb, what in scene.api.requests if verb == "watch"]
    assert sorted(watches) == ["events", "pods", JOBS]


def test_a_job_that_succeeded_without_the_seal_is_unfinished_and_submitted_again(scene: Scene):
    """A worker that exits 0 early makes the job Succeeded; the stage is not done by that."""
    launch = scene.running()
    scene.operator.end(scene.name, "Succeeded")
    eventually(lambda: len(scene.operator.created) == 2)
    eventually(lambda: scene.api.find("pods", scene.pod(1)))
    assert annotations(scene)["firstsight.dev/attempt"] == "2"
    scene.succeed()

    assert launch.outcome() == DONE
    assert "ended without its result; starting it again" in launch.text()


@pytest.mark.parametrize("ending", ["Failed", "deleted"])
def test_a_job_that_failed_or_was_deleted_with_the_seal_is_done(scene: Scene, ending: str):
    launch = scene.running()
    scene.seal()
    if ending == "Failed":
        scene.operator.end(scene.name, "Failed", "a pod was killed on its way out")
    else:
        scene.api.remove(JOBS, scene.name)

    assert launch.outcome() == DONE


def test_the_seal_of_another_recipe_does_not_count(scene: Scene):
    write_committed(layout.final(scene.folder), Committed(recipe_hash="b" * 64, attempt=0, step=1, files={}, facts={}))

    launch = scene.running()
    assert launch.job.watch() is None


@pytest.mark.parametrize("name", ["COMMITTED.json", "model.bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_final_model_does_not_count(scene: Scene, name: str, kind: str):
    """The trainer rebuilds it, so it must get a job."""
    scene.seal()
    damage(Path(layout.final(scene.folder)) / name, kind)

    launch = scene.running()
    assert launch.job.watch() is None


def test_a_running_job_of_the_same_recipe_is_adopted(scene: Scene):
    """Both launchers follow it; it is created once."""
    first = scene.running()
    second = scene.launch()
    eventually(lambda: "is already running: adopted" in second.text())
    scene.succeed()

    assert (first.outcome(), second.outcome()) == (DONE, DONE)
    assert len(scene.operator.created) == 1
    assert "different settings" not in second.text()


def test_a_running_job_with_other_placement_is_adopted_with_a_warning(scene: Scene):
    """What was asked for is compared, never the live object, which the server and its webhooks have filled in."""
    scene.running()
    scene.api.change(JOBS, scene.name, spec={"defaulted": True})
    same, other = scene.launch(), scene.launch(settings=JobSettings(nodes=4))
    eventually(lambda: "adopted" in same.text() and "adopted" in other.text())

    assert "different settings" not in same.text()
    assert "submitted with different settings (image, nodes, queue" in other.text()


def test_a_job_that_ended_unfinished_is_replaced_when_its_pods_are_gone(scene: Scene):
    """The attempt is counted, so that a writer that lived on cannot commit."""
    first = scene.running()
    first.job._halt()
    scene.operator.end(scene.name, "Failed", "backoff limit")
    scene.api.slow_pods = True
    second = scene.launch()
    eventually(lambda: scene.job() is not None and "deletionTimestamp" in scene.job()["metadata"])  # type: ignore[index]
    assert len(scene.operator.created) == 1
    scene.api.finish_pods()
    eventually(lambda: len(scene.operator.created) == 2)

    assert annotations(scene)["firstsight.dev/attempt"] == "2"
    assert eventually(lambda: read_claim(scene.folder).attempt == 2)
    assert "an earlier PyTorchJob" in second.text()


def test_the_trainer_is_told_its_attempt_and_where_to_resume(scene: Scene):
    write_json(layout.attempt(scene.folder), {"attempt": 6})
    scene.launch(resume="never")
    job = eventually(scene.job)

    arguments = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["args"]
    assert {"placement.attempt=7", "placement.resume=never"} <= set(arguments)


@pytest.mark.parametrize(("checkpointed", "expected"), [(False, "never"), (True, "auto")])
def test_a_stage_that_begins_anew_does_so_once(scene: Scene, checkpointed: bool, expected: str):
    """After its first checkpoint a job that is submitted again resumes from there; a checkpoint with a damaged seal is none."""
    scene.running(resume="never")
    write_bytes(join(layout.checkpoint(scene.folder, 3), "COMMITTED.json"), b"{")
    if checkpointed:
        seal = Committed(recipe_hash=RECIPE, attempt=1, step=5, files={}, facts={})
        write_committed(layout.checkpoint(scene.folder, 5), seal)
    scene.operator.end(scene.name, "Succeeded")
    eventually(lambda: len(scene.operator.created) == 2)

    assert f"placement.resume={expected}" in str(scene.operator.created[1])


def test_a_job_of_another_recipe_is_refused_and_the_keys_are_named(scene: Scene, tmp_path: Path):
    """Where the store's configurations tell them; the running job is left alone."""
    other = tmp_path / "other"
    hashes = []
    for folder, seed in ((Path(scene.folder), 0), (other, 1)):
        folder.mkdir(parents=True, exist_ok=True)
        config = StageConfig(experiment="e", arm="random", seed=seed, output=str(folder), contrastive=ContrastiveConfig(epochs=1))
        (folder / "config.yaml").write_text(dump_yaml(config))
        hashes.append(recipe_hash(config))
    scene.running(recipe_hash=hashes[0])
    second = scene.launch(recipe_hash=hashes[1], folder=str(other), final=f"{other}/final")

    outcome = second.outcome()
    second.job.leave()
    assert outcome.exit_code == 2
    assert f"PyTorchJob team/{scene.name} runs a different recipe under this name: seed: 0 -> 1: give the experiment" in outcome.line
    assert scene.job()
    assert scene.launches[0].job.watch() is None


@pytest.mark.parametrize(
    ("purpose", "arguments", "line"),
    [
        ("stage", ("stage", "fetch", "--pages", "4"), ": arguments 3 -> 4"),
        ("stage", ("stage", "fetch", "--pages", "3", "--slow"), ": arguments (none) -> --slow"),
        ("stage", ("stage", "fetch", "3", "--pages"), ": the order of its arguments"),
        ("evaluate", ("stage", "fetch", "--pages", "3"), ": the recipe hashes of the models that it measures"),
    ],
)
def test_what_a_staging_or_evaluation_job_does_otherwise_is_named(scene: Scene, purpose: Any, arguments: tuple[str, ...], line: str):
    """Its recipe hash is over its arguments, so those are its keys: they are in the job, whichever version made it."""
    shape = IndexedJobs(JobSettings())
    theirs = shape.manifest(scene.spec(purpose="stage", arguments=("stage", "fetch", "--pages", "3")), 0)
    assert differing_arguments(theirs, scene.spec(purpose=purpose, arguments=arguments)) == line


def test_a_job_that_is_being_deleted_is_waited_for_and_not_adopted(scene: Scene):
    first = scene.running()
    first.job._halt()
    scene.api.slow_pods = True
    with scene.api._changed:
        scene.api._delete((JOBS, "team", scene.name), {"propagationPolicy": "Foreground"})
    second = scene.launch()
    eventually(lambda: "is being deleted: waiting" in second.text())
    assert len(scene.operator.created) == 1
    scene.api.finish_pods()

    eventually(lambda: len(scene.operator.created) == 2)


def test_a_job_that_does_its_work_while_it_is_asked_for_is_not_done_again(scene: Scene):
    """The launcher finds no seal, then a job that has ended: by then it is there."""
    scene.running().job._halt()
    scene.operator.end(scene.name, "Succeeded")
    scene.api.refuse = lambda verb, resource, body: scene.seal() if (verb, resource) == ("get", JOBS) else None

    assert scene.launch().outcome() == DONE
    assert len(scene.operator.created) == 1


def test_two_launchers_that_create_at_the_same_time_share_one_job(scene: Scene):
    """One of them is told that the name is taken, and adopts; its number of the attempt is not written over the other's."""
    launches = [scene.launch() for _ in range(4)]
    eventually(lambda: scene.api.find("pods", scene.pod(1)))
    scene.succeed()

    assert [launch.outcome() for launch in launches] == [DONE] * 4
    assert len(scene.operator.created) == 1
    assert read_claim(scene.folder).attempt == 1


def test_a_job_that_vanishes_before_it_is_watched_is_said_to_be_deleted(scene: Scene):
    scene.operator.phase = ""
    scene.api.refuse = lambda verb, resource, body: scene.api.remove(JOBS, scene.name) if (verb, resource) == ("list", JOBS) else None

    outcome = scene.launch().outcome()
    assert outcome == Outcome(exit_code=1, line=f"PyTorchJob {scene.name} was deleted by someone else before it finished")


@pytest.mark.parametrize("seen", ["each change", "the last"])
def test_a_job_that_another_run_replaced_is_followed(scene: Scene, seen: str):
    """Both saw it end unfinished; one of them was faster. What a watch saw of it depends on when it was connected."""
    first = scene.running()
    job = scene.job()
    assert job is not None
    if seen == "the last":
        scene.api.stop()
    with scene.api._changed:
        scene.operator.end(scene.name, "Failed", "a node was lost")
        scene.api.remove(JOBS, scene.name)
        job["metadata"].pop("uid")
        scene.api.put(JOBS, job)
    if seen == "the last":
        scene.api.compact()
        scene.api.start()
    eventually(lambda: scene.api.find("pods", scene.pod(1)))
    scene.succeed()

    assert first.outcome() == DONE


def test_the_end_is_seen_though_the_api_server_was_down_meanwhile(scene: Scene):
    launch = scene.running()
    scene.api.stop()
    scene.succeed()
    scene.api.compact()
    scene.api.start()

    assert launch.outcome() == DONE


def test_an_old_job_that_changed_hands_while_it_was_replaced_is_looked_at_again(scene: Scene):
    """Its deletion is bound to what was seen of it."""
    first = scene.running()
    first.job._halt()
    scene.operator.end(scene.name, "Failed", "x")
    conflicts: list[str] = []

    def refuse(verb: str, resource: str, body: Any) -> Status | None:
        if verb == "delete" and resource == JOBS and not conflicts:
            conflicts.append(body["preconditions"]["resourceVersion"])
            return Status(409, "Conflict", "the object has been modified", JOBS)
        return None

    scene.api.refuse = refuse
    scene.launch()

    eventually(lambda: len(scene.operator.created) == 2)
    assert conflicts


def test_restarts_are_counted_in_incidents_and_the_budget_ends(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    """A restart of the group touches every pod, and is one."""
    monkeypatch.setattr(incidents, "INCIDENT_SECONDS", 0.5)
    launch = scene.running(settings=JobSettings(nodes=2, max_incidents=2))
    eventually(lambda: len(launch.job._incidents._uids) == 2)
    for count in (1, 2, 3):
        for index in (0, 1):
            scene.operator.restart(scene.pod(index), message="trainer train: connection reset by rank 1", count=count)
        if count < 3:
            eventually(lambda count=count: f"({count} of 2)" in launch.text())  # type: ignore[misc]
            with pytest.raises(AssertionError):
                eventually(launch.job.watch, seconds=0.6)  # the incident passes

    outcome = launch.outcome()
    assert outcome.exit_code == 1
    assert "more than 2 times (jobs.max_incidents): trainer train: connection reset by rank 1" in outcome.line
    assert scene.clean()


@pytest.mark.parametrize("where", ["termination message", "failure.json"])
def test_a_permanent_failure_ends_the_job_at_once(scene: Scene, where: str):
    """Exit code 2 is wrong input; starting it again would only say so again."""
    launch = scene.running()
    if where == "failure.json":
        write_json(f"{scene.folder}/failure.json", {"exit_code": 2, "line": "data.uri: no such data set", "time": 0})
    scene.operator.restart(scene.pod(1), exit_code=2, message="INFO start\ntrainer train: data.uri: no such data set\n")

    outcome = launch.outcome()
    assert outcome.exit_code == 2
    assert outcome.line.endswith("data.uri: no such data set")
    assert scene.clean()
    assert len(scene.operator.created) == 1


def test_a_failed_job_whose_trainer_found_its_input_wrong_is_not_submitted_again(scene: Scene):
    """Its pods may be gone already; failure.json is there."""
    launch = scene.running()
    write_json(f"{scene.folder}/failure.json", {"exit_code": 2, "line": "recipe: no", "time": 0})
    scene.operator.end(scene.name, "Failed", "backoff limit")

    assert launch.outcome() == Outcome(exit_code=2, line="recipe: no")
    assert len(scene.operator.created) == 1


def test_the_other_ranks_last_lines_are_said_on_failure(scene: Scene):
    launch = scene.running()
    scene.api.log(scene.pod(1), "rank 1: CUDA error: an illegal memory access")
    write_json(f"{scene.folder}/failure.json", {"exit_code": 2, "line": "no", "time": 0})
    scene.operator.end(scene.name, "Failed", "backoff limit")
    launch.outcome()

    assert f"{scene.pod(1)}: rank 1: CUDA error: an illegal memory access" in launch.lines


def test_other_placement_is_another_spec_and_the_attempt_is_none(scene: Scene):
    """By the hash launchers compare what they ask for."""
    two, four = PyTorchJobs(JobSettings(nodes=2)), PyTorchJobs(JobSettings(nodes=4))

    assert spec_hash(two, scene.spec()) == annotated(two, scene.spec(), 7)["metadata"]["annotations"]["firstsight.dev/spec-hash"]
    assert spec_hash(two, scene.spec()) != spec_hash(four, scene.spec())
