import html
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.conftest import page_after
from tests.report.fabricate import Fabrication, fabricate
from trainer.config import recipe_fields
from trainer.errors import Corrupt, InputError
from trainer.report.read import read_experiment
from trainer.report.results import build
from trainer.storage import read_json, write_json
from trainer.storage.base import local_path
from trainer.storage.figures import items_uri, read_figures, write_figures
from trainer.storage.recipes import read_stage

CATEGORIES = "demo-categories_zeroshot_classification.json"


def path(uri: str, *parts: str) -> Path:
    root = local_path(uri)
    assert root is not None
    return root.joinpath(*parts)


def change(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file, `a__b` for nested ones."""
    value = read_json(str(file))
    for name, new in changes.items():
        *outer, last = name.split("__")
        place = value
        for key in outer:
            place = place[key]
        place[last] = new
    write_json(str(file), value)


def change_figures(file: Path, **changes: Any) -> None:
    """The same of figures, with the checksums that the change would have if it had been measured."""
    value = read_figures(str(file))
    for name, new in changes.items():
        outer, _, inner = name.partition("__")
        (value[outer] if inner else value)[inner or outer] = new
    write_figures(str(file), value, Path(items_uri(str(file))).read_bytes())


def excluded(uri: str) -> str:
    """What a report of the experiment leaves out, as text."""
    experiment = read_experiment(uri)
    build(experiment, [])
    return "\n".join(f"{row['what']}: {row['why']}" for row in experiment.excluded)


def missing(uri: str) -> dict[str, str]:
    return {row["cell"]: row["why"] for row in read_experiment(uri).missing}


def test_arms_are_read_from_the_configuration(three_seeds: str) -> None:
    """All five arms come back by their start, labels and stages."""
    experiment = read_experiment(three_seeds)
    assert experiment.arms == ["random", "perceptual", "permuted", "instance", "posthoc"]
    assert not experiment.missing
    assert not experiment.excluded


def test_a_name_that_lies_is_corrected(fresh: str) -> None:
    """A plan that calls the random arm `wonder` gets it shown as random, and says so."""
    plan = read_json(fresh + "/plan.json")
    plan["cells"][0]["arm"] = "wonder"
    write_json(fresh + "/plan.json", plan)
    for file in path(fresh, "random-seed0", "evaluation").rglob("*.json"):
        change_figures(file, firstsight__arm="wonder")
    experiment = read_experiment(fresh)
    assert experiment.arms == ["random", "perceptual"]
    assert "its configuration says 'random'" in experiment.excluded[0]["why"]


def test_no_plan_is_refused(tmp_path: Path) -> None:
    """A folder that is no experiment's is named."""
    with pytest.raises(InputError, match=r"plan\.json: no plan here"):
        read_experiment(str(tmp_path))


def test_a_torn_plan_is_refused(fresh: str) -> None:
    """Half a plan is no plan."""
    path(fresh, "plan.json").write_text('{"format_version": 1, "exp')
    with pytest.raises(Corrupt, match="not JSON"):
        read_experiment(fresh)


def test_a_plan_of_format_1_reads_the_same(fresh: str) -> None:
    """It had one recipe for all cells."""
    expected = read_experiment(fresh)
    plan = read_json(fresh + "/plan.json")
    ((_, plan["recipe"]),) = plan.pop("recipes").items()
    for entry in plan["cells"]:
        del entry["recipe"], entry["point"]
    write_json(fresh + "/plan.json", {**plan, "format_version": 1})

    found = read_experiment(fresh)

    assert (found.cells, found.missing, found.excluded) == (expected.cells, [], [])
    assert build(found, [])[0]["recipe"] == build(expected, [])[0]["recipe"] == "smoke"


def test_a_plan_of_a_newer_version_is_refused(fresh: str) -> None:
    """Nothing in it is guessed."""
    change(path(fresh, "plan.json"), format_version=9)
    with pytest.raises(InputError, match=r"plan\.json: format 9 is newer than this firstsight can read"):
        read_experiment(fresh)


@pytest.mark.parametrize("key", ["experiment", "root", "arms", "seeds", "pairs", "triplets"])
def test_a_plan_that_lacks_something_is_refused(fresh: str, key: str) -> None:
    """What is missing is named."""
    plan = read_json(fresh + "/plan.json")
    del plan[key]
    write_json(fresh + "/plan.json", plan)
    with pytest.raises(InputError, match=f"not an experiment's plan: {key} missing"):
        read_experiment(fresh)


def test_an_unfinished_cell_is_missing_by_its_failure(fresh: str) -> None:
    """Without its seal a cell is missing; failure.json says why, and the failure is listed."""
    path(fresh, "perceptual-seed0", "contrastive", "final", "COMMITTED.json").unlink()
    write_json(
        fresh + "/perceptual-seed0/contrastive/failure.json", {"time": 1, "stage": "contrastive", "exit_code": 1, "line": "disk full"}
    )
    experiment = read_experiment(fresh)
    assert experiment.missing == [{"cell": "perceptual-seed0", "why": "contrastive failed: disk full", "damaged": False}]
    assert experiment.failures[0]["exit_code"] == 1


def test_a_mended_failure_is_no_failure(fresh: str) -> None:
    """A failure that a later attempt finished is not shown."""
    write_json(fresh + "/perceptual-seed0/contrastive/failure.json", {"line": "disk full", "exit_code": 1})
    experiment = read_experiment(fresh)
    assert not experiment.failures
    assert not experiment.missing


def test_other_training_data_are_refused(fresh: str) -> None:
    """A cell trained on other pairs than planned takes no part, and is named."""
    change(path(fresh, "plan.json"), pairs__identity="f" * 64)
    assert "the plan says ffffffffffff: rejected" in missing(fresh)["random-seed0"]


def test_a_changed_configuration_is_refused(older: str) -> None:
    """config.yaml must hash to what lineage and seal say; the lineage's recipe names the key."""
    file = path(older, "random-seed0", "contrastive", "config.yaml")
    change(path(older, "random-seed0", "contrastive", "lineage.json"), recipe=recipe_fields(read_stage(str(file))))
    file.write_text(file.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
    line = "the plan names a different recipe from config.yaml: contrastive.optimizer.learning_rate: 0.001 -> 0.002: rejected"
    assert line in missing(older)["random-seed0"]


@pytest.mark.parametrize(
    ("text", "words"), [("a: [", "not YAML"), ("words", "expected a mapping"), ("surprise: 1", "a newer version wrote this file")]
)
def test_a_broken_configuration_is_refused(fresh: str, text: str, words: str) -> None:
    """Whatever config.yaml holds instead, the cell is named and the report goes on."""
    path(fresh, "random-seed0", "contrastive", "config.yaml").write_text(text)
    assert words in missing(fresh)["random-seed0"]


def test_other_weights_than_the_lineages_are_refused(older: str) -> None:
    """The sealed weights must be those that lineage.json names."""
    change(path(older, "random-seed0", "contrastive", "lineage.json"), weights_sha256="0" * 64, vision_sha256="0" * 64)
    assert "differ from those that its lineage names" in missing(older)["random-seed0"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"firstsight__weights_sha256": "0" * 64}, "is not the contrastive stage's final one"),
        ({"firstsight__recipe_hash": "0" * 64}, "is not that of the contrastive stage"),
        ({"firstsight__dataset_identity": "0" * 64}, "measured on data set 000000000000"),
        ({"firstsight__evaluation_version": "9-exact-fp32"}, "evaluation version 9-exact-fp32"),
        ({"firstsight__seed": 7}, "which is not this cell"),
        ({"metrics": {"acc1": float("nan")}}, "acc1 is not a finite number"),
        ({"metrics": {}}, "no metric is not a finite number"),
        ({"firstsight": None}, "not a firstsight evaluation"),
    ],
)
def test_a_result_that_does_not_belong_is_left_out_by_name(fresh: str, changes: dict[str, Any], words: str) -> None:
    """Another model, data set, version or cell, or a NaN: excluded, and the endpoint lacks this cell."""
    file = path(fresh, "random-seed0", "evaluation", "contrastive-final", CATEGORIES)
    if changes == {"firstsight": None}:
        change(file, **changes)
    else:
        change_figures(file, **changes)
    assert words in excluded(fresh)
    results, _ = build(read_experiment(fresh), [])
    assert "main_zero_shot" not in {row["endpoint"] for row in results["contrasts"]}


