"""A step keeps to its tenant: in the first one that takes a run, and in each that is given a request, whoever wrote it."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.planning.request import Request, write_request
from pipelines.planning.runs import write_run
from pipelines.profile.profile import PROFILE_VARIABLE
from pipelines.steps import finish, lanes, planning, staging
from pipelines.steps.links import POD_VARIABLE, accept
from tests.pipelines import fake_kueue
from tests.pipelines.fake_api import FakeApi
from trainer.storage import confined

Capture = pytest.CaptureFixture[str]

PROFILE = """
root: {root}
reads: [s3://data/public, {lists}]
backend: pytorchjob
jobs: {{namespace: team-a}}
limits: {{nodes: 2, images: [registry.example.org/ml], queues: [gpus]}}
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run of team-a, whose profile keeps it below its root."""
    monkeypatch.setenv(confined.VARIABLE, "")  # steps set it: put back when the test has ended
    monkeypatch.delenv(confined.VARIABLE)
    profile = tmp_path / "profile.yaml"
    profile.write_text(PROFILE.format(root=tmp_path / "store/team-a", lists=tmp_path / "lists"))
    monkeypatch.setenv(PROFILE_VARIABLE, str(profile))
    monkeypatch.setenv(POD_VARIABLE, "a-pod")
    given = {"experiment": "demo", "recipe": "smoke", "arms": "random", "queue": "gpus"}
    return {"profile": "firstsight", "request": "", "run": "a-run", **given}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"root": "s3://b/team-b"}, "root: s3://b/team-b is outside"),
        ({"request": "s3://b/team-b/experiments/x/requests/0.json"}, "request: s3://b/team-b/experiments/x/requests/0.json is outside"),
        ({"request": "/etc/passwd"}, "request: /etc/passwd is outside"),
        ({"request": "root: s3://b/team-b\n"}, "root: s3://b/team-b is outside"),
        ({"request": "resume: s3://b/team-b/x\n"}, "resume: s3://b/team-b/x is outside"),
        ({"recipe": "s3://b/team-b/recipe.yaml"}, "recipe: s3://b/team-b/recipe.yaml is outside"),
        ({"request": "recipe: {base: s3://b/team-b/recipe.yaml}", "recipe": ""}, "s3://b/team-b/recipe.yaml is outside"),
        ({"arms": "from:s3://b/team-b/tower"}, "arms: s3://b/team-b/tower is outside"),
        ({"pairs": "s3://data/public-evil/x"}, "pairs: s3://data/public-evil/x is outside"),
        ({"triplets": "s3://data/public/../../b/team-b/x"}, "triplets: s3://data/public/../../b/team-b/x is outside"),
        ({"eval_sets": "s3://data/public/a,s3://b/team-b/set"}, "eval_sets: s3://b/team-b/set is outside"),
        ({"representation": "rdms=[s3://b/team-b/x.csv]"}, "representation.rdms: s3://b/team-b/x.csv is outside"),
        ({"nodes": "3"}, "nodes is 3, but the profile allows only 2 (limits.nodes)"),
        ({"image": "registry.example.org/ml-evil/x"}, "image is 'registry.example.org/ml-evil/x'"),
        ({"queue": "theirs"}, "queue is 'theirs', but the profile only allows gpus (limits.queues)"),
        ({"queue": "theirs", "backend": "trainjob"}, "queue is 'theirs', but the profile only allows gpus (limits.queues)"),
        (
            {"request": "backend: local\n"},
            "backend is 'local', which is this step's own pod and bypasses all queues and limits of the profile",
        ),
        ({"request": "placement: {nodes: 3}\n"}, "nodes is 3, but the profile allows only 2 (limits.nodes)"),
    ],
)
def test_the_first_step_refuses(asked: dict[str, Any], capsys: Capture, wrong: dict[str, str], said: str) -> None:
    """With exit code 2, the value's path and the rule, before anything there is looked at."""
    with pytest.raises(SystemExit) as ended:
        accept(**{**asked, **wrong})
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert said in line


def test_the_first_step_takes_what_is_the_tenants(
    asked: dict[str, Any], api_server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the processes that it starts are told the bounds."""
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig(tmp_path / "kubeconfig")))
    fake_kueue.serve(api_server, "v1beta2")
    fake_kueue.queue(api_server, "gpus", namespace="team-a")
    stored, _ = accept(**asked)
    assert stored.startswith(f"{tmp_path}/store/team-a/experiments/demo/requests/")


@pytest.mark.parametrize("key", ["list", "metadata", "images", "ids"])
def test_a_list_s_description_leads_nowhere_else(asked: dict[str, Any], tmp_path: Path, capsys: Capture, key: str) -> None:
    """Its own file may be the tenant's or a shared one; what it names is judged as the request itself."""
    (tmp_path / "lists").mkdir()
    described = tmp_path / "lists/pairs.yaml"
    names = {"kind": "yfcc15m-slip", "list": "https://example.org/list", "images": "https://example.org/images", key: "s3://b/team-b/x"}
    described.write_text("".join(f"{name}: {value}\n" for name, value in names.items()))
    with pytest.raises(SystemExit) as ended:
        accept(**{**asked, "pairs": f"file://{described}", "triplets": "https://example.org/nights.zip"})
    assert ended.value.code == 2
    assert f"{described}.{key}: s3://b/team-b/x is outside" in capsys.readouterr().err


STEPS = {
    "stage": lambda uri: staging.stage("pairs", request=uri),
    "plan": lambda uri: planning.make_plan(request=uri, pairs="", triplets=""),
    "contrastive": lambda uri: lanes.work("contrastive", request=uri, lane="lane-1-of-1"),
    "report": lambda uri: finish.report(request=uri),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_takes_no_other_tenant_s_request(asked: dict[str, Any], tmp_path: Path, capsys: Capture, name: str) -> None:
    """Nothing is read or written where it lies."""
    theirs = tmp_path / "store/team-b"
    uri = write_request(Request(experiment="demo", recipe="smoke"), str(theirs))
    before = sorted(theirs.rglob("*"))
    for spelled in (uri, uri.replace("team-b", "team-a/../team-b"), f"file://{uri}"):
        with pytest.raises(SystemExit) as ended:
            STEPS[name](f"{spelled}#a-run")
        assert ended.value.code == 2
        assert f"request: {spelled} is outside" in capsys.readouterr().err
    assert sorted(theirs.rglob("*")) == before


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"backend": "local"}, "backend is 'local', which is this step's own pod"),  # beside every limit, queues among them
        ({"pairs": "s3://b/team-b/pairs"}, "pairs: s3://b/team-b/pairs is outside"),
    ],
)
def test_a_step_takes_no_request_that_the_first_step_would_refuse(
    asked: dict[str, Any], tmp_path: Path, capsys: Capture, name: str, wrong: dict[str, str], said: str
) -> None:
    """Though it lies below the tenant's root: the first step need not have written it."""
    uri = write_request(Request(experiment="demo", recipe="smoke", **wrong), f"{tmp_path}/store/team-a")
    with pytest.raises(SystemExit) as ended:
        STEPS[name](f"{uri}#a-run")
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_last_step_finds_no_other_tenant_s_run(asked: dict[str, Any], tmp_path: Path, capsys: Capture) -> None:
    """By the root that the form names."""
    theirs = str(tmp_path / "store/team-b")
    write_run(theirs, "a-run", write_request(Request(experiment="demo", recipe="smoke"), theirs))
    with pytest.raises(SystemExit) as ended:
        finish.finish(run="a-run", request="", root=theirs, state="FAILED")
    assert ended.value.code == 2
    assert f"root: {theirs} is outside" in capsys.readouterr().err
