"""The page of a person's own pictures: twins, ceilings, N, and nothing that says more than so few items can."""

import re

import pytest

from tests.report.conftest import Written, page_after
from tests.report.fabricate import Fabrication, fabricate
from tests.report.test_schema import SCHEMA, faults
from trainer.report.compare import Scores, contrast, declared_endpoints, find_sets
from trainer.report.items import counted
from trainer.report.read import read_experiment
from trainer.storage import join, read_bytes


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """One seed, few items, one evaluated moment; its page and its results, which fit the schema."""
    page, results = page_after(fabricate(tmp_path_factory.mktemp("own"), Fabrication(own=True, items=16, name="mine")))
    assert not list(faults(results, SCHEMA))
    return page, results


def test_any_twin_is_the_endpoint_and_recall_stands_beside_it(own: Written) -> None:
    """With the ceiling of each recall where it is below 100 %, and what was found."""
    page, results = own
    (endpoint,) = [row for row in results["endpoints"] if row["name"] == "mean_retrieval"]
    assert endpoint["label"] == "retrieval, mean recall, any twin on demo-retrieval"
    assert endpoint["sets"][0]["metric"] == "mean_recall_any_twin"
    assert results["beside"]["mean_retrieval"]["n"] == "60 pictures, 120 captions"
    figures = {row["metric"]: row for row in results["metrics"] if row["final"] and row["arm"] == "random"}
    of_any = [row["value"] for name, row in figures.items() if "any_twin" in name]
    assert [row["value"] for row in results["scores"] if (row["arm"], row["endpoint"]) == ("random", "mean_retrieval")] == [
        pytest.approx(sum(of_any) / 6)
    ]
    assert results["test_sets"]["demo-retrieval_zeroshot_retrieval"]["ceiling"]["image_retrieval_recall@1"] == pytest.approx(0.788)
    for words in (
        "highest possible score", "78.8 %", "random, any twin", "40 captions of 120 belong to several pictures and 1 picture of 60",
        "demo-pairs: 20 pictures with the same caption as another and 1 picture with the same bytes as another; among the 60 test pictures "
        "3 with a caption of a training picture, 1 that may be copies of one (judged by perceptual hash).",
    ):  # fmt: skip
        assert words in page
        assert words in read_bytes(join(results["uri"], "report", "report.md")).decode()
    assert any("40 captions of 120" in note for note in results["summary"]["notes"])


def test_the_demo_and_the_fields_sets_keep_recall(small: Written) -> None:
    _, results = small
    assert [row["label"] for row in results["endpoints"] if row["name"] == "mean_retrieval"] == ["retrieval, mean recall on demo-retrieval"]
    assert results["twins"] == {}


def test_what_says_nothing_stays_off_the_page(own: Written) -> None:
    """No "0 of the 29 sets", no chart of one dot, no interval of a handful of references, and never "0.0 to 0.0"."""
    page, results = own
    assert "of the 29 zero-shot sets" not in page
    assert "of the 29 zero-shot sets" not in read_bytes(join(results["uri"], "report", "report.md")).decode()
    (afc,) = [row for row in results["contrasts"] if row["endpoint"] == "2afc"]
    assert (afc["low"], afc["high"], afc["no_interval"]) == (None, None, "too few items")
    assert "none: too few items" in page
    assert "0.0 to 0.0" not in page
    assert 'id="course"' not in page


def test_equal_models_have_no_interval_over_items(one_seed: str) -> None:
    """An arm against itself: a resample of no differences has none, which is no certainty."""
    scores = Scores(read_experiment(one_seed))
    for endpoint in declared_endpoints(find_sets(scores)):
        row = contrast(scores, "random", "random", endpoint)
        assert row is not None
        assert (row["mean"], row["low"], row["high"], row["no_interval"]) == (0.0, None, None, "all items alike")


def test_baselines_stand_beside_each_endpoint_in_its_own_metric(own: Written) -> None:
    """The model before training everywhere, pixel MSE for 2AFC; N is beside every score."""
    page, results = own
    beside = {name: sorted(found["baselines"]) for name, found in results["beside"].items()}
    assert beside == {
        "main_zero_shot": ["untrained model"], "mean_retrieval": ["untrained model"], "2afc": ["pixel MSE", "untrained tower"]
    }  # fmt: skip
    assert all(row["n"] for rows in ("contrasts", "sets") for row in results[rows])
    assert all(row["n"] for rows in (results["beside"], results["test_sets"]) for row in rows.values())
    assert all(re.search(r"\d+ (pictures|triplets)", column) for column in results["summary"]["columns"][2:])
    assert re.search(r"untrained tower \d+\.\d %; pixel MSE 50\.0 %", page)


def test_seeds_are_listed_alike(large: Written, own: Written) -> None:
    """In the head of the page, in the tables of retrieval and of cost."""
    assert "random, perceptual, permuted, instance, posthoc: seeds 0, 1, 2 each" in large[0]
    assert "random, perceptual: seed 0 each" in own[0]
    assert set(re.findall(r'data-label="seeds">([^<]*)<', large[0])) == {"0, 1, 2"}


@pytest.mark.parametrize(
    ("numbers", "words"),
    [({"pictures": 1, "classes": 1}, "1 picture, 1 class"), ({"triplets": 2048, "references": 2}, "2\u202f048 triplets, 2 references")],
)
def test_one_is_singular(numbers: dict[str, int], words: str) -> None:
    assert counted(numbers) == words
