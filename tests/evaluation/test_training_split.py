"""Training pictures of evaluation sets: staged where a copy has them, and read as they are."""

from pathlib import Path

import pytest

from tests.evaluation import build
from tests.evaluation.test_evaluation_sets import few_classes  # noqa: F401
from trainer.config import DataConfig
from trainer.errors import InputError
from trainer.evaluation.read_sets import describe_set, read_set, training_part
from trainer.staging.evaluation_sets.stage import stage_evaluation
from trainer.storage.outlines import outline


def test_the_training_split_of_a_copy_in_the_layout_is_staged_for_probes(tmp_path, few_classes):  # noqa: F811
    """Where it is asked for: staged or read as it is, the set has the same training pictures; without the flag it is the set as before."""
    few_classes("eurosat", 3)
    source, _ = build.classification_set(str(tmp_path / "theirs"), train=[2, 0, 1, 1])
    Path(source, "manifest.json").unlink()
    Path(source, "train", "nshards.txt").write_text("1")
    uri, identity = stage_evaluation(name="eurosat", root=str(tmp_path / "root"), source=source, train=True)
    plain, _ = stage_evaluation(name="eurosat", root=str(tmp_path / "root"), source=source)

    for place in (uri, source):
        described = describe_set(place)
        training = training_part(described, DataConfig())
        assert [item.label for item in read_set(described)] == list(build.LABELS)
        assert [item.label for item in read_set(training)] == [2, 0, 1, 1]
        assert training.num_items == (4 if place == uri else 0)
    assert describe_set(uri).identity == identity
    assert Path(uri, "train", "nshards.txt").read_text() == "1"
    assert training_part(describe_set(plain), DataConfig()) is None
    assert outline(DataConfig(uri=uri)).trains
    assert outline(DataConfig(uri=source)).trains
    assert not outline(DataConfig(uri=plain)).trains
    Path(source, "train", "nshards.txt").unlink()
    with pytest.raises(InputError, match=r"--train takes a copy in CLIP_benchmark's layout with train/nshards\.txt"):
        stage_evaluation(name="eurosat", root=str(tmp_path / "root"), source=source, train=True)
