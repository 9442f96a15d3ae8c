"""The job as a whole: figures and items are written, done ones are not done again, and faults are named."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.evaluation import build
from trainer import lineage
from trainer.config import DataConfig, EvaluationConfig
from trainer.configs import load_yaml
from trainer.errors import InputError, RunError
from trainer.evaluation import evaluate as evaluate_module
from trainer.evaluation import measure
from trainer.evaluation.evaluate import evaluate
from trainer.model import towers
from trainer.storage.arrays import read_arrays
from trainer.storage.committed import read_committed, write_committed
from trainer.storage.figures import items_uri, read_figures, write_figures


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


def make_cell(root):
    """Two sets, triplets, and three models, with the configuration that measures them all."""
    sets = [build.classification_set(root), build.retrieval_set(root)]
    pairs_uri, pairs = build.pairs_with(root, sets)
    triplets_uri, triplets = build.triplets_set(root)
    return build.config_at(
        root,
        models=build.one_of_each(root),
        pairs=DataConfig(uri=pairs_uri, identity=pairs.identity),
        triplets=DataConfig(uri=triplets_uri, identity=triplets.identity),
    )


@pytest.fixture
def cell(root):
    """A cell that nothing was measured of, the test's own."""
    return make_cell(root)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The root of a cell that was measured, for tests that only look."""
    root = str(tmp_path_factory.mktemp("measured"))
    assert evaluate(make_cell(root)) == {"wanted": 10, "done": 0, "written": 10}
    return root


@pytest.fixture
def measured_copy(measured, tmp_path):
    """The same, to be spoiled: (root, configuration). URIs in the configuration still name the original's data."""
    shutil.copytree(measured, tmp_path / "copy")
    root = str(tmp_path / "copy")
    path = Path(root, "evaluation", "config.yaml")
    path.write_text(path.read_text().replace(measured, root))
    return root, str(path)


def read(root, name):
    return json.loads(Path(root, "evaluation", f"{name}.json").read_text())


def items(root, name):
    return read_arrays(f"{root}/evaluation/{name}.items.npz")


def test_every_model_is_measured_on_every_set_that_suits_it(measured):
    """A tower alone has no text side, so 2AFC only; the others have all four figures."""
    written = sorted(str(path.relative_to(Path(measured, "evaluation"))) for path in Path(measured, "evaluation").glob("*/*.json"))

    both = ["captions_zeroshot_retrieval.json", "colours_zeroshot_classification.json"]
    afc = ["triplets-test_2afc.json", "triplets-val_2afc.json"]
    assert written == [
        *(f"contrastive-final/{name}" for name in both + afc),
        *(f"perceptual-final/{name}" for name in afc),
        *(f"untrained-final/{name}" for name in both + afc),
    ]


def test_figures_are_those_of_open_clips_own_model(measured):
    """The same set through open_clip's transform, towers and classifier gives the same predictions."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{measured}/contrastive/final")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{measured}/contrastive/final")
    with torch.inference_mode():
        weights = open_clip.build_zero_shot_classifier(
            model.eval(), tokenizer, build.CLASSES, [lambda c, t=t: t.replace("{c}", c) for t in build.TEMPLATES]
        )
        images = torch.stack([transform(Image.open(io.BytesIO(build.picture(k)))) for k in range(12)])
        expected = (model.encode_image(images, normalize=True) @ weights).argmax(dim=1)

    arrays = items(measured, "contrastive-final/colours_zeroshot_classification")
    assert arrays["prediction"].tolist() == expected.tolist()
    assert read(measured, "contrastive-final/colours_zeroshot_classification")["metrics"]["acc1"] == arrays["correct"].mean()


def test_a_result_says_what_it_depends_on_and_what_chance_is(measured):
    """CLIP_benchmark's keys, then hashes, chance and baselines; acc5 of three classes is null."""
    found = read(measured, "contrastive-final/colours_zeroshot_classification")
    block = found["firstsight"]
    seal = json.loads(Path(measured, "contrastive", "final", "COMMITTED.json").read_text())

    assert (found["dataset"], found["task"], found["model"], found["pretrained"]) == (
        "colours", "zeroshot_classification", "random-seed0", "contrastive-final"
    )  # fmt: skip
    assert found["metrics"]["acc5"] is None
    assert block["chance"] == {"acc1": 1 / 3, "acc5": 1.0, "mean_per_class_recall": 1 / 3}
    assert block["weights_sha256"] == seal["facts"]["weights_sha256"]
    assert (block["recipe_hash"], block["num_items"], block["step"]) == (seal["recipe_hash"], 12, "final")
    assert block["evaluation_version"] == "2-exact-fp32"


