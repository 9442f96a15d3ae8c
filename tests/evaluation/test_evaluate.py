"""The job as a whole: figures and items are written, done ones are not done again, and faults are named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.evaluation import build
from trainer import lineage, models
from trainer.config import DataConfig
from trainer.errors import InputError, RunError
from trainer.evaluation import measure
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.results import read_items

torch.set_num_threads(1)


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


@pytest.fixture
def cell(root):
    """Two sets, triplets, and three models, with the configuration that measures them all."""
    sets = [build.classification_set(root), build.retrieval_set(root)]
    pairs_uri, pairs = build.pairs_with(root, sets)
    triplets_uri, triplets = build.triplets_set(root)
    tower = build.finished(f"{root}/tower", seed=1, tower=True)
    contrastive = build.finished(f"{root}/contrastive", seed=2)
    return build.config_at(
        root,
        models=(
            build.asked("untrained"),
            build.asked("perceptual", f"{root}/tower", tower),
            build.asked("contrastive", f"{root}/contrastive", contrastive),
        ),
        pairs=DataConfig(uri=pairs_uri, identity=pairs.identity),
        triplets=DataConfig(uri=triplets_uri, identity=triplets.identity),
    )


def read(root, name):
    return json.loads(Path(root, "evaluation", f"{name}.json").read_text())


def items(root, name):
    return read_items(f"{root}/evaluation/{name}.items.npz")


def test_every_model_is_measured_on_every_set_that_suits_it(root, cell):
    """A tower alone has no text side, so 2AFC only; the others have all four figures."""
    assert evaluate(cell) == {"wanted": 10, "done": 0, "written": 10}
    written = sorted(str(path.relative_to(Path(root, "evaluation"))) for path in Path(root, "evaluation").glob("*/*.json"))

    both = ["captions_zeroshot_retrieval.json", "colours_zeroshot_classification.json"]
    afc = ["triplets-test_2afc.json", "triplets-val_2afc.json"]
    assert written == [
        *(f"contrastive-final/{name}" for name in both + afc),
        *(f"perceptual-final/{name}" for name in afc),
        *(f"untrained-final/{name}" for name in both + afc),
    ]


def test_figures_are_those_of_open_clips_own_model(root, cell):
    """The same set through open_clip's transform, towers and classifier gives the same predictions."""
    evaluate(cell)
    import io

    import open_clip
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{root}/contrastive/final")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{root}/contrastive/final")
    with torch.inference_mode():
        weights = open_clip.build_zero_shot_classifier(
            model.eval(), tokenizer, build.CLASSES, [lambda c, t=t: t.replace("{c}", c) for t in build.TEMPLATES]
        )
        images = torch.stack([transform(Image.open(io.BytesIO(build.picture(k)))) for k in range(12)])
        expected = (model.encode_image(images, normalize=True) @ weights).argmax(dim=1)

    arrays = items(root, "contrastive-final/colours_zeroshot_classification")
    assert arrays["prediction"].tolist() == expected.tolist()
    assert read(root, "contrastive-final/colours_zeroshot_classification")["metrics"]["acc1"] == arrays["correct"].mean()


def test_a_result_says_what_it_depends_on_and_what_chance_is(root, cell):
    """CLIP_benchmark's keys, then hashes, chance and baselines; acc5 of three classes is null."""
    evaluate(cell)
    found = read(root, "contrastive-final/colours_zeroshot_classification")
    block = found["firstsight"]
    seal = json.loads(Path(root, "contrastive", "final", "COMMITTED.json").read_text())

    assert (found["dataset"], found["task"], found["model"], found["pretrained"]) == (
        "colours", "zeroshot_classification", "random-seed0", "contrastive-final"
    )  # fmt: skip
    assert found["metrics"]["acc5"] is None
    assert block["chance"] == {"acc1": 1 / 3, "acc5": 1.0, "mean_per_class_recall": 1 / 3}
    assert block["weights_sha256"] == seal["facts"]["weights_sha256"]
    assert (block["recipe_hash"], block["num_items"], block["step"]) == (seal["recipe_hash"], 12, "final")
    assert block["evaluation_version"] == "1-exact-fp32"


