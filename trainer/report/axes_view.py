"""The page's section on the axes of an experiment: its panels and tables, built from results.json alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.report import figures
from trainer.report.answer import points

_STAGES = {"perceptual": "stage 1", "contrastive": "stage 2", "posthoc": "post-hoc"}
LOG_SPAN = 5.0
"""An axis whose largest value is at least this many times its smallest is drawn on a logarithmic scale."""


def axes_panels(document: Mapping[str, Any], arms: Sequence[str]) -> list[figures.Panel]:
    """For every axis with at least two points: each endpoint against it, and the arms' differences from the baseline."""
    drawn = []
    for curve in document["axes"]:
        if len(curve["points"]) < 2:
            continue  # a single point makes no chart
        x = [point["value"] for point in curve["points"]]
        log = curve["numeric"] and min(x) > 0 and max(x) >= LOG_SPAN * min(x)
        for endpoint in document["endpoints"]:
            scores = [row for row in curve["scores"] if row["endpoint"] == endpoint["name"]]
            differences = [row for row in curve["differences"] if row["endpoint"] == endpoint["name"]]
            shown = {"x": x, "x_label": _label(curve), "numeric": curve["numeric"], "log": log, "arms": arms}
            levels = [(row["arm"], row["value"], 100 * row["mean"], None, [100 * value for value in row["scores"]]) for row in scores]
            if len({row["value"] for row in scores}) > 1:
                drawn.append(figures.along(endpoint["label"], "%", levels, zero=False, **shown))
            spans = [
                (
                    row["arm"],
                    row["value"],
                    100 * row["mean"],
                    None if row["low"] is None else (100 * row["low"], 100 * row["high"]),
                    [100 * one for one in row["differences"]],
                )
                for row in differences
            ]
            if len({row["value"] for row in differences}) > 1:
                minus = f"minus {differences[0]['against']}, points"
                drawn.append(figures.along(endpoint["label"], minus, spans, zero=True, **shown))
    return drawn


def axes_tables(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For every axis, a row for each point, arm and endpoint: steps, score, difference with its interval."""
    tables = []
    labels = {endpoint["name"]: endpoint["label"] for endpoint in document["endpoints"]}
    for curve in document["axes"]:
        rows = []
        for point in curve["points"]:
            for score in (row for row in curve["scores"] if row["point"] == point["point"]):
                arm = score["arm"]
                difference = next(
                    (row for row in curve["differences"] if _key(row) == (point["point"], arm, score["endpoint"])),
                    None,
                )
                taken = [f"{name} {steps[arm]:,}" for stage, name in _STAGES.items() if arm in (steps := point["steps"].get(stage, {}))]
                rows.append(
                    {
                        "value": point["value"],
                        "arm": arm,
                        "shared": arm in point["shared"],
                        "steps": ", ".join(taken),
                        "label": labels[score["endpoint"]],
                        "mean": score["mean"],
                        "seeds": score["seeds"],
                        "difference": difference,
                    }
                )
        tables.append({"title": _title(curve), "label": _label(curve), "rows": rows})
    return tables


def steps_lines(document: Mapping[str, Any]) -> list[str]:
    """For every axis, the stages whose number of steps it changes: `triplets, perceptual, stage 1: 2 steps at 0.25, 4 at 0.5`."""
    lines = []
    for curve in document["axes"]:
        for stage, name in _STAGES.items():
            arms = dict.fromkeys(arm for point in curve["points"] for arm in point["steps"].get(stage, {}))
            for arm in arms:
                taken = {point["value"]: point["steps"].get(stage, {}).get(arm) for point in curve["points"]}
                known = {value: steps for value, steps in taken.items() if steps is not None}
                if len(set(known.values())) > 1:
                    said = ", ".join(f"{steps:,} at {value}" for value, steps in known.items())
                    lines.append(f"{_title(curve)}; steps of {arm}, {name}: {said}")
    return lines


def tests_table(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every declared test on each of its endpoints, with values in percentage points."""
    rows = []
    for row in document["tests"]:
        test = row["test"]
        per = "per tenfold" if test["scale"] == "log" else "per unit"
        beside = "".join(f", {axis} at {value}" for axis, value in test["at"].items())
        sides = {"two": "two-sided", "greater": "one-sided: rising", "less": "one-sided: falling"}[test["sides"]]
        when = "after results" if row["after_results"] else "beforehand"
        rows.append(
            {
                **row,
                "what": f"{test['arm']} − {test['against']} over {test['axis']} at {', '.join(f'{x:g}' for x in test['x'])}{beside}",
                "sides": sides,
                "per": per,
                "when": f"{when}{', changed' if row['changed'] else ''}",
                "slope": "–" if row["mean"] is None else f"{points(row['mean'])} {per}",
            }
        )
    return rows


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["point"], row["arm"], row["endpoint"]


def _label(curve: Mapping[str, Any]) -> str:
    return str(curve["fields"][0])


def _title(curve: Mapping[str, Any]) -> str:
    beside = ", ".join(f"{axis} {value}" for axis, value in curve["beside"].items())
    moved = f" (together with {', '.join(curve['fields'][1:])})" if len(curve["fields"]) > 1 else ""
    return f"{curve['axis']}: {curve['fields'][0]}{moved}{f', at {beside}' if beside else ''}"
