import csv
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.report.conftest import Written, page_of
from tests.report.fabricate import Fabrication, fabricate
from trainer.arms import BASELINE
from trainer.errors import InputError
from trainer.report.write import duration, p_value, write_report
from trainer.storage import join, read_bytes, read_json

SECTIONS = ("course", "two-afc", "retrieval", "training", "lineage", "limits")


class Outline(HTMLParser):
    """Collects tags that were left open, elements by tag, and the text."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_stands_alone(large: Written) -> None:
    """One file: no script, nothing fetched, every element closed, every picture and figure with words."""
    page, _ = large
    outline = Outline()
    outline.feed(page)
    assert not outline.open
    assert not [tag for tag, _ in outline.elements if tag in ("script", "link", "iframe")]
    sources = [attributes.get("src") or attributes.get("href") or attributes.get("xlink:href") or "" for _, attributes in outline.elements]
    assert all(source == "" or source.startswith(("data:image/", "#")) for source in sources)
    assert "url(http" not in page
    pictures = [attributes for tag, attributes in outline.elements if tag == "img"]
    assert len(pictures) > 20
    assert all("alt" in attributes for attributes in pictures)
    figures = [attributes for tag, attributes in outline.elements if tag == "figure"]
    assert len(figures) >= 8
    assert all(attributes.get("role") == "img" and len(attributes.get("aria-label") or "") > 20 for attributes in figures)


def test_ids_are_unique_and_links_lead_somewhere(large: Written) -> None:
    """No two elements share an id, and every link within the page has its target."""
    page, _ = large
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_figures_follow_the_theme(large: Written) -> None:
    """No drawing has a colour of its own: all are the page's variables."""
    page, _ = large
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", drawings)


def test_the_first_sentence_is_everywhere(small: Written, one_seed: str) -> None:
    """Page, Markdown, results and summary say the same sentence."""
    page, results = small
    sentence = results["answer"]["sentence"]
    assert sentence.startswith("One seed cannot say")
    assert re.sub(r"</?strong>", "", page).count(sentence.replace("'", "&#39;")) == 1
    assert sentence in read_bytes(join(one_seed, "report", "report.md")).decode()
    assert results["summary"]["sentence"] == sentence


def test_the_markdown_has_the_pages_tables(large: Written, three_seeds: str) -> None:
    """Every cell of every table that is open on the page is in report.md, for those who read it in Kubeflow."""
    page, results = large
    text = read_bytes(join(three_seeds, "report", "report.md")).decode()
    always_open = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    cells = re.findall(r"<td[^>]*>([^<]+)</td>", always_open)
    assert len(cells) > 200
    assert {html.unescape(cell) for cell in cells} <= {cell.strip().strip("`") for cell in text.replace("\n", "|").split("|")}
    for words in ("Over training", "Retrieval", "Device-hours to reach the baseline's final score", results["answer"]["controls"]):
        assert words in html.unescape(page)
        assert words in text


def test_the_forest_stands_before_the_tables(large: Written) -> None:
    """After the answer come the sets at a glance, then time, 2AFC, retrieval, cost, lineage."""
    page, _ = large
    order = [page.index(mark) for mark in ("<h1", "perceptual minus random, in", "<table", *(f'id="{name}"' for name in SECTIONS))]
    assert order == sorted(order)


def test_chance_untrained_and_mse_stand_beside_the_figures(small: Written) -> None:
    """Every endpoint has its chance level; 2AFC has the untrained tower and pixel MSE; FLIP is named as the judge."""
    page, results = small
    assert [row["name"] for row in results["endpoints"]] == ["main_zero_shot", "mean_retrieval", "2afc"]
    assert all(row["chance"] is not None for row in results["endpoints"])
    assert "untrained tower" in page
    assert "pixel MSE" in page
    assert page.count("FLIP") >= 4
    assert any("not by people" in note for note in results["summary"]["notes"])
    assert "OpenMoji, CC BY-SA 4.0" in page
    assert "features after stage 1 (a collapsed tower has a low one): perceptual 9.5, untrained 9.5." in page


