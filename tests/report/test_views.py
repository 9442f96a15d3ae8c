from typing import Any

import pytest

from tests.report.conftest import Written
from trainer.report.views import cost, mean, metrics, reached, retrieval, views


def test_seeds_are_averaged_and_what_is_not_known_is_left_out() -> None:
    """A run that did not say its throughput takes no part in the mean; none known is none."""
    common = {"stage": "contrastive", "point": "", "device": "cuda", "world_size": 4, "steps": 10}
    common |= {"data_wait_fraction": None, "seconds": 60.0}
    runs: list[dict[str, Any]] = [
        common | {"arm": arm, "seed": seed, "samples_per_second": rate, "final_loss": loss}
        for arm, seed, rate, loss in (("random", 0, 100.0, 1.0), ("random", 1, None, 2.0), ("perceptual", 0, 50.0, 3.0))
    ]
    first, second = cost(runs)
    assert (first["arm"], first["seeds"], first["device"]) == ("random", [0, 1], "cuda × 4")
    assert (first["samples_per_second"], first["final_loss"], first["data_wait_fraction"]) == (100.0, 1.5, None)
    assert (second["arm"], second["samples_per_second"]) == ("perceptual", 50.0)
    assert mean([]) is None


def test_hours_are_those_of_the_seeds_that_got_there() -> None:
    """Two of three seeds reach the baseline's final figure; the third has no hours to average."""
    common = {"arm": "perceptual", "followed_through_time": True, "baseline_final": 0.5}
    common |= {"stage_1_device_hours": 1.0, "stage_2_device_hours": 10.0}
    seeds: list[dict[str, Any]] = [
        common | {"seed": n, "epoch_of_baseline_final": epoch, "device_hours_to_baseline_final": hours}
        for n, (epoch, hours) in enumerate(((2.0, 5.0), (4.0, 7.0), (None, None)))
    ]
    (row,) = reached([*seeds, {**seeds[0], "arm": "random", "followed_through_time": False}])
    assert (row["reached"], row["seeds"], row["epoch"], row["hours"]) == (2, 3, 3.0, 6.0)


def test_retrieval_is_shown_with_all_six_recalls_and_chance(large: Written) -> None:
    """One table a set, one row an arm, final models only."""
    _, results = large
    (table,) = retrieval(metrics(results))
    assert (table["dataset"], table["num_items"]) == ("demo-retrieval", 60)
    assert [row["arm"] for row in table["arms"]] == ["random", "perceptual", "permuted", "instance", "posthoc"]
    assert all(row["seeds"] == [0, 1, 2] and len(row["values"]) == 6 for row in table["arms"])
    assert table["chance"][0] == pytest.approx(1 / 60)


def test_the_first_table_is_the_subjects_and_the_others_lose_nothing(large: Written) -> None:
    """Every contrast is in exactly one table."""
    _, results = large
    shown = views(results)
    first = [arm for row in shown["table"] for arm in row["arms"]]
    assert {row["arm"] for row in first} == {"perceptual"}
    assert len(first) + len(shown["others"]) + len(shown["controls"]) == len(results["contrasts"])
    assert {tuple(table["arms"]) for table in shown["course"]} == {("random", "perceptual", "permuted", "instance")}
