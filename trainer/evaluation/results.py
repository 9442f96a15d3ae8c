"""The files of an evaluation: `<dataset>_<task>.json` in CLIP_benchmark's keys, and its items beside it. No torch here.

The JSON is written last, so it vouches for the items. What a figure depends on stands in its block
`firstsight`, and a figure is done only where all of that is what is wanted now.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config import EvaluationConfig
from trainer.errors import InputError, RunError
from trainer.fields import added_fields
from trainer.storage import join, read_json, write_bytes, write_json
from trainer.storage.base import MissingObject, exists

EVALUATION_VERSION = 1
"""Raised whenever the same model and data would give other figures; the report compares equal versions only."""

IDENTIFYING = ("evaluation_version", "stage", "step", "recipe_hash", "checkpoint_sha256", "dataset_identity", "prompts")
"""Keys of the block `firstsight` that must be as wanted for a result to count as done (the weights' hash too, where known)."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One figure that is wanted: one model on one set.

    Attributes:
        folder: URI of `<output>/<stage>-<when>/`.
        dataset: name of the set.
        task: zeroshot_classification, zeroshot_retrieval or 2afc.
        block: what identifies it, for the JSON's block `firstsight`.
    """

    folder: str
    dataset: str
    task: str
    block: dict[str, Any]

    @property
    def json_uri(self) -> str:
        """Where the figures go."""
        return join(self.folder, f"{self.dataset}_{self.task}.json")

    @property
    def items_uri(self) -> str:
        """Where each item's outcome goes."""
        return join(self.folder, f"{self.dataset}_{self.task}.items.npz")


def version(config: EvaluationConfig) -> str:
    """The evaluation's version: this code's number, the decoder and the precision, as in `1-exact-fp32`, then what came later."""
    return "-".join([f"{EVALUATION_VERSION}-{config.decoder}-{config.precision}", *(f"{k}={v}" for k, v in added_fields(config).items())])


def why_not_done(wanted: Wanted) -> str | None:
    """None where the wanted result is there and whole; else the reason it is (again) to be made, in words."""
    try:
        found = read_json(wanted.json_uri)
    except MissingObject:
        return "missing"
    except RunError as error:
        return f"{error}"
    block = found.get("firstsight") if isinstance(found, dict) else None
    if not isinstance(block, dict) or not isinstance(found.get("metrics"), dict):
        return f"{wanted.json_uri}: not a result of firstsight"
    keys = [*IDENTIFYING, *(["weights_sha256"] if wanted.block.get("weights_sha256") else [])]
    differing = [
        f"{key} {_short(block.get(key))} instead of {_short(wanted.block[key])}" for key in keys if block.get(key) != wanted.block[key]
    ]
    if differing:
        return f"{wanted.json_uri}: {', '.join(differing)}"
    if not exists(wanted.items_uri):
        return f"{wanted.items_uri}: missing"
    return None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a task measured on one set.

    Attributes:
        metrics: name -> value in [0, 1], or None where it is not defined.
        chance: the same names -> what guessing scores.
        baselines: name -> value of what is worth setting beside it.
        items: arrays for `items.npz`, so that arms can be paired item by item.
        num_items: test items.
        main_metric: the metric that the field reports for this set; empty: several.
        feature_rank: effective rank of the image features; None where there were none.
    """

    metrics: Mapping[str, float | None]
    chance: Mapping[str, float]
    baselines: Mapping[str, float]
    items: Mapping[str, NDArray[Any]]
    num_items: int
    main_metric: str = ""
    feature_rank: float | None = None


def write_result(wanted: Wanted, outcome: Outcome, model: str, pretrained: str) -> None:
    """Write items, then figures.

    Raises:
        RunError: a metric is not a finite number: nothing is written.
    """
    for name, value in outcome.metrics.items():
        if value is not None and not np.isfinite(value):
            raise RunError(f"{wanted.json_uri}: {name} is {value}")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **outcome.items)
    write_bytes(wanted.items_uri, buffer.getvalue())
    write_json(
        wanted.json_uri,
        {
            "dataset": wanted.dataset,
            "model": model,
            "pretrained": pretrained,
            "task": wanted.task,
            "metrics": dict(outcome.metrics),
            "language": "en",
            "firstsight": {
                **wanted.block,
                "num_items": outcome.num_items,
                "chance": dict(outcome.chance),
                "baselines": dict(outcome.baselines),
                "main_metric": outcome.main_metric,
                "feature_rank": outcome.feature_rank,
            },
        },
    )


def read_items(uri: str) -> dict[str, NDArray[Any]]:
    """The arrays of an `items.npz`; InputError where it is none."""
    from trainer.storage import read_bytes

    try:
        with np.load(io.BytesIO(read_bytes(uri)), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError) as error:
        raise InputError(f"{uri}: not the items of an evaluation: {error}") from error


def _short(value: object) -> str:
    return f"{value[:12]!r}" if isinstance(value, str) else repr(value)
