"""Per-item outputs (`<dataset>_<task>.items.npz`) as values that can be paired, and the headline figure of each task."""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trainer.errors import Corrupt
from trainer.report.experiment import Result
from trainer.report.statistics import Items
from trainer.storage import arrays
from trainer.storage.base import MissingObject
from trainer.storage.checked import forget

RECALLS = tuple(f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10))
RECALLS_ANY_TWIN = tuple(name.replace("@", "_any_twin@") for name in RECALLS)
MEAN_RECALL, MEAN_RECALL_ANY_TWIN = "mean_recall", "mean_recall_any_twin"
_MEANS = {MEAN_RECALL: RECALLS, MEAN_RECALL_ANY_TWIN: RECALLS_ANY_TWIN}
"""Figures that are the mean of others."""
READ = (
    "key", "clusters", "correct", "correct5", "label", "text_image", "image_rank", "text_rank", "top", "choice", "image_rank_any_twin",
    "text_rank_any_twin",
)  # fmt: skip
"""The arrays, among those an evaluation writes, that a report needs."""
PAIRABLE = ("acc1", "acc5", "mean_per_class_recall", "accuracy", MEAN_RECALL, MEAN_RECALL_ANY_TWIN)
"""Figures that are weighted means over items; mean average precision ranks all items at once and is not one of them."""
METRIC_NAMES = {
    "acc1": "accuracy", "acc5": "top-5 accuracy", "mean_per_class_recall": "mean per-class recall",
    "mean_average_precision": "mean average precision", MEAN_RECALL: "mean recall", MEAN_RECALL_ANY_TWIN: "mean recall, any twin",
    "accuracy": "2AFC accuracy",
}  # fmt: skip


_ONE = {"triplets": "triplet", "references": "reference", "pictures": "picture", "captions": "caption", "classes": "class"}
"""What is counted, in the order in which it is listed, with its singular."""
_BASELINES = {"pixel_mse": "pixel MSE", "flip": "FLIP", "majority_of_judges": "judges' majority"}


def main_metric(result: Result, own: bool) -> str:
    """The figure that stands for a result: the set's own choice, otherwise accuracy; for retrieval, the mean of all recalls.

    For retrieval on the user's own pictures (`own`), it is the mean that accepts any twin as correct, if there are twins.
    """
    if result.task == "zeroshot_retrieval":
        twins = own and RECALLS_ANY_TWIN[0] in result.metrics and any((result.facts.get("twins") or {}).values())
        return MEAN_RECALL_ANY_TWIN if twins else MEAN_RECALL
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


def ceiling(result: Result, metric: str) -> float | None:
    """The most that any model can score: limited by twins in retrieval and by disagreeing judges in 2AFC; None if not known."""
    known = result.facts.get("ceiling") or {}
    if result.task == "2afc":  # older results have it only among the baselines
        known = {"accuracy": (result.facts.get("baselines") or {}).get("majority_of_judges"), **known}
    return _figure(known, metric)


def baselines(result: Result, metric: str) -> dict[str, float]:
    """What a score is worth comparing with, keyed by a readable name and in the score's own metric."""
    found = result.facts.get("baselines") or {}
    if result.task == "2afc":
        named = {name: found.get(key) for key, name in _BASELINES.items()} if metric == "accuracy" else {}
        if result.facts.get("judge") == "FLIP":  # it agrees with itself
            named.pop("FLIP", None)
    elif metric == "mean_per_class_recall":  # older results lack it: for them, every class is assumed to have pictures
        named = {"most frequent class": found.get("majority_class_per_class", chance(result, metric))}
    else:
        named = {"most frequent class": found.get("majority_class")} if metric == "acc1" else {}
    return {name: value for name, value in named.items() if value is not None}


def sizes(result: Result) -> dict[str, int]:
    """How many there are of what is counted, as far as it is known."""
    known = result.facts.get("sizes") or {"triplets" if result.task == "2afc" else "pictures": int(result.facts.get("num_items") or 0)}
    classes = chance(result, "acc1")
    if classes and "classes" not in known:
        known = {**known, "classes": round(1 / classes)}
    return {name: int(known[name]) for name in _ONE if name in known}


def counted(numbers: Mapping[str, int]) -> str:
    """`380 pictures, 10 classes`; `1 triplet`."""
    return ", ".join(
        f"{number:,} {_ONE.get(name, name) if number == 1 else name}".replace(",", "\u202f") for name, number in numbers.items()
    )


def _figure(figures: Mapping[str, float | None], metric: str) -> float | None:
    if metric not in _MEANS:
        return figures.get(metric)
    recalls = [figures.get(name) for name in _MEANS[metric]]
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
        raise Corrupt(f"{result.items_uri}: per-item outputs are missing or inconsistent: {error}") from error
    recorded = score(result, metric)
    if not np.isfinite(items.values).all():
        raise Corrupt(f"{result.items_uri}: NaN among the per-item outputs")
    if recorded is None or abs(items.score - recorded) > 1e-4:
        raise Corrupt(f"{result.items_uri}: per-item outputs give {metric} {items.score:.4f}, but the evaluation recorded {recorded}")
    return items


def _items(arrays: dict[str, NDArray[np.generic]], metric: str) -> Items:
    keys, clusters = arrays["key"].astype(str), arrays["clusters"].astype(str)
    if metric in _MEANS:
        return _retrieval_items(arrays, keys, clusters, "_any_twin" if metric == MEAN_RECALL_ANY_TWIN else "")
    values = arrays["correct5" if metric == "acc5" else "correct"].astype(np.float64)
    weights = np.ones(len(values))
    if metric == "mean_per_class_recall":
        _, classes, counts = np.unique(arrays["label"], return_inverse=True, return_counts=True)
        weights = 1.0 / counts[classes]
    return _items_of(keys, clusters, values, weights)


def _retrieval_items(arrays: dict[str, NDArray[np.generic]], keys: NDArray[np.str_], clusters: NDArray[np.str_], kind: str) -> Items:
    """Captions and images side by side, weighted so that both directions count equally; both belong to the image's cluster."""
    owner = arrays["text_image"].astype(np.int64)
    ways = [_mean_hit(arrays[f"image_rank{kind}"]), _mean_hit(arrays[f"text_rank{kind}"])]
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
