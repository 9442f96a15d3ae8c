"""The section Representation: CKA between cells from kept features, RSA, and probes paired like every other figure."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from tests.report.fabricate import Fabrication, fabricate
from tests.report.test_schema import SCHEMA, faults
from trainer import similarity
from trainer.report.write import write_report
from trainer.storage.figures import BLOCK, read_figures, write_figures

LAYERS = ("01", "02", "output")


def features(arm: str, seed: int, stage: str, layer: str, count: int = 30) -> np.ndarray:
    """What a model made of 30 pictures: shared by all of a seed, and its own."""
    shared = np.random.default_rng(seed).normal(size=(count, 8))
    own = np.random.default_rng([ord(letter) for letter in f"{arm}{stage}{layer}{seed}"]).normal(size=(count, 8))
    return similarity.centred(shared + 0.5 * own).astype(np.float16)


def add(folder: Path, dataset: str, task: str, metrics: dict, arrays: dict, **more) -> None:
    """One more result beside a model's 2AFC, of the same model."""
    value = read_figures(str(next(folder.glob("*test_2afc.json"))))
    block = {key: part for key, part in value[BLOCK].items() if key not in ("items", "sha256", "format_version")}
    block |= {"dataset_identity": "d" * 64, "baselines": {}, "num_items": len(arrays["key"]), "judge": "", **more}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_figures(
        str(folder / f"{dataset}_{task}.json"),
        {**value, "dataset": dataset, "task": task, "metrics": metrics, BLOCK: block},
        buffer.getvalue(),
    )


def experiment(root: Path, arms=("random", "perceptual", "shuffled"), seeds=(0, 1), **more) -> str:
    """A fabricated experiment with layers and probes of every final model."""
    uri = fabricate(root, Fabrication(arms=arms, seeds=seeds, **more))
    staged = next(Path(uri).glob("*/evaluation/*/demo-categories_zeroshot_classification.json"))
    identity = read_figures(str(staged))[BLOCK]["dataset_identity"]
    for cell in json.loads(Path(uri, "plan.json").read_text())["cells"]:
        arm, seed = cell["arm"] + cell["point"], cell["seed"]
        for folder in sorted(Path(cell["evaluation"]).iterdir()):
            stage = folder.name.partition("-")[0]
            for layer in LAYERS:
                metrics = {"cka_start": 0.25, "rsa:V1": -0.125} | ({"cka_tower": 0.75} if arm != "random" and stage != "untrained" else {})
                kept = {"key": np.array([f"p{n}" for n in range(30)]), "features": features(arm, seed, stage, layer)}
                add(folder, "pictures", f"layer-{layer}", metrics, kept, chance={}, about={"rdms": {"V1": 12}})
            for task in ("knn", "linear_probe", "few_shot_1", "few_shot_5", "few_shot_16"):
                correct = np.arange(40) < 20 + 4 * (arm == "perceptual") + seed
                arrays = {name: np.array([f"k{n}" for n in range(40)]) for name in ("key", "clusters")}
                arrays |= {"label": np.arange(40) % 4, "prediction": np.where(correct, np.arange(40) % 4, 4), "correct": correct}
                facts = {"chance": {"acc1": 0.25}, "main_metric": "acc1", "dataset_identity": identity}
                add(folder, "demo-categories", task, {"acc1": correct.mean()}, arrays, **facts)
    return uri


def written(uri: str) -> tuple[dict, str, str]:
    """results.json, the page and its Markdown."""
    found = write_report(uri, [])
    folder = Path(found["report"]).parent
    return json.loads((folder / "results.json").read_text()), (folder / "index.html").read_text(), (folder / "report.md").read_text()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of three arms and two seeds."""
    uri = experiment(tmp_path_factory.mktemp("report"))
    return (uri, *written(uri))


def row_of(rows, **said):
    (row,) = [row for row in rows if said.items() <= row.items()]
    return row


def test_arms_are_set_beside_each_other_by_their_kept_features(report):
    """Layer by layer and seed by seed; where an arm has no tower, the perceptual arm's of the seed is taken."""
    _, results, _, _ = report
    alike = results["representation"]["similarity"]
    for layer in LAYERS:
        expected = [
            similarity.cka(features("perceptual", seed, "contrastive", layer), features("random", seed, "contrastive", layer))
            for seed in (0, 1)
        ]
        row = row_of(alike, layer=layer, arm="perceptual", to="random")
        assert row["seeds"] == [0, 1]
        assert row["values"] == pytest.approx(expected)
        assert row["mean"] == pytest.approx(np.mean(expected))
        towers = [
            similarity.cka(features("random", s, "contrastive", layer), features("perceptual", s, "perceptual", layer)) for s in (0, 1)
        ]
        assert row_of(alike, layer=layer, arm="random", to="tower of perceptual")["values"] == pytest.approx(towers)
        assert row_of(alike, layer=layer, arm="perceptual", to="tower")["values"] == [0.75, 0.75]
        assert row_of(alike, layer=layer, arm="shuffled", to="start")["mean"] == 0.25
    assert [row["layer"] for row in alike if (row["arm"], row["to"]) == ("perceptual", "random")] == list(LAYERS)


