"""Every alert fires on what it is for and on nothing else: promtool over series that the real exporter made."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.chart.conftest import CHART, EVERYTHING, Objects
from tests.chart.series import SCRAPE_SECONDS, Scene
from tests.cluster import programs

pytestmark = pytest.mark.slow
RUNBOOK = CHART.parents[1] / "docs/RUNBOOK.md"


@pytest.fixture(scope="module")
def promtool() -> Path:
    return programs.program("promtool")


@pytest.fixture(scope="module")
def rules(render: Callable[..., Objects], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart's rules as a file that promtool reads."""
    rule = next(one for one in render(EVERYTHING) if one["kind"] == "PrometheusRule")
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(rule["spec"]))
    return path


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def fire(promtool: Path, rules: Path, scene: Scene, folder: Path) -> set[str]:
    """The alerts that fire at the scene's end."""
    series = scene.promtool()
    expected = [
        {"expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}})', "eval_time": f"{scene.now:.0f}s", "exp_samples": []}
        for name in re.findall(r"alert: (\w+)", rules.read_text())
    ]
    test = {"interval": f"{SCRAPE_SECONDS}s", "input_series": series, "promql_expr_test": expected}
    file = folder / "test.yaml"
    file.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True)
    said = done.stdout + done.stderr
    firing = re.findall(r'alertname=\\?"(\w+)', said)  # it prints the expressions that gave something
    assert bool(firing) == (done.returncode != 0), said
    return set(firing)


