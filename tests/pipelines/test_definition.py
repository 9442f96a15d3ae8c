"""The compiled pipeline: golden, and shaped as Kubeflow needs it. UPDATE_GOLDEN=1 rewrites the golden file."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compiled import FOLDER, compile_pipeline
from pipelines.components import IMAGE


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The pipeline's specification, compiled now."""
    path = tmp_path_factory.mktemp("compiled") / "firstsight.yaml"
    compile_pipeline(path)
    if os.environ.get("UPDATE_GOLDEN") == "1":
        (FOLDER / "firstsight.yaml").write_bytes(path.read_bytes())
    return _read(path)


def test_the_compiled_pipeline_is_the_golden_one(compiled: dict[str, Any]):
    """`make generate` was run after the last change."""
    assert _read(FOLDER / "firstsight.yaml") == compiled


def test_no_task_is_cached(compiled: dict[str, Any]):
    """The store knows what is done; KFP's cache would return URIs of data that is gone."""
    tasks = [task for dag in _dags(compiled) for task in dag["tasks"].values() if task["componentRef"]["name"] in _executed(compiled)]

    assert len(tasks) == 8
    assert all(not task["cachingOptions"].get("enableCache") for task in tasks)


def test_only_the_exit_task_stands_beside_the_exit_handler(compiled: dict[str, Any]):
    """A task after an ExitHandler would let a failed run say that it succeeded."""
    tasks = compiled["root"]["dag"]["tasks"]

    assert sorted(tasks) == ["exit-handler-1", "finish"]
    assert tasks["finish"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}


def test_the_cells_run_in_one_flat_loop_one_by_one(compiled: dict[str, Any]):
    """One loop, over strings, with four steps in a row."""
    loops = [task for dag in _dags(compiled) for task in dag["tasks"].values() if "parameterIterator" in task]
    (loop,) = loops
    body = compiled["components"][loop["componentRef"]["name"]]["dag"]["tasks"]

    assert loop["iteratorPolicy"] == {"parallelismLimit": 1}
    assert {name: task.get("dependentTasks") for name, task in body.items()} == {
        "perceptual": None,
        "contrastive": ["perceptual"],
        "posthoc": ["contrastive"],
        "evaluate": ["posthoc"],
    }


def test_every_parameter_is_typed_and_explained(compiled: dict[str, Any]):
    """What the form in Kubeflow's UI shows."""
    parameters = compiled["root"]["inputDefinitions"]["parameters"]

    assert sorted(parameters) == ["arms", "eval_sets", "experiment", "max_reject_fraction", "pairs", "recipe", "root", "seeds", "triplets"]
    assert all(parameter["description"] for parameter in parameters.values())
    assert parameters["max_reject_fraction"]["parameterType"] == "NUMBER_DOUBLE"


def test_no_task_installs_packages(compiled: dict[str, Any]):
    """The image has what a task needs; every task has the same placeholder for it."""
    for executor in compiled["deploymentSpec"]["executors"].values():
        assert executor["container"]["image"] == IMAGE
        assert "pip install" not in " ".join(executor["container"]["command"])


def _read(path: Path) -> dict[str, Any]:
    specification: dict[str, Any] = yaml.safe_load(path.read_text())
    return {key: value for key, value in specification.items() if key != "sdkVersion"}


def _dags(compiled: dict[str, Any]) -> list[dict[str, Any]]:
    return [compiled["root"]["dag"], *(part["dag"] for part in compiled["components"].values() if "dag" in part)]


def _executed(compiled: dict[str, Any]) -> set[str]:
    return {name for name, part in compiled["components"].items() if "executorLabel" in part}
