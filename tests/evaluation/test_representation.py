"""Layers and probes of a cell as files: what is written, that it is right, and what is refused before a picture is run."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.spatial.distance import pdist

from tests.evaluation import build
from trainer import similarity
from trainer.config import DataConfig, Placement
from trainer.errors import InputError
from trainer.evaluation.evaluate import evaluate
from trainer.representation import RepresentationConfig
from trainer.storage.arrays import read_arrays
from trainer.storage.rdms import read_rdm

torch.set_num_threads(1)
LABELS = ("red", "green", "blue") * 4


def write_rdm(root, names, seed=3):
    """An RDM as people bring it; its URI."""
    points = np.random.default_rng(seed).normal(size=(len(names), 3))
    square = np.linalg.norm(points[:, None] - points[None], axis=-1)
    rows = [",".join(["", *names]), *(",".join([name, *map(repr, row.tolist())]) for name, row in zip(names, square, strict=True))]
    Path(root, "V1.csv").write_text("\n".join(rows) + "\n")
    return f"{root}/V1.csv"


def make_cell(root, asked=None, **more):
    """A set staged with labelled pairs, one with a training split, triplets, three models, an RDM over five pictures of the first."""
    staged = build.classification_set(root)
    pairs_uri, pairs = build.pairs_with(root, [staged, build.retrieval_set(root)], labels=(*LABELS, "unknown"))
    own_uri, own = build.classification_set(root, "own", train=[k % 3 for k in range(30)])
    rdm = write_rdm(root, [f"colours-{k:04d}" for k in (7, 2, 11, 5, 0)])
    asked = asked or RepresentationConfig(sets=("colours",), pictures=8, rdms=(rdm,), probes=("colours", "own"))
    return build.config_at(
        root,
        models=build.one_of_each(root),
        pairs=DataConfig(uri=pairs_uri, identity=pairs.identity),
        sets=(DataConfig(uri=own_uri, identity=own.identity),),
        representation=asked,
        placement=Placement(threads=1),
        rdms=tuple(DataConfig(uri=uri, identity=read_rdm(uri).sha256) for uri in asked.rdms),
        **more,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The root of a cell whose representation was measured."""
    root = str(tmp_path_factory.mktemp("measured"))
    assert evaluate(make_cell(root)) == {"wanted": 42, "done": 0, "written": 42}
    return root


def read(root, name):
    return json.loads(Path(root, "evaluation", f"{name}.json").read_text())


def items(root, name):
    return read_arrays(f"{root}/evaluation/{name}.items.npz")


def test_layers_are_those_of_open_clips_own_blocks(measured):
    """The kept features are, up to scale and half precision, the class token after open_clip's own block, and the image features."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{measured}/contrastive/final")
    seen = []
    model.eval().visual.transformer.resblocks[0].register_forward_hook(lambda _, __, output: seen.append(output[:, 0]))
    found = items(measured, "contrastive-final/colours_layer-01")
    pictures = [Image.open(io.BytesIO(build.picture(int(key.rsplit("-", 1)[1])))) for key in found["key"].tolist()]
    with torch.inference_mode():
        output = model.encode_image(torch.stack([transform(picture) for picture in pictures]), normalize=True)

    for name, expected in (("01", seen[0]), ("output", output)):
        kept = items(measured, f"contrastive-final/colours_layer-{name}")["features"]
        assert kept.dtype == np.float16
        assert np.allclose(kept, similarity.centred(expected.numpy()), atol=5e-3)


def test_figures_of_a_layer_are_cka_and_rsa(measured):
    """CKA to the cell's untrained model and tower, recomputed from the kept features; RSA by scipy; a model is 1 to itself."""
    found = {stage: items(measured, f"{stage}-final/colours_layer-output") for stage in ("untrained", "perceptual", "contrastive")}
    metrics = read(measured, "contrastive-final/colours_layer-output")["metrics"]
    own = found["contrastive"]["features"]
    assert metrics["cka_start"] == pytest.approx(similarity.cka(own, found["untrained"]["features"]), abs=1e-6)
    assert metrics["cka_tower"] == pytest.approx(similarity.cka(own, found["perceptual"]["features"]), abs=1e-6)
    assert read(measured, "untrained-final/colours_layer-01")["metrics"].keys() == {"cka_start", "rsa:V1"}
    assert read(measured, "perceptual-final/colours_layer-01")["metrics"]["cka_tower"] == 1

    rdm = read_rdm(f"{measured}/V1.csv")
    keys = found["contrastive"]["key"].tolist()
    assert len(keys) == 8
    assert read(measured, "contrastive-final/colours_layer-output")["firstsight"]["about"] == {"rdms": {"V1": 5}}
    assert set(rdm.names) < set(keys)
    # Pearson's correlation ignores no mean over pictures: features as the model gives them, not as they are kept
    layer = layer_of(measured, keys)
    expected = stats.spearmanr(pdist(layer[[keys.index(name) for name in rdm.names]], "correlation"), rdm.values[np.triu_indices(5, 1)])
    assert metrics["rsa:V1"] == pytest.approx(expected.statistic, abs=1e-5)


