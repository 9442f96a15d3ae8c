"""`python -m pipelines check`: a line a check, exit 1 where one fails; preflight reads a rendering and asks a cluster."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import main
from pipelines.cluster.api import Api, Refusal, Refused
from pipelines.operate import check
from pipelines.operate.chart_preflight import preflight, read_objects
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.kubeflow_server import kubeflow_server
from tests.servers import S3Server
from trainer.errors import InputError
from trainer.storage import open_store


class StubApi:
    """What an API server says to those who only ask: rights, kinds, single objects."""

    namespace, server, source = "team", "https://stub", "a test"

    def __init__(self) -> None:
        self.refused: set[tuple[str, str]] = set()  # verb, resource
        self.kinds = {
            "v1": "namespaces secrets configmaps serviceaccounts services persistentvolumeclaims pods",
            "apps/v1": "deployments",
            "batch/v1": "jobs",
            "rbac.authorization.k8s.io/v1": "roles rolebindings clusterroles clusterrolebindings",
            "kubeflow.org/v1": "pytorchjobs",
        }
        self.objects: dict[str, Any] = {
            "/version": {"major": "1", "minor": "34+", "gitVersion": "v1.34.4"},
            "/api/v1/namespaces/ml": {},
            "/apis/storage.k8s.io/v1/storageclasses": {
                "items": [{"metadata": {"name": "disk", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}]
            },
            "/api/v1/nodes": {"items": [{"status": {"allocatable": {"nvidia.com/gpu": "8"}}}, {"status": {}}]},
        }

    def call(self, method: str, path: str, query: object = None, body: Any = None) -> Any:
        if path.endswith("selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            resource = asked["resource"] + (f"/{asked['subresource']}" if asked["subresource"] else "")
            resource += f".{asked['group']}" if asked["group"] else ""
            return {"status": {"allowed": (asked["verb"], resource) not in self.refused}}
        known = self.kinds.get(path.removeprefix("/apis/").removeprefix("/api/"))
        if known:
            return {"resources": [{"name": name} for name in known.split()]}
        if path in self.objects:
            return self.objects[path]
        raise Refused(Refusal(status=404, message=f"{path} not found", reason="NotFound"))

    once = call


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubApi:
    api = StubApi()
    monkeypatch.setattr(Api, "connect", lambda namespace="": api)
    return api


@pytest.fixture
def profile(s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run profile whose store is the tests' own."""
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump({"root": f"{s3_root}/team", "backend": "pytorchjob"}))
    monkeypatch.setenv("FIRSTSIGHT_PROFILE", str(path))
    return path


