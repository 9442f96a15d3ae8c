"""Maps a run's tasks to its steps: Argo derives node numbers from node names, and the names follow from the pipeline.

The API gives a task a display name, which every lane's steps share, and the ids of its children, `<workflow>-<number>`; the number is
the 32-bit FNV-1a hash of the node's full name (Argo's `NodeID`). So the ids of our steps are known before the run. Observed on Kubeflow
Pipelines 2.17.0; a test checks this module against a recording from there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST_LANES = 64
"""Number of loop iterations to look for: the current pipeline makes at most three, earlier ones one per cell."""
POD = "metadata-1-3-system-container-impl"
"""The template of a step's own pod: Argo calls the pod `<workflow>-<template>-<number>`. 1 and 3 are the
numbers of annotations and labels on our steps."""
_EXPERIMENT = "(0).root(0).exit-handler-1"
_LANE = f"{_EXPERIMENT}(0).for-loop-2(0).iteration-iterations({{0}}:{{0}})(0).iteration-item(0)."
BEFORE = ("links", "stage-triplets", "stage-pairs", "plan")
IN_A_LANE = ("perceptual", "contrastive", "posthoc", "evaluate")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a run that has begun.

    Attributes:
        name: as Kubeflow shows it.
        lane: number of the lane from 0; -1 for a step outside the lanes.
        state: PENDING, RUNNING, SUCCEEDED, FAILED …, as the API says.
        node: id of its pod's node, used to request the log of an ended step.
        pod: name of its pod.
    """

    name: str
    lane: int
    state: str
    node: str
    pod: str


def steps(tasks: list[Any]) -> list[Step]:
    """The steps of a run that have begun, in the pipeline's order.

    Args:
        tasks: `run_details.task_details` of the run (kfp_server_api.V2beta1PipelineTaskDetail).
    """
    parents = {child.pod_name: task for task in tasks for child in task.child_tasks or [] if child.pod_name}
    workflows = {node.rpartition("-")[0] for node in parents}
    return [step for workflow in sorted(workflows) for step in _steps(workflow, parents)]


def node_id(workflow: str, name: str) -> str:
    """The id of a node, given its name without the Workflow's prefix."""
    number = 0x811C9DC5
    for byte in f"{workflow}{name}".encode():
        number = (number ^ byte) * 0x01000193 & 0xFFFFFFFF
    return f"{workflow}-{number}"


def _steps(workflow: str, parents: Mapping[str, Any]) -> Iterator[Step]:
    for name, lane, place in _places():
        attempt = parents.get(node_id(workflow, f"{place}(0)"))
        if attempt is None:
            continue
        node = node_id(workflow, f"{place}(0).executor(0)")
        executor = parents.get(node)
        state = attempt.state if executor is None or attempt.state != "RUNNING" else executor.state
        yield Step(name=name, lane=lane, state=state or "PENDING", node=node, pod=f"{workflow}-{POD}-{node.rpartition('-')[2]}")


def _places() -> Iterator[tuple[str, int, str]]:
    for name in BEFORE:
        yield name, -1, f"{_EXPERIMENT}(0).{name}"
    for lane in range(MOST_LANES):
        for name in IN_A_LANE:
            yield name, lane, f"{_LANE.format(lane)}{name}"
    yield "report", -1, f"{_EXPERIMENT}(0).report"
    yield "finish", -1, f"{_EXPERIMENT}.onExit(0).finish"