def layer_of(root, keys):
    """The image features of the contrastive model through open_clip."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{root}/contrastive/final")
    pictures = [Image.open(io.BytesIO(build.picture(int(key.rsplit("-", 1)[1])))) for key in keys]
    with torch.inference_mode():
        return model.eval().encode_image(torch.stack([transform(picture) for picture in pictures]), normalize=True).numpy()


@pytest.mark.parametrize("task", ["linear_probe", "knn", "few_shot_1", "few_shot_5", "few_shot_16"])
@pytest.mark.parametrize(("dataset", "train"), [("colours", 12), ("own", 30)])
def test_probes_have_outcomes_by_picture(measured, task, dataset, train):
    """Each probe's items are those of zero-shot, in its order, and add up to its figure; labels come from the split or from the pairs."""
    found, arrays = read(measured, f"contrastive-final/{dataset}_{task}"), items(measured, f"contrastive-final/{dataset}_{task}")
    zero_shot = items(measured, f"contrastive-final/{dataset}_zeroshot_classification")

    assert arrays["key"].tolist() == zero_shot["key"].tolist()
    assert arrays["label"].tolist() == zero_shot["label"].tolist()
    assert found["metrics"]["acc1"] == arrays["correct"].mean() == (arrays["prediction"] == arrays["label"]).mean()
    about = found["firstsight"]["about"]
    shots = int(task.rsplit("_", 1)[1]) if task.startswith("few_shot") else train
    assert about["training_pictures"] == min(3 * shots, train)
    assert ("validation" in about) == (task == "linear_probe")
    assert ("lambda" in about) == (task != "knn")


def test_what_is_there_is_not_measured_again_and_another_rdm_is(measured, tmp_path):
    """A second run finds all; with the same pictures under another RDM the layers are measured again, and nothing else."""
    shutil.copytree(measured, tmp_path / "copy")
    root = str(tmp_path / "copy")
    config = Path(root, "evaluation", "config.yaml")
    config.write_text(config.read_text().replace(f"{measured}/evaluation", f"{root}/evaluation"))
    assert evaluate(str(config)) == {"wanted": 42, "done": 42, "written": 0}

    uri = write_rdm(root, [f"colours-{k:04d}" for k in (7, 2, 11, 5, 0)], seed=4)
    digest = read_rdm(uri).sha256
    old = read_rdm(f"{measured}/V1.csv").sha256
    config.write_text(config.read_text().replace(f"{measured}/V1.csv", uri).replace(old, digest))
    assert evaluate(str(config)) == {"wanted": 42, "done": 36, "written": 6}


def test_checkpoints_have_layers_without_features(tmp_path):
    """Through time only the figures of layers are kept, not their features; probes are of final models."""
    root = str(tmp_path)
    make_cell(root)
    asked = RepresentationConfig(sets=("colours",), probes=("own",))
    recipe_hash = json.loads(Path(root, "contrastive", "final", "COMMITTED.json").read_text())["recipe_hash"]
    build.checkpoint(f"{root}/contrastive", 5, 4, True, recipe_hash)
    shutil.rmtree(f"{root}/evaluation")
    old = make_config(root, asked, recipe_hash)
    evaluate(old)
    found = items(root, "contrastive-4/colours_layer-output")
    assert "features" not in found
    assert 0 < abs(read(root, "contrastive-4/colours_layer-output")["metrics"]["cka_start"]) < 1
    assert not Path(root, "evaluation", "contrastive-4", "own_knn.json").exists()
    assert Path(root, "evaluation", "contrastive-final", "own_knn.json").exists()


def test_start_and_tower_are_measured_before_all_that_is_compared_with_them(tmp_path):
    """Also where stage 2 kept more moments than models share a pass, and what has no text comes last among the other figures."""
    root = str(tmp_path)
    plain = make_cell(root, RepresentationConfig(sets=("colours",), pictures=4))
    recipe_hash = json.loads(Path(root, "contrastive", "final", "COMMITTED.json").read_text())["recipe_hash"]
    for step in (0, 1, 2, 3):
        build.checkpoint(f"{root}/contrastive", 5, step, True, recipe_hash)
    config = Path(plain)
    config.write_text(config.read_text().replace("checkpoints: ''", "checkpoints: all"))
    found = evaluate(str(config))
    assert found["written"] == found["wanted"]
    assert read(root, "contrastive-0/colours_layer-output")["metrics"].keys() == {"cka_start", "cka_tower"}


def make_config(root, asked, recipe_hash):
    """The same cell's configuration, with all checkpoints of the contrastive stage and no tower."""
    data = {path.parent.parent.name: str(path.parent) for path in Path(root, "datasets").glob("*/*/manifest.json")}
    return build.config_at(
        root,
        models=(build.asked("untrained"), build.asked("contrastive", f"{root}/contrastive", recipe_hash, "all")),
        sets=(DataConfig(uri=data["own"]), DataConfig(uri=data["colours"])),
        representation=asked,
        placement=Placement(threads=1),
    )


REFUSED = {
    "an unknown set": (
        {"sets": ("colors",)},
        "representation.sets: no evaluation set is called 'colors'; known: own, colours, captions",
    ),
    "an unknown probe": ({"probes": ("cifar-10",)}, "representation.probes: no evaluation set is called 'cifar-10'"),
    "a probe of captions": (
        {"probes": ("captions",)},
        "captions cannot be probed: it is a retrieval set, which has no classes; sets that can",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_by_name(tmp_path, case):
    """Sets that there are not, or that have no classes; the other figures are measured all the same."""
    fields, line = REFUSED[case]
    with pytest.raises(InputError, match="results written") as caught:
        evaluate(make_cell(str(tmp_path), RepresentationConfig(**fields)))
    assert line in str(caught.value)
