"""The first step of a run: what it refuses, and what it shows."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.kubeflow.follow import EVERYTHING
from pipelines.planning.request import read_request
from pipelines.profile.profile import PROFILE_VARIABLE
from pipelines.steps.links import POD_VARIABLE, accept
from tests.logged import records
from tests.pipelines import fake_kueue
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.jobs import trainer_crds
from trainer.logs import FORMAT_VARIABLE
from trainer.storage import join, read_json

PROFILE = """
root: {root}
backend: pytorchjob
jobs: {{namespace: team-a}}
links:
  dashboard: "https://grafana.example/d/firstsight?var-experiment={{experiment}}"
  bucket: "https://console.example/{{namespace}}"
  kubeflow: "https://kubeflow.example/pipeline/"
"""


@pytest.fixture
def asked(api_server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The pipeline's defaults, in a pod whose profile says root and cluster."""
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig(tmp_path / "kubeconfig")))
    profile = tmp_path / "profile.yaml"
    profile.write_text(PROFILE.format(root=tmp_path / "store"))
    monkeypatch.setenv(PROFILE_VARIABLE, str(profile))
    monkeypatch.setenv(POD_VARIABLE, "a-pod")
    return {
        "profile": "firstsight",
        "request": "",
        "run": "a-run",
        "experiment": "demo",
        "recipe": "smoke",
        "arms": "random,posthoc",
        "seeds": "0,1",
    }


def test_the_page_links_to_dashboard_bucket_and_what_to_type(asked: dict[str, Any], tmp_path: Path):
    """With the experiment and the namespace put in."""
    stored, page = accept(**asked)

    assert "[Dashboard](https://grafana.example/d/firstsight?var-experiment=demo)" in page
    assert "[Bucket](https://console.example/team-a)" in page
    assert "[This run in Kubeflow](https://kubeflow.example/pipeline/#/runs/details/a-run)" in page
    assert "4 cells, one after another: `random-seed0`, `posthoc-seed0`, `random-seed1`, `posthoc-seed1`" in page
    assert f"`{tmp_path}/store/experiments/demo/report/index.html`" in page
    assert stored.endswith(".json#a-run")
    assert f"the request: `{stored.removesuffix('#a-run')}`" in page
    assert stored.startswith(f"{tmp_path}/store/experiments/demo/requests/")
    assert (EVERYTHING.search(page) or [""])[1] == f"{tmp_path}/store/experiments/demo"  # by it `submit` finds the report
    lines = page.splitlines()
    assert max(len(line) for line in lines[lines.index("```sh") : lines.index("```")]) <= 80
    page = page.replace(" \\\n    ", " ")
    assert "kubectl -n team-a get pytorchjobs,jobs,pods -l firstsight.dev/experiment=demo\n" in page
    assert "64 -l firstsight.dev/experiment=demo,app.kubernetes.io/component=trainer\n" in page
    assert "python -m pipelines cancel demo --namespace team-a" in page


def test_a_queue_that_admits_nothing_is_refused_before_anything_is_staged(asked: dict[str, Any], api_server: FakeApi, tmp_path: Path):
    """The run's own queue, or the profile's; on this machine there is none."""
    fake_kueue.serve(api_server, "v1beta2")
    fake_kueue.queue(api_server, "days", namespace="team-a")
    failure = tmp_path / "store" / "experiments" / "demo" / "failure.json"
    with pytest.raises(SystemExit) as ended:
        accept(**asked, queue="nights")

    assert ended.value.code == 2
    assert read_json(str(failure))["line"] == "queue must name a LocalQueue of namespace team-a, got 'nights': there are days"
    assert not (tmp_path / "store" / "experiments" / "demo" / "requests").exists()
    accept(**asked, queue="days")
    fake_kueue.queue(api_server, "days", stopped="LocalQueue is stopped", namespace="team-a")
    with pytest.raises(SystemExit):
        accept(**asked, queue="days")
    assert read_json(str(failure))["line"].endswith("accepts no jobs: LocalQueue is stopped: have it started, or use another queue")
    accept(**{**asked, "backend": "local", "queue": "nights"})


def _without(api: FakeApi, group: str) -> None:
    api.served -= {path for path in api.served if f"/{group}/" in path}


