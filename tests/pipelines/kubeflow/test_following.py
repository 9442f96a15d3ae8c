"""What may happen to a run that is followed: a server that hangs, forgets, asks for a login or is another one; Ctrl-C at a bad time."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main
from pipelines.kubeflow import client, follow, nodes, runninglogs, submit
from pipelines.kubeflow.follow import POLL_SECONDS, was_terminated
from pipelines.kubeflow.nodes import Step
from tests.pipelines.kubeflow.argo import FAILED, RUNNING, SUCCEEDED, Pod
from tests.pipelines.kubeflow.runs import Run
from tests.pipelines.kubeflow_server import KubeflowServer
from trainer.storage import write_json

EXECUTOR = """I1129 18:48:23.972456      15 main.go:67] Setting log level to: '1'
[KFP Executor 2026-11-29 18:48:24,172 INFO]: Got executor_input:
{
    "inputs": {}
}
contrastive random-seed0: no such bucket
E1129 18:48:45.514260      15 launcher_v2.go:449] Component failed to execute successfully: exit status CODE
F1129 18:48:45.611529      15 main.go:59] failed to execute component: exit status CODE
"""


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runninglogs.RunningLogs, "_pod", lambda self, step: None)


def run(*arguments: str) -> int:
    """The exit code of a short submission of the smoke experiment."""
    return main(["submit", "--recipe", "smoke", "--arms", "random", "--pipelines-image", "a/pipelines:1", *arguments])


def at_look(number: int, then: Callable[[Run], object], monkeypatch: pytest.MonkeyPatch, server: KubeflowServer) -> None:
    """Do something once the server was asked for the run so often."""
    look = follow.RunFollower._look

    def looked(self: follow.RunFollower, found: Any) -> list[Step]:
        for known in list(server.runs.values()):
            if known.looks == number:
                known.looks += 1
                then(known)
        return look(self, found)

    monkeypatch.setattr(follow.RunFollower, "_look", looked)


def _stays(pod: Pod) -> str:
    return RUNNING if pod.step == "contrastive" else SUCCEEDED


def _fails(pod: Pod) -> str:
    return FAILED if pod.step == "contrastive" else SUCCEEDED


def test_a_run_that_the_server_loses_is_said(server: KubeflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Somebody deleted it; that is no fault of the input, and nothing goes on."""
    at_look(8, lambda known: server.runs.clear(), monkeypatch, server)

    assert run() == 1

    error = capsys.readouterr().err
    assert "no longer knows run" in error
    assert "submit the same experiment again" in error
    assert "goes on" not in error


@pytest.mark.parametrize("answer", [(200, "<html>Log in</html>"), (302, ""), (401, '{"message": "no valid token"}')])
def test_a_login_that_expires_on_the_way_says_what_to_set_and_that_the_run_goes_on(
    server: KubeflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: tuple[int, str]
):
    """A page in place of the run would be a run without a state, for ever."""
    at_look(8, lambda known: server.faults.answers.update({"GET .*/runs/": [answer] * 9}), monkeypatch, server)

    assert run() == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "set KFP_TOKEN" in line
    assert "the run continues: http" in line


@pytest.mark.parametrize("request_", ["POST .*/upload_version", "GET .*/runs/", "GET .*/experiments"])
def test_a_server_that_takes_requests_and_never_answers_is_given_up(
    server: KubeflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request_: str
):
    """As the real one did with a body that it could not read."""
    monkeypatch.setattr(client, "REQUEST_SECONDS", (5.0, 0.2))
    monkeypatch.setattr(client, "FIRST_CONTACT_SECONDS", 0.3)
    monkeypatch.setattr(submit, "CONTACT_SECONDS", 0.3)
    monkeypatch.setattr(submit, "LOST_SECONDS", 0.3)
    server.faults.hung = request_

    assert run() == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert "Read timed out" in line


def test_an_older_kubeflow_is_named(server: KubeflowServer, capsys: pytest.CaptureFixture[str]):
    """Version 1 has no API v2beta1."""
    server.faults.answers = {"healthz": [(404, "Not Found")]}

    assert run() == 2

    assert "which Kubeflow Pipelines 2 serves" in capsys.readouterr().err


