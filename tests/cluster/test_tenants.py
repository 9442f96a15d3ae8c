"""Where the chart lets runs live, and what an upgrade leaves alone: a real API server and Helm, no image is ever started."""

from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.operate.probes import RUN_RIGHTS
from tests.cluster import chart, harness
from tests.cluster.chart import RELEASE, helm
from tests.cluster.conftest import Kubectl
from trainer.configs import load_yaml

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
KEPT = ("configmap", "secret", "serviceaccount", "role", "rolebinding", "persistentvolumeclaim", "deployment", "service")
EXTERNAL = {"bundled": {"enabled": False}, "external": {"enabled": True, "endpoint": "https://s3.example.org", "existingSecret": "s3"}}
LIVE = {
    "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
    "metadata": {"name": "live", "labels": {"app.kubernetes.io/part-of": "firstsight"}},
    "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 1, "restartPolicy": "OnFailure", "template": {"spec": {
        "nodeSelector": {"no-such-node": "yes"}, "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "pytorch", "image": "none/none:0", "envFrom": [{"secretRef": {"name": "firstsight"}}],
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}]}}}}},
}  # fmt: skip

TAKES_ITS_NODE = {
    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "takes-its-node"},
    "spec": {"hostPID": True, "containers": [{"name": "a", "image": "none/none:0", "securityContext": {"privileged": True}}]},
}  # fmt: skip


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """Of a release; the runs' that the chart may make beside it goes too."""
    name = harness.make_namespace("fs-ten")
    try:
        yield name
    finally:
        harness.remove_namespace(name)
        if f"{name}-runs" in kubectl("get", "namespaces", "-o", "name"):
            harness.remove_namespace(f"{name}-runs")


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The chart of ad127be."""
    return chart.older(tmp_path_factory.mktemp("older"))


def install(namespace: str, source: str, given: dict[str, Any], verb: str = "install") -> str:
    """Without hooks, whose images are not here, and without waiting for what will never be ready."""
    return helm(verb, RELEASE, source, "-n", namespace, "--no-hooks", given=given)


def objects(namespace: str) -> dict[str, dict[str, Any]]:
    """What the release has in a namespace, by kind and name."""
    found: dict[str, dict[str, Any]] = {}
    for kind in KEPT:
        for one in harness.listed(kind, namespace, f"app.kubernetes.io/instance={RELEASE}"):
            found[f"{kind}/{one['metadata']['name']}"] = one
    return found


def test_a_new_install_keeps_runs_out_of_its_namespace(namespace: str, kubectl: Kubectl) -> None:
    """The namespace is made, a run's account may make Jobs there and nowhere else, no pod takes its node, and an upgrade stays there."""
    runs = f"{namespace}-runs"
    said = install(namespace, str(chart.CHART), {})
    assert f"Profile firstsight in namespace {runs}" in said
    profile = objects(runs)["configmap/firstsight"]
    assert f"root: s3://firstsight/{runs}\n" in profile["data"]["profile.yaml"]
    assert "configmap/firstsight" not in objects(namespace)
    for place, allowed in ((runs, {"create jobs.batch"}), (namespace, set())):
        assert chart.allowed("firstsight", runs, ["create jobs.batch", "get secrets"], place) == allowed
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        harness.apply(TAKES_ITS_NODE, runs)
    before = objects(runs)
    install(namespace, str(chart.CHART), {}, "upgrade")
    assert _identities(objects(runs)) == _identities(before)
    helm("uninstall", RELEASE, "-n", namespace, "--no-hooks")
    assert objects(runs) == {}
    assert f"namespace/{runs}" in kubectl("get", "namespaces", "-o", "name")


def test_a_tenant_s_account_reaches_no_other_namespace(namespace: str, kubectl: Kubectl) -> None:
    """Whatever a run of A may ask the API server for, in B's namespace and in the release's it may do none of it."""
    others = [harness.make_namespace("fs-ten") for _ in range(2)]
    try:
        profiles = {f"team-{name}": {"namespaces": [place]} for name, place in zip("ab", others, strict=True)}
        install(namespace, str(chart.CHART), {"profiles": {"firstsight": None, **profiles}})
        own = {f"{verb} {resource}" for resource, verbs in RUN_RIGHTS.items() for verb in verbs}
        asked = [*own, "get secrets", "get configmaps", "create pods", "create pods/exec", "create serviceaccounts/token"]
        assert chart.allowed("team-a", others[0], asked, others[0]) == own
        for place in (others[1], namespace):
            assert chart.allowed("team-a", others[0], asked, place) == set()
        keys = [chart.keys(place, f"team-{name}") for name, place in zip("ab", others, strict=True)]
        assert len({found["AWS_SECRET_ACCESS_KEY"] for found in keys}) == 2
    finally:
        for place in others:
            harness.remove_namespace(place)


def _identities(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: one["metadata"]["uid"] for name, one in found.items()}


