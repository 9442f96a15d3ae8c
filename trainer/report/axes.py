"""Along the axes of an experiment: scores and paired differences at every point, and the tests that requests declared.

A point has one cell of each arm and seed; an arm that the point does not change has the same cell at several points, and the page says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.arms import BASELINE
from trainer.report import compare
from trainer.report.answer import points
from trainer.report.experiment import Experiment
from trainer.report.statistics import holm, trend, trend_weights
from trainer.storage.declarations import declared_tests, mapped


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point.

    Attributes:
        name: such as `triplets-0.1`; empty for the recipe's own values.
        at: axis -> its value there.
        cells: arm -> the point that appears in its cell's name.
    """

    name: str
    at: Mapping[str, Any]
    cells: Mapping[str, str]


def points_of(experiment: Experiment) -> list[Point]:
    """Every planned point, in order; empty if nothing varies."""
    return [Point(name=one["point"], at=one["at"], cells=one["cells"]) for one in experiment.plan.get("points", [])]


def reference(experiment: Experiment) -> Point:
    """The point that every section except the one on the axes describes.

    The recipe's own values if the plan has every arm there, otherwise the last point, regardless of what has finished so far.
    """
    points, own = points_of(experiment), Point(name="", at={}, cells={})
    arms = {entry["arm"] for entry in experiment.plan["cells"]}
    there = {entry["arm"] for entry in experiment.plan["cells"] if not entry.get("point")}
    return points[-1] if points and arms != there else own


