"""Sealed data sets, sample by sample."""

import json
from pathlib import Path

import numpy as np
import pytest

import firstsight
from tests.evaluation import build
from trainer.storage.index import decode_index
from trainer.storage.manifest import require_manifest


@pytest.fixture
def places(first: Path) -> dict[str, str]:
    """Folder of the pairs and of the triplets."""
    plan = json.loads((first / "plan.json").read_text())
    return {what: plan[what]["uri"] for what in ("pairs", "triplets")}


def test_every_pair_comes_once(places: dict[str, str], root: Path) -> None:
    """With its own pixels and all of its captions, in the split that it was staged in."""
    pairs = firstsight.open_dataset(places["pairs"], firstsight.Pair)
    samples = list(pairs)
    assert len(samples) == len(pairs) == 47 == len({sample.key for sample in samples})
    assert {split: len(list(pairs.samples(split))) for split in pairs.num_samples} == dict(pairs.num_samples)
    for sample in samples:
        number = int(Path(sample.facts["source"]).stem)
        label = ("circle", "square")[number % 2]
        assert sample.captions == (f"{label} number {number}", f"a {label}, {number}th")
        assert (sample.image.shape, sample.image.dtype, sample.facts["label"]) == ((24, 24, 3), np.uint8, label)
    assert len({sample.image.tobytes() for sample in samples}) == 47
    assert {Path(uri).parent.parent for uri in pairs.evaluation_sets.values()} == {root / "datasets"}


def test_samples_are_in_canonical_order(places: dict[str, str]) -> None:
    """That of the indexes."""
    uri = Path(places["pairs"])
    shards = require_manifest(str(uri)).split("train")
    keys = [key for shard in shards for key in decode_index((uri / shard.index_name).read_bytes(), shard.index_name).keys]
    assert [sample.key for sample in firstsight.open_dataset(str(uri), firstsight.Pair).samples("train")] == keys


def test_triplets_have_their_target(places: dict[str, str]) -> None:
    """Six judges, all for one side, which is the share of votes for image 1."""
    triplets = firstsight.open_dataset(places["triplets"], firstsight.Triplet)
    assert dict(triplets.num_samples) == {"train": 12, "val": 4, "test": 4}
    for triplet in triplets:
        assert triplet.target == triplet.facts["right_vote"] / 6
        assert triplet.reference.shape == triplet.image_0.shape == triplet.image_1.shape == (16, 16, 3)


def test_evaluation_sets_have_labels_or_captions(tmp_path: Path) -> None:
    """Ours, of each task."""
    categories = firstsight.open_dataset(build.classification_set(str(tmp_path))[0], firstsight.EvaluationItem)
    assert [item.label for item in categories] == list(build.LABELS)
    assert categories.classnames == build.CLASSES
    captions = [item.captions for item in firstsight.open_dataset(build.retrieval_set(str(tmp_path))[0], firstsight.EvaluationItem)]
    assert captions[3] == ("picture 3", "number 3 again")
    several = next(iter(firstsight.open_dataset(build.multilabel_set(str(tmp_path))[0], firstsight.EvaluationItem)))
    assert several.label is None
    assert several.targets is not None
    assert several.targets.tolist() == [False, True, False]


def test_any_kind_is_opened_without_a_name(places: dict[str, str], tmp_path: Path) -> None:
    """And says which it is."""
    evaluation = build.classification_set(str(tmp_path))[0]
    assert [firstsight.open_dataset(uri).kind for uri in (*places.values(), evaluation)] == ["pairs", "triplets", "evaluation"]


@pytest.mark.parametrize(
    ("holds", "wanted"), [("pairs", "triplets"), ("triplets", "pairs"), ("pairs", "evaluation"), ("evaluation", "pairs")]
)
def test_another_kind_is_refused(places: dict[str, str], tmp_path: Path, holds: str, wanted: str) -> None:
    """In one line."""
    kinds = {"pairs": firstsight.Pair, "triplets": firstsight.Triplet, "evaluation": firstsight.EvaluationItem}
    uri = build.classification_set(str(tmp_path))[0] if holds == "evaluation" else places[holds]
    with pytest.raises(firstsight.InputError, match=f"contains {holds}, but {wanted} are needed"):
        firstsight.open_dataset(uri, kinds[wanted])


def test_what_is_no_data_set_is_refused(places: dict[str, str], tmp_path: Path) -> None:
    """A folder without a seal, another identity, another split."""
    for kind in (None, firstsight.Pair, firstsight.EvaluationItem):
        with pytest.raises(firstsight.InputError, match="so this is not a sealed data set"):
            firstsight.open_dataset(str(tmp_path), kind)
    with pytest.raises(firstsight.InputError, match="000000000000"):
        firstsight.open_dataset(places["pairs"], firstsight.Pair, identity="0" * 64)
    with pytest.raises(firstsight.InputError, match="has no split 'dev', only train, test"):
        firstsight.open_dataset(places["pairs"], firstsight.Pair).samples("dev")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    """No sample of it is given."""
    uri, manifest = build.triplets_set(str(tmp_path))
    shard = Path(uri) / manifest.shards[0].name
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(firstsight.Corrupt, match=shard.name):
        list(firstsight.open_dataset(uri, firstsight.Triplet))
