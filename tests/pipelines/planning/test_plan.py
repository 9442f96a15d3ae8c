import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.planning import plan, writing
from pipelines.planning.arms import parse_arms
from pipelines.planning.writing import write_plan
from pipelines.steps.planning import make_plan
from tests.pipelines.data import ask, commit, seal
from trainer.config import EVALUATION_VERSION, DataConfig, EvaluateConfig, Recipe, StageConfig, recipe_hash
from trainer.configs import load_recipe, load_yaml, parse_config
from trainer.errors import InputError
from trainer.storage import join, layout, plans, read_bytes, read_json, read_text, write_bytes, write_json
from trainer.storage.plans import read_plan

MOVED = {"data": {"uri": "elsewhere", "identity": "p"}}


def experiment_of(root: str, recipe: str = "smoke", **weights: str) -> plan.Experiment:
    """An experiment on data that nobody reads."""
    pairs, triplets = DataConfig(uri="pairs", identity="p"), DataConfig(uri="triplets", identity="t")
    return plan.Experiment(root=root, name="demo", recipe=load_recipe(recipe), pairs=pairs, triplets=triplets, weights=weights)


def cell(root: str, arm: str, seed: int = 0) -> plan.Cell:
    """One resolved cell."""
    return plan.resolve(experiment_of(root), parse_arms(arm)[0], seed)


def test_the_random_arm_has_a_contrastive_stage_alone():
    """Its folder is that of the design's layout."""
    resolved = cell("/r", "random")

    assert [stage.stage for stage in resolved.stages()] == ["contrastive"]
    assert resolved.contrastive.output == "/r/experiments/demo/random-seed0/contrastive"
    assert resolved.contrastive.start.kind == "random"


def test_the_perceptual_arm_starts_from_its_tower():
    """By the hash that the tower's seal will carry."""
    resolved = cell("/r", "perceptual")

    assert resolved.perceptual is not None
    assert resolved.contrastive.start.kind == "tower"
    assert resolved.contrastive.start.recipe_hash == recipe_hash(resolved.perceptual)
    assert resolved.contrastive.start.uri == layout.final(resolved.perceptual.output)
    assert resolved.perceptual.output == f"/r/experiments/demo/towers/{recipe_hash(resolved.perceptual)}"


def test_perceptual_and_permuted_share_one_tower():
    """The same configuration in the same folder; arms with other labels have another."""
    assert cell("/r", "perceptual").perceptual == cell("/r", "permuted").perceptual
    assert cell("/r", "perceptual").perceptual != cell("/r", "shuffled").perceptual


def test_a_tower_is_of_one_seed():
    """Seeds share nothing."""
    assert cell("/r", "perceptual", 0).perceptual != cell("/r", "perceptual", 1).perceptual


def test_posthoc_starts_from_the_base_arms_model_of_the_same_seed():
    """Which is the random arm's own cell, so that it is trained once."""
    resolved = cell("/r", "posthoc", 3)

    assert resolved.contrastive == cell("/r", "random", 3).contrastive
    assert resolved.posthoc is not None
    assert resolved.posthoc.start.recipe_hash == recipe_hash(resolved.contrastive)
    assert resolved.posthoc.output == "/r/experiments/demo/posthoc-seed3/posthoc"


def test_posthoc_after_the_perceptual_arm_needs_its_tower_too(tmp_path: Path):
    """posthoc.base says after which arm."""
    asked = experiment_of(str(tmp_path))
    posthoc = dataclasses.replace(asked.recipe.posthoc, base="perceptual")
    asked = dataclasses.replace(asked, recipe=dataclasses.replace(asked.recipe, posthoc=posthoc))

    stages = plan.resolve(asked, parse_arms("posthoc")[0], 0).stages()

    assert [stage.stage for stage in stages] == ["perceptual", "contrastive", "posthoc"]


