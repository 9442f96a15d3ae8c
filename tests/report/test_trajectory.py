"""Stage 2 through time: onset, power laws, what is left of the prior, and what was not kept, against hand-made figures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.conftest import page_after
from tests.report.fabricate import Fabrication, fabricate
from trainer.report import trajectory
from trainer.report.compare import Scores
from trainer.report.experiment import StageRun
from trainer.report.read import read_experiment
from trainer.report.statistics import paired_t
from trainer.report.trajectory import onset, power_law, retained
from trainer.report.views import onsets, survival
from trainer.storage import join, layout, read_json, write_bytes, write_json
from trainer.storage.committed import Committed, write_committed


def rows(*bounds: tuple[float, float | None, float | None]) -> list[dict[str, Any]]:
    """Moments at epochs 0, 1, 2, 4, 8 …, each (mean, low, high)."""
    epochs = [0, *(1 << n for n in range(len(bounds) - 1))]
    return [
        {"mean": mean, "low": low, "high": high, "epoch": epoch, "samples": 100 * epoch}
        for (mean, low, high), epoch in zip(bounds, epochs, strict=True)
    ]


def test_onset_is_where_the_difference_begins_to_stay_above_zero() -> None:
    """A moment above 0 that is followed by one below counts for nothing; the interval is that of the band."""
    found = onset(rows((0.1, 0.05, 0.2), (-0.1, -0.2, 0.0), (-0.05, -0.1, 0.02), (0.1, -0.1, 0.3), (0.2, 0.1, 0.3)))

    assert found == {"epoch": 4, "samples": 400, "after": 2, "low": 2, "high": 8}


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ([(0.1, 0.05, 0.2), (-0.1, -0.2, 0.1)], (None, 0, None)),  # ends below: not reached, and cannot be excluded
        ([(-0.1, -0.2, -0.05), (-0.1, -0.2, -0.05)], (None, None, None)),  # ends below for certain
        ([(0.1, 0.05, 0.2), (0.1, 0.05, 0.2)], (0, 0, 0)),  # a lead from the start
        ([(0.1, None, None), (0.1, None, None)], (0, 0, None)),  # without intervals nothing is shown
    ],
)
def test_an_onset_may_not_be_reached(bounds: list[tuple[float, float | None, float | None]], expected: tuple[Any, ...]) -> None:
    """None stands for "not reached" in the estimate and at both ends of its interval."""
    found = onset(rows(*bounds))

    assert (found["epoch"], found["low"], found["high"]) == expected


@pytest.mark.parametrize("seeds", [3, 5])
def test_where_there_is_no_effect_an_onset_is_rarely_shown(seeds: int) -> None:
    """Its later end asks for the last moment's interval to be above 0, so it is shown in at most 2.5 % of cases, however many moments."""
    generator = np.random.default_rng(seeds)
    shown = 0
    for _ in range(2000):
        walk = generator.standard_normal((12, seeds)).cumsum(axis=0)  # moments of one run resemble each other
        intervals = [paired_t(moment.tolist()) for moment in walk]
        shown += onset(rows(*((one.mean, one.low, one.high) for one in intervals)))["high"] is not None
    assert shown / 2000 <= 0.035


def test_a_power_law_gives_back_its_exponent() -> None:
    """As numpy's own fit on exact figures; moments at the start or without a right answer have no logarithm."""
    samples = [0, 100, 200, 400, 800]
    fit = power_law(samples, [0.3, *(0.02 * x**0.31 for x in samples[1:])])
    assert fit is not None
    assert fit == pytest.approx((0.02, 0.31, 1.0))

    assert power_law([0, 100, 200], [0.1, 0.2, 0.3]) is None
    noisy = power_law([100, 200, 400, 800], [0.1, 0.3, 0.2, 0.4])
    assert noisy is not None
    assert 0 < noisy[2] < 1


