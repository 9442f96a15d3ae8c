"""The chart from install to uninstall on a real cluster, in a namespace that enforces restricted Pod Security. In file order.

One release lives through the module: what a platform engineer and a researcher do with it, in the order in which they do it.
"""

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.operate.probes import REAPER_RIGHTS, RUN_RIGHTS
from scripts import pods_table
from tests.cluster import chart, harness, privileges, programs
from tests.cluster.chart import RELEASE, helm
from tests.cluster.training import RECIPE
from trainer.storage import exists, join, open_store, read_json, write_bytes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
RECIPES = {name: RECIPE.replace("epochs: 12", f"epochs: {epochs}") for name, epochs in (("short", 1), ("medium", 10), ("long", 4000))}
ROOT = "s3://firstsight/{namespace}"
LANE = "lane-1-of-1"
REPORT = f"{ROOT}/experiments/first/report/index.html"


@pytest.fixture(scope="module")
def namespace(kubectl: Any, monitoring: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One restricted namespace for the module, with a volume for the store."""
    name = harness.make_namespace("fs-chart")
    if harness.own_cluster():
        chart.store_volume(name, tmp_path_factory.mktemp("store"))
    try:
        yield name
    finally:
        harness.remove_namespace(name)


@pytest.fixture(scope="module")
def values(namespace: str) -> dict[str, Any]:
    given = chart.values()
    given["metrics"]["prometheusUrl"] = "http://prometheus-operated.monitoring.svc:9090"
    return given


@pytest.fixture(scope="module")
def release(namespace: str, values: dict[str, Any]) -> str:
    """The chart, installed; its hook has made bucket and users."""
    said = helm("install", RELEASE, str(chart.CHART), "-n", namespace, "--wait", "--timeout", "8m", given=values)
    assert f"release {RELEASE} in namespace {namespace}" in said
    return RELEASE


@pytest.fixture
def run_store(namespace: str, release: str) -> Iterator[str]:
    """The release's store, with the run's own credentials; the run's root."""
    with _as_the_run(namespace):
        yield ROOT.format(namespace=namespace)


@contextlib.contextmanager
def _as_the_run(namespace: str) -> Iterator[None]:
    """This process's environment has the run's credentials, and the store by a forwarded port."""
    service = f"svc/{RELEASE}-firstsight-minio"
    with chart.forwarded(namespace, service, 9000) as address, pytest.MonkeyPatch.context() as patched:
        for name, value in {**chart.keys(namespace, "firstsight"), "AWS_ENDPOINT_URL_S3": f"http://{address}"}.items():
            patched.setenv(name, value)
        yield


def test_preflight(namespace: str, values: dict[str, Any], tmp_path: Any) -> None:
    """Before anything is made, the preflight finds nothing missing; with a wrong account it names it."""
    nobody = {"create": False, "name": "nobody"}
    for change, code, said in (
        ({}, 0, "all is well"),
        ({"profileDefaults": {**values["profileDefaults"], "serviceAccount": nobody}}, 1, f"FAIL  ServiceAccount {namespace}/nobody"),
    ):
        file = tmp_path / "values.json"
        file.write_text(json.dumps({**values, **change}))
        command = ["scripts/chart_preflight.sh", str(programs.program("helm")), sys.executable, str(chart.CHART), namespace, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=harness.environment(), cwd=chart.CHART.parents[1])
        assert done.returncode == code, done.stdout + done.stderr
        assert said in done.stdout
    assert not [one for one in harness.listed("secrets", namespace) if one["metadata"]["name"] != "default"]


def test_missing_kind_is_refused_before_anything_is_made(namespace: str, values: dict[str, Any]) -> None:
    """A switch whose CRD the cluster does not have ends the install with its key, and leaves no release."""
    if "trainingruntimes.trainer.kubeflow.org" in harness.kubectl("get", "crd", "-o", "name"):
        pytest.skip("this cluster has Kubeflow Trainer v2")
    given = {**values, "trainingRuntime": {"enabled": True}}
    said = helm("install", RELEASE, str(chart.CHART), "-n", namespace, given=given, fails=True)
    assert "trainingRuntime.enabled needs trainer.kubeflow.org/v1alpha1/TrainingRuntime" in said
    assert helm("list", "-n", namespace, "-q").strip() == ""
    assert harness.listed("deployments", namespace) == []


def test_a_second_release_is_refused(namespace: str, release: str, values: dict[str, Any]) -> None:
    """With the reason, before anything is made; also where other profiles would live beside the first release's."""
    other = {**values, "profiles": {"firstsight": None, "other": {}}}
    said = helm("install", "second", str(chart.CHART), "-n", namespace, given=other, fails=True)
    assert f"namespace {namespace} belongs to release {release} of firstsight already" in said
    assert helm("list", "-n", namespace, "-q").split() == [release]


def test_helm_test(namespace: str, release: str) -> None:
    """`helm test` passes: store, rights, kinds, Prometheus, one per line."""
    said = helm("test", release, "-n", namespace, "--logs", "--timeout", "5m")
    assert said.count("Phase:") == 2
    assert said.count("Succeeded") == 2
    assert said.count("POD LOGS: ") == 2
    assert said.count("all is well") == 2


def test_hooks_leave_nothing(namespace: str, release: str) -> None:
    """After install and test no hook's Job is left, and of the tests the pods whose logs Helm shows."""
    assert harness.listed("jobs", namespace) == []
    ours = harness.listed("pods", namespace, "app.kubernetes.io/part-of=firstsight")
    names = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in ours}
    assert names <= {"minio", "reaper", "check"}