@pytest.mark.parametrize(
    ("arm", "models"),
    [
        ("random", ["untrained", "contrastive"]),
        ("perceptual", ["untrained", "perceptual", "contrastive"]),
        ("permuted", ["untrained", "contrastive"]),
        ("posthoc", ["untrained", "posthoc"]),
    ],
)
def test_what_is_measured_is_the_arms_own(arm: str, models: list[str]):
    """And always the untrained model beside it."""
    assert [model.stage for model in cell("/r", arm).evaluation.models] == models


def test_an_arm_from_a_tower_carries_the_hash_of_its_weights(tmp_path: Path):
    """Taken from the seal of the tower."""
    commit(str(tmp_path / "stage"), "h", vision_sha256="abc")
    arms = parse_arms(f"from:{tmp_path}/stage/final")

    weights = plan.weights_of(arms)
    resolved = plan.resolve(dataclasses.replace(experiment_of(str(tmp_path)), weights=weights), arms[0], 0)

    assert resolved.contrastive.start.recipe_hash == "abc"


def test_an_arm_from_a_folder_without_a_seal_is_refused(tmp_path: Path):
    """It may be half-written."""
    with pytest.raises(InputError, match=r"no COMMITTED\.json there"):
        plan.weights_of(parse_arms(f"from:{tmp_path}"))


def test_what_is_written_is_what_was_resolved(root: str):
    """Every config.yaml reads back as it was, and plan.json names their hashes."""
    asked = experiment_of(root)
    cells = [plan.resolve(asked, arm, 0) for arm in parse_arms("random,perceptual,posthoc")]

    write_plan(asked, cells)

    entries = read_json(join(asked.uri, "plan.json"))["cells"]
    assert [entry["cell"] for entry in entries] == ["random-seed0", "perceptual-seed0", "posthoc-seed0"]
    for entry, resolved in zip(entries, cells, strict=True):
        evaluation = read_bytes(join(entry["evaluation"], "config.yaml")).decode()
        assert parse_config(EvaluateConfig, load_yaml(evaluation, "")) == resolved.evaluation
        for stage in resolved.stages():
            text = read_bytes(join(entry[stage.stage], "config.yaml")).decode()
            assert parse_config(StageConfig, load_yaml(text, "")) == stage
            assert entry["recipe_hashes"][stage.stage] == recipe_hash(stage)


def with_epochs(asked: plan.Experiment, epochs: int) -> plan.Experiment:
    """The request with a contrastive stage of another length."""
    contrastive = dataclasses.replace(asked.recipe.contrastive, epochs=epochs)
    return dataclasses.replace(asked, recipe=dataclasses.replace(asked.recipe, contrastive=contrastive))