@pytest.mark.parametrize(
    ("backend", "template", "version", "line"),
    [
        ("pytorchjob", {}, "", "has no pytorchjobs.kubeflow.org (kubeflow.org/v1): install the training operator v1"),
        ("trainjob", {}, "", "has no trainjobs.trainer.kubeflow.org (trainer.kubeflow.org/v1alpha1): install Kubeflow Trainer v2"),
        ("trainjob", {}, "unknown", "serves TrainJobs (trainer.kubeflow.org/v1alpha1) of an unsupported version of Kubeflow Trainer"),
        ("trainjob", {"spec": {"hostNetwork": True}}, "v2.3.0", "jobs.pod_template: a TrainJob cannot set spec.hostNetwork"),
        ("trainjob", {"spec": {"affinity": {}}}, "v2.0.0", "jobs.pod_template: a TrainJob cannot set spec.affinity"),
    ],
)
def test_jobs_that_the_cluster_cannot_make_are_refused_before_anything_is_staged(
    asked: dict[str, Any], api_server: FakeApi, tmp_path: Path, backend: str, template: dict[str, Any], version: str, line: str
):
    """Staging takes hours, and the first job that trains comes after it."""
    if not version:
        _without(api_server, "kubeflow.org" if backend == "pytorchjob" else "trainer.kubeflow.org")
    else:
        api_server.schemas["TrainJob"] = trainer_crds.schemas(version)["TrainJob"] if version != "unknown" else {"properties": {}}
    profile = tmp_path / "profile.yaml"
    jobs = {"namespace": "team-a", "pod_template": template}
    profile.write_text(yaml.safe_dump({"root": str(tmp_path / "store"), "backend": backend, "jobs": jobs}))
    with pytest.raises(SystemExit) as ended:
        accept(**asked)

    assert ended.value.code == 2
    assert line in read_json(str(tmp_path / "store/experiments/demo/failure.json"))["line"]
    assert not (tmp_path / "store/experiments/demo/requests").exists()
    accept(**{**asked, "backend": "local"})


@pytest.mark.parametrize(
    ("kind", "title", "address", "shown"),
    [
        ("dashboard", "Dashboard", "https://g/d/x?from=${__from}&var-experiment={experiment}", "https://g/d/x?from=${__from}&var-experiment=demo"),
        ("dashboard", "Dashboard", "https://g/d/x?var={{experiment}}&b={}&c={0}&d={", "https://g/d/x?var={demo}&b={}&c={0}&d={"),
        ("bucket", "Bucket", "https://c/{bucket}/{namespace}?q={prefix!r}", "https://c/{bucket}/team-a?q={prefix!r}"),
        ("kubeflow", "This run in Kubeflow", "https://k/{tenant}", "https://k/{tenant}/#/runs/details/a-run"),
    ],
)  # fmt: skip
def test_braces_in_a_link_are_the_links_own(asked: dict[str, Any], tmp_path: Path, kind: str, title: str, address: str, shown: str):
    """Only `{experiment}` and `{namespace}` are put in; nothing else ends the run."""
    (tmp_path / "profile.yaml").write_text(
        yaml.safe_dump({"root": str(tmp_path / "s"), "jobs": {"namespace": "team-a"}, "links": {kind: address}})
    )

    assert f"[{title}]({shown})" in accept(**asked)[1]