def test_two_afc_sets_pixel_mse_beside_the_model_and_names_the_judge(measured):
    """MSE always says image 1, which half of the votes say; groups are reported apart."""
    found = read(measured, "untrained-final/triplets-val_2afc")
    arrays = items(measured, "untrained-final/triplets-val_2afc")

    assert found["firstsight"]["baselines"] == {"pixel_mse": 0.5, "majority_of_judges": 1.0}
    assert found["firstsight"]["judge"] == "FLIP"
    assert set(found["metrics"]) == {"accuracy", "accuracy_imagenet", "accuracy_no_imagenet"}
    assert arrays["clusters"].tolist() == ["r0", "r0", "r1", "r1"]
    assert arrays["correct"].mean() == found["metrics"]["accuracy"]


def test_retrieval_items_hold_what_pairs_arms(measured):
    """Each caption's own image, its rank, and the first five."""
    found = read(measured, "contrastive-final/captions_zeroshot_retrieval")
    arrays = items(measured, "contrastive-final/captions_zeroshot_retrieval")

    assert arrays["text_image"].tolist() == [k // 2 for k in range(22)]
    assert arrays["top"].shape == (22, 5)
    assert (arrays["top"][:, 0] == arrays["text_image"]).mean() == found["metrics"]["image_retrieval_recall@1"]
    assert (arrays["text_rank"] < 5).mean() == found["metrics"]["text_retrieval_recall@5"]


def test_an_untrained_model_is_the_one_its_seed_builds(measured):
    """Its hash is that of build_model with the cell's seed."""
    state = towers.model_state(towers.build_model(build.MODEL, 0))
    expected = lineage.weights_sha256({name: value.numpy() for name, value in state.items()})

    assert read(measured, "untrained-final/captions_zeroshot_retrieval")["firstsight"]["weights_sha256"] == expected


def test_a_second_run_does_nothing_and_does_not_import_torch(measured):
    """Everything is there: the job finds that out without torch, changes no file, and leaves no more than its record of the check."""
    config = f"{measured}/evaluation/config.yaml"
    before = {path: path.stat().st_mtime_ns for path in Path(measured, "evaluation").rglob("*") if path.is_file()}
    code = (
        "import sys\nfrom trainer.evaluation.evaluate import evaluate\n"
        f"assert evaluate({config!r}) == {{'wanted': 10, 'done': 10, 'written': 0}}\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

    assert before == {path: path.stat().st_mtime_ns for path in Path(measured, "evaluation").rglob("*") if path.is_file()}


def _spoil(root, how):
    path = Path(root, "evaluation", "contrastive-final", "colours_zeroshot_classification.json")
    if how == "half-written":
        path.write_text(path.read_text()[:100])
    elif how == "no items":
        path.with_name("colours_zeroshot_classification.items.npz").unlink()
    else:
        value = read_figures(str(path))
        value["firstsight"]["weights_sha256"] = "0" * 64
        write_figures(str(path), value, Path(items_uri(str(path))).read_bytes())


@pytest.mark.parametrize(
    ("how", "said"), [("half-written", "not JSON"), ("no items", "missing"), ("other model", "weights_sha256 '000000000000'")]
)
def test_a_result_that_does_not_count_is_made_again_by_name(measured_copy, capsys, how, said):
    """Half a JSON, no items, or another model's hash under the same name."""
    root, cell = measured_copy
    good = read(root, "contrastive-final/colours_zeroshot_classification")
    _spoil(root, how)
    capsys.readouterr()

    assert evaluate(cell) == {"wanted": 10, "done": 9, "written": 1}
    printed = capsys.readouterr().out
    assert "colours_zeroshot_classification" in printed
    assert said in printed
    assert read(root, "contrastive-final/colours_zeroshot_classification") == good


def test_a_bad_set_does_not_keep_the_others_from_being_measured(root, cell):
    """A missing shard costs its own set; the rest is written, and the job fails by name."""
    next(Path(root, "datasets", "colours").rglob("test/1.tar")).unlink()

    with pytest.raises(RunError, match=r"8 of 10 missing results written; .*test/1\.tar"):
        evaluate(cell)
    assert Path(root, "evaluation", "contrastive-final", "triplets-test_2afc.json").exists()


def test_features_that_are_no_numbers_are_named_and_write_nothing(root, cell, monkeypatch):
    """A model whose features are NaN gets an error with its name and the first picture, never a figure."""
    real = measure.Encoder.images
    monkeypatch.setattr(
        measure.Encoder, "images", lambda self, images: real(self, images) * (float("nan") if self.name == "contrastive-final" else 1)
    )

    with pytest.raises(
        RunError,
        match=r"6 of 10 .* contrastive-final: features of 12 of 12 images of colours contain NaN or Inf, first 'colours-0000'",
    ):
        evaluate(cell)
    assert not Path(root, "evaluation", "contrastive-final").exists()


def test_a_stage_that_is_not_finished_is_refused(root, cell):
    """Without its seal a model does not count."""
    Path(root, "contrastive", "final", "COMMITTED.json").unlink()

    with pytest.raises(InputError, match=r"contrastive/final: no COMMITTED\.json"):
        evaluate(cell)


def test_a_model_of_another_recipe_is_refused(root, cell):
    """The seal's recipe hash must be the planned one."""
    folder = f"{root}/contrastive/final"
    write_committed(folder, dataclasses.replace(read_committed(folder), recipe_hash="f" * 64))

    with pytest.raises(
        InputError, match=r"contains a different recipe from the one this evaluation was planned for \(recipe hash ffffffffffff"
    ):
        evaluate(cell)


def test_weights_that_are_not_those_of_the_seal_are_refused(root, cell):
    """A file swapped after the seal: the other models are still measured."""
    path = Path(root, "contrastive", "final", "open_clip_model.safetensors")
    state = load_file(path)
    state["logit_scale"] = state["logit_scale"] + 1
    save_file(state, path)

    with pytest.raises(RunError, match=r"6 of 10 missing results written; .*open_clip_model\.safetensors"):
        evaluate(cell)
    assert Path(root, "evaluation", "perceptual-final", "triplets-test_2afc.json").exists()


def test_items_of_all_models_are_in_one_order(measured):
    """Arms can be paired: keys of two models' items are equal."""
    names = [f"{model}-final/triplets-test_2afc" for model in ("untrained", "perceptual", "contrastive")]

    assert len({tuple(items(measured, name)["key"]) for name in names}) == 1
    assert all(np.isfinite(items(measured, name)["correct"]).all() for name in names)


@pytest.fixture
def course(root):
    """A contrastive stage with three checkpoints, two of them kept by epoch, and its final model."""
    uri, manifest = build.classification_set(root)
    pairs_uri, pairs = build.pairs_with(root, [(uri, manifest)])
    recipe_hash = build.finished(f"{root}/contrastive", seed=2, step=30)
    for step, kept in ((10, True), (15, False), (20, True)):
        build.checkpoint(f"{root}/contrastive", step, step, kept, recipe_hash)

    def config(checkpoints="", every_epochs=1):
        return build.config_at(
            root,
            models=(build.asked("contrastive", f"{root}/contrastive", recipe_hash, checkpoints),),
            pairs=DataConfig(uri=pairs_uri, identity=pairs.identity),
            evaluation=EvaluationConfig(every_epochs=every_epochs),
        )

    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoints", "every_epochs", "expected"),
    [("", 0, ["final"]), ("", 1, ["10", "20", "final"]), ("all", 0, ["10", "15", "20", "final"]), ("15", 1, ["15", "final"])],
)
def test_checkpoints_are_measured_as_they_are_asked_for(root, course, checkpoints, every_epochs, expected):
    """None, those kept by epoch, all, or single steps; the final model always."""
    evaluate(course(checkpoints, every_epochs))

    assert sorted(path.name for path in Path(root, "evaluation").glob("contrastive-*")) == [f"contrastive-{when}" for when in expected]


def test_a_checkpoint_gives_the_figures_of_its_own_weights(root, course):
    """Each moment is its own model, named by its step, and is not measured twice."""
    config = course()
    evaluate(config)
    blocks = {when: read(root, f"contrastive-{when}/colours_zeroshot_classification")["firstsight"] for when in ("10", "20", "final")}

    assert [blocks[when]["step"] for when in ("10", "20", "final")] == [10, 20, "final"]
    for when, seed in (("10", 10), ("20", 20), ("final", 2)):
        state = towers.model_state(towers.build_model(build.MODEL, seed))
        assert blocks[when]["weights_sha256"] == lineage.weights_sha256({name: value.numpy() for name, value in state.items()})
    assert evaluate(config) == {"wanted": 3, "done": 3, "written": 0}


def test_weights_that_firstsight_0_1_kept_as_whole_checkpoints_are_measured(root, course):
    """They lie in checkpoints/, marked; where trajectory/ has the step too, its weights count."""
    config = course()
    found = load_yaml(Path(config).read_text(), config)["models"][0]
    build.checkpoint(f"{root}/contrastive", 5, 5, True, found["recipe_hash"], old=True)
    build.checkpoint(f"{root}/contrastive", 6, 10, True, found["recipe_hash"], old=True)
    evaluate(config)

    folders = sorted(path.name for path in Path(root, "evaluation").glob("contrastive-*"))
    assert folders == ["contrastive-10", "contrastive-20", "contrastive-5", "contrastive-final"]
    state = towers.model_state(towers.build_model(build.MODEL, 10))
    digest = read(root, "contrastive-10/colours_zeroshot_classification")["firstsight"]["weights_sha256"]
    assert digest == lineage.weights_sha256({name: value.numpy() for name, value in state.items()})


def test_the_last_checkpoint_is_the_final_model_and_not_measured_twice(root, course):
    """A checkpoint of the final step has the final weights: it is measured where it is asked for by its number only."""
    config = course()
    found = load_yaml(Path(config).read_text(), config)["models"][0]
    build.checkpoint(f"{root}/contrastive", 2, 30, True, found["recipe_hash"])

    assert evaluate(config)["wanted"] == 3
    assert evaluate(course("30"))["wanted"] == 2


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(course):
    """A step that was never saved, or was pruned."""
    with pytest.raises(InputError, match=r"no sealed checkpoint of step 12, there are \[10, 15, 20\]"):
        evaluate(course("12"))


def test_watching_takes_checkpoints_before_the_final_model_is_there(root, course, monkeypatch):
    """The first look finds checkpoints only; the final model comes while it waits."""
    config = course()
    seal = Path(root, "contrastive", "final", "COMMITTED.json")
    content = seal.read_text()
    seal.unlink()
    seen = []

    def waited(seconds):
        seen.extend(sorted(path.name for path in Path(root, "evaluation").glob("contrastive-*")))
        seal.write_text(content)

    monkeypatch.setattr(evaluate_module, "_wait", waited)

    assert evaluate(config, watch=True) == {"wanted": 3, "done": 0, "written": 3}
    assert seen == ["contrastive-10", "contrastive-20"]


def test_watching_ends_with_the_stage_that_failed(root, course):
    """A stage that left a failure will have no final model: its line is repeated."""
    config = course()
    Path(root, "contrastive", "final", "COMMITTED.json").unlink()
    Path(root, "contrastive", "failure.json").write_text(json.dumps({"line": "disk full"}))

    with pytest.raises(RunError, match="the contrastive stage failed: disk full"):
        evaluate(config, watch=True)


@pytest.mark.slow
def test_further_sets_are_measured_beside_those_of_the_pairs(root, course):
    """A set that `stage eval` made joins by its URI; a second one of the same name is refused."""
    config = course(every_epochs=0)
    uri, manifest = build.classification_set(root, name="more", labels=(0, 1, 2))
    other = build.classification_set(root, labels=(2, 1, 0))
    sets = f"sets=[{{uri: {uri}, identity: {manifest.identity}}}, {{uri: {other[0]}, identity: {other[1].identity}}}]"

    with pytest.raises(InputError, match="a second zeroshot_classification set called colours"):
        evaluate(config, [sets])
    assert sorted(path.name for path in Path(root, "evaluation", "contrastive-final").glob("*.json")) == [
        "colours_zeroshot_classification.json", "more_zeroshot_classification.json"
    ]  # fmt: skip
