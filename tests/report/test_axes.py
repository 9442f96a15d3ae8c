"""The page of an experiment that varies its recipe: every point with its steps, what points share, and the declared tests."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.conftest import Written, page_after
from tests.report.fabricate import Fabrication, fabricate
from trainer.report.statistics import holm, trend, trend_weights
from trainer.storage import read_bytes, read_json, write_json

FRACTIONS = (0.1, 0.5, 1)
TESTS = {"dose": {"axis": "triplets", "endpoint": "main_zero_shot"}, "falls": {"axis": "triplets", "sides": "less"}}


@pytest.fixture(scope="module")
def doses(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Written]:
    """Three seeds; the effect is the fraction times 40 points."""
    what = Fabrication(seeds=(0, 1, 2), effects={"perceptual": 0.4}, items=80, fractions=FRACTIONS, tests=TESTS)
    uri = fabricate(tmp_path_factory.mktemp("doses"), what)
    return uri, page_after(uri)


def test_every_point_is_shown_with_its_steps_and_what_it_shares(doses: tuple[str, Written]):
    _, (page, results) = doses
    (curve,) = results["axes"]
    assert (curve["axis"], curve["fields"], curve["numeric"]) == ("triplets", ["perceptual.triplet_fraction"], True)
    assert [(point["point"], point["value"]) for point in curve["points"]] == [
        ("triplets-0.1", 0.1), ("triplets-0.5", 0.5), ("triplets-1", 1),
    ]  # fmt: skip
    assert [point["steps"]["perceptual"] for point in curve["points"]] == [{"perceptual": 4}, {"perceptual": 20}, {"perceptual": 40}]
    assert all(point["shared"] == ["random"] for point in curve["points"])
    assert "random (same cell at several points)" in page
    assert "stage 1 20, stage 2 100" in page
    assert "steps of perceptual, stage 1: 4 at 0.1, 20 at 0.5, 40 at 1." in page


def test_the_differences_at_each_point_are_paired_with_the_shared_baseline(doses: tuple[str, Written]):
    _, (_, results) = doses
    (curve,) = results["axes"]
    rows = {row["value"]: row for row in curve["differences"] if row["endpoint"] == "main_zero_shot"}
    scores = {(row["value"], row["arm"]): row["scores"] for row in curve["scores"] if row["endpoint"] == "main_zero_shot"}
    for value, row in rows.items():
        assert row["differences"] == pytest.approx(np.subtract(scores[value, "perceptual"], scores[value, "random"]).tolist())
        assert row["low"] < row["mean"] < row["high"]
    assert rows[0.1]["mean"] < rows[0.5]["mean"] < rows[1]["mean"]
    assert scores[0.1, "random"] == scores[1, "random"]


def test_the_rest_of_the_page_is_about_one_point(doses: tuple[str, Written]):
    """Here the recipe's own values, where both arms have cells."""
    _, (page, results) = doses
    assert results["point"] == {"point": "", "at": {}, "cells": {}}
    (row,) = [row for row in results["contrasts"] if row["endpoint"] == "main_zero_shot"]
    (at_one,) = [row for row in results["axes"][0]["differences"] if row["endpoint"] == "main_zero_shot" and row["value"] == 1]
    assert row["differences"] == at_one["differences"]
    assert "the recipe's own values" in page.replace("&#39;", "'")


def test_every_figure_and_stage_names_its_point(doses: tuple[str, Written]):
    uri, (_, results) = doses
    points = {"", "triplets-0.1", "triplets-0.5"}
    assert {row["point"] for row in results["metrics"] if row["arm"] == "perceptual" and row["final"]} == points
    assert {row["point"] for row in results["stages"] if row["arm"] == "perceptual"} == points
    assert {row["point"] for row in results["lineage"] if row["arm"] == "random"} == {""}
    table = read_bytes(f"{uri}/report/results.csv").decode()
    assert "perceptual,triplets-0.1,0,contrastive,final" in table


