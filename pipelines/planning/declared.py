"""A request's declarations made before there are results: endpoints and tests, checked and resolved for plan.json.

    endpoints: [main_zero_shot, 2afc]
    tests:
      dose: {axis: triplets, arm: perceptual, against: random, endpoint: main_zero_shot, scale: log, sides: greater}

Only the axis is required. docs/EVALUATION.md explains what a test computes.
"""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.planning.axes import Axes, name_of, points_of, values_at
from trainer.arms import BASELINE
from trainer.config import require
from trainer.errors import InputError
from trainer.storage.declarations import ENDPOINTS, SCALES, SIDES, is_endpoint, listed
from trainer.storage.layout import check_name

if TYPE_CHECKING:
    from pipelines.planning.request import Request

_KEYS = ("kind", "axis", "at", "arm", "against", "endpoint", "scale", "sides")
KINDS = ("trend",)


def check_declared(request: "Request") -> None:
    """Refuse an impossible endpoint or test with a one-line error."""
    declaration(request)


def declaration(request: "Request") -> dict[str, Any]:
    """Endpoints, axes and tests of a request, with the defaults of tests filled in.

    Raises:
        InputError: an unknown endpoint, or a test that its axis or arms cannot have.
    """
    for name in request.endpoints:
        _check_endpoint("endpoints", name)
    arms = [arm.name for arm in request.all_arms]
    tests = {
        check_name("tests: test", str(name)): _test(f"tests: {name}", test, request.vary, arms) for name, test in request.tests.items()
    }
    return {
        "endpoints": list(request.endpoints),
        "axes": listed(request.vary),
        "tests": tests,
    }


def _test(where: str, test: Any, axes: Axes, arms: list[str]) -> dict[str, Any]:
    require(where, test, "a mapping such as {axis: triplets}", isinstance(test, Mapping))
    for key in test:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, 1, 0.5)
            raise InputError(f"{where}: {key} is not a setting of a test: {f'did you mean {near[0]}?' if near else ', '.join(_KEYS)}")
    subject = "perceptual" if "perceptual" in arms else next((arm for arm in arms if arm != BASELINE), "")
    found = {"kind": "trend", "axis": "", "arm": subject, "against": BASELINE, "endpoint": "", "scale": "log", "sides": "two", "at": {}}
    found |= test
    for key, choices in (("kind", KINDS), ("scale", SCALES), ("sides", SIDES), ("axis", tuple(axes) or ("one that vary names",))):
        require(f"{where}: {key}", found[key], f"one of {', '.join(choices)}", found[key] in choices)
    for key in ("arm", "against"):
        require(f"{where}: {key}", found[key], f"one of the arms {', '.join(arms)}", found[key] in arms)
    require(f"{where}: against", found["against"], "another arm", found["against"] != found["arm"])
    if found["endpoint"]:
        _check_endpoint(f"{where}: endpoint", found["endpoint"])
    return {**found, **_points(where, found, axes)}


def _points(where: str, test: Mapping[str, Any], axes: Axes) -> dict[str, Any]:
    """The points that a test uses, lowest value first, and their values on its axis."""
    axis, others = test["axis"], {name for name in axes if name != test["axis"]}
    require(f"{where}: at", test["at"], "a mapping of axes with one value each", isinstance(test["at"], Mapping))
    if set(test["at"]) != others:
        raise InputError(f"{where}: `at` must give one value of {', '.join(sorted(others)) or 'no other axis'}, got {dict(test['at'])}")
    found = []
    for point in points_of(axes):
        values = values_at(axes, point)
        if all(values[name] == value for name, value in test["at"].items()):
            found.append((values[axis], name_of(axes, point)))
    lowest = "> 0 (or scale: linear)" if test["scale"] == "log" else "any"
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in found)
    if not numbers or (test["scale"] == "log" and any(value <= 0 for value, _ in found)):
        raise InputError(f"{where}: axis {axis!r} must have numbers {lowest}, got {', '.join(str(value) for value, _ in found)}")
    require(f"{where}: axis {axis!r}", len(found), "at least 2 points there", len(found) >= 2)
    found.sort()
    return {"points": [name for _, name in found], "x": [float(value) for value, _ in found]}


def _check_endpoint(where: str, name: Any) -> None:
    if not isinstance(name, str) or not is_endpoint(name):
        near = difflib.get_close_matches(str(name), ENDPOINTS, 1, 0.5)
        rule = f"one of {', '.join(ENDPOINTS)}, or <data set>_<task> of one set"
        raise InputError(f"{where} must be {rule}, got {name!r}{f': did you mean {near[0]}?' if near else ''}")
