"""The simulator against what a real Argo did with the same pipelines."""

import json
from collections.abc import Callable

import pytest

from tests.pipelines.kubeflow import recordings
from tests.pipelines.kubeflow.argo import FAILED, RUNNING, SUCCEEDED, Outcome, Pod, Workflow
from tests.pipelines.kubeflow.argo_size import workflow_size

Script = Callable[[Workflow], object]


def _well(pod: Pod) -> str:
    return SUCCEEDED


def _fails(*steps: str, items: tuple[int, ...] | None = None, then: str = SUCCEEDED) -> Outcome:
    """Steps that fail, and end as `then` says after a Retry."""

    def outcome(pod: Pod) -> str:
        if pod.step not in steps or items not in (None, pod.iterations):
            return SUCCEEDED
        return FAILED if pod.run == 0 else then

    return outcome


def _waits(step: str) -> Outcome:
    return lambda pod: RUNNING if pod.step == step else SUCCEEDED


def _exit_task_fails(pod: Pod) -> str:
    return FAILED if pod.step == "finish" else _fails("work-2", items=(1,))(pod)


def _go(run: Workflow) -> None:
    """Nothing more is done to the run."""


RECORDED: dict[str, tuple[Outcome, int, Script]] = {
    "product-succeeded": (_well, 1, _go),
    "product-failed": (_fails("contrastive"), 1, _go),
    "product-retried-running": (_fails("contrastive"), 1, Workflow.retry),
    "product-hung-after-retry": (_fails("contrastive"), 1, Workflow.retry),
    "product-in-progress": (_waits("plan-driver"), 1, _go),
    "product-training": (_waits("contrastive"), 1, _go),
    "product-canceling": (_waits("contrastive"), 1, Workflow.terminate),
    "product-terminated": (_waits("contrastive"), 1, Workflow.terminate),
    "product-terminated-too-late": (_well, 1, _go),
    "product-np-failed": (_fails("evaluate"), 1, _go),
    "product-np-retried-running": (_fails("evaluate", then=RUNNING), 1, Workflow.retry),
    "product-np-retried-succeeded": (_fails("evaluate"), 1, Workflow.retry),
    "toy-flat-waiting": (_waits("work-2"), 3, _go),
    "toy-flat-failed": (_fails("work-2", items=(1,)), 3, _go),
    "toy-flat-retried-running": (_fails("work-2", items=(1,), then=RUNNING), 3, Workflow.retry),
    "toy-flat-retried-done": (_fails("work-2", items=(1,)), 3, Workflow.retry),
    "toy-flat-terminated-2": (_waits("work-2"), 3, Workflow.terminate),
    "toy-exit-failed-run-succeeded": (_exit_task_fails, 3, Workflow.retry),
    "toy-outside-cell-failed-run-succeeded": (_fails("work", items=(1,)), 3, _go),
    "toy-nested-hung": (_fails("work-2", items=(0, 0)), 2, Workflow.retry),
    "toy-compressed-failed": (_fails("bigwork", items=(1,)), 6, _go),
}
"""Recording -> how pods ended, how many items a loop had, and what was done to the run."""


def _simulated(name: str) -> Workflow:
    outcome, items, script = RECORDED[name]

    def count(loop: str, iterations: tuple[int, ...]) -> int:
        return 1 if iterations == (1,) else items  # the second of the nested toy's lanes had one cell

    run = Workflow(recordings.pipeline(name), outcome, count)
    run.go()
    script(run)
    return run


@pytest.mark.parametrize("name", RECORDED)
def test_every_node_is_as_recorded(name: str) -> None:
    recorded = recordings.workflow(name)
    prefix = len(recorded["metadata"]["name"])
    nodes = recorded["status"]["nodes"].values()
    expected = {node["name"][prefix:]: (node["type"], node["phase"], node["templateName"]) for node in nodes}
    simulated = _simulated(name)
    assert {node.name: (node.type, node.phase, node.template.name) for node in simulated.nodes.values()} == expected
    assert simulated.hangs == ("hung" in name or name == "product-retried-running")


@pytest.mark.parametrize("name", RECORDED)
def test_size_is_as_recorded(name: str) -> None:
    recorded = len(json.dumps(recordings.workflow(name), separators=(",", ":")))
    assert workflow_size(_simulated(name)) == pytest.approx(recorded, rel=0.05)


def test_every_recorded_run_is_simulated() -> None:
    runs = {path.parent.name for path in recordings.FOLDER.glob("*/workflow.json.gz")}
    assert runs == RECORDED.keys()


def test_pipeline_of_ad127be_without_a_limit_does_not_hang() -> None:
    documents = recordings.pipeline("product-failed")
    loop = documents[0]["components"]["comp-exit-handler-1"]["dag"]["tasks"]["for-loop-2"]
    assert loop.pop("iteratorPolicy") == {"parallelismLimit": 1}
    run = Workflow(documents, _fails("contrastive"), lambda loop, iterations: 2)
    assert run.go() == FAILED
    assert run.retry() == SUCCEEDED


def test_a_run_that_has_not_failed_is_not_retried() -> None:
    run = Workflow(recordings.pipeline("product-failed"), _well, lambda loop, iterations: 1)
    run.go()
    with pytest.raises(ValueError, match="Succeeded"):
        run.retry()
