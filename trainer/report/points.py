"""The course of stage 2 and the representation at those points of an experiment that the rest of the page does not cover.

At a point every arm has one cell a seed, so everything is paired by arm, point and seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.report import course
from trainer.report.axes import Point, points_of
from trainer.report.compare import Endpoint, Scores, find_probes, find_sets, per_set
from trainer.report.experiment import Experiment
from trainer.report.representation import representation
from trainer.report.trajectory import trajectory

Rows = list[dict[str, Any]]


def at_points(whole: Experiment, shown: Point, endpoints: Sequence[Endpoint]) -> Rows:
    """A row for each other point at which stage 2 was followed, or the representation measured.

    Args:
        whole: the experiment with the cells of every point.
        shown: the point that the rest of the page is about.
        endpoints: declared.

    Returns:
        [{point, at, through_time, trajectory, representation}]; the last three as for the page's own point. Weights that an arm
        lacks are named where its cell is first shown.
    """
    rows: Rows = []
    named = {(arm, cell) for arm, cell in _cells(whole, shown).items()}
    for point in points_of(whole):
        own = _cells(whole, point)
        if own == _cells(whole, shown):
            continue
        scores = Scores(whole.at(point.cells))
        followed = course.through_time(scores, endpoints)
        probed = {probe.dataset for probe in find_probes(scores)}
        beside = [one for one in find_sets(scores) if one.dataset in probed and one.task == "zeroshot_classification"]
        course_of: dict[str, Rows] = trajectory(scores, endpoints, followed)
        course_of["lacking"] = [row for row in course_of["lacking"] if (row["arm"], own.get(row["arm"], "")) not in named]
        named |= set(own.items())
        represented = representation(scores, per_set(scores, beside))
        found = {
            "point": point.name,
            "at": dict(point.at),
            "through_time": followed,
            "trajectory": course_of,
            "representation": represented,
        }
        if followed or any(course_of.values()) or any(represented.values()):
            rows.append(found)
    return rows


def _cells(whole: Experiment, point: Point) -> Mapping[str, str]:
    """Arm -> the point in the name of its cell there."""
    return {cell.arm: point.cells.get(cell.declared, "") for cell in whole.cells}