def test_the_release_s_namespace_is_refused_and_nothing_is_made(namespace: str) -> None:
    """With the reason and the switch."""
    given = {"profileDefaults": {"namespaces": [namespace]}}
    said = helm("install", RELEASE, str(chart.CHART), "-n", namespace, given=given, fails=True)
    assert f"profiles.firstsight.namespaces: runs may not live in the release's namespace {namespace}" in said
    assert objects(namespace) == {}


def test_a_profile_without_keys_of_its_own_is_refused(namespace: str) -> None:
    """Those that make the bucket are no run's."""
    _make_keys(namespace)
    given = {"objectStore": EXTERNAL, "profileDefaults": {"namespaces": ["default"]}}
    for more, said in (
        ({}, "profiles.firstsight.secret.existingSecret must name a Secret"),
        ({"existingSecret": "s3"}, "profiles.firstsight.secret.existingSecret is that of objectStore.external"),
        ({"existingSecret": "s3-none"}, f"AWS_ACCESS_KEY_ID could not be read from Secret {namespace}/s3-none"),
    ):
        tried = {**given, "profileDefaults": {"namespaces": ["default"], "secret": more}}
        assert said in helm("install", RELEASE, str(chart.CHART), "-n", namespace, given=tried, fails=True)
    assert objects(namespace) == {}


def _make_keys(namespace: str) -> None:
    data = {"AWS_ACCESS_KEY_ID": "id-of-s3", "AWS_SECRET_ACCESS_KEY": "secret-of-s3"}
    harness.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}, "stringData": data}, namespace)


@pytest.mark.parametrize("store", ["bundled", "external"])
def test_an_upgrade_from_ad127be_with_a_live_job(namespace: str, older: str, store: str) -> None:
    """Nothing is lost and nothing restarted: same namespace, names, keys, root and volume; the job and its pod go on."""
    given: dict[str, Any] = {"objectStore": EXTERNAL} if store == "external" else {}
    _make_keys(namespace)
    install(namespace, older, given)
    harness.apply(LIVE, namespace)
    harness.wait_until("the job's pod", lambda: harness.listed("pods", namespace, "training.kubeflow.org/job-name=live"), 60)
    before, job = objects(namespace), _live(namespace)

    reused = ["upgrade", RELEASE, str(chart.CHART), "-n", namespace, "--no-hooks"]
    assert "--reset-then-reuse-values in place of" in helm(*reused, "--reuse-values", fails=True)
    said = helm(*reused, "--reset-then-reuse-values")

    after = objects(namespace)
    assert set(before) <= set(after)
    assert _identities({name: after[name] for name in before}) == _identities(before)
    assert _live(namespace) == job
    for name, one in before.items():
        if name.startswith("secret/"):
            assert after[name]["data"] == one["data"], name
        if name.startswith("deployment/") and name.endswith("-minio"):
            assert after[name]["spec"] == one["spec"]
            assert after[name]["metadata"]["generation"] == one["metadata"]["generation"]
    was, now = (load_yaml(found["configmap/firstsight"]["data"]["profile.yaml"], "profile") for found in (before, after))
    assert now["root"] == was["root"]
    for name in ("image", "nodes", "store_secret", "store_environment", "labels", "pod_template"):
        assert now["jobs"][name] == was["jobs"][name], name
    assert harness.get("namespace", namespace, f"{namespace}-runs") is None
    assert ("WARNING: it has the keys that an earlier version copied" in said) == (store == "external")


def _live(namespace: str) -> list[tuple[str, Any]]:
    found = [harness.get("pytorchjob", namespace, "live"), *harness.listed("pods", namespace, "training.kubeflow.org/job-name=live")]
    return [(one["metadata"]["uid"], one["spec"]) for one in found if one]


def test_one_profile_s_keys_are_rotated_alone(namespace: str) -> None:
    """By a value; those of the other profile, the root's and every object stay."""
    other = {"serviceAccount": {"name": "other"}}
    install(namespace, str(chart.CHART), {"profiles": {"firstsight": {}, "other": other}})
    runs, root = f"{namespace}-runs", chart.keys(namespace, f"{RELEASE}-firstsight-minio")
    first, second = chart.keys(runs, "firstsight"), chart.keys(runs, "other")
    rotated = {"profiles": {"firstsight": {}, "other": {**other, "secret": {"rotation": "2026-12"}}}}
    install(namespace, str(chart.CHART), rotated, "upgrade")
    new, new_root = chart.keys(runs, "other"), chart.keys(namespace, f"{RELEASE}-firstsight-minio")
    assert chart.keys(runs, "firstsight") == first
    assert new["AWS_ACCESS_KEY_ID"] == second["AWS_ACCESS_KEY_ID"]
    assert new["AWS_SECRET_ACCESS_KEY"] != second["AWS_SECRET_ACCESS_KEY"]
    assert {**new_root, "users.json": ""} == {**root, "users.json": ""}
    assert new["AWS_SECRET_ACCESS_KEY"] in new_root["users.json"]
