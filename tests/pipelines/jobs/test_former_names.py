"""A job that commit ad127be made, alive under the name that it gave: adopted, followed, ended; never another folder's."""

from typing import Any

import pytest

from pipelines.jobs import owners
from pipelines.jobs.base import Outcome
from pipelines.jobs.holds import HELD_BY
from pipelines.jobs.launcher import OUTPUT, RECIPE_HASH, annotated
from pipelines.jobs.shapes.pytorchjob import PyTorchJobs
from pipelines.profile.settings import JobSettings
from tests.pipelines.launching import Launch, Scene, annotations, scene
from tests.pipelines.operator import JOBS, eventually
from trainer.storage import layout, write_json
from trainer.storage.fence import read_claim

__all__ = ["scene"]


def put_former(scene: Scene, **changed: str) -> str:
    """The job as ad127be left it on the cluster, with some annotations changed; its name."""
    job = annotated(PyTorchJobs(JobSettings(nodes=2)), scene.spec(), 1)
    metadata: dict[str, Any] = job["metadata"]
    metadata |= {"name": scene.identity.former_name, "namespace": "team"}
    metadata["annotations"] |= {f"{HELD_BY}old": "2020-01-01T00:00:00Z", **changed}
    for labels in (metadata["labels"], job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["metadata"]["labels"]):
        del labels["firstsight.dev/cell"]
    write_json(layout.attempt(scene.folder), {"attempt": 1})
    scene.api.put(JOBS, job)
    eventually(lambda: scene.api.find("pods", f"{metadata['name']}-worker-1"))
    return str(metadata["name"])


def adopting(scene: Scene) -> tuple[str, Launch]:
    """The job, and a launcher that has adopted it."""
    name = put_former(scene)
    launch = scene.launch()
    eventually(lambda: f"PyTorchJob team/{name} is already running: adopted" in launch.text())
    return name, launch


def test_it_is_adopted_and_followed_under_its_own_name(scene: Scene):
    """No second job writes into its folder; what it logs is heard, and its end is seen."""
    name, launch = adopting(scene)
    scene.api.log(f"{name}-worker-0", "hello")
    eventually(lambda: "hello" in launch.lines)
    scene.seal()
    scene.api.end_log(f"{name}-worker-0")
    scene.operator.end(name, "Succeeded")

    assert launch.outcome() == Outcome(exit_code=0, line="")
    assert [job["metadata"]["name"] for job in scene.operator.created] == [name]
    assert f"{HELD_BY}ana" not in scene.api.find(JOBS, name)["metadata"]["annotations"]  # type: ignore[index]


def test_what_happens_to_it_is_said_of_its_own_name(scene: Scene):
    name, launch = adopting(scene)
    scene.api.remove(JOBS, name)

    assert launch.outcome().line == f"PyTorchJob {name} was deleted by someone else before it finished"


def test_leaving_ends_it_under_its_own_name(scene: Scene):
    """The shell of old is long silent."""
    _, launch = adopting(scene)
    launch.job.leave()

    assert scene.clean()


@pytest.mark.parametrize("adopted", [True, False])
def test_cancel_ends_it_under_its_own_name(scene: Scene, monkeypatch: pytest.MonkeyPatch, adopted: bool):
    """Also before this launcher has found it."""
    monkeypatch.setenv(owners.HOLDER_VARIABLE, "ben")
    if adopted:
        _, launch = adopting(scene)
    else:
        scene.seal()
        launch = scene.launch()
        launch.outcome()
        put_former(scene)
    launch.job.cancel()

    assert scene.clean()


def test_one_that_makes_another_folder_is_left_alone(scene: Scene):
    """Two doses of one arm had the same name."""
    name = put_former(scene, **{OUTPUT: f"{scene.folder}-of-another-dose"})
    launch = scene.launch()
    eventually(scene.job)
    launch.job.leave()

    assert scene.api.find(JOBS, name) is not None
    assert [job["metadata"]["name"] for job in scene.operator.created] == [name, scene.name]


def test_one_of_another_recipe_in_this_folder_is_refused(scene: Scene):
    name = put_former(scene, **{RECIPE_HASH: "b" * 64})

    outcome = scene.launch().outcome()

    assert outcome.exit_code == 2
    assert (
        f"PyTorchJob team/{name} runs a different recipe under this name (recipe hash bbbbbbbbbbbb instead of aaaaaaaaaaaa" in outcome.line
    )
    assert scene.api.find(JOBS, name) is not None


@pytest.mark.parametrize("how", ["ended", "being deleted"])
def test_one_that_has_ended_makes_room_for_a_job_of_todays_name(scene: Scene, how: str):
    """When its pods are gone; the attempt is counted on."""
    name = put_former(scene)
    scene.api.slow_pods = True
    if how == "ended":
        scene.operator.end(name, "Failed", "backoff limit")
    else:
        with scene.api._changed:
            scene.api._delete((JOBS, "team", name), {"propagationPolicy": "Foreground"})
    launch = scene.launch()
    eventually(lambda: f"PyTorchJob {name} " in launch.text())
    eventually(lambda: "deletionTimestamp" in (scene.api.find(JOBS, name) or {"metadata": {}})["metadata"])
    assert scene.job() is None
    scene.api.finish_pods()
    eventually(scene.job)

    assert annotations(scene)["firstsight.dev/attempt"] == "2"
    assert eventually(lambda: read_claim(scene.folder).attempt == 2)