def test_a_server_that_numbers_its_steps_in_another_way_is_followed_by_its_state(
    server: KubeflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Said once, instead of hours of silence."""
    monkeypatch.setattr(nodes, "_EXPERIMENT", "(0).another-root")

    assert run() == 0

    out = capsys.readouterr().out
    assert out.count("unknown to firstsight") == 1
    assert "run: succeeded" in out


def test_a_termination_that_comes_too_late_does_not_end_the_following(
    server: KubeflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The server answers 400 where the run has just ended: its end counts."""
    follower: list[follow.RunFollower] = []
    begin = follow.RunFollower.__init__
    monkeypatch.setattr(
        follow.RunFollower, "__init__", lambda self, *given, **named: (follower.append(self), begin(self, *given, **named))[1]
    )
    server.faults.answers = {"POST .*:terminate": [(400, '{"message": "Row not found"}')]}
    at_look(8, lambda known: signal.raise_signal(signal.SIGINT), monkeypatch, server)

    assert run() == 0

    assert "Kubeflow did not accept it" in capsys.readouterr().out
    assert not follower[0].stopped


def test_a_second_ctrl_c_ends_the_waiting_for_a_server_that_is_gone(
    server: KubeflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """It used to wait for the server's answer first, ten minutes long."""

    def gone(known: Run) -> None:
        server.faults.answers = {"(GET|POST) .*/runs/": [(503, "no healthy upstream")] * 1000}
        signal.raise_signal(signal.SIGINT)

    def pressed(self: object, cause: str, **given: object) -> None:
        signal.raise_signal(signal.SIGINT)

    at_look(8, gone, monkeypatch, server)
    monkeypatch.setattr(client.Retries, "wait", pressed)

    assert run() == 130

    assert "no longer waiting for the run, which was not terminated, since Kubeflow has not responded: http" in capsys.readouterr().err


def test_only_the_last_end_of_a_run_counts_as_terminated():
    """A run that was terminated, retried, and then failed has failed. Entries without a state were recorded."""

    class _Status:
        def __init__(self, state: str | None) -> None:
            self.state = state

    class _Run:
        def __init__(self, *states: str | None) -> None:
            self.state, self.state_history = states[-1], [_Status(state) for state in states]

    assert was_terminated(_Run("PENDING", None, "RUNNING", "CANCELING", "FAILED"))
    assert not was_terminated(_Run("PENDING", "RUNNING", "CANCELING", "FAILED", None, "RUNNING", "FAILED"))
    assert not was_terminated(_Run("RUNNING", "CANCELING", "SUCCEEDED"))


@pytest.mark.parametrize("code", [1, 2])
def test_without_the_store_the_exit_code_comes_from_the_log_of_the_failed_step(
    server: KubeflowServer, capsys: pytest.CaptureFixture[str], code: int
):
    """Kubeflow's launcher says it, though its API does not; what it prints itself is not shown."""
    server.outcome = _fails
    server.logs["contrastive"] = EXECUTOR.replace("CODE", str(code))

    assert run() == code

    said = capsys.readouterr()
    shown = [line for line in said.out.splitlines() if line.startswith("contrastive | ")]
    assert shown == ["contrastive | contrastive random-seed0: no such bucket"]
    assert "contrastive: failed: contrastive random-seed0: no such bucket" in said.out
    assert "(contrastive: contrastive random-seed0: no such bucket); its failure.json cannot be read" in said.err


def test_the_report_is_named_by_its_uri_which_the_first_step_told(
    server: KubeflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A shell without the cluster's profile does not know the root."""
    server.logs["links"] = "# smoke\n- everything: `s3://nowhere/experiments/smoke`\n"

    assert run() == 0
    assert "at s3://nowhere/experiments/smoke/report/index.html" in capsys.readouterr().out

    folder = tmp_path / "experiments/smoke"
    write_json(str(folder / "report/results.json"), {"summary": {"sentence": "It helped."}})
    server.logs["links"] = f"- everything: `{folder}`\n"
    assert run() == 0
    assert f"It helped.\nreport: {folder}/report/index.html" in capsys.readouterr().out


def test_the_link_is_the_uis_and_none_where_nothing_tells_its_address(server: KubeflowServer, capsys: pytest.CaptureFixture[str]):
    """The address of the API shows no page."""
    server.is_ui = False
    assert run("--no-wait") == 0
    (identifier,) = server.runs
    assert capsys.readouterr().out.endswith(f": {identifier} (KFP_UI, the address of Kubeflow's UI, makes this a link)\n")

    assert run("--no-wait", "--ui", "https://kubeflow.example/pipeline/") == 0
    assert capsys.readouterr().out.endswith(f": https://kubeflow.example/pipeline/#/runs/details/{list(server.runs)[-1]}\n")

    server.is_ui = True
    assert run("--no-wait") == 0
    assert capsys.readouterr().out.endswith(f": {server.url}/#/runs/details/{list(server.runs)[-1]}\n")


def test_a_pod_that_cannot_start_is_said_once_with_kubernetes_reason(
    server: KubeflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The reason is in no log, since there is none."""
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    status = {"phase": "Pending", "containerStatuses": [{"image": "a/pipelines:1", "state": {"waiting": waiting}}]}
    monkeypatch.setattr(runninglogs.RunningLogs, "_pod", lambda self, step: {"metadata": {"name": step.pod}, "status": status})
    monkeypatch.setattr(runninglogs.RunningLogs, "_from_kubernetes", lambda self, step: None)
    server.outcome = _stays
    at_look(40, lambda known: known.terminate(), monkeypatch, server)

    assert run() == 1

    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("contrastive: waiting: ")]
    assert len(said) == 1
    assert "image a/pipelines:1 cannot be pulled: ImagePullBackOff: not found" in said[0]


def test_following_asks_for_the_run_once_a_look_and_looks_every_five_seconds(server: KubeflowServer):
    """Besides logs: a hundred runs that are followed must not keep the server busy."""
    assert POLL_SECONDS >= 5

    assert run() == 0

    (known,) = server.runs.values()
    asked = [request for request in server.requests if not request.endswith("/log") and "/k8s/" not in request]
    before = asked.index("POST /apis/v2beta1/runs") + 1
    assert set(asked[before:]) == {"GET /", f"GET /apis/v2beta1/runs/{known.run_id}"}
    assert asked[before:].count(f"GET /apis/v2beta1/runs/{known.run_id}") == known.looks - 1  # one look is the answer to its creation
