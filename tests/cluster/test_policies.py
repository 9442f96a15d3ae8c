"""The chart where everything is denied by default and the policies are enforced: installed, run, scraped, uninstalled. In file order.

Every denial has its control in the same call: an address that the same pod reaches, or another pod that reaches the same address.
"""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import trespassing
from tests.cluster import chart, harness, node, probing, settings
from tests.cluster.chart import RELEASE, helm
from tests.cluster.probing import Address
from tests.cluster.training import RECIPE
from tests.pipelines.kubeflow_server import kubeflow_server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
LONG = RECIPE.replace("epochs: 12", "epochs: 4000")
PART_OF = {"app.kubernetes.io/name": "firstsight", "app.kubernetes.io/part-of": "firstsight"}
HOOK = {**PART_OF, "app.kubernetes.io/instance": RELEASE, "app.kubernetes.io/component": "pipeline"}
TRAINER = {**PART_OF, "app.kubernetes.io/component": "trainer"}
STAGER = {**TRAINER, "firstsight.dev/stage": "stage-fetch"}
LAUNCHER = {"app.kubernetes.io/part-of": "firstsight", "app.kubernetes.io/component": "launcher"}
SINKS = {
    "169.254.169.254": False, "203.0.113.7": True, "192.168.77.7": True, "192.168.78.7": False,
    "fd00:ec2::254": False, "2001:db8::7": True, "fd00:77::7": True, "fd00:78::7": False,
}  # fmt: skip
"""Addresses of the node at which one server answers, and whether staging may fetch from them: of each family a cloud's metadata, a public
one, a private source, and one that is private."""
PRIVATE_SOURCES = ["192.168.77.0/24", "fd00:77::/64"]
KUBEFLOWS_POLICY = {
    # kubeflow/manifests, common/networkpolicies/base/ml-pipeline.yaml
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "ml-pipeline"},
    "spec": {
        "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["ml-pipeline"]}]},
        "ingress": [
            {
                "from": [
                    {
                        "namespaceSelector": {
                            "matchExpressions": [{"key": "app.kubernetes.io/part-of", "operator": "In", "values": ["kubeflow-profile"]}]
                        }
                    },
                    {
                        "namespaceSelector": {
                            "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["istio-system"]}]
                        }
                    },
                    {"podSelector": {}},
                ]
            }
        ],
        "policyTypes": ["Ingress"],
    },
}
_FORWARD = """
import socket, sys, threading

def pump(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)

listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print(listener.getsockname()[1], flush=True)
while True:
    near, far = listener.accept()[0], socket.create_connection((sys.argv[3], int(sys.argv[4])))
    for pair in ((near, far), (far, near)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""


@pytest.fixture(scope="module")
def places(kubectl: Any, monitoring: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Namespaces: of the release and two teams, which deny by default; of a stranger; of Kubeflow, with its own policy; of a DNS."""
    if not harness.own_cluster():
        pytest.skip("needs a network plugin that enforces policies, and addresses of the node")
    names = {what: harness.make_namespace(f"fs-{what}") for what in ("ml", "team", "other", "stranger", "kubeflow", "dns")}
    try:
        chart.store_volume(names["ml"], tmp_path_factory.mktemp("store"))
        for what in ("ml", "team", "other"):
            harness.apply(probing.DENY, names[what])
        harness.apply(KUBEFLOWS_POLICY, names["kubeflow"])
        yield names
    finally:
        for name in names.values():
            harness.remove_namespace(name)


