"""Every query of the dashboard answers on recorded series, in promtool and in a real Prometheus, where it is drawn as a picture."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipelines.operate.reaper_server import Metrics
from tests.chart import panels, recorded
from tests.chart.conftest import EVERYTHING, Objects
from tests.cluster import programs
from trainer.run import sinks

PICTURE = os.environ.get("FIRSTSIGHT_DASHBOARD_PICTURE", "")
"""Where to leave the picture; empty: it goes with the test's folder."""
LEGEND = "{{namespace}} {{experiment}} {{arm}} {{point}} seed {{seed}} {{stage}}"
RUN = {"namespace", "experiment", "cell", "arm", "point", "seed", "stage"}
NOT_RECORDED = {
    "Model FLOPs utilisation", "Pending pods", "GPU-hours by experiment", "Volume in use", "Volume left",
    "GPU utilisation", "Tensor cores", "GPU memory",
}  # fmt: skip
"""Panels without data on a machine without GPUs, cluster and exporters."""


def asked(expression: str) -> str:
    """As a panel asks it on the recorded series."""
    return panels.filled(expression, "ml", "10s", "60s")


def answered(recording: recorded.Recording, folder: Path) -> dict[str, list[dict[str, str]]]:
    """What each expression of panels and annotations gives."""
    shown = [expression for panel in panels.panels() for expression, _ in panel.targets]
    marks = [one["expr"] for one in json.loads(panels.DASHBOARD.read_text())["annotations"]["list"]]
    return recorded.answers(programs.program("promtool"), recording, [asked(one) for one in [*shown, *marks]], folder)


def test_queries_name_real_metrics() -> None:
    """Every metric of ours that a panel, a variable or an annotation names is one that trainer or reaper exports."""
    trainers = {f"{sinks.PREFIX}_{name}" for name in sinks._GAUGES} | {f"{sinks.PREFIX}_{name}_total" for name in sinks._COUNTERS}
    trainers |= {f"{sinks.PREFIX}_step_seconds_{part}" for part in ("bucket", "sum", "count")}
    reapers = {family.name for family in Metrics().registry.collect()}
    reapers |= {f"{name}_total" for name in reapers}
    used = set(re.findall(r"firstsight_\w+", panels.DASHBOARD.read_text()))
    assert used <= trainers | reapers
    left_out = {name for name in trainers - used if not name.startswith(f"{sinks.PREFIX}_step_seconds")}
    # shown as the rate that the trainer itself computes, and as the run's total
    assert left_out == {f"{sinks.PREFIX}_samples_total", f"{sinks.PREFIX}_nonfinite_total"}


def test_no_query_mixes_what_differs() -> None:
    """Two seeds, or two points, of one arm are two lines everywhere, each with its whole name, except in what an experiment costs."""
    both = [(expression, legend) for panel in panels.panels() for expression, legend in panel.targets if "firstsight_train" in expression]
    both += [(one["expr"], LEGEND) for one in json.loads(panels.DASHBOARD.read_text())["annotations"]["list"]]
    ours = [(expression, legend) for expression, legend in both if "gpu_seconds" not in expression]
    grouped = [set(found.split(", ")) for expression, _ in ours for found in re.findall(r"by \(([^)]*)\)", expression)]
    assert len(grouped) > 15
    assert all(names >= RUN for names in grouped)
    assert all(legend.startswith(LEGEND) for _, legend in ours)


def test_every_panel_says_what_it_shows_and_why_it_may_be_empty() -> None:
    """An empty panel must not look like a broken one."""
    assert [panel.title for panel in panels.panels() if not panel.about or len(panel.empty) < 30] == []


def test_the_picture_in_the_documents_is_of_this_dashboard() -> None:
    """After a change of either: `python -m tests.chart.panels docs/dashboard.png`."""
    with Image.open(panels.CHART.parents[1] / "docs/dashboard.png") as picture:
        assert picture.info[panels.DRAWN_FROM] == panels.fingerprint()


@pytest.mark.slow
def test_every_expression_answers(tmp_path: Path) -> None:
    """On a shared tower, two seeds at once, a resumed run and a reaper; what they cannot have is empty, and nothing else."""
    found = answered(recorded.load(), tmp_path)
    empty = {panel.title for panel in panels.panels() if not any(found[asked(one)] for one, _ in panel.targets)}
    assert empty == NOT_RECORDED


@pytest.mark.slow
def test_no_two_lines_of_a_panel_have_one_name(tmp_path: Path) -> None:
    """Neither two seeds, nor a run and its resumption; with other exporters no query is left without an answer."""
    found = answered(recorded.load().with_others(), tmp_path)
    assert [expression for expression, series in found.items() if not series] == []
    names = {
        panel.title: [panels.named(legend, one) for expression, legend in panel.targets for one in found[asked(expression)]]
        for panel in panels.panels()
    }
    assert {title: lines for title, lines in names.items() if len(lines) != len(set(lines))} == {}
    assert sorted(names["Loss"]) == [
        "ml demo perceptual seed 0 perceptual", "ml demo random seed 0 contrastive", "ml demo random seed 1 contrastive",
    ]  # fmt: skip


@pytest.mark.slow
def test_every_alert_is_evaluated(render: Callable[..., Objects], tmp_path: Path) -> None:
    """On the same series; of the recorded events only the failed run alerts at once."""
    rule = next(one for one in render(EVERYTHING) if one["kind"] == "PrometheusRule")
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(rule["spec"]))
    alerts = {one["alert"]: one["expr"] for group in rule["spec"]["groups"] for one in group["rules"]}
    firing = 'ALERTS{alertstate="firing"}'
    expressions = [*alerts.values(), firing]
    found = recorded.answers(programs.program("promtool"), recorded.load().with_others(), expressions, tmp_path, [path])
    assert {one["alertname"] for one in found[firing]} == {"FirstsightRunFailed"}
    assert found[alerts["FirstsightJobFailed"]]
    assert found[alerts["FirstsightPending"]]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, float, float]]:
    """A Prometheus that holds the record; its URL, and when that was."""
    recording, begin = recorded.load(), panels.past()
    with panels.prometheus(recording, tmp_path_factory.mktemp("prometheus"), begin) as url:
        yield url, begin, begin + recording.end


@pytest.mark.slow
def test_the_picture_is_drawn(prometheus: tuple[str, float, float], tmp_path: Path) -> None:
    """Of all panels; those without data show why."""
    url, begin, end = prometheus
    picture = Path(PICTURE) if PICTURE else tmp_path / "dashboard.png"
    counts = panels.draw(url, picture, begin, end, "ml", recorded.load().seconds)
    assert {title for title, count in counts.items() if count == 0} == NOT_RECORDED
    assert picture.stat().st_size > 50_000


@pytest.mark.slow
def test_variables(prometheus: tuple[str, float, float]) -> None:
    """Each variable of the dashboard finds its values."""
    url, begin, end = prometheus
    found = {}
    for variable in json.loads(panels.DASHBOARD.read_text())["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        found[label] = {one["metric"].get(label, "") for one in panels.query_range(url, panels.filled(metric, "ml"), begin, end, 10)}
    arms, stages = {"perceptual", "random"}, {"perceptual", "contrastive"}
    assert found == {"namespace": {"ml"}, "experiment": {"demo"}, "arm": arms, "point": {""}, "seed": {"0", "1"}, "stage": stages}