def test_rules_are_good(promtool: Path, rules: Path) -> None:
    """Promtool parses every rule and finds nothing to lint."""
    done = subprocess.run([promtool, "check", "rules", rules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_runbook(rules: Path) -> None:
    """Every alert has its entry, at the anchor to which it links, and no entry is about an alert of the past."""
    alerts = {rule["alert"]: rule for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]}
    entries = re.findall(r"^### (Firstsight\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert set(entries) == set(alerts)
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook_url"] == f"https://git.example.org/RUNBOOK.md#{name.lower()}"


@pytest.mark.parametrize(
    ("which", "of"),
    [
        ({}, "perceptual-dose-10-seed0"),
        ({"cell": "random-seed3", "arm": "random", "point": "", "seed": 3}, "random-seed3"),
        ({"cell": "", "arm": "shuffled", "point": "", "seed": 2}, "shuffled, seed 2,"),  # a tower, which cells share
    ],
)
def test_words(promtool: Path, rules: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, which: dict[str, str | int], of: str) -> None:
    """What an alert says names the cell and the figure."""
    scene = Scene(monkeypatch, **which)
    scene.train(5)
    scene.stand_still(12)
    text = f"ml: contrastive of {of} in demo has not completed a step for 12m 0s"
    named = {"cell": "perceptual-dose-10-seed0", "arm": "perceptual", "point": "dose-10", "seed": 0, **which}
    labels = {"severity": "critical", "namespace": "ml", "experiment": "demo", "stage": "contrastive"}
    labels |= {name: str(value) for name, value in named.items() if value != ""}
    annotations = {"summary": text, "runbook_url": "https://git.example.org/RUNBOOK.md#firstsightstalled"}
    expected = {
        "eval_time": "16m45s",
        "alertname": "FirstsightStalled",
        "exp_alerts": [{"exp_labels": labels, "exp_annotations": annotations}],
    }
    test = {"interval": f"{SCRAPE_SECONDS}s", "input_series": scene.promtool(), "alert_rule_test": [expected]}
    (tmp_path / "test.yaml").write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run([promtool, "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def healthy(scene: Scene) -> None:
    """An hour and a half with checkpoints, skipped steps long ago, a restart, and waits for data well below the limits."""
    scene.skip(3)
    for _ in range(6):
        scene.train(15)
        scene.save()
    scene.restart()
    scene.train(5)


def stalled(scene: Scene) -> None:
    scene.train(5)
    scene.stand_still(11)


def not_started(scene: Scene) -> None:
    scene.stand_still(12)


def endpoint_down(scene: Scene) -> None:
    scene.train(5)
    scene.nodes[1].hangs = True
    scene.train(6)


def non_finite(scene: Scene) -> None:
    scene.train(5)
    scene.skip(3)
    scene.train(5)


def data_wait(scene: Scene) -> None:
    scene.train(30, wait=0.3)


def checkpoint_old(scene: Scene) -> None:
    scene.train(1)
    scene.save()
    scene.train(122)


def never_saved(scene: Scene) -> None:
    """Nor did the processes before: each ends sooner than the limit."""
    for _ in range(5):
        scene.train(25)
        scene.restart(resumed=False)
    scene.train(2)


def saved_long_before_a_restart(scene: Scene) -> None:
    scene.train(1)
    scene.save()
    scene.train(70)
    scene.restart()
    scene.train(55)


def run_failed(scene: Scene) -> None:
    scene.train(5)
    metadata = {"namespace": "ml", "name": "firstsight-abcde"}
    scene.workflows.append({"metadata": metadata, "status": {"phase": "Failed", "finishedAt": "1970-01-01T00:05:00Z"}})
    scene.train(5)


def job_failed(scene: Scene) -> None:
    scene.train(5)
    metadata = {"namespace": "ml", "name": "contrastive-random-s0-0123456789", "labels": {"firstsight.dev/experiment": "demo"}}
    failed = {"conditions": [{"type": "Failed", "status": "True"}]}
    scene.jobs.append({"kind": "PyTorchJob", "apiVersion": "kubeflow.org/v1", "metadata": metadata, "spec": {}, "status": failed})
    scene.train(7)


def reaper_errors(scene: Scene) -> None:
    for _ in range(60):
        scene.reaper.failed()
        scene.train(0.5)


def reaper_down(scene: Scene) -> None:
    """Another release's reaper answers, in the same namespace too."""
    scene.train(5)
    scene.reaper_pod = "fs-firstsight-reaper-two-6d8f9c7b5-x2x9k"
    scene.train(17)


def store_full(scene: Scene) -> None:
    for name, used in (("fs-firstsight-minio", 90.0), ("somebody-else", 99.0)):
        for minute in range(40):
            scene.now = minute * SCRAPE_SECONDS
            volume = {"namespace": "ml", "persistentvolumeclaim": name}
            scene.add("kubelet_volume_stats_capacity_bytes", volume, 100.0)
            scene.add("kubelet_volume_stats_used_bytes", volume, used)
    scene.now = 0
    scene.train(10)


def pending(scene: Scene) -> None:
    for _ in range(80):
        scene.add(
            "kube_pod_status_phase", {"namespace": "ml", "pod": "contrastive-perceptual-s0-0123456789-worker-3", "phase": "Pending"}, 1
        )
        scene.add("kube_pod_status_phase", {"namespace": "ml", "pod": "somebody-else-0", "phase": "Pending"}, 1)
        scene.train(0.25)


def restarts(scene: Scene) -> None:
    for number in range(7):
        scene.restart(resumed=number < 2)
        scene.train(2)


def slow(scene: Scene) -> None:
    scene.train(60)
    scene.train(12, rate=200.0)


def straggler(scene: Scene) -> None:
    scene.train(15, compute_seconds=[0.5, 0.9])


CASES = {
    "FirstsightStalled": stalled,
    "FirstsightNotStarted": not_started,
    "FirstsightEndpointDown": endpoint_down,
    "FirstsightNonFinite": non_finite,
    "FirstsightDataWait": data_wait,
    "FirstsightCheckpointOld": checkpoint_old,
    "FirstsightPending": pending,
    "FirstsightRestarts": restarts,
    "FirstsightSlow": slow,
    "FirstsightStraggler": straggler,
    "FirstsightRunFailed": run_failed,
    "FirstsightJobFailed": job_failed,
    "FirstsightReaperErrors": reaper_errors,
    "FirstsightReaperDown": reaper_down,
    "FirstsightStoreFull": store_full,
}


@pytest.mark.parametrize(
    ("alert", "other"), [*((alert, {"seed": 1}) for alert in CASES), ("FirstsightStalled", {"point": "dose-30"}), ("FirstsightSlow", None)]
)
def test_fires(
    promtool: Path, rules: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alert: str, other: dict[str, str | int] | None
) -> None:
    """The alert, and it alone; also where another seed, or point, of the arm does well at the same time."""
    scene = Scene(monkeypatch)
    CASES[alert](scene)
    if other:
        beside = Scene(monkeypatch, **other)
        beside.reaper_pod = ""
        while beside.now < scene.now:
            beside.train(min(60.0, scene.now - beside.now) / 60)
            beside.save()
        scene.samples = {**beside.samples, **scene.samples}
    assert fire(promtool, rules, scene, tmp_path) == {alert}


def test_healthy(promtool: Path, rules: Path, scene: Scene, tmp_path: Path) -> None:
    """A run that goes well, one restart included, alerts nobody."""
    healthy(scene)
    assert fire(promtool, rules, scene, tmp_path) == set()


def paused(scene: Scene) -> None:
    """By a queue, for longer than a checkpoint may be old; it saved before, and goes on."""
    scene.train(30)
    scene.save()
    scene.go(minutes=150)
    scene.restart()
    scene.train(20)


def resumed_slowly(scene: Scene) -> None:
    """What it resumed from is there, and its first step takes long."""
    scene.train(30)
    scene.restart()
    scene.stand_still(12)


@pytest.mark.parametrize(("story", "alerts"), [(paused, set()), (resumed_slowly, {"FirstsightNotStarted"})])
def test_a_resumed_run_is_judged_by_what_it_does_now(
    promtool: Path, rules: Path, scene: Scene, tmp_path: Path, story: Callable[[Scene], None], alerts: set[str]
) -> None:
    """Neither a pause nor a slow beginning is a fault of another kind."""
    story(scene)
    assert fire(promtool, rules, scene, tmp_path) == alerts


@pytest.mark.parametrize("pod", ["-6d8f9c7b5-x2x9k", "-6d8f9c7b56x2x9k"])
def test_a_reaper_is_known_by_its_pod_however_long_its_name(
    promtool: Path, render: Callable[..., Objects], scene: Scene, tmp_path: Path, pod: str
) -> None:
    """Of a name's 63 characters Kubernetes keeps five for its own, and leaves out the dash before them where there is no room."""
    name = "f" * 40
    (rule,) = (one for one in render({**EVERYTHING, "fullnameOverride": name}) if one["kind"] == "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    scene.reaper_pod = f"{name}-reaper{pod}"
    scene.train(17)
    assert fire(promtool, tmp_path / "rules.yaml", scene, tmp_path) == set()


@pytest.mark.parametrize("story", [never_saved, saved_long_before_a_restart])
def test_a_checkpoint_is_missed_across_restarts(
    promtool: Path, rules: Path, scene: Scene, tmp_path: Path, story: Callable[[Scene], None]
) -> None:
    """A process that has not saved yet is no better off than the one before it."""
    story(scene)
    assert fire(promtool, rules, scene, tmp_path) == {"FirstsightCheckpointOld"}


def test_a_burst_of_the_reapers_errors_is_none(promtool: Path, rules: Path, scene: Scene, tmp_path: Path) -> None:
    """As a restart of the API server makes; so is a run that failed more than an hour ago."""
    run_failed(scene)
    for _ in range(20):
        scene.reaper.failed()
    for _ in range(9):
        scene.train(8)
        scene.save()
    assert fire(promtool, rules, scene, tmp_path) == set()


def test_another_release_s_runs_are_its_own(promtool: Path, rules: Path, scene: Scene, tmp_path: Path) -> None:
    """It has rules of its own, whose limits may differ."""
    stalled(scene)
    foreign = {
        (
            name,
            tuple(
                (key, "theirs" if (key, value) == ("namespace", "ml") and "reaper" not in str(labels) else value) for key, value in labels
            ),
        ): values
        for (name, labels), values in scene.samples.items()
    }
    scene.samples = foreign
    assert fire(promtool, rules, scene, tmp_path) == set()


def test_every_alert_has_a_case(rules: Path) -> None:
    """None is left out above."""
    assert set(re.findall(r"alert: (\w+)", rules.read_text())) == {*CASES}
