"""Steps are found in what a real server answered."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.kubeflow import nodes
from tests.pipelines.kubeflow import recordings

PRODUCT = sorted(path.parent.name for path in recordings.FOLDER.glob("product-*/run.v2beta1.http"))
RECORDED_POD = "metadata-2-4-system-container-impl"
"""Steps had one more label and one more annotation of ours then."""


def tasks(name: str) -> list[Any]:
    """The tasks of a recorded run, as the generated client gives them."""
    details = recordings.answer(f"{name}/run.v2beta1.http").json()["run_details"]["task_details"]
    return [
        SimpleNamespace(
            state=task.get("state"), child_tasks=[SimpleNamespace(pod_name=child.get("pod_name")) for child in task.get("child_tasks", [])]
        )
        for task in details
    ]


@pytest.mark.parametrize("name", PRODUCT)
def test_node_ids_are_argos(name: str) -> None:
    workflow = recordings.workflow(name)
    prefix = workflow["metadata"]["name"]
    for node in workflow["status"]["nodes"].values():
        if node["name"] != prefix:  # the first node's id is the Workflow's name
            assert nodes.node_id(prefix, node["name"].removeprefix(prefix)) == node["id"]


def test_a_failed_run_shows_each_step_that_began_with_its_state() -> None:
    found = {step.name: (step.state, step.lane) for step in nodes.steps(tasks("product-failed"))}
    assert found == {
        **dict.fromkeys(("links", "stage-triplets", "stage-pairs", "plan"), ("SUCCEEDED", -1)),
        "perceptual": ("SUCCEEDED", 0),
        "contrastive": ("FAILED", 0),
        "finish": ("SUCCEEDED", -1),
    }


@pytest.mark.parametrize("name", ["product-failed", "product-succeeded", "product-np-retried-succeeded"])
def test_each_log_is_asked_for_where_it_was_found(name: str) -> None:
    recorded = {path.name.split(".")[2] for path in (recordings.FOLDER / name).glob("log-right.*.http")}
    found = nodes.steps(tasks(name))
    assert {step.node.rpartition("-")[2] for step in found} == recorded
    requests = (recordings.FOLDER / "REQUESTS.tsv").read_text()
    assert all(f"/nodes/{step.pod.replace(nodes.POD, RECORDED_POD)}/log" in requests for step in found)


def test_a_running_step_is_running_and_one_to_come_is_absent() -> None:
    found = {step.name: step.state for step in nodes.steps(tasks("product-training"))}
    assert found["contrastive"] == "RUNNING"
    assert "posthoc" not in found
    assert nodes.steps([]) == []