def test_two_afc_sets_pixel_mse_beside_the_model_and_names_the_judge(root, cell):
    """MSE always says image 1, which half of the votes say; groups are reported apart."""
    evaluate(cell)
    found = read(root, "untrained-final/triplets-val_2afc")
    arrays = items(root, "untrained-final/triplets-val_2afc")

    assert found["firstsight"]["baselines"] == {"pixel_mse": 0.5, "majority_of_judges": 1.0}
    assert found["firstsight"]["judge"] == "FLIP"
    assert set(found["metrics"]) == {"accuracy", "accuracy_imagenet", "accuracy_no_imagenet"}
    assert arrays["clusters"].tolist() == ["r0", "r0", "r1", "r1"]
    assert arrays["correct"].mean() == found["metrics"]["accuracy"]


def test_retrieval_items_hold_what_pairs_arms(root, cell):
    """Each caption's own image, its rank, and the first five."""
    evaluate(cell)
    found = read(root, "contrastive-final/captions_zeroshot_retrieval")
    arrays = items(root, "contrastive-final/captions_zeroshot_retrieval")

    assert arrays["text_image"].tolist() == [k // 2 for k in range(22)]
    assert arrays["top"].shape == (22, 5)
    assert (arrays["top"][:, 0] == arrays["text_image"]).mean() == found["metrics"]["image_retrieval_recall@1"]
    assert (arrays["text_rank"] < 5).mean() == found["metrics"]["text_retrieval_recall@5"]


def test_an_untrained_model_is_the_one_its_seed_builds(root, cell):
    """Its hash is that of build_model with the cell's seed."""
    evaluate(cell)
    state = models.model_state(models.build_model(build.MODEL, 0))
    expected = lineage.weights_sha256({name: value.numpy() for name, value in state.items()})

    assert read(root, "untrained-final/captions_zeroshot_retrieval")["firstsight"]["weights_sha256"] == expected


def test_a_second_run_does_nothing_and_does_not_import_torch(root, cell):
    """Everything is there: the job finds that out without torch, and changes no file."""
    evaluate(cell)
    before = {path: path.stat().st_mtime_ns for path in Path(root, "evaluation").rglob("*") if path.is_file()}
    code = (
        "import sys\nfrom trainer.evaluation.evaluate import evaluate\n"
        f"assert evaluate({cell!r}) == {{'wanted': 10, 'done': 10, 'written': 0}}\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

    assert before == {path: path.stat().st_mtime_ns for path in Path(root, "evaluation").rglob("*") if path.is_file()}


def _spoil(root, how):
    path = Path(root, "evaluation", "contrastive-final", "colours_zeroshot_classification.json")
    if how == "half-written":
        path.write_text(path.read_text()[:100])
    elif how == "no items":
        path.with_name("colours_zeroshot_classification.items.npz").unlink()
    else:
        value = json.loads(path.read_text())
        value["firstsight"]["weights_sha256"] = "0" * 64
        path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("how", "said"), [("half-written", "not JSON"), ("no items", "missing"), ("other model", "weights_sha256 '000000000000'")]
)
def test_a_result_that_does_not_count_is_made_again_by_name(root, cell, capsys, how, said):
    """Half a JSON, no items, or another model's hash under the same name."""
    evaluate(cell)
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

    with pytest.raises(InputError, match=r"8 of 10 missing results written; .*test/1\.tar"):
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
        match=r"6 of 10 .* contrastive-final: features of 12 of 12 images of colours are not finite, first 'colours-0000'",
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
    seal = Path(root, "contrastive", "final", "COMMITTED.json")
    seal.write_text(seal.read_text().replace(json.loads(seal.read_text())["recipe_hash"], "f" * 64))

    with pytest.raises(InputError, match="holds recipe ffffffffffff, this evaluation was planned for"):
        evaluate(cell)


def test_weights_that_are_not_those_of_the_seal_are_refused(root, cell):
    """A file swapped after the seal: the other models are still measured."""
    path = Path(root, "contrastive", "final", "open_clip_model.safetensors")
    state = load_file(path)
    state["logit_scale"] = state["logit_scale"] + 1
    save_file(state, path)

    with pytest.raises(InputError, match=r"6 of 10 missing results written; .*open_clip_model\.safetensors"):
        evaluate(cell)
    assert Path(root, "evaluation", "perceptual-final", "triplets-test_2afc.json").exists()


def test_items_of_all_models_are_in_one_order(root, cell):
    """Arms can be paired: keys of two models' items are equal."""
    evaluate(cell)
    names = [f"{model}-final/triplets-test_2afc" for model in ("untrained", "perceptual", "contrastive")]

    assert len({tuple(items(root, name)["key"]) for name in names}) == 1
    assert all(np.isfinite(items(root, name)["correct"]).all() for name in names)
