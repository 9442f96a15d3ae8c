"""Twins in retrieval: what is right, what can be reached, what hangs together; on sets small enough to do by hand."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation import build
from tests.evaluation.test_evaluate import items, read
from trainer.evaluation import retrieval
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.twins import Twins, number_equals
from trainer.storage.manifest import as_data


def twins_of(captions: list[list[str]], pictures: str) -> Twins:
    """Captions of each picture, and a letter for each picture's bytes."""
    owner = [image for image, own in enumerate(captions) for _ in own]
    texts = number_equals([text.encode() for own in captions for text in own])
    return Twins(owner_T=np.array(owner), text_T=texts, image_I=number_equals([letter.encode() for letter in pictures]))


SETS = {
    "no twins": ([["a"], ["b"], ["c"]], "xyz"),
    "one caption on three pictures": ([["a"], ["a"], ["a"], ["b"]], "wxyz"),
    "one picture three times": ([["a"], ["b"], ["c"], ["d"]], "xxxy"),
    "both": ([["a"], ["a"], ["b"], ["b"]], "xxyz"),
    "a caption twice on one picture": ([["a", "a"], ["a"], ["b", "c"]], "xyz"),
    "a chain": ([["a", "b"], ["b", "c"], ["c"], ["d"]], "wxyz"),
}


@pytest.mark.parametrize("name", SETS)
def test_the_ceiling_is_what_the_best_of_all_orders_reaches(name: str) -> None:
    """By brute force: every order of the kinds of answers for every kind of query, among equals the lower index first."""
    twins = twins_of(*SETS[name])
    owns_T = twins.owner_T
    for k in (1, 2, 3):
        for queries, answers, right, ceiling in (
            (twins.text_T, twins.image_I, [{int(o)} for o in owns_T], twins.image_ceiling(k)),
            (twins.image_I, twins.text_T, [set(np.flatnonzero(owns_T == i)) for i in range(len(twins.image_I))], twins.text_ceiling(k)),
        ):
            found = 0
            for query in set(queries.tolist()):
                orders = itertools.permutations(sorted(set(answers.tolist())))
                firsts = ([place for kind in order for place in np.flatnonzero(answers == kind)][:k] for order in orders)
                found += max(sum(bool(right[q] & set(first)) for q in np.flatnonzero(queries == query)) for first in firsts)
            assert ceiling == pytest.approx(found / len(queries))


def test_what_belongs_together() -> None:
    """A caption belongs to all pictures that have it, and to those of the same bytes; families join whatever hangs together."""
    twins = twins_of([["a"], ["a", "b"], ["c"], ["d"]], "xyyz")
    assert [right.tolist() for right in twins.right_images()] == [[0, 1, 2], [0, 1, 2], [1, 2], [1, 2], [3]]
    assert [right.tolist() for right in twins.right_texts()] == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3], [4]]
    assert twins.families().tolist() == [0, 0, 0, 3]
    assert twins.counts() == {"captions": 2, "pictures": 2, "identical_pictures": 2}


def test_ranks_of_any_twin_count_what_is_ahead_of_the_best() -> None:
    """Literal scores, in tiles of one row too."""
    queries, answers = torch.eye(3), torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.2, 0.5], [0.7, 0.3, 0.5]])
    right = [np.array([1, 2]), np.array([0]), np.array([2])]
    assert retrieval.best_ranks(queries, answers, right).tolist() == [1, 2, 2]


def test_a_set_with_twins_is_measured_both_ways(tmp_path: Path) -> None:
    """recall@k is CLIP_benchmark's still; any twin counts beside it, and never scores less; version 1 has no such figure."""
    root = str(tmp_path)
    uri, manifest = build.retrieval_set(
        root, captions=tuple((f"picture {k // 3}", "The SAME  words" if k % 2 else "the same words") for k in range(12))
    )
    pairs, _ = build.pairs_with(root, [(uri, manifest)])
    asked = (build.asked("untrained"),)
    evaluate(build.config_at(root, seed=0, pairs=as_data(pairs), models=asked))
    found, arrays = read(root, "untrained-final/captions_zeroshot_retrieval"), items(root, "untrained-final/captions_zeroshot_retrieval")
    block = found["firstsight"]
    assert block["evaluation_version"] == "2-exact-fp32"
    assert block["twins"] == {"captions": 24, "pictures": 12, "identical_pictures": 0}  # case and blanks are not read
    assert block["sizes"] == {"pictures": 12, "captions": 24}
    assert block["ceiling"]["image_retrieval_recall@1"] == pytest.approx((4 + 1) / 24)
    assert set(arrays["clusters"].tolist()) == {"captions-0000"}
    assert found["metrics"]["image_retrieval_recall_any_twin@1"] >= 0.5  # "the same words" belong to every picture
    for name, value in found["metrics"].items():
        assert value >= found["metrics"][name.replace("_any_twin", "")], name
        assert found["metrics"][name.replace("_any_twin", "")] <= block["ceiling"][name.replace("_any_twin", "")]

    again = build.config_at(root, seed=0, pairs=as_data(pairs), models=asked, evaluation_version=1)
    evaluate(again)
    older = read(root, "untrained-final/captions_zeroshot_retrieval")
    assert older["firstsight"]["evaluation_version"] == "1-exact-fp32"
    assert older["metrics"] == {name: value for name, value in found["metrics"].items() if "any_twin" not in name}
