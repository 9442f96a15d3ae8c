"""Turn arms x seeds x points into cells; points that do not change an arm share one cell.

A cell's name includes only the axes on which a value other than the recipe's own changes a hash of its stages. `random` therefore has
one cell along an axis of stage 1, and a point with the recipe's own values is the cell that the experiment has without axes.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from pipelines.planning import plan
from pipelines.planning.arms import ARMS, Arm
from pipelines.planning.axes import Point, changes, name_of, points_of, values_at
from pipelines.planning.request import Request
from trainer.config import DataConfig, Recipe, recipe_hash
from trainer.errors import InputError
from trainer.storage.recipes import read_recipe


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A requested cell.

    Attributes:
        arm: arm of the cell.
        seed: seed of the cell.
        point: the point in its name; empty if no axis changes the arm.
        base_point: for a fine-tuned arm, the point of the cell whose model it starts from.
        recipe: the recipe with the changes of the point.
    """

    arm: Arm
    seed: int
    point: str
    base_point: str
    recipe: Recipe


class Points:
    """The points of a request, and each arm's cells at them."""

    def __init__(self, request: Request) -> None:
        """The points of a resolved request."""
        self._request, self.axes = request, request.vary
        self.points = points_of(self.axes) or [Point(places={})]
        self._recipes: dict[str, Recipe] = {}

    def recipe(self, point: Point) -> Recipe:
        """The recipe at a point.

        Raises:
            InputError: a value breaks a rule; the message names the point.
        """
        name = name_of(self.axes, point)
        if name not in self._recipes:
            try:
                found = read_recipe(self._request.recipe, {**self._request.set, **changes(self.axes, point)})
            except InputError as error:
                if not name:
                    raise
                raise InputError(f"vary: at point {name}: {error}") from error
            self._recipes[name] = found
        return self._recipes[name]

    def cells(self) -> list[Asked]:
        """Every cell once: seed by seed, point by point, arm by arm."""
        found: dict[tuple[str, str, int], Asked] = {}
        for seed in self._request.all_seeds:
            for point in self.points:
                for arm in self._request.all_arms:
                    own = self._of_arm(arm, point)
                    recipe = self.recipe(own)
                    base = name_of(self.axes, self._of_arm(ARMS[recipe.posthoc.base], own)) if arm.finetuned else ""
                    cell = Asked(arm=arm, seed=seed, point=name_of(self.axes, own), base_point=base, recipe=recipe)
                    found.setdefault((arm.name, cell.point, seed), cell)
        return list(found.values())

    def recipes(self) -> dict[Recipe, set[str]]:
        """Every recipe of the cells, with the stages that are trained with it."""
        found: dict[Recipe, set[str]] = {}
        for cell in self.cells():
            stages = {"perceptual" if cell.arm.tower else "", "contrastive", "posthoc" if cell.arm.finetuned else ""}
            if cell.arm.finetuned and ARMS[cell.recipe.posthoc.base].tower:
                stages.add("perceptual")
            found.setdefault(cell.recipe, set()).update(stages - {""})
        return found

    def idle_axes(self) -> list[str]:
        """The axes that change no arm."""
        moved = {axis for point in self.points for arm in self._request.all_arms for axis in self._of_arm(arm, point).places}
        return [axis for axis, fields in self.axes.items() if axis not in moved and len(next(iter(fields.values()))) > 1]

    def listed(self) -> list[dict[str, Any]]:
        """Every point in the form of plan.json: its name, its value on each axis, and the point in the name of each arm's cell."""
        arms = self._request.all_arms
        return [
            {
                "point": name_of(self.axes, point),
                "at": values_at(self.axes, point),
                "cells": {arm.name: name_of(self.axes, self._of_arm(arm, point)) for arm in arms},
            }
            for point in self.points
            if point.places
        ]

    def _of_arm(self, arm: Arm, point: Point) -> Point:
        """The point without the axes that do not change the arm."""
        for axis in point.places:
            less = point.without(axis)
            if self._hashes(arm, less) == self._hashes(arm, point):
                point = less
        return point

    def _hashes(self, arm: Arm, point: Point) -> tuple[str, ...]:
        """The recipe hashes of an arm's stages at the point, without data: equal hashes are equal on any data."""
        return _hashes(arm, self.recipe(point))


@functools.lru_cache(maxsize=4096)
def _hashes(arm: Arm, recipe: Recipe) -> tuple[str, ...]:
    nowhere = plan.Experiment(
        root="nowhere", name="none", recipe=recipe, pairs=DataConfig(), triplets=DataConfig(), weights={arm.name: "unknown"}
    )
    return tuple(recipe_hash(stage) for stage in plan.resolve(nowhere, arm, 0).stages())


def cells_of(experiment: plan.Experiment, points: Points) -> list[plan.Cell]:
    """The cells of a resolved request, in the order in which they are planned."""
    return [
        plan.resolve(dataclasses.replace(experiment, recipe=one.recipe), one.arm, one.seed, one.point, one.base_point)
        for one in points.cells()
    ]