@pytest.fixture(scope="module")
def sink(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server on the node, at all those addresses."""
    addresses = [f"{address}/{128 if ':' in address else 32}" for address in SINKS]
    for address in addresses:
        subprocess.run(["ip", "-n", settings.NAMESPACE, "addr", "replace", address, "dev", "lo"], check=True)
    folder = str(tmp_path_factory.mktemp("sink"))
    node.start("sink", sys.executable, "-m", "http.server", "80", "--bind", "::", "--directory", folder)
    try:
        yield
    finally:
        node.stop("sink")
        for address in addresses:
            subprocess.run(["ip", "-n", settings.NAMESPACE, "addr", "del", address, "dev", "lo"], check=True)


@pytest.fixture(scope="module")
def values(places: dict[str, str]) -> dict[str, Any]:
    given = chart.values()
    given["metrics"]["prometheusUrl"] = "http://prometheus-operated.monitoring.svc:9090"
    given["profileDefaults"]["namespaces"] = [places["team"]]
    given["profiles"] = {"firstsight": {}, "other": {"namespaces": [places["other"]], "root": _root(places, "other")}}
    given["kubeflow"] = {"systemNamespace": places["kubeflow"]}
    return {**given, "networkPolicy": {"enabled": True, "dnsNamespace": places["dns"]}, "network": {"privateSources": PRIVATE_SOURCES}}


def _root(places: dict[str, str], team: str) -> str:
    """Where a team's runs live; the other's name begins like the first one's."""
    return f"s3://firstsight/{places['team']}{'-b' if team == 'other' else ''}"


@pytest.fixture(scope="module")
def release(places: dict[str, str], values: dict[str, Any]) -> str:
    """The chart, installed; its hook has reached the store to make bucket and users."""
    helm("install", RELEASE, str(chart.CHART), "-n", places["ml"], "--wait", "--timeout", "8m", given=values)
    return RELEASE


@pytest.fixture(scope="module")
def probes(places: dict[str, str], release: str) -> dict[str, str]:
    """Pods that try to connect, by name, with their namespaces; and one beside the cluster's DNS that answers on its port elsewhere."""
    pods = {
        "hook": (places["ml"], HOOK),
        "trainer": (places["team"], TRAINER),
        "stager": (places["team"], STAGER),
        "launcher": (places["team"], LAUNCHER),
        "neighbour": (places["team"], {"app": "neighbour"}),
        "stranger": (places["stranger"], {}),
    }
    open_egress = {"podSelector": {"matchLabels": {"app": "neighbour"}}, "policyTypes": ["Egress"], "egress": [{}]}
    harness.apply({**probing.DENY, "metadata": {"name": "neighbour"}, "spec": open_egress}, places["team"])
    for name, (namespace, labels) in pods.items():
        harness.apply(probing.pod(name, labels), namespace)
    for name, (namespace, _) in pods.items():
        probing.wait(namespace, name)
    return {name: namespace for name, (namespace, _) in pods.items()}


def _check(probes: dict[str, str], name: str, wanted: dict[Address, bool]) -> None:
    assert probing.reaches(probes[name], name, wanted) == wanted, f"{name}\n{_log()}"


def _log() -> str:
    return "\n".join((settings.STATE / "logs/network-policies.log").read_text().splitlines()[-20:])


def test_helm_test(places: dict[str, str], release: str) -> None:
    """The test pods reach the store, the API server and Prometheus, in all three namespaces."""
    said = helm("test", release, "-n", places["ml"], "--timeout", "5m")
    assert said.count("Succeeded") == 3


def test_the_store_is_open_to_firstsight_alone(places: dict[str, str], probes: dict[str, str]) -> None:
    """Not to a pod of another namespace, nor to one beside the trainers that is no part of firstsight."""
    service = (f"{RELEASE}-firstsight-minio.{places['ml']}.svc", 9000, "tcp")
    (pod,) = harness.listed("pods", places["ml"], "app.kubernetes.io/component=minio")
    api, store = (settings.API_SERVICE_IP, 443, "tcp"), [service, *((one["ip"], 9000, "tcp") for one in pod["status"]["podIPs"])]
    assert len(store) == 3
    for name in ("hook", "trainer", "stager", "launcher"):
        _check(probes, name, dict.fromkeys(store, True))
    for name in ("neighbour", "stranger"):
        _check(probes, name, {**dict.fromkeys(store, False), api: True})


PROFILES = {"team": "firstsight", "other": "other"}
"""Namespaces of tenants, and what their profiles, Secrets and accounts are called."""


def _jobs(namespace: str, secret: str) -> dict[str, tuple[str, str, Any]]:
    """Requests of the API server that a run's account may make in its own namespace."""
    container = {"name": "x", "image": "x", "envFrom": [{"secretRef": {"name": secret}}]}
    spec = {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"generateName": "x-"}, "spec": spec}
    return {
        f"list jobs of {namespace}": ("GET", f"/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs", None),
        f"make a Job in {namespace}": ("POST", f"/apis/batch/v1/namespaces/{namespace}/jobs?dryRun=All", job),
    }


