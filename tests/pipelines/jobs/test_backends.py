"""Where a job runs follows from profile and backend; what cannot be is refused before anything is made."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import main
from pipelines.cluster.names import Identity
from pipelines.jobs import owners
from pipelines.jobs.backends import backend_for, stage_settings
from pipelines.jobs.base import JobSpec
from pipelines.jobs.following import ClusterBackend
from pipelines.jobs.local import LocalBackend
from pipelines.jobs.shapes.indexed import IndexedJobs
from pipelines.jobs.shapes.pytorchjob import PyTorchJobs
from pipelines.jobs.shapes.trainjob import TrainJobs
from pipelines.planning.request import Request
from pipelines.profile.profile import PROFILE_VARIABLE, Profile, read_profile
from pipelines.profile.settings import JobSettings
from pipelines.steps import finish, lanes, running
from tests.pipelines.data import ask, commit
from tests.pipelines.launching import Scene, scene
from tests.pipelines.operator import JOBS
from trainer.errors import InputError
from trainer.storage import layout, read_json, write_json

__all__ = ["scene"]
TRAIN = JobSpec(
    name="contrastive random-seed0",
    arguments=("train", "contrastive"),
    folder="s3://bucket/f",
    purpose="train",
    identity=Identity(root="s3://bucket", output="s3://bucket/f", experiment="e", arm="random", seed=0, stage="contrastive"),
)


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch):
    """No profile and no backend but what a test sets."""
    for name in (PROFILE_VARIABLE, owners.HOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def of_stage(stage: str, **changes: Any) -> JobSpec:
    """The job of another stage."""
    assert TRAIN.identity is not None
    return dataclasses.replace(TRAIN, identity=dataclasses.replace(TRAIN.identity, stage=stage), **changes)


def test_without_a_profile_everything_runs_on_this_machine():
    assert isinstance(backend_for(TRAIN, read_profile(), Request()), LocalBackend)


def test_the_backend_of_the_request_wins(scene: Scene):
    """What kind of job follows from the backend and from what it does; a report always runs in place."""
    shapes = []
    for spec in (TRAIN, of_stage("stage", purpose="stage"), of_stage("evaluate", purpose="evaluate")):
        backend = backend_for(spec, read_profile(backend="pytorchjob"), Request())
        assert isinstance(backend, ClusterBackend)
        shapes.append(type(backend.launcher.shape))
    backend = backend_for(TRAIN, read_profile(backend="trainjob"), Request())
    assert isinstance(backend, ClusterBackend)

    assert [*shapes, type(backend.launcher.shape)] == [PyTorchJobs, IndexedJobs, IndexedJobs, TrainJobs]
    assert isinstance(backend_for(JobSpec(name="report", arguments=(), folder="f"), read_profile(), Request()), LocalBackend)


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="backend must be one of local, pytorchjob, trainjob, got 'slurm'"):
        backend_for(TRAIN, read_profile(backend="slurm"), Request())


@pytest.mark.parametrize(("stage", "nodes"), [("perceptual", 1), ("contrastive", 4), ("posthoc", 1)])
def test_only_the_long_stage_takes_more_than_one_node(stage: str, nodes: int):
    assert stage_settings(Profile(backend="pytorchjob"), Request(nodes=4), of_stage(stage)).nodes == nodes


def test_what_a_run_asks_for_is_laid_over_its_profile():
    profile = Profile(backend="pytorchjob", jobs=JobSettings(nodes=2, gpus_per_node=8, image="a", labels={"team": "x"}))
    settings = stage_settings(profile, Request(nodes=3, image="b", queue="q"), TRAIN)

    assert (settings.nodes, settings.gpus_per_node, settings.image) == (3, 8, "b")
    assert settings.labels == {"team": "x", "kueue.x-k8s.io/queue-name": "q"}


@pytest.mark.parametrize(
    ("changes", "rule"), [({"nodes": -1}, "nodes must be between 1 and 1024"), ({"resume": "yes"}, "resume must be auto, never or")]
)
def test_what_a_run_cannot_ask_for(changes: dict[str, Any], rule: str):
    with pytest.raises(InputError, match=rule):
        Request(**changes)


def test_a_root_on_this_disk_is_refused_where_pods_do_not_mount_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: Scene):
    """A shared file system at the same place is fine."""
    spec = dataclasses.replace(TRAIN, identity=dataclasses.replace(TRAIN.identity, root=f"{tmp_path}/runs"))  # type: ignore[type-var]
    with pytest.raises(InputError, match=r"root must be a store that pods reach, such as s3://bucket/prefix, or in a volume .* got /"):
        backend_for(spec, read_profile(backend="pytorchjob"), Request())
    mounts = {"spec": {"containers": [{"name": "pytorch", "volumeMounts": [{"name": "nfs", "mountPath": str(tmp_path)}]}]}}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump({"jobs": {"pod_template": mounts}}))
    monkeypatch.setenv(PROFILE_VARIABLE, str(tmp_path / "profile.yaml"))

    assert isinstance(backend_for(spec, read_profile(backend="pytorchjob"), Request()), ClusterBackend)


@pytest.mark.parametrize("module", ["kubernetes", "yaml", "kfp", "torch"])
def test_a_step_that_is_done_imports_nothing_slow(tmp_path: Path, module: str):
    """Without a profile; with one its YAML has to be read."""
    request = ask(str(tmp_path), experiment="e")
    entry = {"cell": "random-seed0", "contrastive": f"{tmp_path}/c", "recipe_hashes": {"contrastive": "a" * 64}}
    write_json(f"{tmp_path}/experiments/e/plan.json", {"format_version": 1, "cells": [entry], "lanes": one_lane(request)})
    commit(f"{tmp_path}/c", "a" * 64)
    code = (
        "import sys; from pipelines.steps import lanes\n"
        f"lanes.work('contrastive', request={request!r}, lane='lane-1-of-1')\n"
        f"sys.exit({module!r} in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "contrastive: lane-1-of-1: random-seed0\ncontrastive random-seed0: already done\n"


def one_lane(request: str) -> dict[str, Any]:
    """What a plan says of a request for one cell."""
    return {layout.id_of_request(request): [{"lane": "lane-1-of-1", "slots": 1, "cells": ["random-seed0"], "owns": []}]}


def planned(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: dict[str, Any] | None = None) -> str:
    """A plan of one cell in the scene's root, and a profile whose pods mount that root; the URI of the request."""
    mounts = {"spec": {"containers": [{"name": "pytorch", "volumeMounts": [{"name": "root", "mountPath": scene.identity.root}]}]}}
    profile = {"backend": "pytorchjob", "root": scene.identity.root, "jobs": {"nodes": 2, "pod_template": mounts, **(jobs or {})}}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    monkeypatch.setenv(PROFILE_VARIABLE, str(tmp_path / "profile.yaml"))
    entry = {
        "cell": "random-seed0",
        "arm": "random",
        "seed": 0,
        "contrastive": scene.folder,
        "recipe_hashes": {"contrastive": "a" * 64},
        "stage_arms": {"contrastive": "random"},
    }
    request = ask(scene.identity.root, experiment="e")
    write_json(f"{scene.identity.root}/experiments/e/plan.json", {"format_version": 1, "cells": [entry], "lanes": one_lane(request)})
    write_json(layout.kubeflow_run(scene.identity.root, "a-run"), {"request": request})
    return request


