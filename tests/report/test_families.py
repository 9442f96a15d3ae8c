"""The 29 sets by the paper's families, the baseline's anchor and post-hoc tuning's known cost."""

import html
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import page_after
from tests.report.fabricate import Fabrication, fabricate
from trainer.configs.evaluation_sets import FAMILIES, SETS
from trainer.report import families
from trainer.report.read import read_experiment
from trainer.report.results import build
from trainer.storage import join, read_json, write_json

NAMES = ("imagenet-1k", "imagenet-a", "imagenet-r", "dtd", "mnist", "own-set")


def test_the_families_are_the_29_sets() -> None:
    """Each counted set is in one family; 1, 4, 12, 6 and 6."""
    members = [name for names in FAMILIES.values() for name in names]

    assert Counter(members) == Counter(known.name for known in SETS if known.counted)
    assert [len(names) for names in FAMILIES.values()] == [1, 4, 12, 6, 6]


def experiment(root: Path, recipe: str = "paper", **changes: Any) -> str:
    """Two seeds on some of the field's sets and one other, under a recipe's name."""
    what = Fabrication(**{"seeds": (0, 1), "items": 40, "set_names": NAMES, "effects": {"perceptual": 0.4}, **changes})
    uri = fabricate(root, what)
    plan = read_json(join(uri, "plan.json"))
    plan["recipes"]["smoke"]["name"] = recipe
    write_json(join(uri, "plan.json"), plan)
    return uri


def results_of(uri: str) -> dict[str, Any]:
    """Its figures, without the page."""
    return build(read_experiment(uri), [])[0]


def test_families_have_means_paired_by_seed_and_count_wins(tmp_path: Path) -> None:
    """Only measured sets count, your own set takes no part, and the last row is all of them."""
    results = results_of(experiment(tmp_path))
    rows = {row["family"]: row for row in results["families"]}

    assert {name: (row["sets"], row["of"]) for name, row in rows.items()} == {
        "ImageNet": (1, 1), "OOD": (2, 4), "VTAB": (1, 12), "misc.": (1, 6), "all": (5, 29)
    }  # fmt: skip
    single = {row["dataset"]: row["mean"] for row in results["sets"]}
    assert rows["OOD"]["mean"] == pytest.approx((single["imagenet-a"] + single["imagenet-r"]) / 2)
    assert rows["all"]["won"] == sum(single[name] > 0 for name in NAMES if name != "own-set")
    assert rows["all"]["over"] == "seeds"
    assert "win" not in results["answer"]["sentence"]


def test_the_baseline_stands_beside_its_anchor_in_the_papers_recipes_alone(tmp_path: Path) -> None:
    """A run that differs from the anchor's says in what; other recipes have no anchor."""
    page, results = page_after(experiment(tmp_path / "paper"))
    page = html.unescape(page)
    (row,) = results["expectations"]

    assert row["expected"].startswith("32.8 %: CLIP ViT-B/32 on YFCC15M, 32 epochs, batch 4,096")
    assert "mean over 2 seeds" in row["found"]
    assert row["follows"].startswith("This run has 1 epoch, batches of 64, 8 pairs, a different model, so a gap is expected")
    assert row["expected"] in page
    assert "Wins count sets whose mean difference is above 0; they are descriptive" in page
    assert results_of(experiment(tmp_path / "demo", recipe="demo"))["expectations"] == []
    (row,) = results_of(experiment(tmp_path / "without", set_names=("dtd",)))["expectations"]
    assert row["found"] == "ImageNet was not measured"


@pytest.mark.parametrize(("value", "words"), [(0.328, "Within the 31 to 35 %"), (0.2, "Below the 31"), (0.5, "Above the 31")])
def test_what_follows_from_a_gap(value: float, words: str) -> None:
    """Outside of what others reach, the pipeline or the data are looked at first."""
    said = families._what_follows(value, [])

    assert said.startswith(words)
    assert ("before interpreting any difference" in said) == (value != 0.328)


def test_what_posthoc_tuning_is_known_to_cost_is_said(tmp_path: Path) -> None:
    """With the arm, whatever the recipe; a gain is no refutation yet."""
    for effect, words in ((-0.3, "A loss here is a known effect"), (0.4, "not yet evidence against it")):
        arms = {"arms": ("random", "posthoc"), "effects": {"posthoc": effect}}
        (row,) = results_of(experiment(tmp_path / str(effect), recipe="smoke", **arms))["expectations"]
        assert "arXiv 2410.10817" in row["expected"]
        assert words in row["follows"]
        assert row["found"].startswith("−" if effect < 0 else "+")
