"""Draw the dashboard's panels from their own queries, since Grafana cannot be had here.

python -m tests.chart.panels PROMETHEUS_URL OUTPUT.png [NAMESPACE]
"""

import json
import re
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chart.conftest import CHART

DASHBOARD = CHART / "dashboards/firstsight.json"


@dataclass(frozen=True)
class Panel:
    """A panel and its queries.

    Attributes:
        title: of the panel.
        unit: Grafana's name of it.
        targets: (expression, legend) of each query.
    """

    title: str
    unit: str
    targets: tuple[tuple[str, str], ...]


def panels() -> list[Panel]:
    """The panels of the shipped dashboard that show something, in order."""
    found = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    return [
        Panel(
            panel["title"], panel["fieldConfig"]["defaults"]["unit"], tuple((one["expr"], one["legendFormat"]) for one in panel["targets"])
        )
        for panel in found
    ]


def filled(expression: str, namespace: str = ".*") -> str:
    """The expression with Grafana's variables put in: this namespace, everything else."""
    values = {"namespace": namespace, "__rate_interval": "2m"}
    return re.sub(r"\$(\w+)", lambda found: values.get(found[1], ".*"), expression)


def query_range(url: str, expression: str, begin: float, end: float, step: float) -> list[dict[str, Any]]:
    """The series that Prometheus answers."""
    query = urllib.parse.urlencode({"query": expression, "start": begin, "end": end, "step": step})
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{query}") as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def draw(url: str, picture: Path, begin: float, end: float, namespace: str = ".*") -> dict[str, int]:
    """Draw all panels; how many series each of them has."""
    from matplotlib.figure import Figure

    shown = panels()
    rows = -(-len(shown) // 3)
    figure = Figure(figsize=(15, 3 * rows), layout="constrained")
    counts: dict[str, int] = {}
    step = max(15.0, (end - begin) / 240)
    for axes, panel in zip(figure.subplots(rows, 3).flat, shown, strict=False):
        axes.set_title(f"{panel.title} ({panel.unit})", fontsize=10)
        counts[panel.title] = 0
        for expression, legend in panel.targets:
            for series in query_range(url, filled(expression, namespace), begin, end, step):
                colour = f"C{counts[panel.title] % 10}"
                label = re.sub(r"{{(\w+)}}", lambda found, series=series: series["metric"].get(found[1], ""), legend)
                moments, values = zip(*((float(moment) - begin, float(value)) for moment, value in series["values"]), strict=True)
                gaps = [at for at in range(1, len(moments)) if moments[at] - moments[at - 1] > 1.5 * step]
                for first, last in zip([0, *gaps], [*gaps, len(moments)], strict=True):  # no line where nothing is known
                    shown_as = {"color": colour, "label": label if not first else "_"}
                    axes.plot([moment / 60 for moment in moments[first:last]], values[first:last], linewidth=1, **shown_as)
                counts[panel.title] += 1
        axes.set_xlabel("minutes", fontsize=8)
        if 0 < counts[panel.title] <= 6:
            axes.legend(fontsize=6)
    for axes in figure.axes[len(shown) :]:
        axes.set_axis_off()
    figure.savefig(picture, dpi=60)
    return counts


if __name__ == "__main__":
    print(draw(sys.argv[1].rstrip("/"), Path(sys.argv[2]), time.time() - 1800, time.time(), *sys.argv[3:]))
