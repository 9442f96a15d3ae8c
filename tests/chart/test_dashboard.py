"""Every query of the dashboard answers on series that the real exporter made, in a real Prometheus; drawn as a picture."""

import contextlib
import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chart import panels
from tests.chart.series import Scene
from tests.cluster import programs
from tests.servers import free_ports
from trainer.run import sinks

PICTURE = os.environ.get("FIRSTSIGHT_DASHBOARD_PICTURE", "")
"""Where to leave the picture; empty: it goes with the test's folder."""
GPU = {"exported_namespace": "ml", "exported_pod": "contrastive-perceptual-s0-0123456789-worker-0", "gpu": "0"}


def test_queries_name_real_metrics() -> None:
    """Every metric of ours that a panel, a variable or an annotation names is one that the trainer exports."""
    names = {f"{sinks.PREFIX}_{name}" for name in sinks._GAUGES} | {f"{sinks.PREFIX}_{name}_total" for name in sinks._COUNTERS}
    names |= {f"{sinks.PREFIX}_step_seconds_{part}" for part in ("bucket", "sum", "count")}
    used = set(re.findall(r"firstsight_\w+", panels.DASHBOARD.read_text()))
    assert used <= names
    left_out = {name for name in names - used if not name.startswith(f"{sinks.PREFIX}_step_seconds")}
    # shown as the rate that the trainer itself computes, and as the run's total
    assert left_out == {f"{sinks.PREFIX}_samples_total", f"{sinks.PREFIX}_nonfinite_total"}


def test_no_query_mixes_what_differs() -> None:
    """Two seeds, or two points, of one arm are two lines everywhere, each with its name."""
    expressions = [expression for panel in panels.panels() for expression, _ in panel.targets]
    expressions += [one["expr"] for one in json.loads(panels.DASHBOARD.read_text())["annotations"]["list"]]
    grouped = [set(found.split(", ")) for expression in expressions for found in re.findall(r"by \(([^)]*)\)", expression)]
    assert len(grouped) > 15
    assert all({"namespace", "experiment", "cell", "arm", "point", "seed", "stage"} <= names for names in grouped)
    legends = [legend for panel in panels.panels() for expression, legend in panel.targets if "firstsight" in expression]
    assert all(legend.startswith("{{arm}} {{point}} seed {{seed}} {{stage}}") for legend in legends)


@pytest.fixture
def prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, float, float]]:
    """A Prometheus that holds an eventful half hour; its URL, and when that was."""
    begin = float(int(time.time()) // 3600 * 3600 - 7200)
    with monkeypatch.context() as patched:
        scene = Scene(patched, begin=begin)
        _eventful(scene)
        end = scene.now
        text = scene.openmetrics()
    (tmp_path / "series").write_text(text)
    loaded = [programs.program("promtool"), "tsdb", "create-blocks-from", "openmetrics", tmp_path / "series", tmp_path / "data"]
    subprocess.run(loaded, check=True, stdout=subprocess.DEVNULL)
    with _running(tmp_path) as url:
        yield url, begin, end


def _eventful(scene: Scene) -> None:
    for minute in range(30):
        scene.add("DCGM_FI_DEV_GPU_UTIL", GPU, 97 - minute % 3)
        scene.add("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", GPU, 0.41)
        scene.add("DCGM_FI_DEV_FB_USED", GPU, 61_000)
        scene.train(1, wait=0.05 + 0.2 * (minute > 20), rate=500 - 3 * minute, grad_norm=1 + minute % 4 / 10, compute_seconds=[0.7, 0.9])
        if minute % 8 == 4:
            scene.save()
        if minute == 15:
            scene.skip(2)
            scene.restart()


@contextlib.contextmanager
def _running(folder: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    (folder / "prometheus.yml").write_text("{}")
    command = [
        programs.program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=10y",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _ready(url):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_panels(prometheus: tuple[str, float, float], tmp_path: Path) -> None:
    """Each panel has its series, and the picture of all of them is drawn."""
    url, begin, end = prometheus
    picture = Path(PICTURE) if PICTURE else tmp_path / "dashboard.png"
    counts = panels.draw(url, picture, begin, end, "ml")
    assert [title for title, count in counts.items() if count == 0] == []
    assert counts["Computing, by node"] == 2
    assert picture.stat().st_size > 50_000


@pytest.mark.slow
def test_annotations(prometheus: tuple[str, float, float]) -> None:
    """Checkpoints and the restart are marked."""
    url, begin, end = prometheus
    marks = {one["name"]: one["expr"] for one in json.loads(panels.DASHBOARD.read_text())["annotations"]["list"]}
    for name in ("checkpoint", "restart"):
        assert panels.query_range(url, panels.filled(marks[name], "ml"), begin, end, 15), name


@pytest.mark.slow
def test_variables(prometheus: tuple[str, float, float]) -> None:
    """Each variable of the dashboard finds its values."""
    url, begin, end = prometheus
    for variable in json.loads(panels.DASHBOARD.read_text())["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
        series = panels.query_range(url, panels.filled(metric, "ml"), begin, end, 60)
        assert {one["metric"][label] for one in series} == {
            {"namespace": "ml", "experiment": "demo", "arm": "perceptual", "point": "dose-10", "seed": "0", "stage": "contrastive"}[label]
        }