def test_a_step_of_the_pipeline_runs_its_job_on_the_cluster(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Root and backend come from the profile; the job's own log.txt is left to the trainer."""
    request = planned(scene, tmp_path, monkeypatch)
    made = scene.operator.make_pods

    def succeed(job: dict[str, Any]) -> None:
        made(job)
        scene.succeed()

    scene.operator.make_pods = succeed  # type: ignore[method-assign]
    lanes.work("contrastive", request=request, lane="lane-1-of-1")

    (job,) = scene.operator.created
    assert job["metadata"]["name"] == scene.name
    assert not Path(scene.folder, "log.txt").exists()


def test_a_job_that_cannot_start_fails_its_step_once(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """On a cluster the launcher counts what happens to a job; the step adds no second try."""
    request = planned(scene, tmp_path, monkeypatch, {"patience": {"ignored": 0}})
    scene.operator.phase = ""
    with pytest.raises(SystemExit) as caught:
        lanes.work("contrastive", request=request, lane="lane-1-of-1")

    assert caught.value.code == 1
    assert "is the training operator v1 running?" in read_json(f"{scene.folder}/failure.json")["line"]
    assert len(scene.operator.created) == 1
    assert "no reason is given" in capsys.readouterr().err.splitlines()[-1]


def test_the_end_of_a_run_lets_go_of_what_it_holds(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As where a step was killed: its job is there still, and no other run holds it."""
    planned(scene, tmp_path, monkeypatch)
    monkeypatch.setenv(owners.HOLDER_VARIABLE, "ana")
    scene.running().job._halt()
    monkeypatch.setattr(finish, "read_plan", lambda uri: None)
    finish.finish(run="a-run", request="", root="", state="FAILED")

    assert scene.clean()
    assert f"PyTorchJob {scene.name}: deleted" in capsys.readouterr().out


def test_the_end_of_a_run_leaves_what_others_hold(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    planned(scene, tmp_path, monkeypatch)
    scene.running()
    monkeypatch.setenv(owners.HOLDER_VARIABLE, "ben")
    monkeypatch.setattr(finish, "read_plan", lambda uri: None)
    finish.finish(run="a-run", request="", root="", state="SUCCEEDED")

    assert scene.job()
    assert ("delete", JOBS) not in scene.api.requests


def test_a_report_is_made_though_the_cluster_is_gone(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    planned(scene, tmp_path, monkeypatch)
    monkeypatch.setattr("pipelines.cluster.api.FIRST_CONTACT_SECONDS", 0.1)
    monkeypatch.setattr(finish, "read_plan", lambda uri: None)
    scene.api.stop()
    finish.finish(run="a-run", request="", root="", state="FAILED")

    assert "could not be released; the reaper will release them: no Kubernetes API server can be reached" in capsys.readouterr().out


def test_the_store_of_the_profile_is_that_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Unless the environment says otherwise."""
    (tmp_path / "profile.yaml").write_text("jobs: {store_environment: {AWS_REGION: here, AWS_ENDPOINT_URL_S3: 'http://minio'}}")
    monkeypatch.setenv(PROFILE_VARIABLE, str(tmp_path / "profile.yaml"))
    monkeypatch.setenv("AWS_REGION", "mine")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    seen: dict[str, str] = {}

    @running.step
    def look() -> None:
        import os

        seen.update({name: os.environ[name] for name in ("AWS_REGION", "AWS_ENDPOINT_URL_S3")})

    look()
    assert seen == {"AWS_REGION": "mine", "AWS_ENDPOINT_URL_S3": "http://minio"}


def test_a_step_refuses_a_form_of_logs_that_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In one line, with the exit code of wrong input, whoever asks for it."""
    (tmp_path / "profile.yaml").write_text("jobs: {store_environment: {FIRSTSIGHT_LOG_FORMAT: logfmt}}")
    monkeypatch.setenv(PROFILE_VARIABLE, str(tmp_path / "profile.yaml"))
    monkeypatch.setenv("FIRSTSIGHT_LOG_FORMAT", "")
    monkeypatch.delenv("FIRSTSIGHT_LOG_FORMAT")

    with pytest.raises(SystemExit, match="2"):
        running.step(lambda: None)()

    assert capsys.readouterr().err == "<lambda>: FIRSTSIGHT_LOG_FORMAT must be text or json, got 'logfmt'\n"


def test_a_run_on_a_cluster_needs_a_store_that_pods_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Said before anything is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(owners.HOLDER_VARIABLE, "x")
    assert main(["run", "--recipe", "smoke", "--backend", "pytorchjob"]) == 2

    assert "root must be a store that pods reach" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["bucket", "store"])
def test_a_bucket_that_is_missing_is_said_before_anything_is_made(
    what: str, s3_root: str, scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As is a store that does not respond: one line, and no request to the cluster."""
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.1")
    if what == "store":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as caught:
        lanes.work("contrastive", request="s3://no-such-bucket-anywhere/root/experiments/e/requests/0.json", lane="lane-1-of-1")

    assert caught.value.code == (2 if what == "bucket" else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "no-such-bucket-anywhere" in line
    assert scene.api.requests == []