def test_notes(namespace: str, release: str, tmp_path: Any) -> None:
    """Each command of NOTES works as it stands, pasted into a shell (except those that never end or need a checkout)."""
    notes = helm("get", "notes", release, "-n", namespace)
    commands = [line.strip() for line in notes.splitlines() if line.startswith("    ")]
    pasted = [line for line in commands if not re.search(r"port-forward|python -m|^make |create secret", line)]
    assert len(pasted) >= 6
    done = subprocess.run(["bash", "-euc", "\n".join(pasted)], capture_output=True, text=True, env=harness.environment(), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Phase:          Succeeded" in done.stdout


ACCOUNTS = {"firstsight": RUN_RIGHTS, f"{RELEASE}-firstsight-reaper": REAPER_RIGHTS, "default": {}}
REFUSED = (
    "create pods", "get secrets", "list secrets", "create secrets", "get configmaps", "create configmaps", "create pods/exec",
    "patch deployments.apps", "create roles.rbac.authorization.k8s.io", "delete persistentvolumeclaims", "create workflows.argoproj.io",
    "delete workflows.argoproj.io", "impersonate serviceaccounts", "create serviceaccounts/token", "list nodes", "list namespaces",
)  # fmt: skip


@pytest.mark.parametrize("account", ACCOUNTS)
def test_rights(namespace: str, release: str, account: str) -> None:
    """The real API server allows each account its verbs in its namespace, and refuses all others, there and elsewhere."""
    allowed = {f"{verb} {resource}" for resource, verbs in ACCOUNTS[account].items() for verb in verbs}
    asked = sorted({f"{verb} {resource}" for resource, verbs in RUN_RIGHTS.items() for verb in verbs} | set(REFUSED) | allowed)
    assert chart.allowed(account, namespace, asked, namespace) == allowed
    assert chart.allowed(account, namespace, asked, "default") == set()


def test_run_sees_its_root_only(namespace: str, run_store: str) -> None:
    """The run's user reads and writes below its root, and nothing beside it."""
    uri = join(run_store, "mine")
    write_bytes(uri, b"mine")
    open_store(uri).delete(uri)
    with pytest.raises(ValueError, match="refused by"):
        write_bytes("s3://firstsight/another/x", b"theirs")


@pytest.fixture(scope="module")
def staged(namespace: str, release: str) -> dict[str, str]:
    """The demo's data, staged by two step pods whose jobs ran in the trainer's image; the folders of both, and the requests."""
    uris = {name: join(ROOT.format(namespace=namespace), f"{name}.yaml") for name in RECIPES}
    with _as_the_run(namespace):
        for name, text in RECIPES.items():
            write_bytes(uris[name], text.encode())
    uris["first"] = _accept(namespace, "first", uris["short"], "perceptual")
    for what in ("triplets", "pairs"):
        chart.step(namespace, f"stage-{what}", f"staging.stage('{what}', request='{uris['first']}')")
        uris[what] = chart.finish(namespace, f"stage-{what}").split()[-1]
    return uris


def _accept(namespace: str, experiment: str, recipe: str, arms: str) -> str:
    """The URI of the request that the first step stores."""
    asked = f"experiment='{experiment}', recipe='{recipe}', arms='{arms}'"
    call = f"links.accept(request='', profile='firstsight', run='{experiment}', {asked})[0]"
    chart.step(namespace, f"links-{experiment}", call)
    return chart.finish(namespace, f"links-{experiment}").split()[-1]


def _plan(staged: dict[str, str], request: str) -> str:
    return f"planning.make_plan(request='{request}', pairs='{staged['pairs']}', triplets='{staged['triplets']}')"


def test_pipeline_steps(namespace: str, staged: dict[str, str], run_store: str) -> None:
    """Every step of the pipeline as a pod of its own, with the chart's account, image and store: staged, trained, measured, reported."""
    chart.step(namespace, "plan", _plan(staged, staged["first"]))
    chart.finish(namespace, "plan")
    for name in ("perceptual", "contrastive"):
        chart.step(namespace, name, f"lanes.work('{name}', request='{staged['first']}', lane='{LANE}')")
        log = chart.finish(namespace, name)
        assert re.search(r"step \d+ of \d+, loss", log), log  # rank 0's own words, in the step's log
    chart.step(namespace, "evaluate", f"lanes.work('evaluate', request='{staged['first']}', lane='{LANE}')")
    chart.finish(namespace, "evaluate")
    chart.step(namespace, "report", f"finish.report(request='{staged['first']}')")
    chart.finish(namespace, "report")
    chart.step(namespace, "finish", "finish.finish(run='first', request='', root='', state='COMPLETE')")
    chart.finish(namespace, "finish")
    report = REPORT.format(namespace=namespace)
    assert exists(report)
    assert "perceptual" in json.dumps(read_json(report.replace("index.html", "results.json")))
    jobs = harness.listed("pytorchjobs", namespace)
    assert len(jobs) == 2
    assert all(job["status"]["conditions"][-1]["type"] == "Succeeded" for job in jobs)


@pytest.fixture(scope="module")
def long_run(namespace: str, staged: dict[str, str]) -> str:
    """A contrastive job that goes on for as long as the tests look at it; its step pod."""
    _train(namespace, "long", staged)
    return "long"


def _train(namespace: str, name: str, staged: dict[str, str]) -> None:
    """Start the contrastive job of a recipe, its step pod and experiment called like it; returns when it trains."""
    request = _accept(namespace, name, staged[name], "random")
    chart.step(namespace, f"plan-{name}", _plan(staged, request))
    chart.finish(namespace, f"plan-{name}")
    chart.step(namespace, name, f"lanes.work('contrastive', request='{request}', lane='{LANE}')")
    harness.wait_until(f"the first steps of the {name} run", lambda: _steps(namespace, name), 300, every=1)


def _steps(namespace: str, name: str = "long") -> list[int]:
    """The steps that such a run has logged, as its launcher shows them."""
    command = [programs.program("kubectl"), "-n", namespace, "logs", name]  # which fails as long as the container is being made
    log = subprocess.run(command, capture_output=True, text=True, env=harness.environment()).stdout
    return [int(number) for number in re.findall(r"step (\d+) of \d+, loss", log)]


def _ask(monitoring: str, path: str) -> Any:
    with urllib.request.urlopen(f"{monitoring}/api/v1/{path}") as answer:
        return json.load(answer)["data"]


def _firing(monitoring: str, namespace: str) -> set[str]:
    alerts = _ask(monitoring, "alerts")["alerts"]
    return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing" and one["labels"].get("namespace") == namespace}


def test_scraped(namespace: str, long_run: str, monitoring: str) -> None:
    """The Prometheus operator takes up PodMonitor and rules: both nodes of the job and the reaper are up, under our job's name."""

    def up() -> bool:
        targets = [one for one in _ask(monitoring, "targets?state=active")["activeTargets"] if one["labels"].get("namespace") == namespace]
        healthy = sorted(one["labels"]["container"] for one in targets if one["health"] == "up" and one["labels"]["job"] == "firstsight")
        return healthy == ["pytorch", "pytorch", "reaper"]

    harness.wait_until("three targets", up, 120, every=2)
    rules = {rule["name"] for group in _ask(monitoring, "rules")["groups"] for rule in group["rules"] if group["name"] == "firstsight"}
    assert {"FirstsightStalled", "FirstsightReaperDown", "FirstsightRunFailed", "FirstsightStoreFull"} <= rules
    phases = f"query?query=firstsight_job_phase{{run_namespace=%22{namespace}%22,experiment=%22long%22}}"
    harness.wait_until(
        "the job in Prometheus", lambda: {one["metric"]["phase"] for one in _ask(monitoring, phases)["result"]} == {"active"}, 60
    )
    query = f"query?query=max(firstsight_train_steps_total{{namespace=%22{namespace}%22}})"
    harness.wait_until("steps in Prometheus", lambda: float(_ask(monitoring, query)["result"][0]["value"][1]) > 0, 60, every=2)


def test_alert(namespace: str, long_run: str, monitoring: str) -> None:
    """A worker that is stopped makes the alert fire; when it goes on the alert goes, and so does the run."""
    assert "FirstsightStalled" not in _firing(monitoring, namespace)
    with _held(namespace, "long"):
        harness.wait_until("the alert", lambda: "FirstsightStalled" in _firing(monitoring, namespace), 120, every=1)
    before = max(_steps(namespace))
    harness.wait_until("the alert's end", lambda: "FirstsightStalled" not in _firing(monitoring, namespace), 120, every=1)
    assert harness.wait_until("further steps", lambda: max(_steps(namespace)) > before, 60)


@contextlib.contextmanager
def _held(namespace: str, experiment: str) -> Iterator[None]:
    """The rank of worker 1 stands still, and so does the run, while the context lasts."""
    pods = [pod["metadata"]["name"] for pod in harness.listed("pods", namespace, f"firstsight.dev/experiment={experiment}")]
    worker = next(name for name in pods if name.endswith("worker-1"))

    def signal(name: str) -> None:
        agent = "$(pgrep -o -P 1)"  # the init's child, whose children are the ranks
        harness.kubectl("-n", namespace, "exec", worker, "--", "sh", "-c", f"pkill -{name} -P {agent}")

    signal("STOP")
    try:
        yield
    finally:
        signal("CONT")


def test_upgrade_during_a_run(namespace: str, release: str, long_run: str, values: dict[str, Any]) -> None:
    """An upgrade with changed values keeps credentials, data and the run, even where it restarts store and reaper."""
    secrets = {name: chart.keys(namespace, name) for name in ("firstsight", f"{RELEASE}-firstsight-minio")}
    job = harness.listed("pytorchjobs", namespace, "firstsight.dev/experiment=long")[0]["metadata"]["uid"]
    pods = {pod["metadata"]["uid"] for pod in harness.listed("pods", namespace, "firstsight.dev/experiment=long")}
    before, step = {_uid(namespace, "minio"), _uid(namespace, "reaper")}, max(_steps(namespace))
    changed = {**values, "pods": {**values["pods"], "annotations": {"changed": "yes"}}, "commonLabels": {"team": "vision"}}
    changed["jobs"] = {**values["jobs"], "ttlSeconds": 600}
    helm("upgrade", release, str(chart.CHART), "-n", namespace, "--wait", "--timeout", "8m", given=changed)
    assert {name: chart.keys(namespace, name) for name in secrets} == secrets
    harness.wait_until("new pods", lambda: not before & {_uid(namespace, "minio"), _uid(namespace, "reaper")}, 60)
    profile = harness.get("configmap", namespace, "firstsight")
    assert profile
    assert "ttl_seconds: 600" in profile["data"]["profile.yaml"]
    harness.wait_until("further steps", lambda: max(_steps(namespace)) > step + 5, 180, every=1)
    assert harness.listed("pytorchjobs", namespace, "firstsight.dev/experiment=long")[0]["metadata"]["uid"] == job
    assert {pod["metadata"]["uid"] for pod in harness.listed("pods", namespace, "firstsight.dev/experiment=long")} == pods
    with _as_the_run(namespace):
        assert exists(REPORT.format(namespace=namespace))
    helm("test", release, "-n", namespace, "--timeout", "5m")


def _uid(namespace: str, component: str) -> str:
    pods = harness.listed("pods", namespace, f"app.kubernetes.io/component={component}")
    return str(max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])["metadata"]["uid"])


