"""Axes of a request: the cells that they make, what is one cell, and what is refused before anything is planned."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.planning.declared import declaration
from pipelines.planning.points import Points
from pipelines.planning.request import INTRODUCED, Request, merge, read_request, write_request
from pipelines.planning.resolving import resolve
from trainer.config import canonical_hash
from trainer.errors import InputError

TRIPLETS = {"triplets": {"perceptual.triplet_fraction": [0.25, 0.5, 1]}}


def ask(**given: Any) -> Request:
    return resolve(merge("", {"recipe": "smoke", "seeds": "0", **given}))


def cells(**given: Any) -> list[str]:
    return ask(**given).cells


def test_an_arm_that_an_axis_does_not_change_has_one_cell():
    """And the point with the recipe's own value is the cell that there is without an axis."""
    assert cells(vary=TRIPLETS, seeds="0,1") == [
        "random-seed0", "perceptual-triplets-0.25-seed0", "perceptual-triplets-0.5-seed0", "perceptual-seed0",
        "random-seed1", "perceptual-triplets-0.25-seed1", "perceptual-triplets-0.5-seed1", "perceptual-seed1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("axis", "arms", "named"),
    [
        ({"contrastive.pair_fraction": [0.5, 1]}, "random,perceptual", ["random-a-0.5", "perceptual-a-0.5", "random", "perceptual"]),
        ({"perceptual.margin": [0.1, 0.05]}, "random,permuted", ["random", "permuted-a-0.1", "permuted"]),
        ({"perceptual.samples_seen": [32, 64]}, "random,perceptual", ["random", "perceptual-a-32", "perceptual-a-64"]),
        ({"contrastive.epochs": [1, 2]}, "random", ["random", "random-a-2"]),
        ({"posthoc.epochs": [1, 2]}, "random,posthoc", ["random", "posthoc", "posthoc-a-2"]),
        ({"posthoc.triplet_fraction": [0.5, 1]}, "random,perceptual,posthoc", ["random", "perceptual", "posthoc-a-0.5", "posthoc"]),
        ({"posthoc.base": ["random", "perceptual"]}, "random,posthoc", ["random", "posthoc", "posthoc-a-perceptual"]),
        ({"model.vision_layers": [2, 3]}, "random,perceptual", ["random", "perceptual", "random-a-3", "perceptual-a-3"]),
        ({"perceptual.flip_augmentation": [False, True]}, "random,perceptual", ["random", "perceptual", "perceptual-a-true"]),
        ({"contrastive.optimizer.eps": [1e-8, 1e-6]}, "random", ["random", "random-a-1e-06"]),
    ],
)
def test_any_field_of_a_recipe_can_be_an_axis(axis: dict[str, Any], arms: str, named: list[str]):
    assert cells(vary={"a": axis}, arms=arms) == [f"{name}-seed0" for name in named]


def test_the_model_that_a_post_hoc_cell_starts_from_is_that_of_the_base_arm_s_own_cell():
    """Not one of its own that nobody else has: along an axis of the post-hoc stage the base arm has one cell."""
    from pipelines.planning import plan, points
    from trainer.config import DataConfig

    experiment = plan.Experiment(root="/r", name="e", recipe=ask().load_recipe(), pairs=DataConfig(), triplets=DataConfig())
    asked = Points(ask(vary={"a": {"posthoc.epochs": [1, 2]}, "m": {"perceptual.margin": [0.1]}}, arms="random,perceptual,posthoc"))
    found = {cell.name: cell for cell in points.cells_of(experiment, asked)}
    assert set(found) == {"random-seed0", "perceptual-m-0.1-seed0", "posthoc-seed0", "posthoc-a-2-seed0"}
    assert found["posthoc-a-2-seed0"].contrastive == found["random-seed0"].contrastive


