"""Zero-shot classification: a classifier written from class names, and its metrics as pure functions.

    logits_NC = image_features_ND @ classifier_DC

N images, C classes, D the joint space, T prompts a class. Class means are taken as CLIP_benchmark and
open_clip take them: normalise each prompt, average, normalise again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

PROMPTS_AT_ONCE = 512


def prompts(classnames: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every prompt, class by class; `{c}` in a template is the class name."""
    return [template.replace("{c}", name) for name in classnames for template in templates]


def classifier(classnames: Sequence[str], templates: Sequence[str], encode_texts: Callable[[list[str]], Tensor]) -> Tensor:
    """Class vectors (D, C), L2-normalised.

    Args:
        classnames: C names.
        templates: T templates with `{c}`.
        encode_texts: texts -> (texts, D), L2-normalised float32.
    """
    texts = prompts(classnames, templates)
    features = torch.cat([encode_texts(texts[start : start + PROMPTS_AT_ONCE]) for start in range(0, len(texts), PROMPTS_AT_ONCE)])
    means_CD = features.reshape(len(classnames), len(templates), -1).mean(dim=1)
    return F.normalize(means_CD, dim=-1).T.contiguous()


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """What the single-label metrics need of logits (N, C).

    Attributes:
        prediction: (N,) int64, the first of the best classes.
        rank: (N,) int64, classes ahead of the right one; among equals the lower index is ahead.
    """

    prediction: NDArray[np.int64]
    rank: NDArray[np.int64]


def rank_labels(logits_NC: NDArray[np.float32], labels_N: NDArray[np.int64]) -> Ranked:
    """Where the right class is in each row."""
    right_N1 = np.take_along_axis(logits_NC, labels_N[:, None], axis=1)
    ahead = (logits_NC > right_N1) | ((logits_NC == right_N1) & (np.arange(logits_NC.shape[1]) < labels_N[:, None]))
    return Ranked(prediction=logits_NC.argmax(axis=1).astype(np.int64), rank=ahead.sum(axis=1).astype(np.int64))


def accuracy(ranked: Ranked, k: int, num_classes: int) -> float | None:
    """Share of images whose class is among the first k; None if there are fewer than k classes."""
    if num_classes < k:
        return None
    return float((ranked.rank < k).mean())


def mean_per_class_recall(prediction_N: NDArray[np.int64], labels_N: NDArray[np.int64]) -> float:
    """Recall averaged over the classes that occur among the labels."""
    classes = np.unique(labels_N)
    return float(np.mean([(prediction_N[labels_N == label] == label).mean() for label in classes]))


def average_precision(scores_N: NDArray[np.float32], targets_N: NDArray[np.bool_]) -> float:
    """Mean of the precision at each positive, by descending score; among equals the earlier image comes first.

    CLIP_benchmark's definition: no interpolation, and 0 for a class without positives.
    """
    hits = targets_N[np.argsort(-scores_N, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].sum() / max(int(hits.sum()), 1))


def mean_average_precision(scores_NC: NDArray[np.float32], targets_NC: NDArray[np.bool_]) -> float:
    """Average precision averaged over all classes."""
    return float(np.mean([average_precision(scores_NC[:, c], targets_NC[:, c]) for c in range(scores_NC.shape[1])]))


def chance_average_precision(num_positives: int, num_items: int) -> float:
    """Expected average precision of a random order: each positive falls on each rank alike."""
    if num_positives == 0:
        return 0.0
    rank = np.arange(1, num_items + 1)
    others = (num_positives - 1) / (num_items - 1) if num_items > 1 else 0.0
    return float(((1 + (rank - 1) * others) / rank).mean())