def test_uninstall_is_refused_while_a_job_lives(namespace: str, release: str, long_run: str) -> None:
    """Nothing is taken away, and the hook's log says which job it is and what to do."""
    helm("uninstall", release, "-n", namespace, "--timeout", "3m", fails=True)
    log = harness.kubectl("-n", namespace, "logs", f"job/{RELEASE}-firstsight-uninstall")
    assert re.search(r"PyTorchJob contrastive-random-s0-\w+ still running: .*uninstall.force", log), log
    components = {pod["metadata"].get("labels", {}).get("app.kubernetes.io/component") for pod in harness.listed("pods", namespace)}
    assert {"minio", "reaper"} <= components
    step = max(_steps(namespace))
    harness.wait_until("further steps", lambda: max(_steps(namespace)) > step, 60, every=1)


def test_pods_and_accounts_have_what_the_page_says(namespace: str, release: str, long_run: str) -> None:
    """Live pods, as docs/SECURITY.md derives them from the chart: user, context, mounts, Secrets, token. Accounts: those verbs, no more."""
    objects = privileges.installed(release, namespace)
    seen, wrong = privileges.differing(objects, namespace)
    assert wrong == {}
    assert {"Deployment minio", "Deployment reaper", "training", "staging that does not"} <= seen
    given: dict[str, set[str]] = {f"{namespace}/default": set()}
    for (account, place, _), verbs in pods_table.rights(objects).items():
        assert place == namespace
        given.setdefault(account, set()).update(f"{verb} {resource}" for resource, some in verbs.items() for verb in some)
    assert len(given) == 4
    for account, expected in given.items():
        assert privileges.rules(account, namespace) == expected, account
        assert privileges.rules(account, "kube-system") == set(), account