def files(folder: Path) -> dict[Path, bytes]:
    """Everything below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("planned", ["here", "by ad127be"])
def test_another_recipe_for_a_cell_is_refused(tmp_path: Path, planned: str):
    """The keys that differ are named with both values, and nothing is written."""
    first = experiment_of(str(tmp_path))
    write_plan(first, [plan.resolve(first, arm, 0) for arm in parse_arms("random,perceptual")])
    if planned == "by ad127be":
        as_format_1(first)
    before = files(tmp_path)
    second = with_epochs(first, 7)

    said = r"cell random-seed0 of experiment demo was planned with .*: recipe\.contrastive\.epochs: 1 -> 7: give"
    with pytest.raises(InputError, match=said):
        write_plan(second, [plan.resolve(second, arm, 0) for arm in parse_arms("instance,random")])

    assert before == files(tmp_path)


def test_another_recipe_for_a_stage_that_was_begun_is_refused(tmp_path: Path):
    """Its cell never finished, so that the plan has forgotten it; its folder has not."""
    first = experiment_of(str(tmp_path))
    write_plan(first, [plan.resolve(first, parse_arms("random")[0], 0)])
    write_plan(first, [plan.resolve(first, parse_arms("perceptual")[0], 0)])
    second = with_epochs(first, 7)

    with pytest.raises(InputError, match=r"experiment demo .*random-seed0/contrastive/config\.yaml.* contrastive\.epochs: 1 -> 7"):
        write_plan(second, [plan.resolve(second, parse_arms("random")[0], 0)])


def test_another_cell_may_have_another_recipe(tmp_path: Path):
    """Each cell names its own, and each recipe is in the plan once."""
    first = experiment_of(str(tmp_path))
    finished = [plan.resolve(first, arm, 0) for arm in parse_arms("random,perceptual")]
    write_plan(first, finished)
    for cell in finished:
        commit(cell.contrastive.output, recipe_hash(cell.contrastive))
    second = with_epochs(first, 7)

    write_plan(second, [plan.resolve(second, parse_arms("permuted")[0], 0), plan.resolve(second, parse_arms("random")[0], 0, "long")])

    written = read_json(join(first.uri, "plan.json"))
    epochs = {entry["cell"]: written["recipes"][entry["recipe"]]["contrastive"]["epochs"] for entry in written["cells"]}
    assert epochs == {"random-seed0": 1, "perceptual-seed0": 1, "permuted-seed0": 7, "random-long-seed0": 7}
    assert len(written["recipes"]) == 2


def test_a_point_names_a_cell_beside_the_others():
    """Its folder, its stages and its evaluation; the tower that points share is of no cell."""
    resolved = plan.resolve(experiment_of("/r"), parse_arms("posthoc")[0], 3, "dose-10")
    tower = cell("/r", "perceptual").perceptual

    assert (resolved.name, resolved.point) == ("posthoc-dose-10-seed3", "dose-10")
    assert resolved.posthoc is not None
    assert resolved.posthoc.output == "/r/experiments/demo/posthoc-dose-10-seed3/posthoc"
    assert (resolved.posthoc.cell, resolved.posthoc.point) == ("posthoc-dose-10-seed3", "dose-10")
    assert (resolved.contrastive.cell, resolved.contrastive.arm) == ("random-dose-10-seed3", "random")
    assert (resolved.evaluation.cell, resolved.evaluation.point) == ("posthoc-dose-10-seed3", "dose-10")
    assert tower is not None
    assert (tower.cell, tower.arm) == ("", "perceptual")


def as_format_1(asked: plan.Experiment) -> None:
    """Turn plan.json into what ad127be would have written."""
    written = read_json(join(asked.uri, "plan.json"))
    del written["sha256"]
    ((_, written["recipe"]),) = written.pop("recipes").items()
    for entry in written["cells"]:
        entry["stage_arms"] = {stage: labels["arm"] for stage, labels in entry.pop("stage_labels").items()}
        del entry["recipe"], entry["point"]
    write_json(join(asked.uri, "plan.json"), {**written, "format_version": 1})


def test_a_plan_of_format_1_is_upgraded_and_keeps_its_finished_cells(tmp_path: Path):
    asked = experiment_of(str(tmp_path))
    finished = [plan.resolve(asked, arm, 0) for arm in parse_arms("random,perceptual,posthoc")]
    write_plan(asked, finished)
    before = read_plan(asked.uri)
    for cell in finished[:2]:
        commit(cell.contrastive.output, recipe_hash(cell.contrastive))
    as_format_1(asked)
    assert read_plan(asked.uri) == before

    write_plan(asked, [finished[2]])

    assert read_plan(asked.uri) == before


def test_a_configuration_that_says_the_same_is_left_as_it_is(tmp_path: Path):
    """A job of an older version reads it again when it is restarted: it would refuse keys that it does not know."""
    asked = experiment_of(str(tmp_path))
    cells = [plan.resolve(asked, parse_arms("perceptual")[0], 0)]
    write_plan(asked, cells)
    uris = [layout.config(part.output) for part in (*cells[0].stages(), cells[0].evaluation)]
    for uri in uris:
        values = load_yaml(read_text(uri), uri)
        del values["cell"], values["point"]
        values["placement"] = {"keep_last": 5}
        write_bytes(uri, yaml.safe_dump(values).encode())
    before = [read_text(uri) for uri in uris]

    write_plan(asked, cells)

    assert [read_text(uri) for uri in uris] == before


def test_planning_the_same_again_parses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Parsing a configuration takes a tenth of a second; a large experiment has hundreds."""
    asked = experiment_of(str(tmp_path))
    cells = [plan.resolve(asked, arm, 0) for arm in parse_arms("random,perceptual")]
    write_plan(asked, cells)
    before = files(tmp_path)
    monkeypatch.delattr(writing, "read_stored")

    asked = dataclasses.replace(asked, request="another.json")
    write_plan(asked, [plan.resolve(asked, arm, 0) for arm in parse_arms("random,perceptual")])

    after = files(tmp_path)
    assert read_json(join(asked.uri, "plan.json"))["request"] == "another.json"
    assert {path: text for path, text in after.items() if before[path] != text}.keys() == {Path(asked.uri, "plan.json")}


