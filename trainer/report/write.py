"""Write report/: index.html (one file, no scripts), results.json, results.csv and report.md, from one set of results.

`python -m trainer report --experiment <uri> [--compare <uri> …]`
"""

import csv
import functools
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import jinja2
from markupsafe import Markup

from trainer.arms import BASELINE
from trainer.errors import InputError
from trainer.report import course, figures, pictures, results
from trainer.report import items as per_item
from trainer.report.answer import points
from trainer.report.axes_view import axes_panels
from trainer.report.compare import Scores
from trainer.report.experiment import Experiment
from trainer.report.read import read_experiment, require_plan
from trainer.report.views import metrics, views
from trainer.representation import FEW_SHOT, LINEAR_PROBE, NEIGHBOURS, SHOTS
from trainer.storage import join, layout, pages
from trainer.storage.base import absolute
from trainer.storage.documents import encode_document

_CSV_COLUMNS = ("arm", "point", "seed", "stage", "step", "dataset", "task", "metric", "value", "chance", "ceiling", "num_items", "final")
_ENTITIES = str.maketrans({"<": "&lt;", "[": "&#91;", "|": "&#124;", "`": "&#96;"})
_SEEN = "pairs seen in stage 2"
_PROBES = {"zeroshot_classification": "zero-shot", LINEAR_PROBE: "linear probe", NEIGHBOURS: "nearest neighbours"} | {
    f"{FEW_SHOT}{shots}": f"{shots} per class" for shots in SHOTS
}
_SHORT_STAGES = {"untrained": "untrained", "perceptual": "after stage 1", "contrastive": "after stage 2", "posthoc": "after post-hoc"}


def write_report(experiment_uri: str, compare: Sequence[str], made_from: str = "") -> dict[str, Any]:
    """Read an experiment, compare its arms, publish the report beside it.

    Args:
        experiment_uri: the experiment's folder; empty: the first of `compare`.
        compare: further experiments to set beside it.
        made_from: hash of everything the page is built from, so that a later run can tell that it need not be rebuilt.

    Returns:
        {"report": URI of index.html, "results": URI of results.json, "answer": the page's first sentence,
        "damaged": one line for each item left out because it is damaged}.

    Raises:
        InputError: no plan at a URI, or experiments on different data or evaluation versions.
        Corrupt: a plan is damaged.
    """
    uris = [absolute(uri) for uri in (experiment_uri, *compare) if uri]
    if not uris:
        raise InputError("report needs an experiment: --experiment <uri>, or --compare <uri> <uri> …")
    others = [read_experiment(uri) for uri in uris[1:]]
    require_plan(uris[0])
    if others:
        results.require_comparable(read_experiment(uris[0]), others)
    claimed = pages.claim(uris[0].rstrip("/"))  # claimed before the page's data are read: see storage/pages.py
    experiment = read_experiment(uris[0])
    document, scores = results.build(experiment, others)
    examples = {
        "retrieval": pictures.retrieval_examples(scores, document["answer"]["subject"]),
        "triplets": pictures.triplet_examples(scores, document["answer"]["subject"]),
    }
    document["as_of"] = as_of(experiment, claimed.time)
    document["summary"] = results.summary(document)  # by now it includes problems found while reading the pictures
    files = {
        "results.json": encode_document(document),
        "results.csv": as_csv(document).encode(),
        "report.md": render("page.md", _inert(document), {}, {}).encode(),
        "index.html": render("page.html", document, panels(scores.experiment, scores, document), examples).encode(),
    }
    damaged = [line for each in (experiment, *others) for line in each.damaged]
    pages.publish(experiment.uri, claimed, files, "" if damaged else made_from)
    folder = layout.report(experiment.uri)
    answer = document["answer"]["sentence"]
    return {"report": join(folder, "index.html"), "results": join(folder, "results.json"), "answer": answer, "damaged": damaged}


def _inert(value: Any) -> Any:
    """A copy of the document escaped so that Markdown finds no HTML, link, code or table column in it: names and URIs come from others."""
    if isinstance(value, dict):
        return {_inert(key): _inert(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_inert, value))
    return value.translate(_ENTITIES) if isinstance(value, str) else value


def as_of(experiment: Experiment, now: float) -> str:
    """`as of 2026-11-30 04:10 UTC, 2 of 4 cells` where cells of the plan are missing; empty if none is."""
    planned = len(experiment.plan["cells"])
    if len(experiment.cells) >= planned:
        return ""
    when = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"as of {when}, {len(experiment.cells)} of {planned} cell{'s' if planned > 1 else ''}"