def test_uninstall_leaves_the_volume(namespace: str, release: str, long_run: str) -> None:
    """When the jobs have ended nothing of the release is left but the volume, and a new install finds the data on it."""
    for pod in ("long", "plan-long"):
        harness.kubectl("-n", namespace, "delete", "pod", pod, "--grace-period=1")
    harness.kubectl("-n", namespace, "delete", "pytorchjobs,jobs", "--all", "--wait=true", "--timeout=120s")
    helm("uninstall", release, "-n", namespace, "--timeout", "5m")
    assert _left(namespace) == {f"persistentvolumeclaim/{RELEASE}-firstsight-minio"}


def _left(namespace: str) -> set[str]:
    """Everything in the namespace, and of the cluster's kinds, that carries the release's labels."""
    kinds = harness.kubectl("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    kinds = [kind for kind in kinds if kind not in ("events", "events.events.k8s.io")]
    selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/part-of=firstsight"
    deadline = time.monotonic() + 60
    while True:
        found = harness.kubectl("-n", namespace, "get", ",".join(kinds), "-l", selector, "-o", "name", "--ignore-not-found").split()
        if len(found) <= 1 or time.monotonic() > deadline:
            break
        time.sleep(1)
    found += harness.kubectl("get", "clusterroles,clusterrolebindings", "-l", selector, "-o", "name").split()
    return set(found)


def test_an_older_release_is_upgraded_under_a_run(namespace: str, values: dict[str, Any], staged: dict[str, str], tmp_path: Path) -> None:
    """The chart of ad127be, on the volume that was kept, becomes today's while its job trains: nothing restarts, and the job ends well.

    All by Helm 3, after Helm 4: new credentials, old data.
    """
    binary, wait = "helm3", ("-n", namespace, "--wait", "--timeout", "8m")
    given = {**values, "metrics": {}}
    given["profileDefaults"] = {name: value for name, value in values["profileDefaults"].items() if name != "inReleaseNamespace"}
    helm("install", RELEASE, chart.older(tmp_path), *wait, given=given, binary=binary)
    _train(namespace, "medium", staged)
    with _held(namespace, "medium"):  # that it does not end before the upgrade does
        before = chart.living(namespace, "medium")
        assert len(before) == 4
        helm("upgrade", RELEASE, str(chart.CHART), *wait, "--reset-then-reuse-values", binary=binary)
        assert chart.living(namespace, "medium") == before
    chart.finish(namespace, "medium")
    (job,) = harness.listed("pytorchjobs", namespace, "firstsight.dev/experiment=medium")
    assert job["status"]["conditions"][-1]["type"] == "Succeeded"
    assert (steps := _steps(namespace, "medium")) == sorted(steps), "the run began again"
    with _as_the_run(namespace):
        assert exists(REPORT.format(namespace=namespace))
    helm("test", RELEASE, "-n", namespace, "--timeout", "5m", binary=binary)
    helm("uninstall", RELEASE, "-n", namespace, "--timeout", "5m", binary=binary)
    assert _left(namespace) == {f"persistentvolumeclaim/{RELEASE}-firstsight-minio"}
