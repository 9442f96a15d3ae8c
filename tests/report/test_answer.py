from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.report.answer import answer, points
from trainer.report.compare import finding
from trainer.report.statistics import holm, paired_t

ENDPOINTS = ("mean_zero_shot", "main_zero_shot", "mean_retrieval", "2afc")


def rows_of(differences: NDArray[np.float64], resolution: float = 0.0) -> list[dict[str, Any]]:
    """Contrast rows of (endpoints, seeds) differences."""
    rows: list[dict[str, Any]] = []
    for name, seeds in zip(ENDPOINTS, differences, strict=False):
        interval = paired_t(seeds.tolist(), resolution)
        rows.append(
            {"arm": "perceptual", "against": "random", "endpoint": name, "short": name, "seeds": list(range(len(seeds))), "over": "seeds"}
            | {"mean": interval.mean, "low": interval.low, "high": interval.high, "p": interval.p}
        )
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        row["finding"] = finding(row)
    return rows


@pytest.mark.parametrize("seeds", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_without_an_effect_the_sentence_rarely_claims_one(seeds: int) -> None:
    """In at most 5 % of 2,000 simulated experiments (four endpoints, correlated through the model) plus what 2,000 draws can err."""
    generator = np.random.default_rng(seeds)
    claims = 0
    for _ in range(2000):
        shared = generator.normal(0, 0.01, (2, 1, seeds))
        skill = 0.4 + shared + generator.normal(0, 0.01, (2, 4, seeds))
        scores = generator.binomial(500, skill) / 500
        claims += answer(rows_of(scores[0] - scores[1], 1 / 500), "perceptual", "people")["verdict"] in ("helped", "hurt", "mixed")
    assert claims / 2000 <= 0.05


def test_a_large_effect_is_claimed_with_its_interval() -> None:
    """Five seeds, ten points: the sentence says yes, by how much, and how sure."""
    differences = 0.10 + np.random.default_rng(0).normal(0, 0.004, (4, 5))
    found = answer(rows_of(differences), "perceptual", "people")
    assert found["verdict"] == "helped"
    assert found["sentence"].startswith("Yes, on every endpoint; over 5 seeds, perceptual beats random: +")
    assert "95 % interval" in found["sentence"]


def test_a_loss_is_said_as_plainly() -> None:
    """The mirrored effect reads `No, it hurt`."""
    differences = -0.10 + np.random.default_rng(0).normal(0, 0.004, (4, 5))
    found = answer(rows_of(differences), "perceptual", "people")
    assert found["verdict"] == "hurt"
    assert found["sentence"].startswith("No, it hurt; over 5 seeds, perceptual does worse than random: −")


def test_nothing_shown_is_said_as_plainly() -> None:
    """Differences around 0 read `Not shown`."""
    differences = np.array([[0.02, -0.03, 0.01]] * 4)
    assert answer(rows_of(differences), "perceptual", "people")["sentence"].startswith("Not shown; over 3 seeds, perceptual does not beat")


def test_an_interval_that_leaves_out_0_is_no_finding_before_holm() -> None:
    """Four endpoints with p near .03 each: the sentence says why it does not count them."""
    differences = np.array([[0.03, 0.02, 0.035]] * 4)
    rows = rows_of(differences)
    assert rows[0]["low"] > 0
    found = answer(rows, "perceptual", "people")
    assert found["verdict"] == "not shown"
    assert "does not beat random beyond chance once corrected for 4 endpoints: +2.8" in found["sentence"]


def test_the_controls_tell_perception_from_warm_up() -> None:
    """Beaten, lost to and not told apart are said apart; an arm that is no control is not among them."""
    apart, equal = np.array([[0.100, 0.101, 0.099], [0.01, -0.02, 0.03]]), np.array([[0.02, -0.03, 0.01]])
    rows = rows_of(apart)
    for control, differences in (("permuted", apart), ("judged", -apart), ("instance", equal), ("shuffled", equal), ("posthoc", apart)):
        rows += [{**row, "against": control} for row in rows_of(differences)]
    said = answer(rows, "perceptual", "people")["controls"]
    assert said == (
        "Against the controls: it beats permuted on mean_zero_shot; it does worse than judged on mean_zero_shot; "
        "it shows no difference from instance or shuffled."
    )
    single = [{**row, "against": name, "finding": "one seed"} for name in ("permuted", "instance") for row in rows_of(equal)]
    assert answer(rows_of(apart) + single, "perceptual", "people")["controls"].endswith(
        "one seed cannot tell it from permuted or instance."
    )
    assert answer(rows_of(apart), "perceptual", "people")["controls"] == ""


def test_both_directions_are_both_said() -> None:
    """Better on one endpoint and worse on another is neither yes nor no."""
    differences = np.array([[0.100, 0.101, 0.099], [-0.100, -0.101, -0.099], [0.01, -0.02, 0.03]])
    found = answer(rows_of(differences), "perceptual", "people")
    assert found["verdict"] == "mixed"
    assert "no difference is shown on mean_retrieval" in found["sentence"]


@pytest.mark.parametrize(("mean", "course"), [(0.05, "perceptual is above random:"), (-0.05, "perceptual is below random:")])
def test_one_seed_never_claims(mean: float, course: str) -> None:
    """Whatever one seed shows, the sentence says that it cannot say, and what the interval covers."""
    row: dict[str, Any] = {
        "arm": "perceptual",
        "against": "random",
        "endpoint": "2afc",
        "short": "2AFC",
        "seeds": [0],
        "over": "items",
        "p_holm": None,
    }
    row |= {"mean": mean, "low": mean - 0.001, "high": mean + 0.001}
    found = answer([row | {"finding": finding(row)}], "perceptual", "FLIP")
    assert found["verdict"] == "one seed"
    assert found["sentence"].startswith("One seed cannot say")
    assert course in found["sentence"]
    assert "the sampling of test items only" in found["sentence"]
    assert "as judged by FLIP" in found["sentence"]


def one_seed_row(name: str, mean: float, low: float | None, high: float | None, why: str = "") -> dict[str, Any]:
    """A contrast of one seed."""
    row: dict[str, Any] = {"arm": "perceptual", "against": "random", "endpoint": name, "short": name, "seeds": [0], "over": "items"}
    return row | {"n": "90 pictures", "mean": mean, "low": low, "high": high, "no_interval": why, "p_holm": None, "finding": "one seed"}


def test_one_seed_counts_no_sign_of_an_interval_that_includes_0() -> None:
    """Two of three are above by their sign; only the one whose interval leaves out 0 is called so, and N is beside each."""
    rows = [one_seed_row("A", 0.05, 0.01, 0.09), one_seed_row("B", 0.02, -0.01, 0.05), one_seed_row("C", -0.01, -0.02, 0.005)]
    said = answer(rows, "perceptual", "people")["sentence"]
    assert (
        "in this one run perceptual is above random on A, and no difference stands out on B and C: +5.0 points on A (90 pictures; 95 %"
        in said
    )
    assert " of 3" not in said
    said = answer(rows[1:], "perceptual", "people")["sentence"]
    assert "in this one run no difference from random exceeds the sampling noise of the test items: +2.0 points on B" in said
    assert "above" not in said
    both = [rows[0], one_seed_row("D", -0.05, -0.09, -0.01)]
    assert "perceptual is above random on A and below random on D: +5.0" in answer(both, "perceptual", "people")["sentence"]


@pytest.mark.parametrize("why", ["too few items", "all items alike"])
def test_a_handful_of_items_has_no_interval_and_says_why(why: str) -> None:
    """Never `0.0 (0.0 to 0.0)`."""
    said = answer([one_seed_row("2AFC", 0.0, None, None, why)], "perceptual", "people")["sentence"]
    assert f"0.0 points on 2AFC (90 pictures; no interval: {why})" in said
    assert "no difference from random exceeds the sampling noise" in said


def test_without_a_pair_there_is_no_answer() -> None:
    """No finished pair of arms: said, not guessed."""
    assert answer([], "perceptual", "")["verdict"] == "no answer"


@pytest.mark.parametrize(("value", "text"), [(0.0213, "+2.1"), (-0.004, "−0.4"), (-0.0001, "0.0"), (0.0, "0.0")])
def test_points(value: float, text: str) -> None:
    """One decimal, a sign, a true minus, and no minus zero."""
    assert points(value) == text