def test_rsa_of_every_kind_of_model_is_there_once(report):
    """The untrained model is the same in every cell of a seed."""
    _, results, _, _ = report
    rows = [row for row in results["representation"]["rsa"] if row["layer"] == "02"]
    assert [(row["model"], row["seeds"], row["mean"]) for row in rows] == [
        (model, [0, 1], -0.125) for model in ("untrained", "random", "tower of perceptual", "perceptual", "tower of shuffled", "shuffled")
    ]


def test_probes_are_paired_beside_zero_shot(report):
    """With intervals over seeds and over items, and without becoming endpoints or sets."""
    _, results, _, _ = report
    found = results["representation"]
    row = row_of(found["probes"], task="linear_probe", arm="perceptual", against="random")
    assert row["differences"] == pytest.approx([0.1, 0.1])
    assert row["over"] == "seeds"
    assert row["items"]["low"] > 0
    assert row_of(found["probes"], task="zeroshot_classification", arm="perceptual", against="random")["dataset"] == "demo-categories"
    assert row_of(found["probe_scores"], task="knn", model="untrained")["seeds"] == [0, 1]
    assert {row["task"] for row in results["sets"]} == {"zeroshot_classification", "zeroshot_retrieval", "2afc"}
    assert len(results["endpoints"]) == 3


def test_page_and_markdown_show_it_and_the_schema_holds(report):
    """Tables by layer; figures outside [0, 1], such as a negative RSA, are no scores."""
    _, results, page, text = report
    assert not list(faults(results, SCHEMA))
    assert '<h2 id="representation">Representation</h2>' in page
    assert "| 02 | −0.125 |" in text
    assert "RSA with V1, pictures, 12 pictures, means over seeds:" in text
    assert "| layer | perceptual and random | shuffled and random | perceptual and shuffled |" in text
    assert "linear probe" in page
    assert "16 per class" in page


def test_each_point_of_an_axis_pairs_its_own_cells(tmp_path):
    """By arm, point and seed: on the page's own point, which no cell's recipe has here, and on the other, beside the shared baseline."""
    uri = experiment(tmp_path, arms=("random", "perceptual"), fractions=(0.25, 0.5), checkpoints=(50,), items=20)
    results, page, text = written(uri)

    assert results["point"]["point"] == "triplets-0.5"
    (other,) = results["at_points"]
    assert (other["point"], other["at"]) == ("triplets-0.25", {"triplets": 0.25})
    for point, found in (("triplets-0.5", results), ("triplets-0.25", other)):
        expected = [
            similarity.cka(features(f"perceptual{point}", seed, "contrastive", "02"), features("random", seed, "contrastive", "02"))
            for seed in (0, 1)
        ]
        row = row_of(found["representation"]["similarity"], layer="02", arm="perceptual", to="random")
        assert row["values"] == pytest.approx(expected)
        scores = {
            (row["arm"], row["seed"]): row["value"]
            for row in results["metrics"]
            if row["step"] == 50 and row["task"] == "2afc" and row["dataset"].endswith("test") and row["point"] in ("", point)
        }
        halfway = row_of(found["trajectory"]["differences"], endpoint="2afc", epoch=0.5)
        assert halfway["differences"] == pytest.approx([scores["perceptual", seed] - scores["random", seed] for seed in (0, 1)])
    halves = [
        row for row in other["representation"]["through_time"] if (row["layer"], row["arm"], row["epoch"]) == ("02", "perceptual", 0.5)
    ]
    assert {row["figure"] for row in halves} == {"cka_start", "cka_tower", "rsa:V1"}
    assert (
        "| epoch | random, CKA to start | perceptual, CKA to start | perceptual, CKA to tower | random, rsa:V1 | perceptual, rsa:V1 |"
        in text
    )
    assert len(other["representation"]["probes"]) == len(results["representation"]["probes"]) > 0
    assert not list(faults(results, SCHEMA))
    assert page.count("<summary>At point triplets-0.25</summary>") == 2
    assert "### Representation at point triplets-0.25" in text
    assert "### Over training at point triplets-0.25" in text


def test_a_damaged_layer_costs_its_comparisons_and_is_named(tmp_path):
    """The other layers and all other figures stay."""
    uri = experiment(tmp_path, arms=("random", "perceptual"), seeds=(0,))
    place = Path(uri, "random-seed0", "evaluation", "contrastive-final", "pictures_layer-02.items.npz")
    place.write_bytes(place.read_bytes()[:-9])
    results, _, _ = written(uri)
    alike = results["representation"]["similarity"]
    assert not [row for row in alike if (row["layer"], row["to"]) == ("02", "random")]
    assert row_of(alike, layer="01", to="random")
    (row,) = [row for row in results["excluded"] if row["what"].endswith("pictures_layer-02.items.npz")]
    assert row["damaged"]


def test_without_representation_the_section_is_not_there(tmp_path):
    """An experiment that did not ask for it has a page as before."""
    results, page, text = written(fabricate(tmp_path))
    assert not any(results["representation"].values())
    assert "Representation</h2>" not in page
    assert "## Representation" not in text