class Along:
    """The scores of an experiment at each of its points."""

    def __init__(self, experiment: Experiment, endpoints: Sequence[compare.Endpoint]) -> None:
        self.experiment, self.endpoints, self.points = experiment, endpoints, points_of(experiment)
        self.scores = {point.name: compare.Scores(experiment.at(point.cells)) for point in self.points}
        self.axes = mapped(experiment.plan.get("axes", []))

    def curves(self) -> list[dict[str, Any]]:
        """Every axis, at each combination of the other axes' values: its points, lowest first, with scores and paired differences."""
        found = []
        for axis, fields in self.axes.items():
            groups: dict[str, list[Point]] = {}
            for point in self.points:
                if axis in point.at:
                    groups.setdefault(str(sorted((key, str(value)) for key, value in point.at.items() if key != axis)), []).append(point)
            for group in groups.values():
                numeric = all(isinstance(point.at[axis], int | float) and not isinstance(point.at[axis], bool) for point in group)
                points = sorted(group, key=lambda point: point.at[axis]) if numeric else group
                found.append(
                    {
                        "axis": axis,
                        "fields": list(fields),
                        "beside": {key: value for key, value in group[0].at.items() if key != axis},
                        "numeric": numeric,
                        "points": [self._point(axis, point, group) for point in points],
                        "scores": [row for point in points for row in self._scores(axis, point, group)],
                        "differences": [row for point in points for row in self._differences(axis, point)],
                    }
                )
        return found

    def _point(self, axis: str, point: Point, group: Sequence[Point]) -> dict[str, Any]:
        """Its value, the steps of its stages, and which arms have the same cell elsewhere."""
        steps: dict[str, dict[str, int]] = {}
        cells = self.scores[point.name].experiment.cells
        for cell in cells:
            for stage, run in cell.stages.items():
                steps.setdefault(stage, {})[cell.arm] = run.committed.step
        shared = [arm for arm in point.cells if [other.cells.get(arm) for other in group].count(point.cells[arm]) > 1]
        return {"point": point.name, "value": point.at[axis], "steps": steps, "shared": shared}

    def _scores(self, axis: str, point: Point, group: Sequence[Point]) -> list[dict[str, Any]]:
        scores, rows = self.scores[point.name], []
        for endpoint in self.endpoints:
            for arm in scores.experiment.arms:
                known = {seed: scores.value(arm, seed, endpoint) for seed in scores.seeds(arm)}
                values = {seed: value for seed, value in known.items() if value is not None}
                if values:
                    rows.append(
                        {
                            "point": point.name,
                            "value": point.at[axis],
                            "endpoint": endpoint.name,
                            "arm": arm,
                            "seeds": list(values),
                            "scores": list(values.values()),
                            "mean": float(np.mean(list(values.values()))),
                        }
                    )
        return rows

    def _differences(self, axis: str, point: Point) -> list[dict[str, Any]]:
        scores, rows = self.scores[point.name], []
        for arm in scores.experiment.arms:
            for endpoint in self.endpoints if arm != BASELINE else ():
                row = compare.contrast(scores, arm, BASELINE, endpoint)
                if row:
                    rows.append({"point": point.name, "value": point.at[axis], **row})
        return rows

    def tests(self) -> list[dict[str, Any]]:
        """Every declared test on each of its endpoints, with Holm's adjusted p.

        Tests declared before there were results form one family; later ones form another.
        """
        rows = [
            {**declared, **self._test(declared["test"], endpoint)}
            for declared in declared_tests(self.experiment.plan.get("declared", []))
            for endpoint in self.endpoints
            if declared["test"]["endpoint"] in ("", endpoint.name)
        ]
        for late in (False, True):
            family = [row for row in rows if row["after_results"] == late and row["p"] is not None]
            for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
                row["p_holm"], row["family"] = adjusted, len(family)
        for row in rows:
            row["finding"] = finding(row)
        return rows

    def _test(self, test: Mapping[str, Any], endpoint: compare.Endpoint) -> dict[str, Any]:
        """The trend of the paired differences of one test on one endpoint; if there is no result, it says why."""
        by_seed: dict[int, list[float]] = {}
        for name in test["points"]:
            scores = self.scores.get(name)
            for seed in scores.seeds(test["arm"]) if scores else []:
                ours, theirs = (scores.value(arm, seed, endpoint) for arm in (test["arm"], test["against"])) if scores else (None, None)
                if ours is not None and theirs is not None:
                    by_seed.setdefault(seed, []).append(ours - theirs)
        whole = {seed: values for seed, values in sorted(by_seed.items()) if len(values) == len(test["points"])}
        weights = trend_weights(test["x"], test["scale"])
        slopes = [float(np.asarray(values) @ weights) for values in whole.values()]
        result: dict[str, Any] = {
            "endpoint": endpoint.name,
            "label": endpoint.label,
            "short": endpoint.short,
            "seeds": list(whole),
            "slopes": slopes,
        }
        result |= dict.fromkeys(("mean", "low", "high", "p", "p_holm", "family"))
        lacking = [seed for seed in sorted(by_seed) if seed not in whole]
        result["why"] = f"seeds {', '.join(map(str, lacking))} are missing a point" if lacking else ""
        if len(whole) < 2:
            result["why"] = f"{len(whole)} seed{'s' * (len(whole) != 1)} with every point and both arms; a test needs 2"
            return result | {"mean": slopes[0] if slopes else None}
        found = trend(np.asarray(list(whole.values())), weights, test["sides"], endpoint.resolution)
        return result | {"mean": found.mean, "low": found.low, "high": found.high, "p": found.p}


def finding(row: Mapping[str, Any]) -> str:
    """`rising`, `falling` or `not shown` after Holm; `no test` where there are too few seeds."""
    if row["p_holm"] is None:
        return "no test"
    if row["p_holm"] > 0.05:
        return "not shown"
    return "rising" if row["mean"] > 0 else "falling"


def said(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The declared tests, one line each: what each one tested, and what it found."""
    lines = []
    for row in rows:
        test = row["test"]
        over = f"{test['axis']}, per tenfold" if test["scale"] == "log" else f"{test['axis']}, per unit"
        what = f"{row['name']}: trend of {test['arm']} minus {test['against']} over {over}, on {row['short']}"
        if row["after_results"]:
            what += " (declared after results)"
        if row["p_holm"] is None:
            lines.append(f"{what}: {row['why']}")
            continue
        figure = f"{points(row['mean'])} points ({points(row['low'])} to {points(row['high'])}), p (Holm) {row['p_holm']:.2g}"
        lines.append(f"{what}: {row['finding']}, {figure}")
    return lines


def declared_of(experiment: Experiment) -> list[dict[str, Any]]:
    """What was declared, in order, as the page shows it."""
    return [dict(entry) for entry in experiment.plan.get("declared", [])]