def test_what_is_retained_is_a_part_of_what_stage_1_added() -> None:
    """Nothing can be said where stage 1 added nothing."""
    assert retained(0.75, 0.7, 0.8) == pytest.approx(0.5)
    assert retained(0.75, 0.8, 0.8) is None
    assert retained(0.75, None, 0.8) is None


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three seeds, two arms, four moments; perceptual leads by far in the end. The recipe asks for epoch 0, which was not kept."""
    what = Fabrication(seeds=(0, 1, 2), effects={"perceptual": 0.4}, items=60, checkpoints=(10, 30, 60))
    uri = fabricate(tmp_path_factory.mktemp("followed"), what)
    plan = read_json(join(uri, "plan.json"))
    plan["recipes"]["smoke"]["evaluation"] |= {"trajectory": True, "every_epochs": 0}
    write_json(join(uri, "plan.json"), plan)
    return uri


def test_every_part_stands_on_the_page(followed: str) -> None:
    """Curves against pairs seen, paired differences, onset, exponents, what is left of the prior."""
    page, results = page_after(followed)
    found = results["trajectory"]
    batch, steps = 64, 100

    assert [row["samples"] for row in found["differences"] if row["endpoint"] == "2afc"] == [batch * s for s in (10, 30, 60, steps)]
    last = [row for row in found["differences"] if row["endpoint"] == "main_zero_shot"][-1]
    contrast = next(row for row in results["contrasts"] if row["endpoint"] == "main_zero_shot")
    assert [last[key] for key in ("mean", "low", "high", "differences")] == [
        contrast[key] for key in ("mean", "low", "high", "differences")
    ]
    (onset_of_main,) = [row for row in onsets(results) if row["endpoint"] == "main_zero_shot"]
    assert onset_of_main["at"].startswith("epoch ")
    assert onset_of_main["high"] is not None
    assert {row["arm"] for row in found["power_laws"]} == {"random", "perceptual"}
    assert not any(row["endpoint"] == "2afc" for row in found["power_laws"])
    left = {(row["arm"], round(row["epoch"], 3)): row for row in survival(results)}
    assert left["random", 0.1]["tower"] is None
    assert left["perceptual", 0.1]["retained"] < left["perceptual", max(epoch for _, epoch in left)]["retained"]
    for words in (
        "pairs seen in stage 2",
        "Paired differences during training",
        "Onset: the earliest moment",
        "Power law",
        "How much of the prior remains",
    ):
        assert words in page


def test_epochs_that_were_not_kept_are_named(followed: str) -> None:
    """Of a stage finished before, of one whose figures are missing, of one whose seal is damaged; nothing is trained again for them."""
    _, results = page_after(followed)
    assert results["trajectory"]["lacking"] == [
        {"arm": arm, "seed": seed, "epochs": [0], "why": "not kept"} for seed in (0, 1, 2) for arm in ("random", "perceptual")
    ]
    first, second = (layout.kept(layout.stage(layout.cell(followed, "random", seed), "contrastive"), 0) for seed in (0, 1))
    write_committed(first, Committed(recipe_hash="a", attempt=0, step=0, files={}, facts={}))
    write_bytes(join(second, "COMMITTED.json"), b"{")

    page, results = page_after(followed)

    why = {(row["arm"], row["seed"]): row["why"] for row in results["trajectory"]["lacking"]}
    assert [why["random", seed] for seed in (0, 1, 2)] == ["not measured", "damaged", "not kept"]
    assert "random, seed 0: not measured at epoch 0; " in page
    assert "random, seed 1: damaged at epoch 0; " in page


def test_epochs_are_those_that_samples_seen_makes(tmp_path: Path) -> None:
    """100 steps of 20 an epoch are five epochs, whatever the recipe's `epochs` says; those that were not kept are named."""
    uri = fabricate(tmp_path, Fabrication(items=20, checkpoints=(20, 80)))
    plan = read_json(join(uri, "plan.json"))
    plan["recipes"]["smoke"]["evaluation"] |= {"trajectory": True, "every_epochs": 0}
    write_json(join(uri, "plan.json"), plan)
    experiment = read_experiment(uri)
    cells = [replace(cell, stages={name: _fixed(run) for name, run in cell.stages.items()}) for cell in experiment.cells]
    found = trajectory.trajectory(Scores(replace(experiment, cells=cells)), [], [])

    assert [(row["arm"], row["epochs"], row["why"]) for row in found["lacking"]] == [
        (arm, [0, 2], "not kept") for arm in ("random", "perceptual")
    ]
    assert trajectory.epoch_of(cells[0], 20) == 1
    assert trajectory.epoch_of(cells[0], None) == 5


def _fixed(run: StageRun) -> StageRun:
    """The stage as if its recipe fixed the samples seen, 20 steps an epoch."""
    if run.config.contrastive is None:
        return run
    config = replace(run.config, contrastive=replace(run.config.contrastive, samples_seen=6400))
    return replace(run, config=config, progress=[{**line, "epoch": line["step"] / 20} for line in run.progress])


def test_a_point_of_one_is_no_chart(small: tuple[str, dict[str, Any]]) -> None:
    """Where only the final models were measured there is no course: no figure, no onset, no section."""
    page, results = small

    assert all(not part for part in results["trajectory"].values())
    assert 'id="course"' not in page
