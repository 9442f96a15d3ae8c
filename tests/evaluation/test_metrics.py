"""Every metric on literal small matrices, worked out by hand."""

import numpy as np
import pytest
import torch

from trainer.evaluation import retrieval, two_afc, zero_shot

# Six classes, four images; the right classes are 0, 1, 2, 5.
LOGITS = np.array(
    [
        [9, 1, 2, 3, 4, 5],  # right first
        [9, 4, 8, 7, 6, 5],  # five ahead of class 1: beyond the first five
        [9, 8, 7, 1, 2, 3],  # right third
        [4, 4, 4, 4, 4, 4],  # all equal: the five classes of lower index are ahead
    ],
    np.float32,
)
LABELS = np.array([0, 1, 2, 5])


def test_accuracy_counts_the_images_whose_class_is_among_the_first_k():
    """Ranks 0, 5, 2, 5: one of four at k = 1, two at k = 5."""
    ranked = zero_shot.rank_labels(LOGITS, LABELS)

    assert ranked.rank.tolist() == [0, 5, 2, 5]
    assert ranked.prediction.tolist() == [0, 0, 0, 0]
    assert zero_shot.accuracy(ranked, 1, 6) == 0.25
    assert zero_shot.accuracy(ranked, 5, 6) == 0.5


def test_accuracy_at_five_is_undefined_below_five_classes():
    """Four classes have no first five; five have them, and all are right."""
    four = zero_shot.rank_labels(LOGITS[:3, :4], LABELS[:3])
    five = zero_shot.rank_labels(LOGITS[:3, :5], LABELS[:3])

    assert zero_shot.accuracy(four, 5, 4) is None
    assert zero_shot.accuracy(five, 5, 5) == 1.0


def test_mean_per_class_recall_weighs_classes_alike_and_skips_those_without_images():
    """Class 0: 3 of 4, class 2: 1 of 1, class 1 has no image: (.75 + 1) / 2."""
    labels = np.array([0, 0, 0, 0, 2])
    prediction = np.array([0, 0, 0, 1, 2])

    assert zero_shot.mean_per_class_recall(prediction, labels) == 0.875


def test_average_precision_is_the_mean_precision_at_the_positives():
    """Positives on ranks 1, 3 and 4 of four: (1/1 + 2/3 + 3/4) / 3."""
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    targets = np.array([True, False, True, True])

    assert zero_shot.average_precision(scores, targets) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_average_precision_puts_the_earlier_of_equal_scores_first():
    """All scores equal: the positives stand on ranks 2 and 3."""
    assert zero_shot.average_precision(np.zeros(3, np.float32), np.array([False, True, True])) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_mean_average_precision_counts_a_class_without_positives_as_zero():
    """One class sorted right (AP 1), one without any positive (AP 0)."""
    scores = np.array([[0.9, 0.1], [0.1, 0.2]], np.float32)
    targets = np.array([[True, False], [False, False]])

    assert zero_shot.mean_average_precision(scores, targets) == 0.5


