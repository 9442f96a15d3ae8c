"""What an experiment declared before its results: endpoints, axes and tests, as plan.json keeps them in its list `declared`.

An entry is added only if a request declares something new, and records whether there were results by then. So earlier
declarations are never changed, and later ones can be told apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config import canonical_hash

ENDPOINTS = ("mean_zero_shot", "main_zero_shot", "mean_retrieval", "2afc")
"""The endpoints of docs/EVALUATION.md; one set alone is `<data set>_<task>`."""
TASKS = ("zeroshot_classification", "zeroshot_retrieval", "2afc")
SIDES = ("two", "greater", "less")
SCALES = ("log", "linear")
_PARTS = ("endpoints", "axes", "tests")


def listed(axes: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    """Axes as they are stored: as a list, since JSON is written with its keys sorted, and an axis is known by its first field."""
    return [
        {"axis": axis, "fields": [{"field": field, "values": list(values)} for field, values in fields.items()]}
        for axis, fields in axes.items()
    ]


def is_listed(value: Any) -> bool:
    """Whether this has the form that `listed` returns."""
    return isinstance(value, list) and all(
        isinstance(axis, dict)
        and isinstance(axis.get("axis"), str)
        and isinstance(fields := axis.get("fields"), list)
        and all(isinstance(one, dict) and isinstance(one.get("field"), str) and isinstance(one.get("values"), list) for one in fields)
        for axis in value
    )


def mapped(axes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Axes by name, from what `listed` returned: axis -> field -> values, in order."""
    return {axis["axis"]: {one["field"]: list(one["values"]) for one in axis["fields"]} for axis in axes}


def is_endpoint(name: str) -> bool:
    """Whether this can be the name of an endpoint."""
    return name in ENDPOINTS or any(name.endswith(f"_{task}") and len(name) > len(task) + 1 for task in TASKS)


def added_to(earlier: Sequence[Mapping[str, Any]], new: Mapping[str, Any]) -> bool:
    """Whether a declaration says something that none of the earlier ones does."""
    endpoints = bool(new["endpoints"]) and all(entry["endpoints"] != new["endpoints"] for entry in earlier)
    axes = (all(axis not in entry["axes"] for entry in earlier) for axis in new["axes"])
    tests = (all(entry["tests"].get(name) != test for entry in earlier) for name, test in new["tests"].items())
    return endpoints or any(axes) or any(tests)


def sealed(declaration: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A declaration as plan.json stores it: with a hash over endpoints, axes and tests, and further facts."""
    parts = {part: declaration[part] for part in _PARTS}
    return {**parts, **more, "sha256": canonical_hash(parts)}


def damage_of(entry: Any) -> str:
    """What is wrong with an entry of `declared`; empty: nothing."""
    kinds = {"endpoints": list, "axes": list, "tests": dict, "seeds": list, "arms": list, "after_results": bool, "sha256": str, "time": str}
    if not isinstance(entry, dict):
        return "not an object"
    wrong = next((key for key, kind in kinds.items() if type(entry.get(key)) is not kind), "")
    if wrong:
        return f"no valid {wrong}"
    return "" if canonical_hash({part: entry[part] for part in _PARTS}) == entry["sha256"] else "its hash differs"


def declared_tests(declared: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every declared test in order, each with its name, whether results came before it, and whether it changes an earlier one."""
    found: list[dict[str, Any]] = []
    for entry in declared:
        for name, test in entry["tests"].items():
            if not any(known["name"] == name and known["test"] == test for known in found):
                changed = any(known["name"] == name for known in found)
                found.append({"name": name, "test": test, "after_results": entry["after_results"], "changed": changed})
    return found


def declared_endpoints(declared: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The endpoints of the first declaration that names any; none: those of docs/EVALUATION.md."""
    return next((tuple(entry["endpoints"]) for entry in declared if entry["endpoints"]), ())