def test_fields_move_together_and_axes_are_combined():
    axis = {
        "both": {"perceptual.triplet_fraction": [0.5, 1], "perceptual.epochs": [2, 1]},
        "lr": {"perceptual.optimizer.beta1": [0.9, 0.8]},
    }
    points = Points(ask(vary=axis))
    assert [one["point"] for one in points.listed()] == ["both-0.5-lr-0.9", "both-0.5-lr-0.8", "both-1-lr-0.9", "both-1-lr-0.8"]
    assert points.listed()[1] == {
        "point": "both-0.5-lr-0.8",
        "at": {"both": 0.5, "lr": 0.8},
        "cells": {"random": "", "perceptual": "both-0.5-lr-0.8"},
    }
    assert [one["cells"]["perceptual"] for one in points.listed()] == ["both-0.5", "both-0.5-lr-0.8", "", "lr-0.8"]
    assert {(cell.recipe.perceptual.triplet_fraction, cell.recipe.perceptual.epochs) for cell in points.cells()} == {(0.5, 2), (1.0, 1)}


def test_set_is_what_the_axes_vary():
    """A point with the value that `set` gives is the cell without an axis."""
    assert cells(vary={"m": {"perceptual.margin": [0.1, 0.2]}}, set="perceptual.margin=0.2", arms="perceptual") == [
        "perceptual-m-0.1-seed0",
        "perceptual-seed0",
    ]


def test_an_axis_means_the_same_as_yaml_in_a_flag_and_in_a_file(tmp_path: Path):
    by_flag = ask(vary="triplets: {perceptual.triplet_fraction: [0.25, 0.5, 1]}")
    assert by_flag == ask(vary=TRIPLETS) == ask(vary="{triplets: {perceptual.triplet_fraction: [0.25, 0.5, 1]}}")
    assert read_request(write_request(by_flag, str(tmp_path))) == by_flag


def test_a_stored_request_keeps_the_order_of_its_axes_and_fields(tmp_path: Path):
    """An axis is known by its first field, and JSON has its keys sorted."""
    both = {"both": {"perceptual.triplet_fraction": [0.5, 1], "perceptual.epochs": [2, 1]}, "a": {"perceptual.margin": [0.1]}}
    stored = read_request(write_request(ask(vary=both), str(tmp_path)))
    assert stored.cells == ask(vary=both).cells
    assert "perceptual-both-0.5-a-0.1-seed0" in stored.cells


def test_a_request_without_axes_has_the_id_that_it_had():
    """The id of the same request as it was before there were axes."""
    stored = {name: value for name, value in ask().stored().items() if name not in INTRODUCED}
    assert ask().id == canonical_hash(stored)[:16]
    assert ask().id != ask(vary=TRIPLETS).id != ask(vary=TRIPLETS, tests={"dose": {"axis": "triplets"}}).id


