"""The registry of triplet labels, and what each kind makes of a triplet. The loader with each: tests/data/test_loader.py."""

import hashlib
import pkgutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.data.datasets import triplets, write_dataset
from tests.data.loaders import triplets_loader
from trainer import labels
from trainer.config import StagingConfig
from trainer.errors import InputError
from trainer.labels import OWN, Labels, Shown, named_labels, registered
from trainer.registry import discover

DRAWN = {"votes": "78f897332571fe13", "flip": "0a1448a7eed9b3c1", "instance": "a226efe3535611a4", "shuffled": "0f28832e1d0ce9e5"}
"""Pictures and targets of nine batches, as commit ad127be drew them."""


def facts(**values: Any) -> labels.Facts:
    return lambda: values


def unread() -> dict[str, Any]:
    pytest.fail("these labels read no json")


def test_every_file_is_a_kind_of_its_name():
    """A configuration names the file."""
    assert sorted(registered()) == sorted(module.name for module in pkgutil.iter_modules(labels.__path__))


def test_an_unknown_kind_is_named():
    """With all that there are."""
    with pytest.raises(InputError, match=r"labels must be one of flip, instance, shuffled, votes, got 'stars'"):
        named_labels("stars")


@pytest.mark.parametrize("name", DRAWN)
def test_the_drawing_never_changes(name: str, tmp_path: Path):
    """A stage that was trained in part is resumed to the same bits by every later version."""
    data = write_dataset(str(tmp_path), "triplets", triplets([9, 9, 4]))
    loader = triplets_loader(data, labels=name)
    digest = hashlib.sha256()
    for batch in islice(loader.batches(0), 9):
        digest.update(batch.images.numpy().tobytes())
        digest.update(batch.target.numpy().tobytes())
    loader.close()

    assert digest.hexdigest()[:16] == DRAWN[name]


def test_votes_are_the_target_that_was_staged():
    """With the triplet's own pictures."""
    assert named_labels("votes").show(facts(target=0.25), unread, [0, 0, 0]) == Shown(0.25, OWN)


@pytest.mark.parametrize(("distances", "target"), [((0.1, 0.3), 0.0), ((0.3, 0.1), 1.0), ((0.2, 0.2), 0.5)])
def test_flip_prefers_the_smaller_distance(distances: tuple[float, float], target: float):
    """Equal ones are half a vote each."""
    assert named_labels("flip").show(facts(flip_0=distances[0], flip_1=distances[1]), unread, [0, 0, 0]).target == target


def test_flip_is_refused_where_it_was_the_judge_or_has_not_judged():
    """People's triplets may have it where staging asks for it; of staged ones the loader finds out."""
    flip = named_labels("flip")

    assert "judged by FLIP anyway" in flip.refusal("FLIP")
    assert "flip_judges_too: true" in flip.refusal("people", StagingConfig())
    assert not flip.refusal("people", StagingConfig(flip_judges_too=True))
    assert not flip.refusal("people")
    assert not any(named_labels(name).refusal("FLIP", StagingConfig()) for name in registered() if name != "flip")


def test_instance_reads_no_votes():
    """Its own variant is on the target's side."""
    for draws in ([0.2, 0.2, 0.7], [0.7, 0.7, 0.2]):
        shown = named_labels("instance").show(unread, unread, draws)
        assert shown.pictures[0] == (0, 0)
        assert shown.pictures[1 + int(shown.target)][0] == 0
        assert shown.pictures[2 - int(shown.target)][0] == 1


def test_shuffled_reads_the_other_triplets_votes():
    """And shows its own pictures."""
    assert named_labels("shuffled").show(unread, facts(target=1.0), [0, 0, 0]) == Shown(1.0, OWN)


def test_an_entry_of_another_type_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Such as the class instead of an object of it."""
    monkeypatch.setattr("trainer.labels.votes.LABELS", Labels)
    with pytest.raises(TypeError, match=r"trainer\.labels\.votes\.LABELS must be a Labels"):
        discover("trainer.labels", "LABELS", Labels)
