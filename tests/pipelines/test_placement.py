"""Every field of the trainer's placement, set in every place where a person may set it, read back from inside the started trainer."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from unittest import mock

import pytest
import yaml

from pipelines.jobs.shapes.pytorchjob import PyTorchJobs
from pipelines.jobs.specs import train_spec
from pipelines.planning.flags import add_request, request_of
from pipelines.planning.request import LAUNCHERS_OWN, Request, merge, write_request
from pipelines.planning.resolving import resolve
from pipelines.profile.profile import PROFILE_VARIABLE, job_settings, placement_of, read_profile
from pipelines.steps import cells, running
from tests.chart.conftest import CHART, HELMS
from tests.cluster.programs import program
from trainer.config import ContrastiveConfig, Placement, StageConfig
from trainer.configs import dump_yaml
from trainer.errors import InputError
from trainer.storage import layout, write_bytes, write_json
from trainer.storage.plans import read_plan

STARTED = Path(__file__).parent / "started"
REPOSITORY = Path(__file__).parents[2]
FIELDS = [item for item in dataclasses.fields(Placement) if item.name not in LAUNCHERS_OWN]
HINTS = get_type_hints(Placement)
SURFACES = ("flag", "request", "profile", pytest.param("chart", marks=pytest.mark.slow))


def another(item: "dataclasses.Field[Any]") -> Any:
    """A value that differs from the default, made from the type alone."""
    hint = HINTS[item.name]
    kinds = get_args(hint) if get_origin(hint) is not Literal else ()
    if get_origin(hint) is Literal:
        return next(value for value in get_args(hint) if value != item.default)
    if bool in (hint, *kinds):
        return item.default is not True
    if item.name == "metrics_port":
        return 9500  # a port that a pod may open
    if int in (hint, *kinds):
        return 2 if isinstance(item.default, str) else item.default + 1
    if hint is float:
        return item.default + 1.5
    return {"resume": "never", "profile_steps": "10:20"}.get(item.name, "a-name")  # these two are checked


GIVEN = {item.name: another(item) for item in FIELDS}


def of_that_port(folder: Path) -> str:
    """A profile whose metrics port is the one in GIVEN: a request cannot choose another."""
    (folder / "profile.yaml").write_text(yaml.safe_dump({"backend": "pytorchjob", "jobs": {"metrics_port": GIVEN["metrics_port"]}}))
    return str(folder / "profile.yaml")


def by_flag(folder: Path, given: dict[str, Any]) -> tuple[Request, str]:
    parser = argparse.ArgumentParser()
    add_request(parser)
    text = " ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in given.items())
    return request_of(parser.parse_args(["--placement", text])), of_that_port(folder)


def by_request(folder: Path, given: dict[str, Any]) -> tuple[Request, str]:
    (folder / "experiment.yaml").write_text(yaml.safe_dump({"placement": given}))
    return merge(str(folder / "experiment.yaml"), {}), of_that_port(folder)


def by_profile(folder: Path, given: dict[str, Any]) -> tuple[Request, str]:
    (folder / "profile.yaml").write_text(yaml.safe_dump({"backend": "pytorchjob", "placement": given}))
    return Request(), str(folder / "profile.yaml")


def by_chart(folder: Path, given: dict[str, Any]) -> tuple[Request, str]:
    (folder / "values.yaml").write_text(yaml.safe_dump({"profileDefaults": {"placement": given}}))
    command = [
        program(HELMS[0]),
        "template",
        "r",
        str(CHART),
        "--show-only",
        "templates/profiles/profile.yaml",
        "-f",
        str(CHART / "tests/values.yaml"),
        "-f",
        str(folder / "values.yaml"),
    ]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (one,) = [document for document in yaml.safe_load_all(rendered) if document]
    (folder / "profile.yaml").write_text(one["data"]["profile.yaml"])
    return Request(), str(folder / "profile.yaml")


GIVERS: dict[str, Callable[[Path, dict[str, Any]], tuple[Request, str]]] = {
    "flag": by_flag,
    "request": by_request,
    "profile": by_profile,
    "chart": by_chart,
}


def planned(folder: Path) -> tuple[str, dict[str, Any]]:
    """A root with a plan of one cell, and the cell's entry."""
    root = str(folder / "root")
    stage = layout.stage(layout.cell(layout.experiment(root, "demo"), "random", 0), "contrastive")
    write_bytes(layout.config(stage), dump_yaml(StageConfig(output=stage, contrastive=ContrastiveConfig())).encode())
    labels = {"contrastive": {"cell": "random-seed0", "arm": "random", "point": ""}}
    entry = {"cell": "random-seed0", "arm": "random", "seed": 0, "point": "", "contrastive": stage, "recipe": "r"}
    entry |= {"recipe_hashes": {"contrastive": "a" * 64}, "stage_labels": labels}
    write_json(f"{root}/experiments/demo/plan.json", {"format_version": 2, "recipes": {"r": {}}, "cells": [entry]})
    return root, entry


