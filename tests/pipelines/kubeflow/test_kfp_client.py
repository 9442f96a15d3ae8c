"""What firstsight asks of Kubeflow, held against a small server that behaves like the real one."""

import re
import threading
from pathlib import Path

import pytest

from pipelines.kubeflow import upload
from pipelines.kubeflow.client import Kubeflow, NotFound
from pipelines.kubeflow.endpoint import Endpoint
from pipelines.kubeflow.form import GUIDE
from pipelines.kubeflow.nodes import steps
from pipelines.kubeflow.upload import register
from tests.pipelines.kubeflow import recordings
from tests.pipelines.kubeflow.argo import RUNNING, SUCCEEDED
from tests.pipelines.kubeflow_server import KubeflowServer, kubeflow_server
from tests.servers import make_certificates
from trainer.errors import InputError, RunError

PARAMETERS = {"study_arms": "random", "jobs_nodes": "2"}


def connect(server: KubeflowServer, retry_seconds: float = 5.0, **options: str) -> Kubeflow:
    """A client of the test's server."""
    return Kubeflow(Endpoint(host=server.url, **options), retry_seconds=retry_seconds)


def start(client: Kubeflow, **parameters: object) -> str:
    """A run of the uploaded pipeline; its id."""
    pipeline, version, _ = register(client, "firstsight", "registry.example/pipelines:1")
    experiment = client.experiment("demo")
    return client.start("demo-1", experiment=experiment, pipeline=pipeline, version=version, parameters={**PARAMETERS, **parameters})


