"""Final models, what they encode, and what they are measured at."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import firstsight
from tests.evaluation import build


@pytest.fixture(scope="module")
def model(first: Path) -> firstsight.Model:
    """The perceptual arm's final model."""
    return firstsight.load_model(str(first / "perceptual-seed0" / "contrastive"))


def figures(first: Path, when: str) -> dict[str, dict]:
    """What the run's own evaluation wrote, by file."""
    return {path.name: json.loads(path.read_text()) for path in (first / "perceptual-seed0" / "evaluation" / when).glob("*.json")}


def test_a_model_is_the_one_that_was_sealed(model: firstsight.Model, first: Path) -> None:
    """By its hash, from the stage's folder or from final/."""
    seal = json.loads((first / "perceptual-seed0" / "contrastive" / "final" / "COMMITTED.json").read_text())
    assert (model.stage, model.arm, model.seed, model.step) == ("contrastive", "perceptual", 0, seal["step"])
    assert (model.weights_sha256, model.recipe_hash) == (seal["facts"]["weights_sha256"], seal["recipe_hash"])
    assert firstsight.load_model(f"{model.uri}/final/").weights_sha256 == model.weights_sha256


def test_a_model_encodes_pictures_and_texts(model: firstsight.Model) -> None:
    """Unit vectors; pictures of any size, or a batch of its own size."""
    images = [np.random.default_rng(0).integers(0, 256, (height, 40, 3), np.uint8) for height in (20, 30)]
    features = model.encode_images(images)
    assert features.shape == (2, 8)
    assert torch.allclose(features.norm(dim=1), torch.ones(2))
    assert torch.equal(features, model.encode_images(torch.stack([model.preprocess(image) for image in images])))
    texts = model.encode_texts(["a circle"] * 600)
    assert texts.shape == (600, 8)
    assert torch.allclose(texts.norm(dim=1), torch.ones(600))


def test_a_model_is_measured_as_a_run_measures_it(model: firstsight.Model, first: Path) -> None:
    """The same figures on every set, to the last bit."""
    plan = json.loads((first / "plan.json").read_text())
    pairs = firstsight.open_dataset(plan["pairs"]["uri"], firstsight.Pair)
    written = figures(first, "contrastive-final")
    results = [firstsight.evaluate(model, uri) for uri in pairs.evaluation_sets.values()]
    results += [firstsight.evaluate(model, plan["triplets"]["uri"], split=split) for split in ("val", "test")]
    assert {f"{result.dataset}_{result.task}.json" for result in results} == written.keys()
    for result in results:
        theirs = written[f"{result.dataset}_{result.task}.json"]
        assert result.metrics == theirs["metrics"]
        block = theirs["firstsight"]
        assert (result.chance, result.baselines, result.ceiling) == (block["chance"], block["baselines"], block["ceiling"])
        assert (result.num_items, result.evaluation_version) == (block["num_items"], block["evaluation_version"])
        assert len(result.items["key"]) == result.num_items


def test_a_tower_sees_and_does_not_read(first: Path, tmp_path: Path) -> None:
    """Stage 1 trains the vision tower alone: 2AFC is measured on it, and what needs texts is refused."""
    (tower,) = (first / "towers").iterdir()
    model = firstsight.load_model(str(tower))
    triplets = json.loads((first / "plan.json").read_text())["triplets"]["uri"]
    result = firstsight.evaluate(model, triplets, split="val")
    assert result.metrics == figures(first, "perceptual-final")[f"{result.dataset}_2afc.json"]["metrics"]
    with pytest.raises(firstsight.InputError, match="trains only the vision tower"):
        model.encode_texts(["a circle"])
    with pytest.raises(firstsight.InputError, match="needs texts"):
        firstsight.evaluate(model, build.classification_set(str(tmp_path))[0])


def test_sets_and_splits_that_are_not_there_are_refused(model: firstsight.Model, first: Path, tmp_path: Path) -> None:
    """In one line, pairs included."""
    plan = json.loads((first / "plan.json").read_text())
    with pytest.raises(firstsight.InputError, match="no evaluation set here"):
        firstsight.evaluate(model, str(tmp_path))
    with pytest.raises(firstsight.InputError, match="has no split 'dev', only train, val, test"):
        firstsight.evaluate(model, plan["triplets"]["uri"], split="dev")
    with pytest.raises(firstsight.InputError, match="not an evaluation set"):
        firstsight.evaluate(model, plan["pairs"]["uri"])


def test_what_is_no_model_is_refused(first: Path, tmp_path: Path) -> None:
    """A folder that holds none, one without its configuration, and one whose bytes were changed."""
    with pytest.raises(firstsight.InputError, match="no finished model here"):
        firstsight.load_model(str(tmp_path))
    copy = tmp_path / "contrastive"
    shutil.copytree(first / "random-seed0" / "contrastive", copy)
    weights = copy / "final" / "open_clip_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(firstsight.Corrupt, match="SHA-256"):
        firstsight.load_model(str(copy))
    for place in (copy, copy / "final"):
        (place / "config.yaml").unlink(missing_ok=True)
    with pytest.raises(firstsight.InputError, match=r"config.yaml: missing"):
        firstsight.load_model(str(copy))
