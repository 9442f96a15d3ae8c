"""The axes along which a request varies its recipe, and the resulting points.

    vary:
      triplets: {perceptual.triplet_fraction: [0.01, 0.1, 1]}
      model:                                                      # fields that change together
        model.open_clip_name: [ViT-B-32, ViT-B-16]
        contrastive.optimizer.learning_rate: [5e-4, 4e-4]

A point has one value of every axis; several axes give all combinations. It is named after the axes and the values of their
first fields: `triplets-0.1-model-vit-b-32`.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config import Recipe, require
from trainer.errors import InputError

Axes = Mapping[str, Mapping[str, list[Any]]]
"""Axis -> dotted field of the recipe -> its values, one per place on the axis."""
MOST_POINTS = 256
MOST_LETTERS = 40
"""Longest name of a point, which is part of folders, labels and names of jobs."""
_AXIS = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_REFUSED = {
    "staging": "decides what the data sets contain, which all cells share: its points could not be compared; "
    "give each value its own experiment",
    "perceptual.min_votes": "decides which triplets are staged, which all cells share: its points could not be compared; "
    "give each value its own experiment",
    "evaluation": "decides how models are measured: its points could not be compared; give each value its own experiment",
    "name": "is a label and changes nothing",
}
"""Fields, and groups of fields, that no axis may vary, and why."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of every axis, or of some of them.

    Attributes:
        places: axis -> place on it, from 0.
    """

    places: Mapping[str, int]

    def without(self, axis: str) -> "Point":
        """The point with the recipe's own value on this axis."""
        return Point(places={name: place for name, place in self.places.items() if name != axis})


def check_axes(axes: Any) -> None:
    """Refuse what is not axes, in one line.

    Raises:
        InputError: wrong structure, a field that the recipe does not have or that cannot vary, or values that are all the same.
    """
    require("vary", axes, "a mapping of axes", isinstance(axes, Mapping))
    owners: dict[str, str] = {}
    for axis, fields in axes.items():
        where = f"vary: axis {axis!r}"
        if not isinstance(axis, str) or not _AXIS.fullmatch(axis) or len(axis) > MOST_LETTERS // 2:
            raise InputError(
                f"{where} must have a name of at most {MOST_LETTERS // 2} characters from a-z, 0-9 and '-', starting with a letter"
            )
        require(where, fields, "a mapping of a recipe's fields, each with its values", isinstance(fields, Mapping) and bool(fields))
        for field, values in fields.items():
            _check_field(where, str(field))
            if str(field) in owners:
                raise InputError(f"{where}: {field} is already varied by axis {owners[str(field)]!r}")
            owners[str(field)] = axis
            _check_values(f"{where}: {field}", values)
        lengths = {str(field): len(values) for field, values in fields.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{field} has {number}" for field, number in lengths.items())
            raise InputError(f"{where}: fields that vary together need the same number of values each: {said}")
        _check_words(where, fields)
    if axes:
        _check_points(axes)


def points_of(axes: Axes) -> list[Point]:
    """Every combination of the axes' values, the last axis varying fastest; none without axes."""
    if not axes:
        return []
    places = [range(len(next(iter(fields.values())))) for fields in axes.values()]
    return [Point(places=dict(zip(axes, combination, strict=True))) for combination in itertools.product(*places)]


def changes(axes: Axes, point: Point) -> dict[str, Any]:
    """The recipe fields that a point changes: dotted field -> value."""
    return {field: values[place] for axis, place in point.places.items() for field, values in axes[axis].items()}


def name_of(axes: Axes, point: Point) -> str:
    """A point's name, such as `triplets-0.1`; empty if it is on no axis."""
    return "-".join(f"{axis}-{_words(axes[axis])[place]}" for axis, place in point.places.items())


def values_at(axes: Axes, point: Point) -> dict[str, Any]:
    """The value that identifies each place on an axis: that of its first field."""
    return {axis: next(iter(axes[axis].values()))[place] for axis, place in point.places.items()}


def _check_field(where: str, field: str) -> None:
    from trainer.configs import check_keys, settings_of  # here: slow to import

    for refused, why in _REFUSED.items():
        if field == refused or field.startswith(f"{refused}."):
            raise InputError(f"{where} cannot vary {field}, which {why}")
    check_keys(Recipe, {field: None}, where)
    inside = settings_of(Recipe, field)
    if inside:
        raise InputError(f"{where}: {field} is a group of settings: name one of them, such as {field}.{inside[0]}")


def _check_values(where: str, values: Any) -> None:
    plain = isinstance(values, list | tuple) and all(isinstance(value, str | int | float | bool) for value in values)
    require(where, values, "a list of plain values", plain and len(values) > 0)


def _words(fields: Mapping[str, list[Any]]) -> list[str]:
    """The values of an axis as used in names: those of its first field."""
    return [_word(value) for value in next(iter(fields.values()))]


def _word(value: Any) -> str:
    text = str(value).lower() if not isinstance(value, float) else repr(value).removesuffix(".0").replace("+", "")
    return "-".join(part for part in re.sub(r"[^a-z0-9.]", " ", text).split() if part) or "none"


def _check_words(where: str, fields: Mapping[str, list[Any]]) -> None:
    words, first = _words(fields), next(iter(fields))
    for word in words:
        if words.count(word) > 1:
            raise InputError(f"{where}: values of {first}, its first field, must differ, got {word!r} {words.count(word)} times")


def _check_points(axes: Axes) -> None:
    points = points_of(axes)
    if len(points) > MOST_POINTS:
        raise InputError(f"vary: its axes give {len(points):,} points, but at most {MOST_POINTS} are allowed")
    names = [name_of(axes, point) for point in points]
    for name in names:
        if len(name) > MOST_LETTERS or not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name):
            raise InputError(
                f"vary: point {name!r} must have a name of at most {MOST_LETTERS} letters, digits, '.' and '-': "
                "give the axis a shorter name, or a first field with shorter values"
            )
        if names.count(name) > 1:
            raise InputError(f"vary: two points would be called {name!r}: give the axes other names")
