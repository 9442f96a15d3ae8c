"""Each exit code through the shell lines that docs/KUBEFLOW.md gives to CI, and what make makes of it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.kubeflow.client import Kubeflow
from pipelines.kubeflow.endpoint import Endpoint
from pipelines.kubeflow.upload import NAME, register
from tests.pipelines.kubeflow.argo import FAILED, RUNNING, SUCCEEDED
from tests.pipelines.kubeflow.test_kubeflow_docs import section
from tests.pipelines.kubeflow_server import kubeflow_server

REPOSITORY = Path(__file__).parents[3]
PYTHON = """#!{python}
import sys
sys.path.insert(0, {repository!r})
from pipelines.__main__ import main
from pipelines.kubeflow import follow
follow.POLL_SECONDS = 0.01
assert sys.argv[1:3] == ["-m", "pipelines"]
sys.exit(main(sys.argv[3:]))
"""
OUTCOMES = {0: SUCCEEDED, 1: FAILED, 2: FAILED, 130: RUNNING}
"""Of the step `contrastive`, by the exit code that the shell sees."""


def environment() -> dict[str, str]:
    """The caller's, without what would change a submission."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("KFP_", "KF_", "MAKE", "MFLAGS", "FIRSTSIGHT_"))}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is set up, and whose Python looks at runs without pauses."""
    for name in ("Makefile", "scripts", "requirements"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(PYTHON.format(python=sys.executable, repository=str(REPOSITORY)))
    python.chmod(0o755)
    (tmp_path / ".venv/ready").touch()
    return tmp_path


@pytest.mark.parametrize("code", OUTCOMES)
def test_the_documented_lines_of_ci_end_with_the_runs_exit_code(checkout: Path, code: int):
    """Under `set -e`, as CI runs them; Ctrl-C goes to the shell and to what it runs alike."""
    (lines,) = re.findall(r"```sh\n(.*?)```", section("From CI"), flags=re.DOTALL)
    with kubeflow_server() as server:
        server.outcome = lambda pod: OUTCOMES[code] if pod.step == "contrastive" else SUCCEEDED
        server.logs["contrastive"] = f"why\nF1129 18:48:45.611529      15 main.go:59] failed to execute component: exit status {code}\n"
        register(Kubeflow(Endpoint(host=server.url)), NAME, "a/pipelines:1")
        script = lines.replace("https://kubeflow.example/pipeline", server.url)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        shell = subprocess.Popen(
            ["bash", "-ec", script],
            cwd=checkout,
            env=environment(),
            text=True,
            start_new_session=True,
            **pipes,  # type: ignore[call-overload]
        )
        end = time.monotonic() + 120
        while code == 130 and not any(run.looks > 1 for run in list(server.runs.values())) and time.monotonic() < end:
            time.sleep(0.02)
        if code == 130:
            os.killpg(shell.pid, signal.SIGINT)
        out, error = shell.communicate(timeout=120)

    assert shell.returncode == code, error
    result = json.loads((checkout / "result.json").read_text())
    assert result["exit_code"] == code
    assert result["state"] == ("SUCCEEDED" if code == 0 else "FAILED")
    assert "run: " in error
    assert "run: " not in out


@pytest.mark.parametrize("code", OUTCOMES)
def test_make_turns_every_failure_into_2_as_the_page_says(checkout: Path, code: int):
    """So it is no way for whoever needs the code."""
    (checkout / ".venv/bin/python").write_text(f"#!/bin/sh\nexit {code}\n")

    done = subprocess.run(
        ["make", "-s", "pipeline-run", "KFP_ENDPOINT=http://x"], cwd=checkout, env=environment(), capture_output=True, check=False
    )

    assert done.returncode == (2 if code else 0)
    assert "Make turns every failure into its own exit code 2" in section("From CI")


def test_the_documented_command_of_a_shell_runs_to_its_end(checkout: Path):
    """`make pipeline-run KFP_ENDPOINT=…`, as the page has it, except the address."""
    (line,) = re.findall(r"```sh\n(.*?)```", section("From a shell"), flags=re.DOTALL)
    with kubeflow_server() as server:
        register(Kubeflow(Endpoint(host=server.url)), NAME, "a/pipelines:1")
        done = subprocess.run(
            ["bash", "-ec", line.replace("https://kubeflow.example/pipeline", server.url)],
            cwd=checkout, env=environment(), text=True, capture_output=True, check=False,
        )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert len(server.runs) == 1
    assert "run: " in done.stdout
