"""What a plan says of an experiment that varies its recipe: axes, points, and what was declared before there were results.

A declaration also lies in a document of its own, declared/<number>-<hash>.json, so that a plan that is written again keeps it.
"""

import contextlib
import re
import time
from typing import Any

from pipelines.planning.plan import Experiment
from trainer.errors import Corrupt, InputError
from trainer.storage import layout, open_store
from trainer.storage.declarations import added_to, damage_of, listed, mapped, sealed
from trainer.storage.documents import read_document
from trainer.storage.plans import Plan

FORMAT_VERSION = 1
_FIGURES = re.compile(r"[^/]+/evaluation/[^/]+/[^/]+\.json")
"""Of what lies below an experiment's folder, a result."""


def varied(experiment: Experiment, earlier: Plan) -> dict[str, Any]:
    """Axes and points of this request beside those of earlier ones, and what was declared; of an experiment that has none, nothing.

    Raises:
        InputError: an axis varies other fields than the axis of this name did.
    """
    axes = mapped(earlier.get("axes", []))
    for axis, fields in experiment.axes.items():
        before = axes.get(axis, fields)
        if list(before) != list(fields):
            raise InputError(
                f"vary: axis {axis!r} of experiment {experiment.name} varied {', '.join(before)} before, but now varies "
                f"{', '.join(fields)}: give the axis another name"
            )
        axes[axis] = {
            field: [*before[field], *(value for value in values if value not in before[field])] for field, values in fields.items()
        }
    points = {one["point"]: one for one in earlier.get("points", [])}
    for one in experiment.points:
        before = points.get(one["point"], {"cells": {}})
        points[one["point"]] = {**one, "cells": {**before["cells"], **one["cells"]}}
    found: dict[str, Any] = {"axes": listed(axes), "points": list(points.values()), "declared": _declared(experiment, earlier)}
    return {key: value for key, value in found.items() if value}


def _declared(experiment: Experiment, earlier: Plan) -> list[dict[str, Any]]:
    """What earlier requests declared, and what this one adds to it."""
    before = list(earlier.get("declared", [])) or _kept(experiment)
    if not experiment.declared or not added_to(before, experiment.declared):
        return before
    more: dict[str, Any] = {"request": experiment.request, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    more |= {"arms": list(experiment.asked_arms), "seeds": list(experiment.asked_seeds), "after_results": _has_results(experiment)}
    return [*before, sealed(experiment.declared, **more)]


def _kept(experiment: Experiment) -> list[dict[str, Any]]:
    """What was declared, from its own documents: plan.json is gone, or was damaged. One that is damaged too declares nothing."""
    found = []
    for uri in sorted(info.uri for info in open_store(experiment.uri).list(layout.declared(experiment.uri))):
        with contextlib.suppress(InputError, Corrupt):
            document = read_document(uri, "a declaration", FORMAT_VERSION, checked_from=1) or {}
            found += [document["declared"]] if not damage_of(document.get("declared")) else []
    return found


def find_lost(experiment: Experiment, plan: Plan) -> dict[str, dict[str, Any]]:
    """The documents of declarations that the store lacks, or has damaged, by their URIs: each is there and in plan.json."""
    lost = {}
    for number, entry in enumerate(plan.get("declared", [])):
        uri, document = layout.declared(experiment.uri, number, entry["sha256"]), {"format_version": FORMAT_VERSION, "declared": entry}
        found = None
        with contextlib.suppress(InputError, Corrupt):
            found = read_document(uri, "a declaration", FORMAT_VERSION, checked_from=1)
        if found is None or found["declared"] != entry:
            lost[uri] = document
    return lost


def _has_results(experiment: Experiment) -> bool:
    """Whether figures of any of its models lie in the store."""
    names = (info.uri.removeprefix(f"{experiment.uri}/") for info in open_store(experiment.uri).list(experiment.uri))
    return any(_FIGURES.fullmatch(name) for name in names)
