"""The whole of it on a real Kubeflow: `make e2e-kfp KFP_ENDPOINT=…`, where the chart is installed.

Reads the environment that `make pipeline-run KFP_ENDPOINT=…` reads (KFP_NAMESPACE, KFP_TOKEN …). With KUBECONFIG it also
looks whether jobs are gone after a termination. Takes the smoke recipe: minutes on CPUs.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.cluster import programs

pytestmark = [pytest.mark.kfp, pytest.mark.timeout(3600)]

EXPERIMENT = f"e2e-{secrets.token_hex(3)}"


def command(*arguments: str) -> list[str]:
    """A submission of the smoke recipe."""
    return [sys.executable, "-m", "pipelines", "submit", "--recipe", "smoke", "--arms", "random", "--json", *arguments]


def submit(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON at its end, and what happened on the way."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_the_experiment_runs_and_a_second_submission_finds_it_done():
    """The same command again is the way to go on, so it must cost little."""
    code, result, said = submit("--experiment", EXPERIMENT)
    assert (code, result.get("state")) == (0, "SUCCEEDED"), said
    assert "contrastive: succeeded" in said
    started = time.monotonic()

    code, result, said = submit("--experiment", EXPERIMENT)

    assert (code, result.get("state")) == (0, "SUCCEEDED"), said
    assert time.monotonic() - started < 600  # some nine steps of two pods each


def test_wrong_input_that_only_the_cluster_can_see_ends_with_a_reason():
    """KFP reports 1 for every failed step."""
    code, result, said = submit("--experiment", f"{EXPERIMENT}-wrong", "--pairs", "s3://no-such-bucket-of-firstsight/pictures")

    assert code in (1, 2), said
    assert result["state"] == "FAILED"


def test_ctrl_c_terminates_the_run_and_the_jobs_go_with_it():
    """The reaper frees them; nothing inside the run lives long enough."""
    experiment = f"{EXPERIMENT}-stopped"
    process = subprocess.Popen(command("--experiment", experiment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "running" in line and "run:" not in line:
            break
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=600)

    result = json.loads(out)
    assert (process.returncode, result["state"]) == (130, "FAILED"), error
    if "KUBECONFIG" in os.environ:
        jobs = [
            programs.program("kubectl"),
            "get",
            "pytorchjobs,jobs",
            "--all-namespaces",
            "-l",
            f"firstsight.dev/experiment={experiment}",
            "-o",
            "name",
        ]
        deadline = time.monotonic() + 120
        while left := subprocess.run(jobs, capture_output=True, text=True, check=True).stdout.strip():
            assert time.monotonic() < deadline, left
            time.sleep(2)
