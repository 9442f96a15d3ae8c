"""The parts of a plan for an experiment that varies its recipe: axes, points, and declarations made before there were results.

A declaration is also stored as a separate document, declared/<number>-<hash>.json, so that a rewritten plan keeps it.
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
"""Paths below an experiment's folder that are results."""


def varied(experiment: Experiment, earlier: Plan) -> dict[str, Any]:
    """Axes and points of this request and of earlier ones, and the declarations; empty for an experiment without any.

    Raises:
        InputError: an axis varies different fields from the earlier axis of this name.
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
    """The declarations of earlier requests, and those that this one adds."""
    before = list(earlier.get("declared", [])) or _kept(experiment)
    if not experiment.declared or not added_to(before, experiment.declared):
        return before
    more: dict[str, Any] = {"request": experiment.request, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    more |= {"arms": list(experiment.asked_arms), "seeds": list(experiment.asked_seeds), "after_results": _has_results(experiment)}
    return [*before, sealed(experiment.declared, **more)]


def _kept(experiment: Experiment) -> list[dict[str, Any]]:
    """The declarations from their own documents, if plan.json is missing or damaged. Damaged documents are ignored."""
    found = []
    for uri in sorted(info.uri for info in open_store(experiment.uri).list(layout.declared(experiment.uri))):
        with contextlib.suppress(InputError, Corrupt):
            document = read_document(uri, "a declaration", FORMAT_VERSION, checked_from=1) or {}
            found += [document["declared"]] if not damage_of(document.get("declared")) else []
    return found


def find_lost(experiment: Experiment, plan: Plan) -> dict[str, dict[str, Any]]:
    """The documents of declarations that are missing or damaged in the store, by URI; plan.json contains each of them too."""
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
    """Whether the store contains figures of any of its models."""
    names = (info.uri.removeprefix(f"{experiment.uri}/") for info in open_store(experiment.uri).list(experiment.uri))
    return any(_FIGURES.fullmatch(name) for name in names)
