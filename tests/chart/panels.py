"""Draw the dashboard's panels from their own queries, since Grafana cannot be had here.

python -m tests.chart.panels OUTPUT.png [PROMETHEUS_URL [NAMESPACE]]: without a URL, of the recorded series.
"""

import contextlib
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chart import recorded
from tests.chart.conftest import CHART
from tests.cluster import programs
from tests.servers import free_ports

DASHBOARD = CHART / "dashboards/firstsight.json"
DRAWN_FROM = "firstsight dashboard"
"""Entry of a picture that says of which dashboard it is."""


@dataclass(frozen=True)
class Panel:
    """A panel and its queries.

    Attributes:
        title: of the panel.
        about: its description.
        unit: Grafana's name of it.
        empty: what it shows where there are no data.
        least: of the axis; None: as the data are.
        bars: one bar a series, of the last value; else lines over time.
        targets: (expression, legend) of each query.
    """

    title: str
    about: str
    unit: str
    empty: str
    least: float | None
    bars: bool
    targets: tuple[tuple[str, str], ...]


def rows() -> dict[str, list[Panel]]:
    """The panels of the shipped dashboard, in order, by the row that they are in."""
    found: dict[str, list[Panel]] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            found[panel["title"]] = []
            continue
        defaults = panel["fieldConfig"]["defaults"]
        targets = tuple((one["expr"], one["legendFormat"]) for one in panel["targets"])
        about, bars = panel["description"], panel["type"] == "bargauge"
        found[list(found)[-1]].append(
            Panel(panel["title"], about, defaults["unit"], defaults["noValue"], defaults.get("min"), bars, targets)
        )
    return found


def fingerprint() -> str:
    """The dashboard and the recorded series, as a hash."""
    return hashlib.sha256(DASHBOARD.read_bytes() + recorded.FILE.read_bytes()).hexdigest()


def panels() -> list[Panel]:
    """All of them."""
    return [panel for row in rows().values() for panel in row]


def filled(expression: str, namespace: str = ".*", interval: str = "2m", whole: str = "30m") -> str:
    """The expression with Grafana's variables put in: this namespace, everything else."""
    values = {"namespace": namespace, "__rate_interval": interval, "__range": whole}
    return re.sub(r"\$(\w+)", lambda found: values.get(found[1], ".*"), expression)


def named(legend: str, labels: dict[str, str]) -> str:
    """A series' name in the legend."""
    return " ".join(re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend).split())


def query_range(url: str, expression: str, begin: float, end: float, step: float) -> list[dict[str, Any]]:
    """The series that Prometheus answers."""
    query = urllib.parse.urlencode({"query": expression, "start": begin, "end": end, "step": step})
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{query}") as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def draw(url: str, picture: Path, begin: float, end: float, namespace: str = ".*", scrape: float = 30.0) -> dict[str, int]:
    """Draw all panels; how many series each of them has."""
    from matplotlib.figure import Figure

    shown = rows()
    heights = [-(-len(row) // 4) if len(row) in (1, 2, 4) else -(-len(row) // 3) for row in shown.values()]
    figure = Figure(figsize=(17, 3.1 * sum(heights)), layout="constrained")
    step = max(scrape / 2, (end - begin) / 240)
    counts: dict[str, int] = {}
    for part, (title, row), height in zip(figure.subfigures(len(shown), 1, height_ratios=heights), shown.items(), heights, strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for axes, panel in zip(part.subplots(height, -(-len(row) // height), squeeze=False).flat, row, strict=True):
            lines = []
            for expression, legend in panel.targets:
                asked = filled(expression, namespace, f"{4 * scrape:.0f}s", f"{end - begin:.0f}s")
                lines += [(named(legend, one["metric"]), one["values"]) for one in query_range(url, asked, begin, end, step)]
            counts[panel.title] = len(lines)
            _draw(axes, panel, lines, begin, 2.5 * max(step, scrape))
    figure.savefig(picture, dpi=72, metadata={DRAWN_FROM: fingerprint()})
    return counts


def _draw(axes: Any, panel: Panel, lines: list[tuple[str, list[tuple[float, str]]]], begin: float, gap: float) -> None:
    axes.set_title(f"{panel.title} ({panel.unit})", fontsize=10)
    if not lines:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "\n".join(textwrap.wrap(panel.empty, 44)), ha="center", va="center", fontsize=9, color="0.35")
        return
    if panel.bars:
        axes.barh([name for name, _ in lines], [float(values[-1][1]) for _, values in lines])
        return
    for number, (name, values) in enumerate(lines):
        moments, heights = zip(*((float(moment) - begin, float(value)) for moment, value in values), strict=True)
        ends = [at for at in range(1, len(moments)) if moments[at] - moments[at - 1] > gap]
        for first, last in zip([0, *ends], [*ends, len(moments)], strict=True):  # no line where nothing is known
            drawn = {"color": f"C{number % 10}", "label": name if not first else "_", "marker": "." if last - first == 1 else ""}
            axes.plot([moment / 60 for moment in moments[first:last]], heights[first:last], linewidth=1, clip_on=False, **drawn)
    axes.set_xlabel("minutes", fontsize=8)
    if panel.least is not None and axes.get_ylim()[0] < panel.least:
        axes.set_ylim(bottom=panel.least)
    if len(lines) <= 6:
        axes.legend(fontsize=6)


@contextlib.contextmanager
def prometheus(recording: recorded.Recording, folder: Path, begin: float) -> Iterator[str]:
    """A Prometheus that holds the recorded series from `begin` on; its URL."""
    (port,) = free_ports(1)
    (folder / "prometheus.yml").write_text("{}")
    (folder / "series").write_text(recording.openmetrics(begin))
    loaded = [programs.program("promtool"), "tsdb", "create-blocks-from", "openmetrics", folder / "series", folder / "data"]
    subprocess.run(loaded, check=True, stdout=subprocess.DEVNULL)
    command = [
        programs.program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=10y",
        f"--query.lookback-delta={3 * recording.seconds}s",  # Prometheus marks a target that is gone; what is loaded has no such marks
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


def main(picture: Path, url: str = "", namespace: str = ".*") -> None:
    """Draw the last half hour of a Prometheus, or the recorded series."""
    if url:
        print(draw(url.rstrip("/"), picture, time.time() - 1800, time.time(), namespace))
        return
    recording, begin = recorded.load(), past()
    with tempfile.TemporaryDirectory() as folder, prometheus(recording, Path(folder), begin) as served:
        print(draw(served, picture, begin, begin + recording.end, namespace, recording.seconds))


def past() -> float:
    """A time some hours ago, at which a record may begin."""
    return float(int(time.time()) // 3600 * 3600 - 7200)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