def test_the_launcher_logs_records_where_the_profile_says_so(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """By the environment that jobs get too; what it refuses is an error."""
    monkeypatch.setenv(FORMAT_VARIABLE, "text")  # so that it is put back, since a step sets it
    monkeypatch.delenv(FORMAT_VARIABLE)
    profile = tmp_path / "profile.yaml"
    profile.write_text(profile.read_text().replace("team-a}", f"team-a, store_environment: {{{FORMAT_VARIABLE}: json}}}}"))
    accept(**asked)
    with pytest.raises(SystemExit):
        accept(**{**asked, "arms": "random,percetual"})
    out, err = capfd.readouterr()
    told = records(out)
    assert told[0]["message"] == "# demo"
    assert {(one["component"], one["level"]) for one in told} == {("launcher", "info")}
    refused = records(err)[-1]
    assert (refused["component"], refused["level"]) == ("launcher", "error")
    assert "'percetual'" in refused["message"]


def test_a_run_on_one_machine_is_shown_no_kubectl(asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a profile everything runs here."""
    monkeypatch.delenv(PROFILE_VARIABLE)
    monkeypatch.delenv(POD_VARIABLE)

    assert "kubectl" not in accept(**{**asked, "root": str(tmp_path / "runs")})[1]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"arms": "random,percetual"}, "'percetual'"),
        ({"seeds": "0,,1"}, "seeds"),
        ({"arms": "judged"}, "FLIP"),
        ({"arms": "from:/home/me/tower"}, "arms must be a URI"),
        ({"pairs": "pictures"}, "pairs must be a URI"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_left_where_the_caller_reads_it(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: dict[str, Any], named: str
):
    """KFP reports every exit code as 1, so failure.json says 2; a run that is right takes it away again."""
    with pytest.raises(SystemExit) as ended:
        accept(**{**asked, **wrong})

    failure = join(str(tmp_path), "store/experiments/demo/failure.json")
    assert ended.value.code == 2
    assert named in capsys.readouterr().err
    assert read_json(failure)["exit_code"] == 2
    assert named in read_json(failure)["line"]

    accept(**asked)
    assert not Path(failure).exists()


def test_a_pod_without_its_profile_says_so(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The ConfigMap is mounted where there is one; without it steps would run in the launcher itself."""
    monkeypatch.delenv(PROFILE_VARIABLE)

    with pytest.raises(SystemExit) as ended:
        accept(**{**asked, "profile": "mine", "root": str(tmp_path / "runs")})

    assert ended.value.code == 2
    assert "there is no ConfigMap 'mine'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_one_cell_is_one(asked: dict[str, Any]):
    """Not `1 cells`."""
    assert "\n1 cell: `random-seed0`\n" in accept(**{**asked, "arms": "random", "seeds": "0"})[1]


def test_a_pod_without_its_secret_says_so(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """It is mounted where there is one; the store would ask for variables that nobody can set in a pod."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(SystemExit) as ended:
        accept(**{**asked, "root": "s3://bucket/team-a"})

    assert ended.value.code == 2
    assert "there is no Secret 'firstsight' with AWS_ACCESS_KEY_ID" in capsys.readouterr().err


def test_a_pod_that_the_cloud_knows_needs_no_secret(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """Its token is tried instead; here nobody takes it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/team-a")

    with pytest.raises(SystemExit) as ended:
        accept(**{**asked, "root": "s3://bucket/team-a"})

    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "there is no Secret" not in said
    assert f"error in reading file {tmp_path}/token" in said


def test_a_request_that_names_another_profile_is_told_the_forms_parameter(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    """The mounted one is that of the parameter."""
    with pytest.raises(SystemExit):
        accept(**{**asked, "request": "profile: other"})

    assert "jobs_profile is 'firstsight': set the parameter" in capsys.readouterr().err


def test_a_run_without_any_root_is_refused(asked: dict[str, Any], tmp_path: Path):
    """Neither the parameter nor the profile names one."""
    (tmp_path / "profile.yaml").write_text("backend: pytorchjob\n")

    with pytest.raises(SystemExit) as ended:
        accept(**asked)

    assert ended.value.code == 2


@pytest.mark.parametrize("root", ["/etc", "s3:/bucket", "file://x"])
def test_a_root_that_cannot_be_one_gets_no_failure_either(asked: dict[str, Any], capsys: pytest.CaptureFixture[str], root: str):
    """There is no place to leave it."""
    with pytest.raises(SystemExit) as ended:
        accept(**{**asked, "root": root, "experiment": "a-name-that-nobody-has"})

    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not Path("/etc/experiments/a-name-that-nobody-has").exists()


def test_a_pod_takes_no_folder_of_its_own_for_a_root(asked: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Each step has another pod, so what one writes there no other one finds."""
    with pytest.raises(SystemExit) as ended:
        accept(**{**asked, "root": str(tmp_path / "mine")})

    assert ended.value.code == 2
    assert "root must be a URI such as s3://bucket/prefix" in capsys.readouterr().err


def test_kubeflow_s_request_takes_axes_and_tests(asked: dict[str, Any]):
    """As YAML in the form's `request`, which has no field for them; stored as it was meant."""
    inline = (
        "vary: {triplets: {perceptual.triplet_fraction: [0.5, 1]}}\n"
        "tests: {dose: {axis: triplets}}\nset: {perceptual.optimizer.warmup_steps: 0}\n"
    )
    stored, page = accept(**{**asked, "request": inline, "arms": "random,perceptual", "seeds": "0"})
    assert "3 cells, one after another: `random-seed0`, `perceptual-triplets-0.5-seed0`, `perceptual-seed0`" in page
    assert read_request(stored.partition("#")[0]).tests == {"dose": {"axis": "triplets"}}


@pytest.mark.parametrize(
    ("inline", "named"),
    [
        ("vary: {a: {staging.demo_side: [32, 64]}}", "cannot vary staging.demo_side"),
        ("vary: {a: {perceptual.margin: [0.1, 0.2]}}\ntests: {t: {axis: b}}", "tests: t: axis must be one of a, got 'b'"),
        ("endpoints: [zero]", "endpoints must be one of"),
    ],
)
def test_axes_that_cannot_be_meant_are_refused_by_the_first_step(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str], inline: str, named: str
):
    with pytest.raises(SystemExit) as ended:
        accept(**{**asked, "request": f"{inline}\n", "arms": "random,perceptual"})
    assert ended.value.code == 2
    assert named in capsys.readouterr().err
