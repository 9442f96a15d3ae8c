"""`python -m pipelines check`: one line per check, exit 1 if one fails; preflight reads a rendering and asks a cluster."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import main
from pipelines.cluster.api import Refusal, Refused
from pipelines.jobs.shapes.trainjob import TRAINJOB
from pipelines.operate import check, probes
from pipelines.profile.settings import JobSettings
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.jobs import trainer_crds
from tests.pipelines.kubeflow_server import kubeflow_server
from tests.pipelines.operate.stub_api import StubApi
from tests.servers import S3Server
from trainer.errors import InputError
from trainer.storage import open_store


@pytest.fixture
def profile(s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run profile whose store is the tests' own."""
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump({"root": f"{s3_root}/team", "backend": "pytorchjob"}))
    monkeypatch.setenv("FIRSTSIGHT_PROFILE", str(path))
    return path


def test_all_is_well(stub: StubApi, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Store, rights and kinds, one per line; nothing is left in the store."""
    assert main(["check", "run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(check.RUN_RIGHTS) + 1 + 1
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1] == "all is well"
    root = yaml.safe_load(profile.read_text())["root"]
    assert list(open_store(root).list(root)) == []


def test_a_profile_with_a_queue_is_checked_for_it(stub: StubApi, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its rights, which others need not have, and whether it is there; that it is stopped for now is no fault of the profile's."""
    profile.write_text(yaml.safe_dump({**yaml.safe_load(profile.read_text()), "jobs": {"labels": {"kueue.x-k8s.io/queue-name": "gpus"}}}))
    stub.refused = {("list", "workloads.kueue.x-k8s.io")}
    assert main(["check", "run"]) == 1
    said = capsys.readouterr().out
    assert "FAIL  right to workloads.kueue.x-k8s.io: no permission to list in namespace team" in said
    assert "FAIL  queue gpus: https://stub has no localqueues.kueue.x-k8s.io: install Kueue, or name no queue" in said
    stub.refused, stub.kinds["kueue.x-k8s.io/v1beta2"] = set(), "workloads localqueues"
    stub.objects["/apis/kueue.x-k8s.io"] = {"versions": [{"version": "v1beta2"}]}
    stopped = [{"type": "Active", "status": "False", "message": "LocalQueue is stopped"}]
    queue = {"metadata": {"name": "gpus"}, "spec": {"clusterQueue": "all"}, "status": {"conditions": stopped}}
    stub.objects["/apis/kueue.x-k8s.io/v1beta2/namespaces/team/localqueues/gpus"] = queue

    assert main(["check", "run"]) == 0
    assert "ok    queue gpus: LocalQueue team/gpus of ClusterQueue all" in capsys.readouterr().out


def test_the_queues_that_runs_may_name_are_checked_too(stub: StubApi, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A profile that lists queues has none of its own: each run names one."""
    profile.write_text(yaml.safe_dump({**yaml.safe_load(profile.read_text()), "limits": {"queues": ["days", "nights"]}}))
    stub.refused = {("get", "localqueues.kueue.x-k8s.io")}
    assert main(["check", "run"]) == 1
    said = capsys.readouterr().out
    assert "FAIL  right to localqueues.kueue.x-k8s.io: no permission to get in namespace team" in said
    assert all(f"FAIL  queue {name}: https://stub has no localqueues.kueue.x-k8s.io" in said for name in ("days", "nights"))


def test_missing_right(stub: StubApi, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each verb is asked for, and what is missing is named; the other checks go on."""
    stub.refused = {("patch", "pytorchjobs.kubeflow.org"), ("get", "pods/log")}
    assert main(["check", "run"]) == 1
    said = capsys.readouterr().out
    assert "FAIL  right to pytorchjobs.kubeflow.org: no permission to patch in namespace team" in said
    assert "FAIL  right to pods/log: no permission to get in namespace team" in said
    assert said.endswith("2 failed\n")


def test_missing_kind(stub: StubApi, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A backend without its CRD is named with what to install."""
    del stub.kinds["kubeflow.org/v1"]
    assert main(["check", "run"]) == 1
    assert "FAIL  kind PyTorchJob: the cluster has no pytorchjobs.kubeflow.org in kubeflow.org/v1: install the training operator" in (
        capsys.readouterr().out
    )


def test_a_version_of_trainer_in_which_no_job_can_be_made(stub: StubApi) -> None:
    """Is found before a run meets it, as is a template that its jobs cannot express; one that is known passes."""
    kind, path = TRAINJOB, f"/openapi/v3/apis/{TRAINJOB.api_version}"
    stub.kinds[kind.api_version] = kind.plural
    schema = trainer_crds.schemas("v2.1.0")["TrainJob"]
    known = {"group": "trainer.kubeflow.org", "version": "v1alpha1", "kind": "TrainJob"}
    stub.objects[path] = {"components": {"schemas": {"x": {**schema, "x-kubernetes-group-version-kind": [known]}}}}

    assert probes.served(stub, kind, JobSettings()) == kind.api_version  # type: ignore[arg-type]

    hosts = JobSettings(pod_template={"spec": {"hostNetwork": True}})
    with pytest.raises(InputError, match=r"jobs\.pod_template: a TrainJob cannot set spec\.hostNetwork"):
        probes.served(stub, kind, hosts)  # type: ignore[arg-type]

    del schema["properties"]["spec"]["properties"]["podTemplateOverrides"]
    with pytest.raises(InputError, match="unsupported version of Kubeflow Trainer"):
        probes.served(stub, kind, JobSettings())  # type: ignore[arg-type]


def test_a_cluster_that_does_not_say_what_it_serves(stub: StubApi, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Has not told that it lacks anything."""

    def call(method: str, path: str, query: object = None, body: Any = None) -> Any:
        if path == "/apis/kubeflow.org/v1":
            raise Refused(Refusal(status=403, message="nobody may look", reason="Forbidden"))
        return StubApi.call(stub, method, path, query, body)

    stub.call = call  # type: ignore[method-assign]
    assert main(["check", "run"]) == 1
    said = "FAIL  kind PyTorchJob: https://stub does not say what it serves (/apis/kubeflow.org/v1): nobody may look (a test)"
    assert said in capsys.readouterr().out


def test_store_that_refuses(stub: StubApi, profile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong credentials are the store's line, in one line."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert main(["check", "run"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert "check the credentials" in failed[0]


def test_services_that_do_not_answer(stub: StubApi, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kubeflow and Prometheus are asked where they are given."""
    assert main(["check", "run", "--kubeflow=http://127.0.0.1:9", "--prometheus=http://127.0.0.1:9/"]) == 1
    said = capsys.readouterr().out
    assert "FAIL  Kubeflow Pipelines http://127.0.0.1:9: http://127.0.0.1:9/apis/v2beta1/healthz does not respond" in said
    assert "FAIL  Prometheus http://127.0.0.1:9/: http://127.0.0.1:9/-/ready does not respond" in said
    assert "FAIL  kind Workflow" in said


def test_a_login_page_is_no_kubeflow(stub: StubApi, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It answers 200 too."""
    stub.kinds["argoproj.io/v1alpha1"] = "workflows"
    with kubeflow_server() as server:
        assert main(["check", "run", f"--kubeflow={server.url}"]) == 0
        server.faults.answers = {"healthz": [(200, "<html>Log in</html>")]}
        assert main(["check", "run", f"--kubeflow={server.url}"]) == 1
    assert "responds, but not like Kubeflow Pipelines 2" in capsys.readouterr().out


def test_services_that_answer(stub: StubApi, profile: Path, s3_server: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    """An answer that is no 200 is a failure with its status."""
    assert main(["check", "run", f"--prometheus={s3_server.endpoint}"]) == 1
    assert "/-/ready responded with 403" in capsys.readouterr().out


def test_reaper(stub: StubApi, capsys: pytest.CaptureFixture[str]) -> None:
    """The reaper's rights are asked for in each namespace."""
    stub.refused = {("watch", "workflows.argoproj.io")}
    assert main(["check", "reaper", "--namespace=a", "--namespace=b"]) == 1
    assert capsys.readouterr().out.count("no permission to watch in namespace") == 2


def _job(name: str, *conditions: str, **labels: str) -> dict[str, Any]:
    whole = {"app.kubernetes.io/part-of": "firstsight", "app.kubernetes.io/component": "trainer", **labels}
    status = {"conditions": [{"type": condition, "status": "True"} for condition in conditions]}
    return {
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": "team", "labels": whole}, "spec": {}, "status": status,
    }  # fmt: skip


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with FakeApi() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        yield server


def test_idle(fake: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """Jobs that have ended and those of others are no reason; one that runs is, by its name."""
    for thing in (_job("done", "Created", "Succeeded"), _job("broke", "Failed"), _job("other", **{"app.kubernetes.io/part-of": "x"})):
        fake.put("pytorchjobs.kubeflow.org", thing)
    assert main(["check", "idle", "--namespace=team"]) == 0
    fake.put("pytorchjobs.kubeflow.org", _job("runs", "Created", "Running"))
    assert main(["check", "idle", "--namespace=team"]) == 1
    said = capsys.readouterr().out
    assert "FAIL  jobs in team: PyTorchJob runs still running" in said
    assert "uninstall.force" in said


def test_idle_without_operators(fake: FakeApi) -> None:
    """A kind that the cluster does not have has no jobs."""
    fake.served -= {"/apis/kubeflow.org/v1/pytorchjobs", "/apis/trainer.kubeflow.org/v1alpha1/trainjobs"}
    assert main(["check", "idle", "--namespace=team"]) == 0


def test_sweep(fake: FakeApi) -> None:
    """What failed hooks and tests of this release left goes; another release's stays, and so does all while a job lives."""
    base = {"app.kubernetes.io/part-of": "firstsight", "app.kubernetes.io/component": "check"}
    for name, release in (("left", "fs"), ("others", "other")):
        labels = {**base, "app.kubernetes.io/instance": release}
        fake.put("pods", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "team", "labels": labels}})
    fake.put("pytorchjobs.kubeflow.org", _job("runs", "Running"))
    assert main(["check", "idle", "--namespace=team", "--sweep=team/fs"]) == 1
    assert fake.find("pods", "left")
    fake.change("pytorchjobs.kubeflow.org", "runs", status={"conditions": [{"type": "Succeeded", "status": "True"}]})
    assert main(["check", "idle", "--namespace=team", "--sweep=team/fs"]) == 0
    assert not fake.find("pods", "left")
    assert fake.find("pods", "others")