def test_the_fields_sets_are_counted(small: Written) -> None:
    """The demo measures none of the 29 sets that the paper counts, and the page names them."""
    page, results = small
    assert results["field_sets"]["counted"] == len(results["field_sets"]["not_staged"]) == 29
    assert "0 of the 29 zero-shot sets that the paper reports were measured" in page


def test_the_pairs_are_the_same_seeds_difference(small: Written) -> None:
    """A difference is the arm's score minus the baseline's of the same seed, and its interval holds it."""
    _, results = small
    scores = {(row["arm"], row["endpoint"]): row["value"] for row in results["scores"]}
    for row in results["contrasts"]:
        assert row["mean"] == pytest.approx(scores["perceptual", row["endpoint"]] - scores[BASELINE, row["endpoint"]])
        assert row["low"] < row["mean"] < row["high"]
        assert row["over"] == "items"
        assert row["p_holm"] is None


def test_three_seeds_find_the_effect_and_pair_every_control(large: Written) -> None:
    """A known large effect is found, perceptual is set against each control, and sets get a sign test."""
    _, results = large
    assert results["answer"]["verdict"] == "helped"
    against = {row["against"] for row in results["contrasts"] if row["arm"] == "perceptual"}
    assert against == {"random", "permuted", "instance", "posthoc"}
    assert all(row["over"] == "seeds" and row["items"] for row in results["contrasts"])
    assert results["sign_tests"][0] == {"arm": "perceptual", "against": "random", "won": 3, "lost": 0, "tied": 0, "p": 0.25}


def test_efficiency_counts_stage_1(large: Written) -> None:
    """Hours to the baseline's final figure include the tower's, and stop at the first checkpoint that is there."""
    _, results = large
    row = next(row for row in results["efficiency"] if (row["arm"], row["seed"]) == ("perceptual", 0))
    assert row["epoch_of_baseline_final"] < 1.0
    assert row["device_hours_to_baseline_final"] == pytest.approx((95 + 310 * row["epoch_of_baseline_final"]) / 3600)
    assert row["stage_1_share_of_flops"] == pytest.approx(2e12 / 9.02e14)


def test_an_undefined_metric_is_null(small: Written, one_seed: str) -> None:
    """Acc5 below five classes is null in JSON, empty in CSV, `undefined` on the page."""
    page, results = small
    assert [row["value"] for row in results["metrics"] if row["metric"] == "acc5"][:1] == [None]
    rows = list(csv.DictReader(read_bytes(join(one_seed, "report", "results.csv")).decode().splitlines()))
    assert len(rows) == len(results["metrics"])
    assert {row["value"] for row in rows if row["metric"] == "acc5"} == {""}
    assert "undefined" in page


def test_lineage_goes_down_to_bytes(small: Written) -> None:
    """Every stage names recipe, start, data and weights; every data set its shards' checksums."""
    _, results = small
    assert {(row["arm"], row["stage"]) for row in results["lineage"]} == {
        ("random", "contrastive"),
        ("perceptual", "perceptual"),
        ("perceptual", "contrastive"),
    }
    assert all(re.fullmatch("[0-9a-f]{64}", row["weights_sha256"]) for row in results["lineage"])
    assert all(shard["sha256"] for row in results["data"] for shard in row["shards"])


def test_the_same_store_gives_the_same_bytes(one_seed: str, small: Written) -> None:
    """A second report changes no byte."""
    write_report(one_seed, [])
    assert page_of(one_seed) == small[0]


def test_without_a_finished_cell_there_is_still_a_page(tmp_path: Path) -> None:
    """Everything missing: the page names it and claims nothing."""
    uri = fabricate(tmp_path, Fabrication(items=20))
    for seal in tmp_path.rglob("final/COMMITTED.json"):
        seal.unlink()
    results = read_json(write_report(uri, [])["results"])
    assert results["answer"]["verdict"] == "no answer"
    assert [row["cell"] for row in results["missing"]] == ["random-seed0", "perceptual-seed0"]
    assert "perceptual-seed0" in page_of(uri)


def test_only_the_baseline_is_reported_alone(tmp_path: Path) -> None:
    """One arm: its scores stand, no difference is made up."""
    uri = fabricate(tmp_path, Fabrication(arms=("random",), items=20))
    results = read_json(write_report(uri, [])["results"])
    assert results["answer"]["verdict"] == "no answer"
    assert len(results["scores"]) == 3
    assert not results["contrasts"]


