"""`python -m pipelines submit | upload | unregister` as a person and as CI runs them, against the small server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main
from pipelines.kubeflow import components, follow, submit, upload
from pipelines.planning.request import FIELDS
from tests.pipelines.kubeflow.argo import FAILED, RUNNING, SUCCEEDED, Pod
from tests.pipelines.kubeflow_server import KubeflowServer
from trainer.storage import write_json

REPOSITORY = Path(__file__).parents[3]


def run(*arguments: str) -> int:
    """The exit code of a short submission of the smoke experiment."""
    return main(["submit", "--recipe", "smoke", "--arms", "random", "--pipelines-image", "a/pipelines:1", *arguments])


def _fails(pod: Pod) -> str:
    """`contrastive` fails."""
    return FAILED if pod.step == "contrastive" else SUCCEEDED


def _stays(pod: Pod) -> str:
    """`contrastive` goes on for ever."""
    return RUNNING if pod.step == "contrastive" else SUCCEEDED


def profile_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine can read the cluster's store."""
    (root / "profile.yaml").write_text(f"root: {root}/store\n")
    monkeypatch.setenv("FIRSTSIGHT_PROFILE", str(root / "profile.yaml"))


def test_a_run_is_submitted_followed_and_ends_well(server: KubeflowServer, capsys: pytest.CaptureFixture[str]):
    """Link first, then each step's state and log, in order."""
    server.logs["links"] = "links: hello\n"

    assert run("--nodes", "2") == 0

    out = capsys.readouterr().out.splitlines()
    (identifier,) = server.runs
    assert out[0].endswith(f"{server.url}/#/runs/details/{identifier}")
    assert out.index("links: running") < out.index("links | links: hello") < out.index("links: succeeded")
    assert out.count("links | links: hello") == 1
    assert out[-3:-1] == ["finish: succeeded", "run: succeeded"]
    assert not [line for line in out if "driver" in line]
    parameters = server.runs[identifier].body["runtime_config"]["parameters"]
    request = json.loads(parameters["request"])
    assert (request["nodes"], request["experiment"], request["recipe"], request["root"]) == (2, "smoke", "smoke", "")
    assert set(parameters) == {"request"}


def test_the_image_is_that_of_the_registered_pipeline_unless_one_is_named(server: KubeflowServer, capsys: pytest.CaptureFixture[str]):
    """The chart registered the one that this cluster can pull."""
    assert main(["submit", "--recipe", "smoke", "--no-wait"]) == 2
    assert "install the chart" in capsys.readouterr().err

    assert main(["upload", "--name", "firstsight", "--image", "registry.example/pipelines@sha256:0"]) == 0
    assert main(["submit", "--recipe", "smoke", "--no-wait"]) == 0

    assert len(server.versions) == 1
    assert main(["unregister"]) == 0
    assert main(["unregister"]) == 0
    assert "was not registered" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (("--arms", "percetual"), "'percetual'"),
        (("--root", "runs"), "root must be a URI"),
        (("--pairs", "/home/me/pictures"), "pairs must be a URI"),
        (("--recipe", "mine.yaml"), "mine.yaml: no such file"),
        (("--endpoint", "kubeflow"), "KFP_ENDPOINT"),
        (("--pipelines-image", "two words"), "image"),
    ],
)
def test_what_is_wrong_from_here_never_reaches_the_server(
    server: KubeflowServer, capsys: pytest.CaptureFixture[str], wrong: tuple[str, ...], named: str
):
    """One line, exit code 2, nothing uploaded."""
    assert run(*wrong) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert (server.pipelines, server.runs) == ({}, {})


def failure(root: Path, code: int, folder: str = "", age: float = 0.0) -> None:
    """What a step left in the store."""
    record = {"time": time.time() - age, "stage": "contrastive random-seed0", "exit_code": code, "line": "why it failed"}
    write_json(str(root / "store/experiments/smoke" / folder / "failure.json"), record)


@pytest.mark.parametrize("code", [1, 2])
def test_a_failed_run_gives_the_steps_own_exit_code_and_reason(
    server: KubeflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
):
    """Kubeflow says FAILED and no more."""
    profile_of(tmp_path, monkeypatch)
    server.outcome = _fails
    failure(tmp_path, code)
    failure(tmp_path, 1, "staging/pairs", age=3600)  # of an earlier run

    assert run() == code

    assert capsys.readouterr().err == "pipelines submit: contrastive random-seed0: why it failed\n"


def test_a_failed_run_whose_store_is_out_of_reach_says_so(server: KubeflowServer, capsys: pytest.CaptureFixture[str]):
    """Exit code 1, and what to give."""
    server.outcome = _fails

    assert run() == 1

    assert "cannot be read from here: set ROOT" in capsys.readouterr().err