def test_the_declared_test_is_the_slope_over_seeds(doses: tuple[str, Written]):
    """Computed again from the scores, as docs/EVALUATION.md has it."""
    _, (page, results) = doses
    row = next(row for row in results["tests"] if row["name"] == "dose")
    scores = {(one["value"], one["arm"]): one["scores"] for one in results["axes"][0]["scores"] if one["endpoint"] == "main_zero_shot"}
    differences = np.array([np.subtract(scores[value, "perceptual"], scores[value, "random"]) for value in FRACTIONS]).T
    slopes = [np.polyfit(np.log10(FRACTIONS), values, 1)[0] for values in differences]
    assert row["slopes"] == pytest.approx(slopes)
    assert row["mean"] == pytest.approx(np.mean(slopes))
    assert (row["finding"], row["after_results"], row["seeds"]) == ("rising", False, [0, 1, 2])
    assert "before the first result" in page
    assert re.search(r"per tenfold", page)


def test_holm_is_over_all_that_was_declared_at_that_time(doses: tuple[str, Written]):
    _, (_, results) = doses
    rows = results["tests"]
    assert {row["family"] for row in rows} == {len(rows)} == {4}  # one endpoint of `dose`, three of `falls`
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p"] for row in rows]))
    assert all(row["finding"] == "not shown" and row["p"] > 0.5 for row in rows if row["name"] == "falls" and row["mean"] > 0)


def test_the_summary_and_the_markdown_say_the_tests(doses: tuple[str, Written]):
    uri, (_, results) = doses
    assert any(
        note.startswith("Declared test dose: trend of perceptual minus random over triplets") for note in results["summary"]["notes"]
    )
    assert "| dose | beforehand |" in read_bytes(f"{uri}/report/report.md").decode()


def changed(uri: str, change: Any) -> dict[str, Any]:
    """The results after a change of the plan."""
    plan = read_json(f"{uri}/plan.json")
    change(plan)
    write_json(f"{uri}/plan.json", plan)
    return page_after(uri)[1]


def test_what_was_declared_after_results_is_a_family_of_its_own_and_says_so(tmp_path: Path):
    from trainer.storage.declarations import sealed

    uri = fabricate(tmp_path, Fabrication(seeds=(0, 1), items=20, fractions=FRACTIONS, tests=TESTS))

    def later(plan: dict[str, Any]) -> None:
        first = plan["declared"][0]
        test = {**first["tests"]["dose"], "sides": "greater"}
        new = {"endpoints": [], "axes": [], "tests": {"dose": test}}
        more = {key: first[key] for key in ("arms", "seeds", "time", "request")}
        plan["declared"].append(sealed(new, **more, after_results=True))

    results = changed(uri, later)
    late = [row for row in results["tests"] if row["after_results"]]
    assert [(row["name"], row["changed"], row["family"]) for row in late] == [("dose", True, 1)]
    assert {row["family"] for row in results["tests"] if not row["after_results"]} == {4}
    assert "after results, changed" in read_bytes(f"{uri}/report/index.html").decode()


def test_a_seed_that_lacks_a_point_takes_no_part_and_is_named(tmp_path: Path):
    uri = fabricate(tmp_path, Fabrication(seeds=(0, 1, 2), items=20, fractions=FRACTIONS, tests={"dose": {"axis": "triplets"}}))
    (tmp_path / "experiments/demo/perceptual-triplets-0.5-seed1/contrastive/final/COMMITTED.json").unlink()
    _, results = page_after(uri)
    assert all(row["seeds"] == [0, 2] and row["why"] == "seeds 1 are missing a point" for row in results["tests"])
    assert [row["seeds"] for row in results["axes"][0]["scores"] if (row["arm"], row["endpoint"]) == ("perceptual", "main_zero_shot")] == [
        [0, 1, 2], [0, 2], [0, 1, 2],
    ]  # fmt: skip


def test_one_seed_has_no_test_and_one_point_no_chart(tmp_path: Path):
    uri = fabricate(tmp_path / "one", Fabrication(items=20, fractions=FRACTIONS, tests={"dose": {"axis": "triplets"}}))
    page, results = page_after(uri)
    assert all(row["finding"] == "no test" and "a test needs 2" in row["why"] and row["p"] is None for row in results["tests"])
    uri = fabricate(tmp_path / "two", Fabrication(items=20, fractions=(0.5,)))
    page, results = page_after(uri)
    assert results["point"]["point"] == "triplets-0.5"
    assert "point <strong>triplets-0.5</strong>" in page
    assert "against perceptual.triplet_fraction" not in page