def panels(experiment: Experiment, scores: Scores, document: dict[str, Any]) -> dict[str, Any]:
    """The figures of each section of the page."""
    arms = experiment.arms
    return {
        "forest": _forests(document, arms),
        "two_afc": _two_afc(document, arms),
        "training": _training(experiment, arms),
        "through_time": _through_time(document, arms),
        "differences": _differences_through_time(document, arms),
        "at_points": {one["point"]: _differences_through_time(document | one, arms, one["point"]) for one in document["at_points"]},
        "prior": _prior(document, arms),
        "axes": axes_panels(document, arms),
    }


def render(template: str, document: dict[str, Any], drawn: dict[str, Any], examples: dict[str, Any]) -> str:
    """A template of this package with the figures of `document`."""
    return (
        _environment(template.endswith(".html"))
        .get_template(template)
        .render(
            r=document,
            panels=drawn,
            examples=examples,
            baseline=BASELINE,
            recalls=per_item.RECALLS,
            stages=_SHORT_STAGES,
            **views(document),
        )
    )


@functools.cache
def _environment(html: bool) -> jinja2.Environment:
    """Made once: it keeps the templates that it has compiled."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer.report", "."),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        points=lambda value: "–" if value is None else points(value),
        percent=lambda value: "–" if value is None else f"{100 * value:.1f} %",
        span=span,
        p=p_value,
        p_is=lambda value: f"p {p_value(value)}" if value < 0.001 else f"p = {p_value(value)}",
        count=lambda value: "–" if value is None else f"{value:,.0f}".replace(",", "\u202f"),
        duration=duration,
        hours=lambda value: "–" if value is None else f"{value:.3g} h" if value >= 1 else duration(3600 * value),
        short=lambda value: str(value or "–")[:12],
        figure=lambda value: "–" if value is None else f"{value:.3g}",
        metric=metric_name,
        probe=lambda task: _PROBES.get(task, task),
        cka=lambda value: "–" if value is None else f"{value:.3f}".replace("-", "−"),
        recall=lambda name: name.replace("_retrieval_recall@", " R@"),
        seeds=seeds,
        beside=lambda found: "; ".join(f"{name} {100 * value:.1f} %" for name, value in found.items()) or "–",
        svg=lambda panel: Markup(panel.svg),
    )
    return environment


def as_csv(document: dict[str, Any]) -> str:
    """Every metric of every evaluation as CSV, one row each."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "step": "final" if row["step"] is None else row["step"]} for row in metrics(document))
    return stream.getvalue()


def metric_name(name: str) -> str:
    """A metric's readable name: `image R@5`, `text any-twin R@1`."""
    return per_item.METRIC_NAMES.get(name) or name.replace("_retrieval_recall", " R").replace(" R_any_twin@", " any-twin R@")


def seeds(numbers: Sequence[int]) -> str:
    """Seeds as they are listed everywhere: `seed 0`, `seeds 0, 1, 2`."""
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def span(row: dict[str, Any] | None) -> str:
    """An interval in points, `−0.8 to +3.4`, or why there is none."""
    if row is None or row["low"] is None:
        why = (row or {}).get("no_interval")
        return f"none: {why}" if why else "–"
    return f"{points(row['low'])} to {points(row['high'])}"


def p_value(value: float | None) -> str:
    """A p-value with no more digits than are meaningful."""
    if value is None:
        return "–"
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0") if value < 0.1 else f"{value:.2f}".removeprefix("0")


def duration(seconds: float | None) -> str:
    """Seconds in readable form: 48 s, 12 min, 3.4 h."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _forests(document: dict[str, Any], arms: Sequence[str]) -> list[figures.Panel]:
    """For the page's subject one panel against the baseline (endpoints, then sets), and one with the endpoints against each other arm."""
    subject = document["answer"]["subject"]
    first = [row for row in document["contrasts"] if (row["arm"], row["against"]) == (subject, BASELINE)]
    alone = {s["dataset"] for e in document["endpoints"] if len(e["sets"]) == 1 for s in e["sets"]}
    sets = [row for row in document["sets"] if (row["arm"], row["against"]) == (subject, BASELINE) and row["dataset"] not in alone]
    drawn = []
    rows = first + sets
    if first and len(rows) > 1:  # a single difference needs no chart: the sentence states it
        labels = [row["label"] for row in rows]
        drawn.append(
            figures.forest(f"{subject} minus {BASELINE}", rows, labels, [figures.arm_colour(arms, subject)] * len(rows), len(first))
        )
    controls = [row for row in document["contrasts"] if row["arm"] == subject and row["against"] != BASELINE]
    if len(controls) > 1:
        labels = [f"minus {row['against']}: {row['short']}" for row in controls]
        colours = [figures.arm_colour(arms, row["against"]) for row in controls]
        drawn.append(figures.forest(f"{subject} minus each other arm", controls, labels, colours, 0))
    return drawn


