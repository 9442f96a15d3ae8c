"""Per-item outputs (`<dataset>_<task>.items.npz`) as values that can be paired, and the headline figure of each task."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from trainer.errors import Corrupt
from trainer.report.experiment import Result
from trainer.report.statistics import Items
from trainer.storage import arrays
from trainer.storage.base import MissingObject
from trainer.storage.checked import forget

RECALLS = tuple(f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10))
MEAN_RECALL = "mean_recall"
READ = ("key", "clusters", "correct", "correct5", "label", "text_image", "image_rank", "text_rank", "top", "choice")
"""The arrays that a report needs of those that an evaluation writes."""
PAIRABLE = ("acc1", "acc5", "mean_per_class_recall", "accuracy", MEAN_RECALL)
"""Figures that are weighted means over items; mean average precision ranks all items at once and is none."""
METRIC_NAMES = {
    "acc1": "accuracy", "acc5": "top-5 accuracy", "mean_per_class_recall": "mean per-class recall",
    "mean_average_precision": "mean average precision", MEAN_RECALL: "mean recall", "accuracy": "2AFC accuracy",
}  # fmt: skip


def main_metric(result: Result) -> str:
    """The figure that stands for a result: the set's own choice, else accuracy; of retrieval the mean of all recalls."""
    if result.task == "zeroshot_retrieval":
        return MEAN_RECALL
    if result.task == "2afc":
        return "accuracy"
    declared = str(result.facts.get("main_metric") or "")
    if declared:
        return declared
    return "mean_average_precision" if "mean_average_precision" in result.metrics else "acc1"


def score(result: Result, metric: str) -> float | None:
    """One figure of a result, in [0, 1]."""
    return _figure(result.metrics, metric)


def chance(result: Result, metric: str) -> float | None:
    """What guessing would score, from the evaluation."""
    return _figure(result.facts.get("chance") or {}, metric)


def _figure(figures: dict[str, float | None], metric: str) -> float | None:
    if metric != MEAN_RECALL:
        return figures.get(metric)
    recalls = [figures.get(name) for name in RECALLS]
    known = [figure for figure in recalls if figure is not None]
    return sum(known) / len(known) if known else None


def read_arrays(result: Result) -> dict[str, NDArray[np.generic]]:
    """The arrays of a result's items.npz that a report needs.

    Raises:
        Corrupt: there is no such file, or it is not the one that belongs to the figures.
    """
    try:
        return arrays.read_arrays(result.items_uri, READ, result.facts.get("items"))
    except MissingObject as error:
        raise Corrupt(f"{result.items_uri}: missing") from error
    except Corrupt:
        output, model, name = result.items_uri.rsplit("/", 2)
        forget(output, f"{model}/{name}")  # so that the next evaluation looks at them, whatever their stamp says
        raise


def read_items(result: Result, metric: str) -> Items:
    """What the model did on each item, so that `Items.score` is the figure that the evaluation recorded.

    Raises:
        Corrupt: no per-item outputs, or they do not add up to the recorded figure.
    """
    found = read_arrays(result)
    try:
        items = _items(found, metric)
    except (KeyError, IndexError, ValueError, TypeError, ArithmeticError) as error:
        raise Corrupt(f"{result.items_uri}: per-item outputs lack or misfit {error}") from error
    recorded = score(result, metric)
    if not np.isfinite(items.values).all():
        raise Corrupt(f"{result.items_uri}: NaN among the per-item outputs")
    if recorded is None or abs(items.score - recorded) > 1e-4:
        raise Corrupt(f"{result.items_uri}: per-item outputs make {metric} {items.score:.4f}, the evaluation says {recorded}")
    return items


def _items(arrays: dict[str, NDArray[np.generic]], metric: str) -> Items:
    keys, clusters = arrays["key"].astype(str), arrays["clusters"].astype(str)
    if metric == MEAN_RECALL:
        return _retrieval_items(arrays, keys, clusters)
    values = arrays["correct5" if metric == "acc5" else "correct"].astype(np.float64)
    weights = np.ones(len(values))
    if metric == "mean_per_class_recall":
        _, classes, counts = np.unique(arrays["label"], return_inverse=True, return_counts=True)
        weights = 1.0 / counts[classes]
    return _items_of(keys, clusters, values, weights)


def _retrieval_items(arrays: dict[str, NDArray[np.generic]], keys: NDArray[np.str_], clusters: NDArray[np.str_]) -> Items:
    """Captions and images side by side, weighted so that both ways count alike; both hang on the image's cluster."""
    owner = arrays["text_image"].astype(np.int64)
    ways = [_mean_hit(arrays["image_rank"]), _mean_hit(arrays["text_rank"])]
    values, weights = np.concatenate(ways), np.concatenate([np.full(len(way), 1.0 / len(way)) for way in ways])
    return _items_of(np.concatenate([keys[owner], keys]), np.concatenate([clusters[owner], clusters]), values, weights)


def _items_of(keys: NDArray[np.str_], clusters: NDArray[np.str_], values: NDArray[np.float64], weights: NDArray[np.float64]) -> Items:
    """Names become a hash and clusters numbers: a report holds every item of every model at once."""
    if not len(keys) == len(clusters) == len(values) == keys.size == clusters.size == values.size or not len(keys):
        raise ValueError(f"{len(keys)} keys, {len(clusters)} clusters, {len(values)} values")
    identity = hashlib.sha256("\n".join([*keys.tolist(), "", *clusters.tolist()]).encode()).hexdigest()
    _, numbers = np.unique(clusters, return_inverse=True)
    return Items(identity=identity, clusters=numbers.astype(np.int32), values=values, weights=weights)


def _mean_hit(rank: NDArray[np.generic]) -> NDArray[np.float64]:
    """Mean over k = 1, 5, 10 of "found among the first k"; rank counts from 0."""
    found: NDArray[np.float64] = np.stack([rank.astype(np.int64) < k for k in (1, 5, 10)]).mean(axis=0)
    return found