@pytest.mark.parametrize("change", [MOVED, {"placement": {"checkpoint_every_epochs": 3}}, {"placement": {"trajectory": True}}, None])
def test_a_configuration_that_says_something_else_is_written_anew(tmp_path: Path, change: dict[str, Any] | None):
    """Data that moved, or an evaluation's file that nobody can read; the recipe is the same."""
    asked = experiment_of(str(tmp_path))
    cells = [plan.resolve(asked, parse_arms("random")[0], 0)]
    write_plan(asked, cells)
    uri = layout.config((cells[0].contrastive if change else cells[0].evaluation).output)
    before = read_text(uri)
    write_bytes(uri, yaml.safe_dump({**load_yaml(before, uri), **change}).encode() if change else b"a: [")

    write_plan(asked, cells)

    assert read_text(uri) == before


@pytest.mark.parametrize("lost", [False, True])
def test_an_experiment_keeps_the_evaluation_version_of_its_first_plan(tmp_path: Path, lost: bool):
    """What an older version planned stays at 1, its later cells too, also where its plan.json is lost; a new one gets today's."""
    asked = experiment_of(str(tmp_path))
    arms = [plan.resolve(asked, arm, 0) for arm in parse_arms("random,perceptual")]
    write_plan(asked, arms[:1])
    assert read_plan(asked.uri)["evaluation_version"] == EVALUATION_VERSION
    as_version_1(asked, arms[0])

    if lost:
        (tmp_path / "experiments" / "demo" / "plan.json").unlink()
    write_plan(asked, arms)
    assert "evaluation_version" not in read_plan(asked.uri)
    stored = [load_yaml(read_text(layout.config(one.evaluation.output)), "stored") for one in arms]
    assert [values.get("evaluation_version", 1) for values in stored] == [1, 1]
    assert "evaluation_version" not in stored[0]  # a job of the older version may read it again


def as_version_1(asked: plan.Experiment, planned: plan.Cell) -> None:
    """Plan and configuration as 0.1.0 wrote them."""
    found = read_plan(asked.uri)
    del found["evaluation_version"]
    plans.write_plan(asked.uri, found)
    place = layout.config(planned.evaluation.output)
    values = {key: value for key, value in load_yaml(read_text(place), place).items() if key != "evaluation_version"}
    write_bytes(place, yaml.safe_dump(values, sort_keys=False).encode())


def test_a_newer_evaluation_version_is_refused(tmp_path: Path):
    """Its figures cannot be made here."""
    asked = experiment_of(str(tmp_path))
    planned = [plan.resolve(asked, parse_arms("random")[0], 0)]
    write_plan(asked, planned)
    plans.write_plan(asked.uri, {**read_plan(asked.uri), "evaluation_version": EVALUATION_VERSION + 1})
    with pytest.raises(InputError, match="evaluation_version must be 1 to 2, which this firstsight knows, got 3"):
        write_plan(asked, planned)


def test_other_data_on_the_same_experiment_is_refused(tmp_path: Path):
    """Runs on other data are never compared."""
    first = experiment_of(str(tmp_path))
    write_plan(first, [plan.resolve(first, parse_arms("random")[0], 0)])
    second = dataclasses.replace(first, pairs=DataConfig(uri="pairs", identity="other"))

    with pytest.raises(InputError, match="pairs: 'p' -> 'other'"):
        write_plan(second, [plan.resolve(second, parse_arms("random")[0], 0)])