def _secrets(namespace: str, secret: str) -> dict[str, tuple[str, str, Any]]:
    """Requests by which a Secret might be read, or an account become another; no run's may make them."""
    token = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    subject = {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:serviceaccounts"}
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "x"}}
    core, bindings = f"/api/v1/namespaces/{namespace}", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"
    return {
        f"get Secret {namespace}/{secret}": ("GET", f"{core}/secrets/{secret}", None),
        f"list Secrets of {namespace}": ("GET", f"{core}/secrets", None),
        f"list ConfigMaps of {namespace}": ("GET", f"{core}/configmaps", None),
        f"a token of an account of {namespace}": ("POST", f"{core}/serviceaccounts/default/token?dryRun=All", token),
        f"a role in {namespace}": ("POST", f"{bindings}?dryRun=All", {**binding, "roleRef": role, "subjects": [subject]}),
        "list all Secrets": ("GET", "/api/v1/secrets", None),
    }


@pytest.mark.parametrize(("team", "victim"), [("team", "other"), ("other", "team")])
def test_a_tenants_pod_reaches_nothing_of_another_s(places: dict[str, str], release: str, team: str, victim: str) -> None:
    """With each account and all Secrets of its namespace, from a pod that the policies let to the store and to the API server.

    Its own prefix is open to it before and after. The other's objects are not, nor to a pod without keys; and no Secret is read.
    """
    home, there, release_namespace = places[team], places[victim], places["ml"]
    secrets = {one["metadata"]["name"]: chart.keys(home, one["metadata"]["name"]) for one in harness.listed("secrets", home)}
    held = {value for keys in secrets.values() for value in keys.values()}
    assert not held & set(chart.keys(there, PROFILES[victim]).values())
    accounts = [one["metadata"]["name"] for one in harness.listed("serviceaccounts", home)]
    assert sorted(accounts) == sorted({"default", PROFILES[team]})
    for account in accounts:
        harness.apply(probing.tenant(f"tenant-{account}", LAUNCHER, account, [*secrets, PROFILES[victim]]), home)
    probing.wait(home, *(f"tenant-{account}" for account in accounts))

    own = _jobs(home, PROFILES[team])
    root_secret = f"{RELEASE}-firstsight-minio"
    refused = {**_jobs(there, PROFILES[victim]), **_jobs(release_namespace, root_secret), **_secrets(release_namespace, root_secret)}
    refused |= {**_secrets(there, PROFILES[victim]), **_secrets(home, PROFILES[team])}
    mine, theirs = (_root(places, one).removeprefix("s3://firstsight/") for one in (team, victim))
    asked = {"endpoint": f"http://{root_secret}.{release_namespace}.svc:9000", "bucket": "firstsight", "own": mine, "theirs": theirs}
    command = ["python", "-c", Path(trespassing.__file__).read_text(), json.dumps({**asked, "api": {**own, **refused}})]
    for account in accounts:
        said = json.loads(harness.kubectl("-n", home, "exec", f"tenant-{account}", "--", *command))
        open_to = {**trespassing.READS, **trespassing.WRITES}
        denied = dict.fromkeys({**open_to, **trespassing.BEYOND}, trespassing.DENIED)
        assert said["before"] == said["after"] == dict.fromkeys(open_to, trespassing.DONE)
        assert said["theirs"] == said["anonymous"] == denied
        answered = zip(own, (200, 201) if account == PROFILES[team] else (403, 403), strict=True)
        assert said["api"] == {**dict(answered), **dict.fromkeys(refused, 403)}