def test_a_half_written_result_is_left_out_by_name(fresh: str) -> None:
    """Half a JSON file is named, and the others still count."""
    file = path(fresh, "random-seed0", "evaluation", "contrastive-final", CATEGORIES)
    file.write_text(file.read_text()[:100])
    assert f"{CATEGORIES}: not JSON" in excluded(fresh)


@pytest.mark.parametrize("how", ["missing", "torn", "other items", "other sum", "nan"])
def test_items_that_cannot_be_paired_cost_the_interval_only(fresh: str, how: str) -> None:
    """The difference stays, the interval over items goes, and the file is named."""
    file = path(fresh, "random-seed0", "evaluation", "contrastive-final", CATEGORIES.replace(".json", ".items.npz"))
    arrays = dict(np.load(file))
    if how == "missing":
        file.unlink()
    elif how == "torn":
        file.write_bytes(file.read_bytes()[:50])
    else:
        if how == "other items":
            arrays["key"] = np.array([f"other-{key}" for key in arrays["key"]])
        elif how == "other sum":
            arrays["correct"] = ~arrays["correct"]
        else:
            arrays["correct"] = np.full(len(arrays["correct"]), np.nan)
        np.savez_compressed(file, **arrays)
        change_figures(file.with_name(CATEGORIES))
    experiment = read_experiment(fresh)
    results, _ = build(experiment, [])
    row = next(row for row in results["contrasts"] if row["endpoint"] == "main_zero_shot")
    assert row["low"] is None
    assert any(CATEGORIES.removesuffix(".json") in entry["what"] for entry in experiment.excluded)