def _two_afc(document: dict[str, Any], arms: Sequence[str]) -> list[figures.Panel]:
    """2AFC from the untrained tower to the final model, on the test split."""
    rows = document["two_afc"]
    if not rows:
        return []
    dataset = rows[0]["dataset"]
    rows = [row for row in rows if row["dataset"] == dataset]
    stages = [stage for stage in course.STAGES if any(row["stage"] == stage for row in rows)]
    untrained = {row["seed"]: row["accuracy"] for row in rows if row["stage"] == "untrained"}
    series: dict[str, list[list[float | None]]] = {}
    for arm in arms:
        for seed in sorted({row["seed"] for row in rows if row["arm"] == arm}):
            found = {row["stage"]: row["accuracy"] for row in rows if (row["arm"], row["seed"]) == (arm, seed)}
            found.setdefault("untrained", untrained.get(seed))
            series.setdefault(arm, []).append([found.get(stage) for stage in stages])
    levels = {name: rows[0][key] for name, key in (("chance", "chance"), ("pixel MSE", "pixel_mse")) if rows[0][key] is not None}
    if len(stages) < 2:  # the table already shows it
        return []
    return [figures.slopes(f"2AFC on {dataset}", [_SHORT_STAGES[stage] for stage in stages], series, arms, levels)]


def _training(experiment: Experiment, arms: Sequence[str]) -> list[figures.Panel]:
    """Loss of each stage; of stage 1 also 2AFC on the validation split."""
    wanted = (
        ("perceptual", "loss", "Stage 1: loss", "loss"),
        ("perceptual", "val_2afc", "Stage 1: 2AFC on the validation split", "accuracy"),
        ("contrastive", "loss", "Stage 2: contrastive loss", "loss"),
        ("posthoc", "loss", "Post-hoc: loss", "loss"),
    )
    drawn = []
    for stage, figure, title, label in wanted:
        series = course.loss_curves(experiment, stage, figure)
        if figures.has_course(series):
            drawn.append(figures.curves(title, "epoch", label, series, arms))
    return drawn


def _through_time(document: dict[str, Any], arms: Sequence[str]) -> list[figures.Panel]:
    """Each endpoint at the evaluated checkpoints of stage 2."""
    drawn = []
    for endpoint in document["endpoints"]:
        series: dict[str, list[figures.Curve]] = {}
        rows = [row for row in document["through_time"] if row["endpoint"] == endpoint["name"]]
        for arm, seed in dict.fromkeys((row["arm"], row["seed"]) for row in rows):
            own = [row for row in rows if (row["arm"], row["seed"]) == (arm, seed)]
            series.setdefault(arm, []).append(([row["samples"] for row in own], [100 * row["value"] for row in own]))
        if figures.has_course(series):
            levels = {} if endpoint["chance"] is None else {"chance": 100 * endpoint["chance"]}
            laws = [row for row in document["trajectory"]["power_laws"] if row["endpoint"] == endpoint["name"]]
            fits = {row["arm"]: (100 * row["scale"], row["exponent"]) for row in laws}
            drawn.append(figures.curves(endpoint["label"], _SEEN, "%", series, arms, levels, doubling=True, fits=fits))
    return drawn


def _differences_through_time(document: dict[str, Any], arms: Sequence[str], point: str = "") -> list[figures.Panel]:
    """Each endpoint: every arm minus the baseline at each moment that both have; if `point` is given, the title names it."""
    drawn = []
    rows = [row for row in document["trajectory"]["differences"] if row["against"] == BASELINE]
    for endpoint in document["endpoints"]:
        own = [row for row in rows if row["endpoint"] == endpoint["name"]]
        series = {arm: [row for row in own if row["arm"] == arm] for arm in dict.fromkeys(row["arm"] for row in own)}
        if series:
            where = f" at {point}" if point else ""
            drawn.append(figures.differences(f"{endpoint['label']}: minus {BASELINE}{where}", _SEEN, series, arms))
    return drawn


def _prior(document: dict[str, Any], arms: Sequence[str]) -> list[figures.Panel]:
    """How similar the vision tower stays to its start during stage 2."""
    series: dict[str, list[figures.Curve]] = {}
    rows = [row for row in document["trajectory"]["survival"] if row["start_cosine"] is not None]
    for arm, seed in dict.fromkeys((row["arm"], row["seed"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["seed"]) == (arm, seed)]
        series.setdefault(arm, []).append(([row["samples"] for row in own], [row["start_cosine"] for row in own]))
    if not figures.has_course(series):
        return []
    return [figures.curves("Similarity of the vision tower to its start", _SEEN, "cosine of weights", series, arms, doubling=True)]