def test_staging_meets_the_internet_and_no_metadata(probes: dict[str, str], sink: None) -> None:
    """Public addresses and the private source, but neither a cloud's metadata nor what else is private; trainers meet none of them."""
    sinks = {(address, 80, "tcp"): allowed for address, allowed in SINKS.items()}
    _check(probes, "stranger", dict.fromkeys(sinks, True))
    _check(probes, "stager", sinks)
    dns = (settings.DNS_IP, 53, "tcp")
    for name in ("trainer", "launcher", "hook"):
        _check(probes, name, {**dict.fromkeys(sinks, False), dns: True})


def test_dns_and_the_api_server(places: dict[str, str], probes: dict[str, str]) -> None:
    """DNS at the node's cache and at the port of its pods; the API server to those that talk to it, and to no job."""
    for place in ("dns", "stranger"):
        harness.apply(probing.answering("dns", {"k8s-app": "kube-dns"}, 5353, 5355), places[place])
    for place in ("dns", "stranger"):
        probing.wait(places[place], "dns")
    inside, elsewhere = (probing.addresses_of(places[place], "dns") for place in ("dns", "stranger"))
    asked = {(settings.DNS_IP, 53, "tcp"): True, **{(address, 5353, kind): True for address in inside for kind in ("udp", "tcp")}}
    refused = [(address, 5355, kind) for address in inside for kind in ("udp", "tcp")]
    refused += [(address, 5353, kind) for address in elsewhere for kind in ("udp", "tcp")]
    api = (settings.API_SERVICE_IP, 443, "tcp")
    for name, talks in (("trainer", False), ("launcher", True), ("hook", True)):
        _check(probes, name, {**asked, **dict.fromkeys(refused, False), api: talks})
    _check(probes, "stranger", dict.fromkeys([*refused, api], True))


@pytest.fixture(scope="module")
def long_run(places: dict[str, str], values: dict[str, Any], release: str) -> dict[str, Any]:
    """A two-node job that trains for as long as the tests look at it, from data that two jobs staged; its first worker's pod."""
    team = places["team"]
    asked = yaml.safe_dump({"experiment": "long", "arms": "random", "recipe": yaml.safe_load(LONG)})
    chart.step(team, "links", f"links.accept(request={asked!r}, profile='firstsight', run='long')[0]")
    request = chart.finish(team, "links").split()[-1]
    for what in ("triplets", "pairs"):
        chart.step(team, f"stage-{what}", f"staging.stage('{what}', request='{request}')")
    uris = {what: chart.finish(team, f"stage-{what}").split()[-1] for what in ("triplets", "pairs")}
    chart.step(team, "plan", f"planning.make_plan(request='{request}', pairs='{uris['pairs']}', triplets='{uris['triplets']}')")
    chart.finish(team, "plan")
    chart.step(team, "long", f"lanes.work('contrastive', request='{request}', lane='lane-1-of-1')")
    command = ["logs", "long", "--tail=20"]
    harness.wait_until("the long run's first steps", lambda: _trains(team, command), 300, every=1)
    pods = harness.listed("pods", team, "training.kubeflow.org/replica-index=0")
    return pods[0]


def _trains(namespace: str, command: list[str]) -> bool:
    pod = harness.get("pod", namespace, "long")
    return bool(pod and pod["status"].get("phase") == "Running" and "loss" in harness.kubectl("-n", namespace, *command))


def test_trainers_meet_each_other_alone(probes: dict[str, str], long_run: dict[str, Any]) -> None:
    """Two nodes train; their rendezvous is open to trainers, and to nobody else. Neither is their metrics' port."""
    environment = {one["name"]: one.get("value", "") for one in long_run["spec"]["containers"][0]["env"]}
    port = int(environment["PET_RDZV_ENDPOINT"].rpartition(":")[2])
    own = [(one["ip"], port, "tcp") for one in long_run["status"]["podIPs"]]
    own.append((long_run["status"]["podIP"], 9400, "tcp"))  # metrics are served over IPv4
    dns = (settings.DNS_IP, 53, "tcp")
    _check(probes, "trainer", dict.fromkeys(own, True))
    for name in ("stranger", "neighbour", "launcher"):
        _check(probes, name, {**dict.fromkeys(own, False), dns: True})