def test_a_run_that_somebody_terminated_is_not_called_a_failure_of_a_step(
    server: KubeflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """It goes CANCELING, then FAILED, and its exit task never runs."""
    server.outcome = _stays

    look = follow.RunFollower._look

    def terminated_once_it_trains(self: follow.RunFollower, task: Any) -> Any:
        (found,) = server.runs.values()
        if found.looks == 30:
            found.terminate()
        return look(self, task)

    monkeypatch.setattr(follow.RunFollower, "_look", terminated_once_it_trains)

    assert run() == 1
    assert "was terminated" in capsys.readouterr().err


def test_for_ci_there_is_one_json_object_on_stdout(
    server: KubeflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The rest goes to stderr."""
    profile_of(tmp_path, monkeypatch)
    server.outcome = _fails
    failure(tmp_path, 2)

    assert run("--json") == 2

    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["state"], result["exit_code"], result["experiment"]) == ("FAILED", 2, "smoke")
    assert result["run_id"] in server.runs
    assert result["failures"][0]["line"] == "why it failed"
    assert "run: failed" in captured.err


def test_no_wait_ends_once_the_run_is_there(server: KubeflowServer, capsys: pytest.CaptureFixture[str]):
    """With its link."""
    assert run("--no-wait", "--json") == 0

    result = json.loads(capsys.readouterr().out)
    assert (result["state"], result["exit_code"]) == ("SUBMITTED", 0)
    assert result["link"].endswith(result["run_id"])


def test_a_lost_connection_is_waited_for(server: KubeflowServer):
    """A gateway that restarts does not end a run of days."""
    server.faults.dropped = {"GET .*/runs/": 3}
    server.faults.answers = {"GET .*/runs/": [(502, "bad gateway")] * 3}

    assert run() == 0


def test_a_connection_that_stays_lost_ends_the_waiting_and_says_that_the_run_goes_on(
    server: KubeflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Bounded; exit code 1, with the link."""
    monkeypatch.setattr(submit, "LOST_SECONDS", 0.5)
    server.faults.answers = {"GET .*/runs/": [(503, "no healthy upstream")] * 1000}

    assert run() == 1

    error = capsys.readouterr().err
    assert "no healthy upstream" in error
    assert "the run continues: http" in error


def test_the_placeholder_of_an_image_is_that_of_the_components():
    """It is spelled twice, so that an upload needs no kfp."""
    assert upload.PLACEHOLDER == components.IMAGE
    assert upload.PLACEHOLDER in (upload.FOLDER / "firstsight.yaml").read_text()


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ((), "run|"),
        (("KFP_ENDPOINT=http://x",), "submit|"),
        (("KFP_ENDPOINT=http://x", "ROOT=s3://b"), "submit|--root=s3://b|"),
        (("KFP_ENDPOINT=http://x", "BACKEND=trainjob", "REQUEST=a b.yaml"), "submit|--request=a b.yaml|--backend=trainjob|"),
        (("NODES=2", "SET=contrastive.epochs=2 model.embed_dim=64"), "run|--set=contrastive.epochs=2 model.embed_dim=64|--nodes=2|"),
    ],
)
def test_make_pipeline_run_passes_on_what_is_given(tmp_path: Path, given: tuple[str, ...], flags: str):
    """One target for both commands; what is not given is left to the request's defaults."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$KFP_ENDPOINT" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "ready").touch()
    clean = {
        name: value for name, value in os.environ.items() if name not in ("KFP_ENDPOINT", "MAKEFLAGS", "REQUEST", *map(str.upper, FIELDS))
    }

    done = subprocess.run(
        ["make", "-s", "pipeline-run", f"VENV={tmp_path}", *given], cwd=REPOSITORY, env=clean, capture_output=True, text=True, check=True
    )

    endpoint = "http://x" if flags.startswith("submit") else ""
    assert done.stdout == f"{endpoint}|-m|pipelines|{flags}"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_asks_the_server_to_terminate_and_waits_for_the_end(server: KubeflowServer, number: int):
    """CANCELING, then FAILED; exit code 130."""
    server.outcome = _stays
    process = _submit_in_a_process(server)
    _wait_until(lambda: any(found.looks > 1 for found in server.runs.values()))

    process.send_signal(number)
    out, error = process.communicate(timeout=60)

    (found,) = server.runs.values()
    assert process.returncode == 130, error
    assert found.state == "FAILED"
    assert "asking Kubeflow to terminate" in out
    assert "run: canceling" in out
    assert "finish: succeeded" not in out
    assert error == "pipelines submit: stopped; submit the same experiment again to resume\n"


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait_for_the_end(server: KubeflowServer):
    """And says where to look; also where it comes before the answer to the first one's request."""
    server.outcome = _stays
    process = _submit_in_a_process(server)
    _wait_until(lambda: any(found.looks > 1 for found in server.runs.values()))
    server.faults.answers = {"GET .*/runs/": [(503, "slow")] * 1000}

    process.send_signal(signal.SIGINT)
    _wait_until(lambda: any(found.state == "CANCELING" for found in server.runs.values()))
    server.faults.answers = {}
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "no longer waiting" in error or "stopped" in error
    assert "http" in error or "stopped" in error


def _submit_in_a_process(server: KubeflowServer) -> "subprocess.Popen[str]":
    arguments = ["submit", "--endpoint", server.url, "--recipe", "smoke", "--arms", "random", "--pipelines-image", "a/pipelines:1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    often = (
        "from pipelines.kubeflow import follow; follow.POLL_SECONDS = 0.1; from pipelines.__main__ import main; raise SystemExit(main())"
    )
    return subprocess.Popen([sys.executable, "-c", often, *arguments], text=True, env=environment, start_new_session=True, **pipes)


def _wait_until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
