"""Lanes: the cells of a run that one iteration of the pipeline's loop processes, their order, and how many of them run at once.

A stage that cells of several lanes share, such as a tower or the model that a post-hoc arm starts from, is owned by the first lane
that needs it; the others wait for it. Two lanes therefore never wait for each other, however few of them run at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer.errors import InputError
from trainer.storage import join
from trainer.storage.plans import NAME, read_plan

MOST = 3
"""Lanes of one run: each adds some 85 KB to the Workflow, which Argo keeps in one object of at most 1 MiB (docs/KUBEFLOW.md)."""
STAGES = ("perceptual", "contrastive", "posthoc")


class NoLanesError(InputError):
    """The experiment's plan does not contain the lanes of a request."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One lane.

    Attributes:
        name: `lane-1-of-3`.
        slots: how many of its cells run at once.
        cells: their names, in order.
        owns: folders of the stages that cells of other lanes wait for.
    """

    name: str
    slots: int
    cells: tuple[str, ...]
    owns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """The lanes of one request.

    Attributes:
        lanes: the lanes, in order.
        entries: entries of their cells in plan.json, by name.
    """

    lanes: tuple[Lane, ...]
    entries: dict[str, dict[str, Any]]

    def find(self, name: str) -> Lane:
        """A lane by its name. InputError if there is none."""
        for lane in self.lanes:
            if lane.name == name:
                return lane
        raise InputError(f"there is no lane {name!r}; the lanes are {', '.join(lane.name for lane in self.lanes)}")

    def owner(self, folder: str) -> Lane | None:
        """The lane that owns a stage; None if only cells of one lane need it."""
        return next((lane for lane in self.lanes if folder in lane.owns), None)


def deal(cells: Sequence[str], parallel: int) -> list[Lane]:
    """Deal cells onto lanes, round robin in the order of the plan, and slots evenly onto the lanes.

    Args:
        cells: names, in the order of the plan.
        parallel: how many cells run at once; 0: all.
    """
    total = min(parallel or len(cells), len(cells))
    count = min(total, MOST)
    return [
        Lane(
            name=f"lane-{number + 1}-of-{count}",
            slots=total // count + (number < total % count),
            cells=tuple(cells[number::count]),
        )
        for number in range(count)
    ]


def planned(lanes: Sequence[Lane], entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lanes as written to plan.json, each with the shared stages that it owns.

    Args:
        lanes: the lanes as dealt.
        entries: entries of the cells in plan.json.
    """
    by_name = {entry["cell"]: entry for entry in entries}
    needed: dict[str, list[str]] = {}  # folder -> the lanes that need it, in order
    for lane in lanes:
        for folder in dict.fromkeys(by_name[cell].get(stage, "") for cell in lane.cells for stage in STAGES):
            needed.setdefault(folder, []).append(lane.name)
    owned = {folder: names[0] for folder, names in needed.items() if folder and len(names) > 1}
    found = [replace(lane, owns=tuple(folder for folder, name in owned.items() if name == lane.name)) for lane in lanes]
    values = [{("lane" if key == "name" else key): value for key, value in asdict(lane).items()} for lane in found]
    return [{key: list(value) if isinstance(value, tuple) else value for key, value in one.items()} for one in values]


def read_lanes(experiment_uri: str, request_id: str) -> Lanes:
    """The lanes of a request from its plan.

    Raises:
        NoLanesError: the experiment's plan has none for this request.
        Corrupt: the plan is damaged.
    """
    plan = read_plan(experiment_uri) or {"cells": []}
    entries = {entry["cell"]: dict(entry) for entry in plan["cells"]}
    lanes = tuple(
        Lane(name=one["lane"], slots=one["slots"], cells=tuple(one["cells"]), owns=tuple(one["owns"]))
        for one in plan.get("lanes", {}).get(request_id, ())
    )
    lacking = [cell for lane in lanes for cell in lane.cells if cell not in entries]
    if not lanes or lacking:
        what = f"cell {lacking[0]!r}" if lacking else f"lanes for request {request_id}"
        raise NoLanesError(f"{join(experiment_uri, NAME)} has no {what}: start the run again; its step `plan` writes them")
    return Lanes(lanes=lanes, entries={cell: entries[cell] for lane in lanes for cell in lane.cells})