def test_a_figure_that_is_too_large_is_excluded(fresh: str) -> None:
    """JSON holds whole numbers of any size."""
    change_figures(path(fresh, "random-seed0", "evaluation", "contrastive-final", CATEGORIES), metrics={"acc1": 10**400})
    assert f"{CATEGORIES}: not a firstsight evaluation: OverflowError" in excluded(fresh)


def test_unequal_seeds_are_paired_where_they_are_equal(tmp_path: Path) -> None:
    """An arm with more seeds than the other is compared on those that both have, and the contrast names them."""
    from tests.report.fabricate import Fabrication, fabricate

    uri = fabricate(tmp_path, Fabrication(seeds=(0, 1, 2), items=40))
    path(uri, "random-seed1", "contrastive", "final", "COMMITTED.json").unlink()
    results, _ = build(read_experiment(uri), [])
    assert {tuple(row["seeds"]) for row in results["contrasts"]} == {(0, 2)}
    assert any("perceptual has seed 1 and random does not" in row["why"] for row in results["excluded"])
    assert [row["cell"] for row in results["missing"]] == ["random-seed1"]


def test_the_course_keeps_the_last_line_of_a_step(older: str) -> None:
    """A resumed run repeats steps."""
    file = path(older, "random-seed0", "contrastive", "progress.jsonl")
    file.write_text('{"step": 1, "loss": 9}\n{"step": 2, "loss": 8}\n{"step": 1, "loss": 7}\n{"step": 100, "loss": 5}\n')
    cell = read_experiment(older).cell("random", 0)
    assert cell is not None
    assert [(p["step"], p["loss"]) for p in cell.stages["contrastive"].progress] == [(1, 7), (2, 8), (100, 5)]


def test_an_arm_of_a_newer_version_keeps_its_name(tmp_path: Path) -> None:
    """Its labels are a kind that this version does not know: the page says so, and compares it all the same."""
    uri = fabricate(tmp_path, Fabrication(arms=("random", "perceptual", "ranked"), labels={"ranked": "ranks"}, items=80))

    page, results = page_after(uri)

    assert [row["arm"] for row in results["arms"]] == ["random", "perceptual", "ranked"]
    assert not results["missing"]
    assert not results["excluded"]
    said = results["arms"][2]["meaning"]
    assert said == "the vision tower was first trained on labels 'ranks', which this version of firstsight does not know"
    assert said in html.unescape(page)


def test_an_arm_under_another_name_is_still_that_arm(tmp_path: Path) -> None:
    """A tower that FLIP taught is the arm `judged`, whatever the plan calls it."""
    uri = fabricate(tmp_path, Fabrication(arms=("random", "seen-by-flip"), labels={"seen-by-flip": "flip"}, items=80))

    assert read_experiment(uri).arms == ["random", "judged"]


def test_a_name_of_ours_over_unknown_labels_is_corrected(tmp_path: Path) -> None:
    """What is called `perceptual` and learned from something unknown is not shown as perceptual."""
    uri = fabricate(tmp_path, Fabrication(labels={"perceptual": "ranks"}, items=80))

    experiment = read_experiment(uri)

    assert experiment.arms == ["random", "tower ranks"]
    assert "its configuration says 'tower ranks'" in experiment.excluded[0]["why"]
