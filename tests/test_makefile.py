"""Each target of the Makefile stands alone, on a machine where no other one has run."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from pipelines.planning.request import FIELDS

REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "Makefile").read_text()


def rules() -> dict[str, tuple[set[str], str]]:
    """Prerequisites and recipe of each target."""
    found: dict[str, tuple[set[str], str]] = defaultdict(lambda: (set(), ""))
    for targets, line, recipe in re.findall(r"^([a-z$][^:=\n]*):(?!=)([^\n]*)\n((?:\t[^\n]*\n)*)", TEXT, re.MULTILINE):
        for target in targets.split():
            prerequisites, before = found[target]
            found[target] = (prerequisites | {*line.partition("##")[0].split()}, before + recipe)
    return found


def test_what_runs_in_the_environment_makes_it_first():
    """`make e2e-tests` as much as `make test`."""
    using = {target for target, (_, recipe) in rules().items() if "$(BIN)" in recipe}

    assert {"test", "generate", "e2e-tests", "cluster-up"} <= using
    assert {target for target in using if not {"$(VENV)/ready", "$(VENV)/tools"} & rules()[target][0]} == set()


def test_a_run_needs_no_tool_of_tests():
    """The first hour is a run's: what only tests import is installed with the first test."""
    ready = {target for target, (needs, recipe) in rules().items() if "$(VENV)/ready" in needs and "$(BIN)" in recipe}
    assert {"pipeline-run", "pipeline-plan", "pipeline-verify"} <= ready
    assert not {target for target in ready if re.search(r"pytest|ruff|mypy|-m tests\b", rules()[target][1])}
    pinned = [
        set(re.findall(r"^([a-z0-9._-]+==\S+)", (REPOSITORY / f"requirements/{name}.txt").read_text(), re.M)) for name in ("run", "dev")
    ]
    assert pinned[0] < pinned[1]
    assert not re.search(r"^(pytest|ruff|mypy|hypothesis|seaweedfs)", "\n".join(pinned[0]), re.M)


def test_every_file_that_it_names_is_there():
    """A target that writes to where a file once lay makes a second one."""
    names = set(re.findall(r"(?<![\w/$])(?:scripts|images|manifests|pipelines|docs|charts|tests|requirements)/[\w./-]*\w", TEXT))

    assert {"scripts/setup.sh", "images/build.sh", "pipelines/kubeflow/compiled/firstsight.yaml"} <= names
    assert {name for name in names if not (REPOSITORY / name).exists()} == set()


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_a_value_reaches_the_command_as_it_stands(tmp_path: Path, where: str):
    """Neither make nor a shell runs what is in one, and one that begins with a dash is no flag."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / "bin/python").chmod(0o755)
    (tmp_path / "ready").touch()
    value = f"-x $(shell touch {tmp_path}/made) `touch {tmp_path}/made` $HOME ${{HOME}} \"a\" 'b'; c,d) # é\nf"
    given = {name.upper(): value for name in ("request", *FIELDS)}
    command = ["make", "-s", "pipeline-plan", f"VENV={tmp_path}", *(f"{name}={value}" for name in given if where == "argument")]

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    made = subprocess.run(command, cwd=REPOSITORY, env=environment | given, capture_output=True, text=True, timeout=60, check=True)

    flags = [f"--{name.replace('_', '-')}={value}" for name in ("request", *FIELDS)]
    assert json.loads(made.stdout) == ["-m", "pipelines", "plan", *flags]
    assert not (tmp_path / "made").exists()


def test_an_endpoint_is_not_run_by_make(tmp_path: Path):
    command = ["make", "-n", "pipeline-run", f"VENV={tmp_path}", f"KFP_ENDPOINT=$(shell touch {tmp_path}/made)"]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=60, check=True)

    assert not (tmp_path / "made").exists()


def test_the_preflight_needs_no_torch(tmp_path: Path):
    """Where no environment is, it makes a light one; the one of runs is used where it is there."""
    command = ["make", "-n", "chart-preflight", f"VENV={tmp_path}/venv"]
    fresh = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True).stdout
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/ready").touch()
    there = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True).stdout

    assert "requirements/pipelines.txt light" in fresh
    assert "requirements/run.txt" not in fresh
    assert f"{tmp_path}/venv-light/bin/python" in fresh
    assert '"firstsight" "" "" "firstsight"' in there
    assert "setup.sh" not in there
    assert f"{tmp_path}/venv/bin/python" in there
    assert not re.search(r"^(torch|nvidia)", (REPOSITORY / "requirements/pipelines.txt").read_text(), re.MULTILINE)
