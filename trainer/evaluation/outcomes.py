"""Compute the figures of each task from one model's features on one set."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.evaluation import retrieval, two_afc, zero_shot
from trainer.evaluation.encode import Encoder, check_finite, effective_rank
from trainer.evaluation.read_sets import EvaluationSet, Item, Triplet
from trainer.evaluation.results import Outcome
from trainer.evaluation.twins import Twins, number_equals

RECALL_K = (1, 5, 10)
ANY_TWIN = "recall_any_twin"
ROWS_AT_ONCE = 4096
TEXTS_AT_ONCE = 512


def zero_shot_outcome(described: EvaluationSet, items: Sequence[Item], encoder: Encoder, features_ND: Tensor) -> Outcome:
    """Figures of zero-shot classification, single-label or multi-label."""
    keys = [item.key for item in items]
    check_finite(encoder, features_ND, keys, f"images of {described.name}")
    build = partial(zero_shot.classifier, described.classnames, described.templates, encoder.texts)
    classifier_DC = encoder.classifier(described.prompts, build)
    check_finite(encoder, classifier_DC.T, described.classnames, f"classes of {described.name}")
    common = {"key": np.array(keys), "clusters": np.array(keys)}
    sizes = {"pictures": len(items), "classes": len(described.classnames)}
    if described.multilabel:
        scores = (features_ND @ classifier_DC).numpy()
        targets = np.stack([item.targets for item in items if item.targets is not None])
        chance = [zero_shot.chance_average_precision(int(positives), len(items)) for positives in targets.sum(axis=0)]
        return Outcome(
            metrics={"mean_average_precision": zero_shot.mean_average_precision(scores, targets)},
            chance={"mean_average_precision": float(np.mean(chance))},
            baselines={},
            sizes=sizes,
            items={**common, "scores": scores, "targets": targets},
            num_items=len(items),
            main_metric="mean_average_precision",
            feature_rank=effective_rank(features_ND),
        )
    labels = np.array([item.label for item in items], np.int64)
    parts = [zero_shot.rank_labels(*rows) for rows in _logits(features_ND, classifier_DC, labels)]
    ranked = zero_shot.Ranked(prediction=np.concatenate([p.prediction for p in parts]), rank=np.concatenate([p.rank for p in parts]))
    num_classes = len(described.classnames)
    metrics = {
        "acc1": zero_shot.accuracy(ranked, 1, num_classes),
        "acc5": zero_shot.accuracy(ranked, 5, num_classes),
        "mean_per_class_recall": zero_shot.mean_per_class_recall(ranked.prediction, labels),
    }
    arrays = {**common, "label": labels, "prediction": ranked.prediction, "correct": ranked.rank < 1}
    if metrics["acc5"] is not None:
        arrays["correct5"] = ranked.rank < 5
    return Outcome(
        metrics=metrics,
        chance={"acc1": 1 / num_classes, "acc5": min(1.0, 5 / num_classes), "mean_per_class_recall": 1 / num_classes},
        baselines={
            "majority_class": float(np.bincount(labels).max() / len(labels)),
            "majority_class_per_class": 1 / len(np.unique(labels)),  # the same guess in mean per-class recall
        },
        sizes=sizes,
        items=arrays,
        num_items=len(items),
        main_metric=described.main_metric or "mean_per_class_recall",
        feature_rank=effective_rank(features_ND),
    )


def _logits(
    features_ND: Tensor, classifier_DC: Tensor, labels: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Logits and labels in blocks of rows, since 50,000 images of 1,000 classes would take 200 MB at once."""
    for start in range(0, len(features_ND), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        yield (100.0 * features_ND[rows] @ classifier_DC).numpy(), labels[rows]


def retrieval_outcome(
    described: EvaluationSet, items: Sequence[Item], encoder: Encoder, features_ID: Tensor, *, twins_too: bool = True
) -> Outcome:
    """Figures of retrieval in both directions; with `twins_too` also those that count any twin as correct (evaluation version 2)."""
    keys = [item.key for item in items]
    check_finite(encoder, features_ID, keys, f"images of {described.name}")
    captions = [caption for item in items for caption in item.captions]
    owner = torch.tensor([i for i, item in enumerate(items) for _ in item.captions])
    tokens, parts = [], []
    for start in range(0, len(captions), TEXTS_AT_ONCE):
        tokens.append(encoder.tokens(captions[start : start + TEXTS_AT_ONCE]))
        parts.append(encoder.read(tokens[-1]))
    features_TD = torch.cat(parts)
    check_finite(encoder, features_TD, captions, f"captions of {described.name}")
    image_rank, top = (part.numpy() for part in retrieval.image_ranks(features_ID, features_TD, owner, top=5))
    text_rank = retrieval.text_ranks(features_ID, features_TD, owner).numpy()
    twins = Twins(
        owner_T=owner.numpy(),
        text_T=number_equals([row.tobytes() for part in tokens for row in part.numpy()]),
        image_I=number_equals([item.digest or item.key.encode() for item in items]),
    )
    metrics, chance = _recalls("recall", image_rank, text_rank, np.ones(1, np.int64), np.bincount(owner.numpy(), minlength=len(items)))
    arrays: dict[str, NDArray[Any]] = {"key": np.array(keys), "clusters": np.array(keys), "text_image": owner.numpy()}
    arrays |= {"text": np.array(captions), "image_rank": image_rank, "text_rank": text_rank, "top": top}
    if twins_too:
        right_images, right_texts = twins.right_images(), twins.right_texts()
        image_any = np.minimum(image_rank, retrieval.best_ranks(features_TD, features_ID, right_images).numpy())
        text_any = np.minimum(text_rank, retrieval.best_ranks(features_ID, features_TD, right_texts).numpy())
        figures, guessed = _recalls(ANY_TWIN, image_any, text_any, _lengths(right_images), _lengths(right_texts))
        metrics, chance = metrics | figures, chance | guessed
        arrays |= {"clusters": np.array(keys)[twins.families()], "image_rank_any_twin": image_any, "text_rank_any_twin": text_any}
    ceiling = {f"image_retrieval_recall@{k}": twins.image_ceiling(k) for k in RECALL_K}
    return Outcome(
        metrics=metrics,
        chance=chance,
        baselines={},
        ceiling=ceiling | {f"text_retrieval_recall@{k}": twins.text_ceiling(k) for k in RECALL_K},
        twins=twins.counts(),
        sizes={"pictures": len(items), "captions": len(captions)},
        items=arrays,
        num_items=len(items),
        feature_rank=effective_rank(features_ID),
    )


def _recalls(
    kind: str, image_rank: NDArray[np.int64], text_rank: NDArray[np.int64], right_images: NDArray[np.int64], right_texts: NDArray[np.int64]
) -> tuple[dict[str, float | None], dict[str, float]]:
    """Recalls of a kind by name, and those of a random order; `right_…` counts the correct answers of each query."""
    metrics: dict[str, float | None] = {}
    chance: dict[str, float] = {}
    for k in RECALL_K:
        metrics[f"image_retrieval_{kind}@{k}"] = retrieval.recall(image_rank, k)
        metrics[f"text_retrieval_{kind}@{k}"] = retrieval.recall(text_rank, k)
        chance[f"image_retrieval_{kind}@{k}"] = retrieval.chance_recall(right_images, len(text_rank), k)
        chance[f"text_retrieval_{kind}@{k}"] = retrieval.chance_recall(right_texts, len(image_rank), k)
    return metrics, chance


def _lengths(lists: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.array([len(one) for one in lists], np.int64)


def two_afc_outcome(triplets: Sequence[Triplet], encoder: Encoder, features: Tensor) -> Outcome:
    """Figures of 2AFC, with those of pixel MSE (and FLIP, if people judged) on the same triplets.

    Args:
        triplets: N triplets.
        encoder: the encoder that computed the features.
        features: (3 N, D): reference, 0, 1 of each triplet in turn.
    """
    keys = [triplet.key for triplet in triplets]
    check_finite(encoder, features, [key for key in keys for _ in range(3)], "images of the triplets")
    reference, image_0, image_1 = features.double().reshape(len(triplets), 3, -1).unbind(dim=1)
    target = np.array([triplet.facts["target"] for triplet in triplets])
    groups = ["imagenet" if triplet.facts.get("is_imagenet") else "no_imagenet" for triplet in triplets]
    scored = two_afc.score((1 - (reference * image_0).sum(-1)).numpy(), (1 - (reference * image_1).sum(-1)).numpy(), target)
    metrics = two_afc.by_group(scored.score, groups if len(set(groups)) > 1 else [""] * len(groups))
    arrays = {
        "key": np.array(keys),
        "clusters": np.array([str(triplet.facts.get("reference", triplet.key)) for triplet in triplets]),
        "correct": scored.score,
        "choice": scored.choice,
        "target": target,
        "group": np.array(groups),
    }
    baselines = {"majority_of_judges": two_afc.ceiling(target)}
    for name, label in (("mse", "pixel_mse"), ("flip", "flip")):
        if all(triplet.facts.get(f"{name}_{side}") is not None for triplet in triplets for side in (0, 1)):
            distances = np.array([[triplet.facts[f"{name}_0"], triplet.facts[f"{name}_1"]] for triplet in triplets])
            judged = two_afc.score(distances[:, 0], distances[:, 1], target).score
            baselines[label] = float(judged.mean(dtype=np.float64))
            arrays[f"{name}_correct"] = judged
    return Outcome(
        metrics=metrics,
        chance=dict.fromkeys(metrics, two_afc.CHANCE),
        baselines=baselines,
        ceiling={"accuracy": baselines["majority_of_judges"]},
        sizes={"triplets": len(triplets), "references": len(set(arrays["clusters"].tolist()))},
        items=arrays,
        num_items=len(triplets),
        main_metric="accuracy",
        feature_rank=effective_rank(reference.float()),
    )