def test_scraped(places: dict[str, str], long_run: dict[str, Any], monitoring: str) -> None:
    """Prometheus reaches both nodes of the job, and the reaper."""

    def up() -> bool:
        with urllib.request.urlopen(f"{monitoring}/api/v1/targets?state=active") as answer:
            targets = json.load(answer)["data"]["activeTargets"]
        ours = [one for one in targets if one["labels"].get("namespace") in (places["ml"], places["team"]) and one["health"] == "up"]
        return sorted(one["labels"]["container"] for one in ours) == ["pytorch", "pytorch", "reaper"]

    harness.wait_until("three targets", up, 120, every=2)


@pytest.fixture
def kubeflow(places: dict[str, str]) -> Iterator[tuple[Any, str]]:
    """The stand-in for Kubeflow behind a pod of its namespace, at a Service whose port is not the pod's; it, and its endpoint."""
    namespace = places["kubeflow"]
    with kubeflow_server() as server:
        here = server.url.rpartition(":")[2]
        command = [sys.executable, "-c", _FORWARD, settings.HOST_IP, "0", "127.0.0.1", here]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                port = process.stdout.readline().strip()
                arguments = ("0.0.0.0", "18888", settings.HOST_IP, port)
                harness.apply(probing.pod("ml-pipeline", {"app": "ml-pipeline"}, _FORWARD, *arguments), namespace)
                ports = [{"port": 8888, "targetPort": 18888}]
                spec = {"selector": {"app": "ml-pipeline"}, "ports": ports}
                harness.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ml-pipeline"}, "spec": spec}, namespace)
                probing.wait(namespace, "ml-pipeline")
                yield server, f"http://ml-pipeline.{namespace}.svc:8888"
            finally:
                process.kill()


def test_kubeflows_own_policy(
    places: dict[str, str], values: dict[str, Any], release: str, probes: dict[str, str], kubeflow: tuple[Any, str]
) -> None:
    """The upload passes it where its namespace is labelled as a profile, and so do steps; without the label nothing gets in."""
    server, endpoint = kubeflow
    ml, team, label = places["ml"], places["team"], "app.kubernetes.io/part-of"
    harness.kubectl("label", "namespace", ml, f"{label}=kubeflow-profile")
    given = {**values, "kubeflow": {**values["kubeflow"], "endpoint": endpoint}}
    helm("upgrade", release, str(chart.CHART), "-n", ml, "--wait", "--timeout", "8m", given=given)
    assert [one["display_name"] for one in server.pipelines.values()] == ["firstsight"]

    api = (probing.addresses_of(places["kubeflow"], "ml-pipeline")[0], 18888, "tcp")
    dns = (settings.DNS_IP, 53, "tcp")
    _check(probes, "hook", {api: True})
    _check(probes, "launcher", {api: False, dns: True})
    harness.kubectl("label", "namespace", team, f"{label}=kubeflow-profile")
    harness.kubectl("label", "namespace", ml, f"{label}-")
    _check(probes, "launcher", {api: True})
    _check(probes, "hook", {api: False, dns: True})


def test_uninstall(places: dict[str, str], release: str, long_run: dict[str, Any]) -> None:
    """The hook sees the living job and refuses; when it is gone the chart goes too, and with it the policies."""
    ml, team = places["ml"], places["team"]
    helm("uninstall", release, "-n", ml, "--timeout", "3m", fails=True)
    harness.kubectl("-n", team, "delete", "pod", "long", "--grace-period=1")
    harness.kubectl("-n", team, "delete", "pytorchjobs,jobs", "--all", "--wait=true", "--timeout=120s")
    helm("uninstall", release, "-n", ml, "--timeout", "5m")
    left = {one["metadata"]["name"] for name in (ml, team, places["other"]) for one in harness.listed("networkpolicies", name)}
    assert left == {"default-deny", "neighbour"}
