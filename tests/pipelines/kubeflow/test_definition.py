"""The compiled pipeline: golden, and shaped as Kubeflow needs it. UPDATE_GOLDEN=1 rewrites the golden file."""

import importlib
import inspect
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import yaml

from pipelines.kubeflow import components, links_component
from pipelines.kubeflow.compiled import FOLDER, compile_pipeline
from pipelines.kubeflow.components import IMAGE
from pipelines.kubeflow.nodes import POD
from pipelines.profile.profile import MOUNTED
from pipelines.steps import artifacts, finish, lanes, links, planning, staging

PARAMETERS = {
    "data_pairs": ("", "STRING"),
    "data_triplets": ("", "STRING"),
    "jobs_nodes": ("", "STRING"),
    "jobs_parallel_cells": ("", "STRING"),
    "jobs_profile": ("firstsight", "STRING"),
    "request": ("", "STRING"),
    "steps_tolerations": ([], "LIST"),
    "study_arms": ("", "STRING"),
    "study_name": ("", "STRING"),
    "study_recipe": ("", "STRING"),
    "study_seeds": ("", "STRING"),
    "study_set": ("", "STRING"),
}
"""Empty means not given: the form always sends its defaults, and the request's value must override those."""
STEPS = {
    "contrastive": lanes.work,
    "evaluate": lanes.work,
    "finish": finish.finish,
    "links": links.accept,
    "perceptual": lanes.work,
    "plan": planning.make_plan,
    "posthoc": lanes.work,
    "report": finish.report,
    "stage-pairs": staging.stage,
    "stage-triplets": staging.stage,
}
COMPONENTS = tuple(STEPS)


class _Given:
    """An argument of a component, or the artifact that it writes."""

    def __init__(self, name: str, folder: Path) -> None:
        self.path = str(folder / name)
        self.state = "COMPLETE"


@pytest.fixture(scope="module")
def definition() -> Any:
    """The module, imported by a thread: for each setting of a pod kfp reads the source of the whole stack, and pytest's is deep."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(importlib.import_module, "pipelines.kubeflow.definition").result()


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory, definition: Any) -> list[dict[str, Any]]:
    """The pipeline's specification and what kfp-kubernetes adds to it, compiled now."""
    path = tmp_path_factory.mktemp("compiled") / "firstsight.yaml"
    compile_pipeline(path)
    if os.environ.get("UPDATE_GOLDEN") == "1":
        (FOLDER / "firstsight.yaml").write_bytes(path.read_bytes())
    return _read(path)