def shown(path: Path) -> dict[str, Any]:
    """What the trainer's process wrote."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def arrived_in_a_pod(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The placement inside the process that a PyTorchJob's container starts, all fields set at once; each way once."""
    found: dict[str, dict[str, Any]] = {}

    def arrived(surface: str) -> dict[str, Any]:
        if surface not in found:
            folder = tmp_path_factory.mktemp(surface)
            root, entry = planned(folder)
            request, profile_uri = GIVERS[surface](folder, GIVEN)
            profile = read_profile(profile_uri, backend="pytorchjob")
            spec = train_spec(root, entry, "contrastive", request, placement_of(profile, request))
            job = PyTorchJobs(job_settings(profile, request)).manifest(spec, 1)
            (container,) = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
            variables = {**os.environ, "PYTHONPATH": f"{STARTED}:{REPOSITORY}", "SHOWN_PLACEMENT": str(folder / "shown.json")}
            subprocess.run([sys.executable, "-m", "trainer", *container["args"]], check=True, env=variables)
            found[surface] = shown(folder / "shown.json")
        return found[surface]

    return arrived


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("item", FIELDS, ids=lambda item: str(item.name))
def test_every_field_reaches_the_trainer_of_a_job(arrived_in_a_pod: Callable[[str], dict[str, Any]], item: Any, surface: str):
    assert GIVEN[item.name] != item.default
    assert arrived_in_a_pod(surface)[item.name] == GIVEN[item.name]


@pytest.mark.parametrize("surface", SURFACES)
def test_every_field_reaches_a_trainer_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surface: str):
    """Through the step itself; a machine is one node."""
    given = {name: value for name, value in GIVEN.items() if name != "nodes"}
    root, _ = planned(tmp_path)
    request, profile_uri = GIVERS[surface](tmp_path, given)
    monkeypatch.setenv("PYTHONPATH", f"{STARTED}:{REPOSITORY}")
    monkeypatch.setenv("SHOWN_PLACEMENT", str(tmp_path / "shown.json"))
    monkeypatch.setenv(PROFILE_VARIABLE, profile_uri)
    stored = write_request(resolve(dataclasses.replace(request, experiment="demo", backend="local")), root)

    with mock.patch.dict(os.environ):  # a step takes its store's environment from the profile
        scene = running.open_scene(stored)
        cells.train(scene, read_plan(scene.experiment)["cells"][0], "contrastive")  # type: ignore[index]

    arrived = shown(tmp_path / "shown.json")
    assert {name: arrived[name] for name in given} == given


def test_what_the_request_says_wins_over_the_profile(tmp_path: Path):
    """Key by key."""
    (tmp_path / "profile.yaml").write_text("placement: {threads: 2, keep_last: 3}\n")
    profile = read_profile(str(tmp_path / "profile.yaml"))

    assert placement_of(profile, Request(placement={"threads": 4})) == {"threads": 4, "keep_last": 3}


@pytest.mark.parametrize("name", LAUNCHERS_OWN)
def test_what_the_launcher_sets_is_refused_elsewhere(tmp_path: Path, name: str):
    (tmp_path / "profile.yaml").write_text(f"placement: {{{name}: 1}}\n")

    with pytest.raises(InputError, match=name):
        read_profile(str(tmp_path / "profile.yaml"))
    with pytest.raises(InputError, match=f"placement.{name} is set only by the launcher"):
        merge("", {"placement": f"{name}=1"})