def test_chance_average_precision_is_the_mean_over_all_orders():
    """Two positives of three items have three orders: (1 + 1)/2, (1 + 2/3)/2, (1/2 + 2/3)/2."""
    expected = np.mean([1.0, (1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2])

    assert zero_shot.chance_average_precision(2, 3) == pytest.approx(expected)


def test_the_classifier_is_the_normalised_mean_of_each_classes_prompts():
    """Prompts come class by class, and each class gets one unit vector."""
    seen = []
    vectors = {"a cat": [1.0, 0.0], "the cat": [0.0, 1.0], "a dog": [0.0, 1.0], "the dog": [0.0, 1.0]}

    def encode_texts(texts):
        seen.extend(texts)
        return torch.tensor([vectors[text] for text in texts])

    weights = zero_shot.classifier(["cat", "dog"], ["a {c}", "the {c}"], encode_texts)

    assert seen == ["a cat", "the cat", "a dog", "the dog"]
    torch.testing.assert_close(weights, torch.tensor([[2**-0.5, 0.0], [2**-0.5, 1.0]]))


# Three images, four captions (the first image has two). Rows of SCORES are captions, columns images.
SCORES = [[0.9, 0.5, 0.1], [0.2, 0.8, 0.4], [0.6, 0.7, 0.3], [0.3, 0.9, 0.2]]
OWNER = torch.tensor([0, 0, 1, 2])


def _features(scores):
    """Features whose products are exactly `scores`: images are the axes."""
    return torch.eye(len(scores[0])), torch.tensor(scores)


def test_image_ranks_count_the_images_ahead_of_a_captions_own():
    """Own scores .9, .2, .7, .2: none, two, none and two images are ahead."""
    images, texts = _features(SCORES)
    ranks, top = retrieval.image_ranks(images, texts, OWNER, top=5)

    assert ranks.tolist() == [0, 2, 0, 2]
    assert top.tolist() == [[0, 1, 2], [1, 2, 0], [1, 0, 2], [1, 0, 2]]
    assert [retrieval.recall(ranks.numpy(), k) for k in (1, 5)] == [0.5, 1.0]


def test_text_ranks_count_the_captions_ahead_of_the_best_of_an_images_own():
    """Image 0's best is .9: first; image 1's .7 has .8 and .9 ahead; image 2's .2 has .3 and .4 ahead."""
    images, texts = _features(SCORES)
    ranks = retrieval.text_ranks(images, texts, OWNER)

    assert ranks.tolist() == [0, 2, 2]
    assert retrieval.recall(ranks.numpy(), 1) == pytest.approx(1 / 3)


def test_equal_scores_are_ordered_by_index_in_both_directions():
    """A model that scores everything alike is right only where the right answer comes first."""
    images, texts = torch.ones(3, 1), torch.ones(4, 1)
    ranks, top = retrieval.image_ranks(images, texts, OWNER, top=2)

    assert ranks.tolist() == [0, 0, 1, 2]
    assert top.tolist() == [[0, 1]] * 4
    assert retrieval.text_ranks(images, texts, OWNER).tolist() == [0, 2, 3]


def test_tiles_change_nothing(monkeypatch):
    """One row at a time gives the ranks that all rows at once give."""
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(7, 4, generator=generator), torch.randn(20, 4, generator=generator)
    owner = torch.arange(20) % 7
    whole = (*retrieval.image_ranks(images, texts, owner, 5), retrieval.text_ranks(images, texts, owner))
    monkeypatch.setattr(retrieval, "TILE_BYTES", 1)
    tiled = (*retrieval.image_ranks(images, texts, owner, 5), retrieval.text_ranks(images, texts, owner))

    assert all(torch.equal(a, b) for a, b in zip(whole, tiled, strict=True))


def test_chance_recall_is_that_of_a_random_order():
    """One right answer of four, two looked at: 1/2; two right of four: 1 - (2/4)(1/3) = 5/6; their mean for one query each."""
    assert retrieval.chance_recall(np.array([1]), 4, 2) == pytest.approx(0.5)
    assert retrieval.chance_recall(np.array([2]), 4, 2) == pytest.approx(5 / 6)
    assert retrieval.chance_recall(np.array([1, 2]), 4, 2) == pytest.approx((1 / 2 + 5 / 6) / 2)
    assert retrieval.chance_recall(np.array([1]), 3, 10) == 1.0


def test_two_afc_counts_ties_half_and_votes_by_their_share():
    """Closer image 1, 0, neither, 0 against votes 1, 1, 0, .25: agreement 1, 0, .5, .75."""
    scored = two_afc.score(np.array([0.9, 0.1, 0.4, 0.2]), np.array([0.1, 0.9, 0.4, 0.8]), np.array([1, 1, 0, 0.25]))

    assert scored.choice.tolist() == [1.0, 0.0, 0.5, 0.0]
    assert scored.score.tolist() == [1.0, 0.0, 0.5, 0.75]


def test_the_2afc_total_is_the_size_weighted_mean_of_its_groups():
    """Three of imagenet (2/3) and one of no_imagenet (1/2): 2.5 of 4."""
    scores = np.array([1, 1, 0, 0.5], np.float32)
    figures = two_afc.by_group(scores, ["imagenet", "imagenet", "imagenet", "no_imagenet"])

    assert figures == {"accuracy": 0.625, "accuracy_imagenet": pytest.approx(2 / 3), "accuracy_no_imagenet": 0.5}


def test_the_2afc_ceiling_sides_with_every_majority():
    """Votes .25 and 1: the majorities score .75 and 1."""
    assert two_afc.ceiling(np.array([0.25, 1.0])) == 0.875