@pytest.fixture
def compiled(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The specification."""
    return documents[0]


@pytest.fixture
def platform(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """What Kubernetes is told of each executor."""
    settings: dict[str, Any] = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return settings


def test_the_compiled_pipeline_is_the_golden_one(documents: list[dict[str, Any]]):
    """`make generate` was run after the last change."""
    assert _read(FOLDER / "firstsight.yaml") == documents


def test_no_task_is_cached(compiled: dict[str, Any]):
    """The store knows what is done; KFP's cache would return URIs of data that is gone."""
    tasks = [task for dag in _dags(compiled) for task in dag["tasks"].values() if task["componentRef"]["name"] in _executed(compiled)]

    assert len(tasks) == len(COMPONENTS)
    assert all(not task["cachingOptions"].get("enableCache") for task in tasks)


def test_only_the_exit_task_stands_beside_the_exit_handler(compiled: dict[str, Any]):
    """A task after an ExitHandler would let a failed run say that it succeeded."""
    tasks = compiled["root"]["dag"]["tasks"]

    assert sorted(tasks) == ["exit-handler-1", "finish"]
    assert tasks["finish"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}


def test_the_lanes_run_in_one_flat_loop_without_a_limit_and_the_report_after_them(compiled: dict[str, Any]):
    """One loop, over strings, with four steps in a row; a limit on it would make Retry hang."""
    loops = [task for dag in _dags(compiled) for task in dag["tasks"].values() if "parameterIterator" in task]
    (loop,) = loops
    body = compiled["components"][loop["componentRef"]["name"]]["dag"]["tasks"]
    around = compiled["components"]["comp-exit-handler-1"]["dag"]["tasks"]

    assert "iteratorPolicy" not in loop
    assert {name: task.get("dependentTasks") for name, task in body.items()} == {
        "perceptual": None,
        "contrastive": ["perceptual"],
        "posthoc": ["contrastive"],
        "evaluate": ["posthoc"],
    }
    assert all(set(task["inputs"]["parameters"]) == {"request", "lane"} for task in body.values())
    assert "for-loop-2" in around["report"]["dependentTasks"]


def test_a_run_begins_with_the_links_and_nothing_is_staged_before_them(compiled: dict[str, Any]):
    """What cannot be meant is refused in the first half minute, not after hours of staging."""
    tasks = compiled["components"]["comp-exit-handler-1"]["dag"]["tasks"]

    assert [name for name, task in tasks.items() if not task.get("dependentTasks")] == ["links"]
    assert tasks["stage-triplets"]["dependentTasks"] == tasks["stage-pairs"]["dependentTasks"] == ["links"]


def test_every_parameter_is_typed_has_a_default_and_is_explained(compiled: dict[str, Any], definition: Any):
    """What the form in Kubeflow's UI shows; a person may press Run at once."""
    parameters = compiled["root"]["inputDefinitions"]["parameters"]

    assert {name: (value["defaultValue"], value["parameterType"]) for name, value in parameters.items()} == PARAMETERS
    assert all(parameter["description"] for parameter in parameters.values())
    assert sorted(inspect.signature(definition.firstsight.pipeline_func).parameters) == list(PARAMETERS)


def test_the_ui_shows_links_first_and_page_tables_and_figures_at_the_end(compiled: dict[str, Any]):
    """Metrics, HTML and Markdown are what Kubeflow draws."""
    shown = {
        name: {key: value["artifactType"]["schemaTitle"] for key, value in part["outputDefinitions"]["artifacts"].items()}
        for name, part in compiled["components"].items()
        if "artifacts" in part.get("outputDefinitions", {})
    }

    assert shown == {
        "comp-links": {"page": "system.Markdown"},
        "comp-plan": {"lanes": "system.Markdown"},
        **{f"comp-{name}": {"cells": "system.Markdown"} for name in lanes.STEPS},
        "comp-report": {"page": "system.HTML", "summary": "system.Markdown", "figures": "system.Metrics"},
        "comp-finish": {"page": "system.HTML"},
    }


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_pod_is_what_the_real_back_end_must_be_told(compiled: dict[str, Any], platform: dict[str, Any], definition: Any, name: str):
    """Restricted Pod Security, the profile's ConfigMap and Secret by the run's parameter, no eviction, no sidecar, limits."""
    settings = platform[f"exec-{name}"]
    parameter = "jobs_profile" if name == "finish" else "pipelinechannel--jobs_profile"
    container = compiled["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    user = str(definition.USER)

    assert settings["securityContext"] == {"runAsUser": user, "runAsGroup": user, "runAsNonRoot": True}
    (mounted,) = settings["configMapAsVolume"]
    assert mounted == {
        "configMapNameParameter": {"componentInputParameter": parameter},
        "mountPath": definition.PROFILE_FOLDER,
        "optional": True,
    }
    assert f"{definition.PROFILE_FOLDER}/profile.yaml" == MOUNTED
    (secret,) = settings["secretAsEnv"]
    assert secret["secretNameParameter"] == {"componentInputParameter": parameter}
    assert secret["optional"] is True
    assert [entry["envVar"] for entry in secret["keyToEnv"]] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    assert settings["podMetadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert settings["podMetadata"]["labels"]["app.kubernetes.io/part-of"] == "firstsight"
    assert POD == f"metadata-{len(definition.ANNOTATIONS)}-{len(definition.LABELS)}-system-container-impl"
    assert container["resources"]["resourceCpuRequest"] == "100m"
    assert container["resources"]["resourceMemoryLimit"] == ("4Gi" if name in ("evaluate", "report", "finish") else "1Gi")


def test_no_pod_is_given_the_profile_as_a_variable(compiled: dict[str, Any]):
    """kfp.local would set it too, over what the shell says."""
    assert not [name for name, executor in compiled["deploymentSpec"]["executors"].items() if "env" in executor["container"]]


def test_what_the_pods_need_is_passed_into_the_loop(compiled: dict[str, Any]):
    """The driver looks a parameter up in the inputs of the group around the task."""
    for group in ("comp-exit-handler-1", "comp-for-loop-2"):
        assert {"pipelinechannel--jobs_profile", "pipelinechannel--steps_tolerations"} <= set(
            compiled["components"][group]["inputDefinitions"]["parameters"]
        )


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_gives_its_step_all_that_it_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str):
    """A keyword that its step does not take would show after hours, on the cluster."""
    step = STEPS[name]
    called = create_autospec(step, return_value=("", "") if name in ("links", "plan", "finish") else "")
    monkeypatch.setattr(artifacts, "read_report", lambda folder: (b"", b"", {}))
    monkeypatch.setattr(sys.modules[step.__module__], step.__name__, called)
    function = getattr(links_component if name == "links" else components, name.replace("-", "_")).python_func
    given = {key: _Given(key, tmp_path) for key in inspect.signature(function).parameters}

    function(**given)

    passed = [*called.call_args.args, *called.call_args.kwargs.values()]
    passed += [one for one in given.values() if one.path in passed]
    shown = {"finish": {"status", "page"}, "links": {"page"}, "plan": {"lanes"}, "report": {"figures", "page", "summary"}}
    hidden = shown.get(name, set())
    assert [key for key in given if given[key] not in passed] == sorted(hidden, key=list(given).index)


def test_no_task_installs_packages(compiled: dict[str, Any]):
    """The image has what a task needs; every task has the same placeholder for it."""
    assert sorted(compiled["deploymentSpec"]["executors"]) == sorted(f"exec-{name}" for name in COMPONENTS)
    for executor in compiled["deploymentSpec"]["executors"].values():
        assert executor["container"]["image"] == IMAGE
        assert "pip install" not in " ".join(executor["container"]["command"])


def _read(path: Path) -> list[dict[str, Any]]:
    specification, platform = yaml.safe_load_all(path.read_text())
    return [{key: value for key, value in specification.items() if key != "sdkVersion"}, platform]


def _dags(compiled: dict[str, Any]) -> list[dict[str, Any]]:
    return [compiled["root"]["dag"], *(part["dag"] for part in compiled["components"].values() if "dag" in part)]


def _executed(compiled: dict[str, Any]) -> set[str]:
    return {name for name, part in compiled["components"].items() if "executorLabel" in part}