def test_lost_shards_cost_the_pictures_only(tmp_path: Path) -> None:
    """Example pictures whose shard is gone or damaged are left out by name."""
    uri = fabricate(tmp_path, Fabrication(items=20))
    for shard in tmp_path.rglob("*.tar"):
        shard.write_bytes(bytes(len(shard.read_bytes())))
    results = read_json(write_report(uri, [])["results"])
    assert results["answer"]["verdict"] == "one seed"
    assert {row["what"] for row in results["excluded"]} == {"example pictures of demo-retrieval", "example pictures of demo-triplets-test"}


def test_compare_sets_experiments_side_by_side(tmp_path: Path) -> None:
    """Equal data and version: each arm there minus the same arm here, paired by seed."""
    here = fabricate(tmp_path, Fabrication(items=40, name="here"))
    there = fabricate(tmp_path, Fabrication(items=40, name="there", stream=1))
    results = read_json(write_report("", [here, there])["results"])
    assert {(row["arm"], row["against"]) for row in results["comparison"]} == {
        ("random in there", "random"),
        ("perceptual in there", "perceptual"),
    }
    assert "Compared with other experiments" in page_of(here)


def test_compared_experiments_of_one_name_are_told_apart_by_their_place(tmp_path: Path) -> None:
    """The demo on two roots: each row says which."""
    here, there = (fabricate(tmp_path / root, Fabrication(items=40)) for root in ("a", "b"))
    results = read_json(write_report(here, [there])["results"])
    assert {row["arm"] for row in results["comparison"]} == {f"random in {there}", f"perceptual in {there}"}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Fabrication(items=60, name="other"), "runs on different data are not compared"),
        (Fabrication(items=40, name="other", version="2-exact-fp32"), "evaluation version 2-exact-fp32"),
    ],
)
def test_compare_refuses_what_is_unlike(tmp_path: Path, other: Fabrication, words: str) -> None:
    """Other data or another evaluation version end the report before anything is written."""
    here = fabricate(tmp_path / "a", Fabrication(items=40, name="here"))
    there = fabricate(tmp_path / "b", other)
    with pytest.raises(InputError, match=words):
        write_report(here, [there])
    assert not (tmp_path / "a" / "experiments" / "here" / "report").exists()


def test_nothing_to_report_is_refused() -> None:
    """No experiment at all is a line, not a traceback."""
    with pytest.raises(InputError, match="report needs an experiment"):
        write_report("", [])


def test_compare_refuses_itself(fresh: str) -> None:
    """An experiment beside itself shows nothing."""
    with pytest.raises(InputError, match="must name different experiments"):
        write_report(fresh, [fresh])


def test_results_json_has_no_nan(large: Written, three_seeds: str) -> None:
    """JSON readers other than Python's refuse NaN."""
    json.loads(read_bytes(join(three_seeds, "report", "results.json")), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0004, "< .001"), (0.0123, ".012"), (0.05, ".050"), (0.5, ".50"), (1.0, "1.00")]
)
def test_p_values(value: float | None, text: str) -> None:
    """No more digits than a p carries, no leading zero."""
    assert p_value(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (48.2, "48 s"), (720, "12 min"), (12240, "3.4 h")])
def test_durations(seconds: float | None, text: str) -> None:
    """As a person says them."""
    assert duration(seconds) == text


def test_retrieval_items_make_the_mean_recall(one_seed: str) -> None:
    """Six recalls averaged, and the same figure from items weighted so that both ways count alike."""
    from trainer.report.items import MEAN_RECALL, read_items, score
    from trainer.report.read import read_experiment

    cell = read_experiment(one_seed).cell("random", 0)
    assert cell is not None
    result = next(result for result in cell.results if result.task == "zeroshot_retrieval" and result.stage == "contrastive")
    recalls = [figure for figure in result.metrics.values() if figure is not None]
    assert len(recalls) == 6
    assert score(result, MEAN_RECALL) == pytest.approx(np.mean(recalls))
    assert read_items(result, MEAN_RECALL).score == pytest.approx(np.mean(recalls))