def test_cells_that_finished_stay_in_the_plan(tmp_path: Path):
    """So that a later run with other arms reports them all; what never finished is not missed."""
    asked = experiment_of(str(tmp_path))
    finished, unfinished = (plan.resolve(asked, parse_arms("random")[0], seed) for seed in (0, 1))
    write_plan(asked, [finished, unfinished])
    commit(finished.contrastive.output, recipe_hash(finished.contrastive))

    write_plan(asked, [plan.resolve(asked, parse_arms("perceptual")[0], 0)])

    written = read_json(join(asked.uri, "plan.json"))
    assert [entry["cell"] for entry in written["cells"]] == ["random-seed0", "perceptual-seed0"]
    assert (written["arms"], written["seeds"]) == (["random", "perceptual"], [0])


def test_further_evaluation_sets_carry_the_identity_of_their_manifest(tmp_path: Path):
    """A folder of another tool has none."""
    staged = seal(str(tmp_path), "evaluation")
    write_bytes(f"{tmp_path}/other/test/nshards.txt", b"1")

    sets = plan.read_sets(f"{staged}, {tmp_path}/other")

    assert [bool(part.identity) for part in sets] == [True, False]
    asked = dataclasses.replace(experiment_of(str(tmp_path)), sets=sets)
    assert plan.resolve(asked, parse_arms("random")[0], 0).evaluation.sets == sets


def test_a_set_that_is_not_there_is_said_before_anything_is_trained(tmp_path: Path):
    """Not after days of training."""
    with pytest.raises(InputError, match=r"evaluation set .*/nowhere: neither manifest\.json nor test/nshards\.txt exists there"):
        plan.read_sets(f"{tmp_path}/nowhere")


def test_evaluation_through_time_keeps_the_checkpoints_it_needs():
    """The recipe's evaluation decides of which epochs the contrastive stage keeps the weights; no recipe hash knows of it."""
    recipe = Recipe(evaluation=dataclasses.replace(Recipe().evaluation, every_epochs=4, trajectory=True))
    asked = [dataclasses.replace(experiment_of("/r"), recipe=one) for one in (recipe, Recipe())]

    stage, plain = (plan.resolve(one, parse_arms("random")[0], 0).contrastive for one in asked)
    assert (stage.placement.checkpoint_every_epochs, stage.placement.trajectory) == (4, True)
    assert recipe_hash(stage) == recipe_hash(plain)


def test_judged_needs_flips_judgement_of_peoples_triplets():
    """Which staging makes where the recipe asks for it."""
    arms, recipe = parse_arms("judged"), load_recipe("smoke")

    with pytest.raises(InputError, match=r"set staging\.flip_judges_too: true"):
        plan.require_judge(arms, "people", recipe)
    plan.require_judge(arms, "people", load_recipe("smoke", ["staging.flip_judges_too=true"]))


def test_the_plan_step_takes_identities_from_the_manifests(tmp_path: Path):
    """And returns the lanes, with a page that names their cells, seed by seed."""
    pairs, triplets = seal(str(tmp_path), "pairs"), seal(str(tmp_path), "triplets", judge="people")

    request = ask(str(tmp_path), experiment="e", arms="random,shuffled", seeds="0,1")
    lanes, page = make_plan(request=request, pairs=pairs, triplets=triplets)

    assert lanes == ["lane-1-of-1"]
    assert "| `lane-1-of-1` | 1 | `random-seed0`, `shuffled-seed0`, `random-seed1`, `shuffled-seed1` |" in page


def test_judged_is_refused_where_flip_was_the_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It would equal the perceptual arm; the plan step ends with 2 and leaves failure.json."""
    pairs, triplets = seal(str(tmp_path), "pairs"), seal(str(tmp_path), "triplets", judge="FLIP")
    request = ask(str(tmp_path), experiment="e", arms="random,judged", triplets=triplets, set="staging.flip_judges_too=true")

    with pytest.raises(SystemExit) as raised:
        make_plan(request=request, pairs=pairs, triplets=triplets)

    assert raised.value.code == 2
    assert "judged by FLIP" in capsys.readouterr().err
    assert read_json(str(tmp_path / "experiments/e/failure.json"))["exit_code"] == 2