def test_declared_endpoints_are_those_of_the_page(tmp_path: Path):
    from trainer.storage.declarations import sealed

    uri = fabricate(tmp_path, Fabrication(items=20, fractions=(0.5, 1)))
    names = ["2afc", "mean_zero_shot", "nowhere_2afc"]

    def declare(plan: dict[str, Any]) -> None:
        entry = plan["declared"][0]
        more = {key: entry[key] for key in ("arms", "seeds", "time", "request", "after_results")}
        plan["declared"] = [sealed({**entry, "endpoints": names}, **more)]

    results = changed(uri, declare)
    assert [endpoint["name"] for endpoint in results["endpoints"]] == ["2afc", "main_zero_shot"]  # of one set the same figure
    assert {"what": "endpoint nowhere_2afc", "why": "declared, but not measured", "damaged": False} in results["excluded"]


# ---------------------------------------------------------------------------------------------------- the test itself


@pytest.mark.parametrize("seeds", [3, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["alike", "unlike", "drifting", "counts"])
def test_the_trend_s_interval_covers_and_its_test_is_honest(seeds: int, kind: str):
    """4,000 experiments: 93 to 97 % of intervals hold the true slope, at most 6 % of tests find one if there is none.

    Noise alike at every point; larger at small doses; shared by the points of a seed, slope included; scores as counts of 1,000 items.
    """
    runs, x = 4000, np.array([0.01, 0.05, 0.1, 0.25, 0.5, 1.0])
    generator, weights = np.random.default_rng(seeds), trend_weights(x, "log")
    shape = (runs, seeds, len(x))
    noise = 0.01 * generator.standard_normal(shape)
    if kind == "unlike":
        noise *= np.linspace(3, 0.5, len(x))
    if kind == "drifting":
        noise += 0.02 * generator.standard_normal((runs, seeds, 1)) + 0.01 * generator.standard_normal((runs, seeds, 1)) * np.log10(x)
    resolution = 0.0
    if kind == "counts":
        resolution = 0.001
        noise = (generator.binomial(1000, 0.3, shape) - generator.binomial(1000, 0.3, (runs, seeds, 1))) / 1000
    found = {}
    for slope in (0.0, 0.02):
        made = noise + slope * np.log10(x)
        intervals = [trend(run, weights, "two", resolution) for run in made]
        found[slope] = np.mean([interval.low <= slope <= interval.high for interval in intervals])
        assert 0.93 <= found[slope] <= 0.97
    for sides in ("two", "greater", "less"):
        assert np.mean([(trend(run, weights, sides, resolution).p or 0.0) <= 0.05 for run in noise]) <= 0.06


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_family_of_tests_finds_something_in_at_most_6_of_100_experiments_without_an_effect(seeds: int):
    """Four endpoints that go together, Holm over them."""
    generator, weights = np.random.default_rng(seeds), trend_weights([0.1, 0.5, 1.0], "log")
    shared = generator.standard_normal((2000, 1, seeds, 3))
    noise = 0.01 * (shared + generator.standard_normal((2000, 4, seeds, 3)))
    wrong = [min(holm([trend(one, weights, "two").p or 0.0 for one in family])) <= 0.05 for family in noise]
    assert np.mean(wrong) <= 0.06


def test_a_slope_is_over_a_tenfold_or_a_unit():
    x = [0.01, 0.1, 1.0]
    assert trend_weights(x, "log") @ np.array([1.0, 3.0, 5.0]) == pytest.approx(2.0)
    assert trend_weights([1, 2, 3], "linear") @ np.array([1.0, 3.0, 5.0]) == pytest.approx(2.0)


def test_a_level_that_a_seed_shares_changes_no_slope():
    """The baseline has one cell at all points, so what it scored counts for nothing here."""
    weights, made = trend_weights([0.1, 0.5, 1.0], "log"), np.random.default_rng(0).standard_normal((3, 3))
    moved = made + np.array([[5.0], [-2.0], [0.1]])
    assert trend(moved, weights, "two").mean == pytest.approx(trend(made, weights, "two").mean)