def test_an_upload_is_safe_to_repeat_and_named_by_its_content(server: KubeflowServer):
    """Another image is another version of the same pipeline."""
    client = connect(server)

    first, again, other = (register(client, "firstsight", image) for image in ("a/pipelines:1", "a/pipelines:1", "a/pipelines:2"))

    assert first == again
    assert first[0] == other[0]
    assert first[1:] != other[1:]
    assert len(server.pipelines) == 1
    assert [version["display_name"] for version in server.versions.values()] == [first[2], other[2]]
    image = server.versions[first[1]]["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]["exec-plan"]["container"]["image"]
    assert image == "a/pipelines:1"
    assert client.newest("firstsight") in (("a/pipelines:1", "10001"), ("a/pipelines:2", "10001"))


@pytest.mark.parametrize(("user", "said"), [("none", set()), ("2000", {"2000"}), ("10001", {"10001"})])
def test_the_steps_run_as_whom_the_cluster_lets_run(server: KubeflowServer, user: str, said: set[str]):
    """OpenShift gives each namespace its own users and refuses others; a run submitted from a shell follows the registered version."""
    client = connect(server)

    _, version, _ = register(client, "firstsight", "a/pipelines:1", user=user)

    platform = server.versions[version]["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    contexts = [executor["securityContext"] for executor in platform.values()]
    assert all(context["runAsNonRoot"] for context in contexts)
    assert {context[key] for context in contexts for key in ("runAsUser", "runAsGroup") if key in context} == said
    assert client.newest("firstsight") == ("a/pipelines:1", user)


@pytest.mark.parametrize("user", ["", "0", "root", "-1", "2147483648"])
def test_a_user_that_cannot_be_is_refused(server: KubeflowServer, user: str):
    with pytest.raises(InputError, match="--run-as-user must be a number between 1 and 2147483647, or none"):
        register(connect(server), "firstsight", "a/pipelines:1", user=user)


def test_a_version_is_named_for_people_and_known_by_its_content(server: KubeflowServer, monkeypatch: pytest.MonkeyPatch):
    """Release, date, hash; the same content is found again on another day and under another release."""
    monkeypatch.setattr(upload.time, "gmtime", lambda: (2026, 11, 30, 0, 0, 0, 0, 334, 0))
    first = register(connect(server), "firstsight", "a/pipelines:1", "0.1.0")
    monkeypatch.setattr(upload.time, "gmtime", lambda: (2026, 12, 1, 0, 0, 0, 0, 335, 0))

    assert re.fullmatch(r"0\.1\.0-2026-11-30-sha-[0-9a-f]{12}", first[2])
    assert register(connect(server), "firstsight", "a/pipelines:1", "0.2.0") == first


def test_uploads_that_race_or_lose_their_answer_make_one_version(server: KubeflowServer):
    """The server did what it was asked, and nobody heard."""
    server.faults.lost = {r"POST .*/pipelines$": 1, r"POST .*/upload_version": 1, r"POST .*/experiments": 1}
    client = connect(server)

    register(client, "firstsight", "a/pipelines:1")
    client.experiment("demo")

    assert (len(server.pipelines), len(server.versions), len(server.experiments)) == (1, 1, 1)


def test_a_run_whose_answer_was_lost_is_found_and_not_started_twice(server: KubeflowServer):
    """Two runs of one experiment would get into each other's way."""
    server.faults.lost = {r"POST .*/runs$": 1}

    run = start(connect(server))

    assert list(server.runs) == [run]


def test_unregistering_takes_all_versions_and_is_safe_to_repeat(server: KubeflowServer):
    """An uninstall may be tried again."""
    client = connect(server)
    register(client, "firstsight", "a/pipelines:1")
    register(client, "firstsight", "a/pipelines:2")

    assert client.delete_pipeline("firstsight") is True
    assert client.delete_pipeline("firstsight") is False
    assert (server.pipelines, server.versions) == ({}, {})


def test_an_archived_experiment_is_said_and_not_run_into(server: KubeflowServer):
    """Its name is taken, and it takes no runs."""
    client = connect(server)
    identifier = client.experiment("demo")
    server.experiments[identifier]["storage_state"] = "ARCHIVED"

    with pytest.raises(InputError, match="archived"):
        client.experiment("demo")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server: KubeflowServer, status: int):
    """Gateways and restarts."""
    server.faults.answers = {"healthz": [(status, "upstream connect error")] * 2}
    server.faults.dropped = {"healthz": 1}

    connect(server).check(runs=True)

    assert server.requests.count("GET /apis/v2beta1/healthz") == 4


def test_what_does_not_pass_ends_with_its_cause(server: KubeflowServer):
    """Bounded, and exit code 1."""
    server.faults.answers = {"healthz": [(503, "no healthy upstream")] * 99}

    with pytest.raises(RunError, match="answers 503 to healthz: no healthy upstream"):
        connect(server, retry_seconds=0.3).check(runs=True)


def test_a_port_where_nobody_listens_is_said(server: KubeflowServer):
    """With the address."""
    client = Kubeflow(Endpoint(host="http://127.0.0.1:9"), retry_seconds=0.3)

    with pytest.raises(RunError, match=r"127\.0\.0\.1:9 cannot be reached"):
        client.check(runs=True)


def test_tokens_are_sent_and_refusals_say_what_to_set(server: KubeflowServer, tmp_path: Path):
    """Bearer from the environment, or from a file that is renewed while we run."""
    server.token = "first"
    connect(server, token="first").check(runs=True)
    file = tmp_path / "token"
    file.write_text("first\n")
    client = connect(server, token_file=str(file))
    client.check(runs=True)
    server.token = "second"

    with pytest.raises(InputError, match=r"rejected our credentials \(401.*KFP_TOKEN"):
        client.check(runs=True)

    file.write_text("second\n")
    client.check(runs=True)


def test_a_cookie_is_sent_and_a_login_page_is_known_for_what_it_is(server: KubeflowServer):
    """A gateway answers a request without a session with its login page."""
    server.cookie = "authservice_session=abc"
    connect(server, cookie="authservice_session=abc").check(runs=True)
    with pytest.raises(InputError, match=r"denied permission \(403"):
        connect(server).check(runs=True)
    server.faults.answers = {"healthz": [(200, "<html>Log in to your account</html>")]}

    with pytest.raises(InputError, match="instead of the Kubeflow Pipelines API; if it is behind a login, set KFP_TOKEN"):
        connect(server).check(runs=True)
    server.faults.answers = {"healthz": [(302, "")]}
    with pytest.raises(InputError, match=r"redirects us \(302\), probably to a login: set KFP_TOKEN"):
        connect(server).check(runs=True)


def test_a_server_of_many_namespaces_wants_one_named_and_refuses_others(server: KubeflowServer):
    """In the words of the one who has to type it."""
    server.multi_user = True

    with pytest.raises(InputError, match="KFP_NAMESPACE"):
        connect(server).check(runs=True)
    client = connect(server, namespace="team-b")
    client.check(runs=True)
    with pytest.raises(InputError, match="not authorized in namespace team-b"):
        client.experiment("demo")
    assert connect(server, namespace="team-a").experiment("demo")


@pytest.fixture
def several(server: KubeflowServer) -> KubeflowServer:
    """A server for several users."""
    server.multi_user = True
    return server


def test_a_pipeline_is_shared_unless_a_namespace_is_its_owner(several: KubeflowServer):
    """An upload needs no namespace, a run does."""
    connect(several).check(runs=False)
    shared = register(connect(several), "firstsight", "a/pipelines:1")
    private = register(connect(several, namespace="team-a"), "firstsight", "a/pipelines:1")

    assert {pipeline.get("namespace") for pipeline in several.pipelines.values()} == {None, "team-a"}
    assert shared[:2] != private[:2]
    assert connect(several).delete_pipeline("firstsight")
    assert [pipeline["namespace"] for pipeline in several.pipelines.values()] == ["team-a"]


def test_a_run_takes_its_namespaces_own_version_then_the_shared_one(several: KubeflowServer):
    """Two teams use what the chart registered, and upload nothing."""
    several.namespaces.add("team-b")
    shared = register(connect(several), "firstsight", "a/pipelines:1")
    for team in ("team-a", "team-b"):
        client = connect(several, namespace=team)
        assert client.newest("firstsight") == ("a/pipelines:1", "10001")
        assert register(client, "firstsight", "a/pipelines:1", anywhere=True) == shared
    assert len(several.versions) == 1

    own = connect(several, namespace="team-a")
    private = register(own, "firstsight", "a/pipelines:2", anywhere=True)
    assert several.pipelines[private[0]]["namespace"] == "team-a"
    assert own.newest("firstsight") == ("a/pipelines:2", "10001")
    assert connect(several, namespace="team-b").newest("firstsight") == ("a/pipelines:1", "10001")


def test_who_may_not_share_is_told_so_and_makes_a_private_one(several: KubeflowServer):
    """Shared pipelines take rights in Kubeflow's own namespace, which people do not have."""
    several.may_share = False

    with pytest.raises(InputError, match="permission to create shared pipelines"):
        register(connect(several), "firstsight", "a/pipelines:1")
    register(connect(several, namespace="team-a"), "firstsight", "a/pipelines:1", anywhere=True)
    assert [pipeline["namespace"] for pipeline in several.pipelines.values()] == ["team-a"]


def test_the_ui_is_given_the_guide_with_pipeline_and_version(server: KubeflowServer):
    """Its list of pipelines and a pipeline's page show it."""
    register(connect(server), "firstsight", "a/pipelines:1")

    (pipeline,), (version,) = server.pipelines.values(), server.versions.values()
    assert pipeline["description"] == version["description"] == GUIDE


def test_a_dropped_packet_of_a_pod_is_explained(monkeypatch: pytest.MonkeyPatch):
    """Kubeflow's NetworkPolicy answers nothing at all."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    client = Kubeflow(Endpoint(host="http://127.0.0.1:9"), retry_seconds=0.3)

    with pytest.raises(RunError, match=r"cannot be reached: .*part-of=kubeflow-profile"):
        client.check(runs=False)


def test_wrong_parameters_are_the_users_to_mend(server: KubeflowServer):
    """400, with the server's words, exit code 2."""
    with pytest.raises(InputError, match="not required by pipeline"):
        start(connect(server), batch_size=1)
    with pytest.raises(InputError, match="requires type bool"):
        start(connect(server), jobs_nodes=2)
    assert server.runs == {}


def test_a_missing_run_is_not_waited_for(server: KubeflowServer):
    """404."""
    with pytest.raises(NotFound, match=r"has no run 0: .* not found"):
        connect(server).run("0")


def test_tls_trusts_the_ca_that_was_given_and_no_other(tmp_path: Path):
    """And says which setting to use."""
    ca = make_certificates(tmp_path / "certificates")
    with kubeflow_server(tmp_path / "certificates") as server:
        connect(server, ca=str(ca)).check(runs=True)
        with pytest.raises(InputError, match=r"certificate is not trusted.*KFP_CA"):
            connect(server).check(runs=True)


@pytest.mark.parametrize("host", ["", "kubeflow.example", "ftp://kubeflow.example"])
def test_an_address_that_is_none_is_refused(host: str):
    """Before anything is asked."""
    with pytest.raises(InputError, match="KFP_ENDPOINT"):
        Endpoint(host=host)


def test_secrets_stay_out_of_what_is_printed():
    """A traceback shows the endpoint's fields."""
    assert "hush" not in repr(Endpoint(host="http://x", token="hush", cookie="session=hush"))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_kfps_own_client_takes_the_small_server_for_a_real_one(server: KubeflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What holds for it here holds on a cluster: pipelines, versions, experiments, runs, their end, termination."""
    import kfp

    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    register(connect(server), "firstsight", "a/pipelines:1")
    client = kfp.Client(host=server.url)
    pipeline = client.get_pipeline_id("firstsight")
    (version,) = client.list_pipeline_versions(pipeline).pipeline_versions
    experiment = client.create_experiment("demo")

    run = client.run_pipeline(
        experiment.experiment_id, "by hand", pipeline_id=pipeline, version_id=version.pipeline_version_id, params=PARAMETERS
    )
    ended = client.wait_for_run_completion(run.run_id, timeout=60, sleep_duration=0)

    assert ended.state == "SUCCEEDED"
    assert ended.run_details.task_details[-1].outputs is None

    server.outcome = lambda pod: RUNNING if pod.step == "contrastive" else SUCCEEDED
    run = client.run_pipeline(
        experiment.experiment_id, "by hand again", pipeline_id=pipeline, version_id=version.pipeline_version_id, params=PARAMETERS
    )
    while server.runs[run.run_id].looks < 30:
        client.get_run(run.run_id)
    client.terminate_run(run.run_id)
    assert client.get_run(run.run_id).state == "CANCELING"
    assert client.wait_for_run_completion(run.run_id, timeout=60, sleep_duration=0).state == "FAILED"


def test_a_log_is_given_for_an_ended_step_and_by_the_ui_for_a_running_one(server: KubeflowServer):
    """The archive's route answers 200 and an error in JSON for whatever it does not have."""
    server.logs["links"] = "hello\n"
    server.outcome = lambda pod: RUNNING if pod.step == "links" else SUCCEEDED
    client, run = connect(server), _started(server)
    (step,) = steps(client.run(run).run_details.task_details)
    assert (client.ended_log(run, step.node), client.running_log(run, step.pod)) == (None, "hello\n")

    server.runs[run].outcome = lambda pod: SUCCEEDED
    client.run(run)
    assert client.ended_log(run, step.node) == "hello\n"
    assert client.ended_log(run, "nosuch") is None
    assert client.running_log(run, "nosuch") is None
    server.is_ui = False
    assert client.running_log(run, step.pod) is None


def test_a_version_that_is_missing_is_named_though_the_server_says_500(server: KubeflowServer):
    """Waiting does not bring it back."""
    client = connect(server)
    pipeline, _, _ = register(client, "firstsight", "a/pipelines:1")
    with pytest.raises(NotFound, match="pipeline version"):
        client.start("demo-1", experiment=client.experiment("demo"), pipeline=pipeline, version="0000", parameters={})


def _started(server: KubeflowServer) -> str:
    """A run whose first step is running."""
    client = connect(server)
    pipeline, version, _ = register(client, "firstsight", "a/pipelines:1")
    run = client.start("demo-1", experiment=client.experiment("demo"), pipeline=pipeline, version=version, parameters={})
    while not steps(client.run(run).run_details.task_details):
        pass
    return run


def test_two_clients_at_once_make_one_pipeline(server: KubeflowServer):
    """CI matrices start together."""
    threads = [threading.Thread(target=register, args=(connect(server), "firstsight", "a/pipelines:1")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(server.pipelines), len(server.versions)) == (1, 1)


RECORDED_REFUSALS = sorted(
    str(path.relative_to(recordings.FOLDER))
    for folder in ("pipelines", "experiments", "runs")
    for path in (recordings.FOLDER / folder).glob("*.http")
    if recordings.answer(str(path.relative_to(recordings.FOLDER))).status >= 400
)


@pytest.mark.parametrize("recording", RECORDED_REFUSALS)
def test_every_recorded_refusal_is_one_line_with_the_right_exit_code(server: KubeflowServer, recording: str):
    """Only what may pass is tried again, and is exit code 1 in the end."""
    refused = recordings.answer(recording)
    server.faults.answers = {"GET .*/runs/": [(refused.status, refused.body.decode())] * 50}
    client = Kubeflow(Endpoint(host=server.url), retry_seconds=0.3)

    with pytest.raises((InputError, RunError)) as raised:
        client.run("some-run")

    passes = recording == "runs/retry-of-big-failed.http" or refused.status == 409  # 409: what was to be made is there
    assert raised.value.exit_code == (1 if passes else 2)
    assert "\n" not in str(raised.value)
    assert len(server.requests) == 1 or recording == "runs/retry-of-big-failed.http"