@pytest.mark.parametrize(
    ("vary", "line"),
    [
        ({"a": {"staging.triplet_side": [32, 64]}}, "axis 'a' cannot vary staging.triplet_side, which decides what the data sets contain"),
        ({"a": {"staging.heldout_fraction": [0.1]}}, "cannot vary staging.heldout_fraction"),
        ({"a": {"perceptual.min_votes": [0, 6]}}, "cannot vary perceptual.min_votes, which decides which triplets are staged"),
        ({"a": {"evaluation.decoder": ["fast", "exact"]}}, "cannot vary evaluation.decoder, which decides how models are measured"),
        ({"a": {"name": ["x", "y"]}}, "cannot vary name, which is a label"),
        ({"a": {"perceptual.triplet_fractoin": [1]}}, "did you mean perceptual.triplet_fraction?"),
        ({"a": {"perceptual.optimizer": [1]}}, "perceptual.optimizer is a group of settings: name one of them"),
        ({"a": {"perceptual.margin": []}}, "axis 'a': perceptual.margin must be a list of plain values, got []"),
        ({"a": {"perceptual.margin": 0.1}}, "must be a list of plain values, got 0.1"),
        ({"a": {"perceptual.margin": [[0.1]]}}, "must be a list of plain values"),
        ({"a": {"perceptual.margin": [0.1, 0.1]}}, "values of perceptual.margin, its first field, must differ, got '0.1' 2 times"),
        ({"a": {"perceptual.margin": [0.1, 0.2], "perceptual.epochs": [1]}}, "perceptual.margin has 2, perceptual.epochs has 1"),
        ({"a": {"perceptual.margin": [0.1]}, "b": {"perceptual.margin": [0.2]}}, "perceptual.margin is already varied by axis 'a'"),
        ({"A": {"perceptual.margin": [0.1]}}, "axis 'A' must have a name of at most 20 characters from a-z"),
        ({"a": {}}, "must be a mapping of a recipe's fields"),
        ({"a": {"perceptual.margin": [n / 1000 for n in range(1, 300)]}}, "give 299 points, but at most 256"),
        ({"a": {"contrastive.epochs": [1, 0]}}, "vary: at point a-0: recipe smoke: contrastive.epochs must be >= 1, got 0"),
        ({"a": {"perceptual.triplet_fraction": [0, 1]}}, "at point a-0: recipe smoke: perceptual.triplet_fraction must be > 0 and <= 1"),
        ({"a": {"perceptual.epochs": ["many"]}}, "at point a-many: recipe smoke: perceptual.epochs must be a whole number"),
        ("triplets", "vary: expected a mapping"),
        ("a: [", "vary: not YAML"),
    ],
)
def test_an_axis_that_cannot_be_meant_is_refused_in_one_line(vary: Any, line: str):
    with pytest.raises(InputError) as caught:
        ask(vary=vary)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_test_is_declared_with_all_that_it_leaves_open():
    found = declaration(ask(vary=TRIPLETS, tests={"dose": {"axis": "triplets"}}, endpoints="2afc"))
    assert found == {
        "endpoints": ["2afc"],
        "axes": [{"axis": "triplets", "fields": [{"field": "perceptual.triplet_fraction", "values": [0.25, 0.5, 1]}]}],
        "tests": {
            "dose": {
                "kind": "trend", "axis": "triplets", "at": {}, "arm": "perceptual", "against": "random", "endpoint": "", "scale": "log",
                "sides": "two", "points": ["triplets-0.25", "triplets-0.5", "triplets-1"], "x": [0.25, 0.5, 1.0],
            }
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("test", "line"),
    [
        ({"axis": "triplet"}, "tests: dose: axis must be one of triplets, got 'triplet'"),
        ({}, "tests: dose: axis must be one of triplets, got ''"),
        ({"axis": "triplets", "side": "two"}, "side is not a setting of a test: did you mean sides?"),
        ({"axis": "triplets", "sides": "both"}, "sides must be one of two, greater, less, got 'both'"),
        ({"axis": "triplets", "arm": "shuffled"}, "arm must be one of the arms random, perceptual, got 'shuffled'"),
        ({"axis": "triplets", "arm": "random"}, "against must be another arm"),
        ({"axis": "triplets", "endpoint": "zero_shot"}, "endpoint must be one of mean_zero_shot"),
        ({"axis": "triplets", "kind": "anova"}, "kind must be one of trend"),
        ({"axis": "triplets", "at": {"lr": 1}}, "`at` must give one value of no other axis"),
        ([], "must be a mapping such as {axis: triplets}"),
    ],
)
def test_a_test_that_cannot_be_meant_is_refused_in_one_line(test: Any, line: str):
    with pytest.raises(InputError) as caught:
        ask(vary=TRIPLETS, tests={"dose": test})
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("vary", "line"),
    [
        ({"a": {"contrastive.augmentation": ["crop", "none"]}}, "axis 'a' must have numbers > 0 (or scale: linear), got crop, none"),
        ({"a": {"perceptual.min_votes": [1]}}, "cannot vary perceptual.min_votes"),
        ({"a": {"contrastive.optimizer.weight_decay": [0.0, 0.1]}}, "must have numbers > 0 (or scale: linear), got 0.0, 0.1"),
        ({"a": {"perceptual.margin": [0.1]}}, "axis 'a' must be at least 2 points there, got 1"),
    ],
)
def test_a_trend_needs_numbers(vary: Any, line: str):
    with pytest.raises(InputError) as caught:
        ask(vary=vary, tests={"t": {"axis": "a"}})
    assert line in str(caught.value)


def test_an_endpoint_that_is_none_is_refused():
    with pytest.raises(InputError, match=r"endpoints must be one of .*got '2acf': did you mean 2afc"):
        ask(endpoints="2acf")
    assert ask(endpoints="cifar10_zeroshot_classification").endpoints == ("cifar10_zeroshot_classification",)