def test_all_is_well(stub: StubApi, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Store, rights and kinds, a line each; nothing is left in the store."""
    assert main(["check", "run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(check.RUN_RIGHTS) + 1 + 1
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1] == "all is well"
    root = yaml.safe_load(profile.read_text())["root"]
    assert list(open_store(root).list(root)) == []


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
    assert "FAIL  Kubeflow Pipelines http://127.0.0.1:9: http://127.0.0.1:9/apis/v2beta1/healthz does not answer" in said
    assert "FAIL  Prometheus http://127.0.0.1:9/: http://127.0.0.1:9/-/ready does not answer" in said
    assert "FAIL  kind Workflow" in said


def test_a_login_page_is_no_kubeflow(stub: StubApi, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It answers 200 too."""
    stub.kinds["argoproj.io/v1alpha1"] = "workflows"
    with kubeflow_server() as server:
        assert main(["check", "run", f"--kubeflow={server.url}"]) == 0
        server.faults.answers = {"healthz": [(200, "<html>Log in</html>")]}
        assert main(["check", "run", f"--kubeflow={server.url}"]) == 1
    assert "answers, but not as Kubeflow Pipelines 2 does" in capsys.readouterr().out


def test_services_that_answer(stub: StubApi, profile: Path, s3_server: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    """An answer that is no 200 is a failure with its status."""
    assert main(["check", "run", f"--prometheus={s3_server.endpoint}"]) == 1
    assert "/-/ready answers 403" in capsys.readouterr().out


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
    assert "FAIL  jobs in team: PyTorchJob runs still run" in said
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


def _object(api_version: str, kind: str, name: str, namespace: str = "ml", **parts: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **parts}


def _label(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": [value]}


def _rendering(**profile: Any) -> str:
    settings = {"root": "s3://b/ml", "backend": "pytorchjob", **profile}
    upload = {"name": "upload", "env": [{"name": "KFP_ENDPOINT", "value": "http://ml-pipeline.kubeflow.svc:8888"}]}
    body = {"metadata": {"labels": {"app.kubernetes.io/component": "pipeline"}}, "spec": {"containers": [upload]}}
    checks = {"name": "check", "envFrom": [{"secretRef": {"name": "keys"}}]}
    editor = {"kind": "ServiceAccount", "name": "default-editor", "namespace": "ml"}
    objects = [
        _object("v1", "ConfigMap", "fs", data={"profile.yaml": yaml.safe_dump(settings)}),
        _object("v1", "PersistentVolumeClaim", "data", spec={}),
        _object("v1", "Pod", "check", spec={"containers": [checks]}),
        _object("rbac.authorization.k8s.io/v1", "RoleBinding", "run", subjects=[editor]),
        _object("batch/v1", "Job", "upload", spec={"template": body}),
        _object("v1", "ConfigMap", "kubeflow", "kubeflow", data={"profile.yaml": "backend: local"}),
    ]
    return yaml.safe_dump_all(objects)


def _failed(text: str) -> dict[str, str]:
    failures = {}
    for name, look in preflight(text):
        try:
            look()
        except InputError as error:
            failures[name] = str(error)
    return failures


@pytest.fixture
def ready(stub: StubApi) -> StubApi:
    """A cluster that has all that `_rendering` needs."""
    for path in ("ml/secrets/keys", "ml/serviceaccounts/default-editor", "kubeflow"):
        stub.objects[f"/api/v1/namespaces/{path}"] = {}
    stub.objects[SERVICE] = {"spec": {"selector": {"app": "ml-pipeline"}}}
    stub.objects[PROXY] = {"multi_user": False}
    stub.objects[POLICIES] = {"items": []}
    return stub


def test_preflight_of_a_ready_cluster(ready: StubApi) -> None:
    """Nothing is missing, GPUs included."""
    assert _failed(_rendering(jobs={"gpus_per_node": 8})) == {}


def test_preflight_of_a_namespace_that_the_chart_makes(ready: StubApi) -> None:
    """It need not be there; the right to make it is asked for, as that of all else."""
    made = yaml.safe_dump_all(
        [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ml-runs"}}, _object("v1", "ConfigMap", "fs", "ml-runs", data={})]
    )
    assert _failed(f"{_rendering()}---\n{made}") == {}
    ready.refused.add(("create", "namespaces"))
    assert _failed(f"{_rendering()}---\n{made}") == {"may make Namespace": "no permission to create them"}


NAMESPACES, CLASSES = "/api/v1/namespaces", "/apis/storage.k8s.io/v1/storageclasses"
OLD = {"major": "1", "minor": "27", "gitVersion": "v1.27.1"}
SERVICE = f"{NAMESPACES}/kubeflow/services/ml-pipeline"
PROXY = f"{NAMESPACES}/kubeflow/services/http:ml-pipeline:8888/proxy/apis/v2beta1/healthz"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/kubeflow/networkpolicies"
POLICY = {
    "metadata": {"name": "ml-pipeline"},
    "spec": {
        "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["ml-pipeline"]}]},
        "ingress": [
            {
                "from": [
                    {"namespaceSelector": {"matchExpressions": [_label("app.kubernetes.io/part-of", "kubeflow-profile")]}},
                    {"namespaceSelector": {"matchExpressions": [_label("kubernetes.io/metadata.name", "istio-system")]}},
                ]
            }
        ],
        "policyTypes": ["Ingress"],
    },
}
"""Of kubeflow/manifests, common/networkpolicies/base/ml-pipeline.yaml."""
BEFORE = "network policies of kubeflow"
KFP = "Kubeflow Pipelines http://ml-pipeline.kubeflow.svc:8888"
LACKS: dict[str, tuple[Callable[[StubApi], Any], str, str]] = {  # what is taken away, the check that fails, what it says
    "version": (lambda api: api.objects.update({"/version": OLD}), "Kubernetes", "at least 1.29"),
    "namespace": (lambda api: api.objects.pop(f"{NAMESPACES}/ml"), "namespace ml", "kubectl create namespace ml"),
    "role": (lambda api: api.refused.add(("patch", "rolebindings.rbac.authorization.k8s.io")), "may make RoleBinding in ml", "to patch"),
    "operator": (lambda api: api.kinds.pop("kubeflow.org/v1"), "kind PyTorchJob for profile fs", "install the training operator"),
    "secret": (lambda api: api.objects.pop(f"{NAMESPACES}/ml/secrets/keys"), "Secret ml/keys", "Pod check reads it"),
    "account": (
        lambda api: api.objects.pop(f"{NAMESPACES}/ml/serviceaccounts/default-editor"),
        "ServiceAccount ml/default-editor",
        "create",
    ),
    "storage": (lambda api: api.objects.update({CLASSES: {"items": []}}), "storage class (default)", "persistence.storageClass"),
    "Kubeflow": (lambda api: api.objects.pop(PROXY), KFP, "does not answer"),
    "Kubeflow of several": (lambda api: api.objects.update({PROXY: {"multi_user": True}}), KFP, "set kubeflow.multiUser=true"),
    "another server": (lambda api: api.objects.update({PROXY: {"hello": "world"}}), KFP, "not as Kubeflow Pipelines 2 does"),
    "a way in": (lambda api: api.objects.update({POLICIES: {"items": [POLICY]}}), BEFORE, "kubectl label namespace ml app.kubernetes"),
    "GPUs": (lambda api: api.objects.update({"/api/v1/nodes": {"items": []}}), "GPUs for profile fs", "0 of the nodes have so many"),
}


@pytest.mark.parametrize("what", LACKS)
def test_preflight_finds(ready: StubApi, what: str) -> None:
    """What the cluster lacks is the one failure, with what to do."""
    take_away, name, said = LACKS[what]
    take_away(ready)
    failures = _failed(_rendering(jobs={"gpus_per_node": 8}))
    assert list(failures) == [name]
    assert said in failures[name]


@pytest.mark.parametrize(
    ("peer", "labels", "admitted"),
    [
        (POLICY["spec"]["ingress"][0]["from"][0], {"app.kubernetes.io/part-of": "kubeflow-profile"}, True),
        (POLICY["spec"]["ingress"][0]["from"][1], {}, False),
        ({"podSelector": {}}, {}, False),  # of the policy's own namespace
        ({"namespaceSelector": {}}, {}, True),
        ({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/component": "pipeline"}}}, {}, True),
        ({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "other"}}}, {}, False),
        ({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}}, {"team": "a"}, True),
        ({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}}, {"team": "a"}, False),
        ({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a"]}]}}, {"team": "a"}, False),
    ],
)
def test_preflight_reads_policies_as_kubernetes_does(ready: StubApi, peer: dict[str, Any], labels: dict[str, str], admitted: bool) -> None:
    """The proxy of the API server is let in where our upload may not be."""
    ready.objects[f"{NAMESPACES}/ml"] = {"metadata": {"labels": labels}}
    ready.objects[POLICIES] = {"items": [{**POLICY, "spec": {**POLICY["spec"], "ingress": [{"from": [peer]}]}}]}

    assert list(_failed(_rendering())) == ([] if admitted else [BEFORE])


def test_preflight_wants_a_profile_where_kubeflow_runs(ready: StubApi) -> None:
    """A Kubeflow for one user runs everything in its own namespace."""
    text = _rendering().replace("name: kubeflow\n  namespace: kubeflow", "name: kubeflow\n  namespace: ml")

    assert _failed(text)["profile in namespace kubeflow"].endswith("profileDefaults.namespaces: [kubeflow]")


def test_preflight_connects_to_a_kubeflow_outside(ready: StubApi) -> None:
    """From this machine; a login before it is all that can be told."""
    with kubeflow_server() as server:
        text = _rendering().replace("http://ml-pipeline.kubeflow.svc:8888", server.url)
        assert _failed(text) == {}
        server.faults.answers = {"healthz": [(302, ""), (200, "<html>Log in</html>"), (404, "Not Found")]}
        assert [*map(list, (_failed(text), _failed(text), _failed(text)))] == [[], *[[f"Kubeflow Pipelines {server.url}"]] * 2]


def test_preflight_of_a_queue(ready: StubApi) -> None:
    """A queue by name must be there."""
    assert list(_failed(_rendering(jobs={"labels": {"kueue.x-k8s.io/queue-name": "gpus"}}))) == ["queue ml/gpus for profile fs"]


@pytest.mark.parametrize("text", ["", "just words", "a: [", "- 1"])
def test_no_rendering(text: str) -> None:
    """Anything but Helm's output is refused in one line."""
    with pytest.raises(InputError, match="helm template"):
        read_objects(text)
