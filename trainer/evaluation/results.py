"""What an evaluation wants, what of it is there, and the files that it writes (`trainer/storage/figures.py`). No torch here.

What a figure depends on is in its block `firstsight`, and a figure is done only where all of that is what is wanted now.
"""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config import EVALUATION_VERSION, EvaluationConfig, require
from trainer.errors import Corrupt, RunError
from trainer.fields import added_fields
from trainer.storage import join
from trainer.storage.arrays import read_arrays
from trainer.storage.base import MissingObject
from trainer.storage.checked import find_damaged
from trainer.storage.figures import BLOCK, ITEMS, items_uri, read_figures, write_figures

IDENTIFYING = (
    "dataset", "task", "arm", "seed", "evaluation_version", "stage", "step", "recipe_hash", "checkpoint_sha256", "dataset_identity",
    "prompts", "judge", "basis",
)  # fmt: skip
"""What must be as wanted for a result to count as done: set and task, then keys of the block `firstsight` as far as they are wanted
(the weights' hash too, where known)."""


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
    def output(self) -> str:
        """The cell's folder of all its figures."""
        return self.folder.rpartition("/")[0]

    @property
    def json_uri(self) -> str:
        """Where the figures go."""
        return join(self.folder, f"{self.dataset}_{self.task}.json")

    @property
    def items_uri(self) -> str:
        """Where each item's outcome goes."""
        return items_uri(self.json_uri)


def version(config: EvaluationConfig, number: int = 1) -> str:
    """The evaluation's version: its number, the decoder and the precision, as in `2-exact-fp32`, then what came later."""
    require("evaluation_version", number, f"1 to {EVALUATION_VERSION}, which this firstsight knows", 1 <= number <= EVALUATION_VERSION)
    return "-".join([f"{number}-{config.decoder}-{config.precision}", *(f"{k}={v}" for k, v in added_fields(config).items())])


def why_not_done(wanted: Sequence[Wanted]) -> list[str | None]:
    """For each wanted result None if it is there and whole; else the reason it is (again) to be made, in words.

    Items that were found whole before are not read again (`storage.checked`); those of format 1, which has no checksum of them, are.

    Raises:
        InputError: a newer firstsight wrote a result.
        RunError: the store failed.
    """
    reasons: list[str | None] = []
    sealed: dict[str, dict[str, Any]] = defaultdict(dict)
    for each in wanted:
        reason, items = _look(each)
        reasons.append(reason)
        if items is not None:
            sealed[each.output][each.items_uri.removeprefix(f"{each.output}/")] = items
    damaged = {join(output, name): why for output, files in sealed.items() for name, why in find_damaged(output, files).items()}
    for number, each in enumerate(wanted):
        if reasons[number] is None and each.items_uri in damaged:
            reasons[number] = f"{each.items_uri}: {damaged[each.items_uri]}"
    return reasons


def _look(wanted: Wanted) -> tuple[str | None, dict[str, Any] | None]:
    """Why the figures do not count, or None; then what their items must be, where that is recorded."""
    try:
        found = read_figures(wanted.json_uri)
    except MissingObject:
        return "missing", None
    except Corrupt as error:
        return str(error), None
    block = {**found[BLOCK], "dataset": found.get("dataset"), "task": found.get("task")}
    asked = {**wanted.block, "dataset": wanted.dataset, "task": wanted.task}
    keys = [key for key in IDENTIFYING if key in asked] + (["weights_sha256"] if wanted.block.get("weights_sha256") else [])
    differing = [f"{key} {_short(block.get(key))} instead of {_short(asked[key])}" for key in keys if block.get(key) != asked[key]]
    if differing:
        return f"{wanted.json_uri}: {', '.join(differing)}", None
    if ITEMS in block:
        return None, block[ITEMS]
    try:
        read_arrays(wanted.items_uri)
    except MissingObject:
        return f"{wanted.items_uri}: missing", None
    except Corrupt as error:
        return str(error), None
    return None, None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a task measured on one set.

    Attributes:
        metrics: name -> value in [0, 1], or None if it is not defined.
        chance: the same names -> what guessing scores.
        baselines: name -> value of what is worth setting beside it.
        ceiling: names -> the most that any model can score, of those metrics whose ceiling is known.
        sizes: how many there were of what is counted: pictures, classes, captions, triplets, references.
        twins: captions, pictures and identical_pictures that have a twin (`twins.Twins.counts`); of retrieval only.
        items: arrays for `items.npz`, so that arms can be paired item by item.
        num_items: test items.
        main_metric: the metric that the field reports for this set; empty: several.
        feature_rank: effective rank of the image features; None if there were none.
        start_cosine: of a model of stage 2, similarity of its vision tower to the one it started from (`prior`).
        about: what else is to be known of how it was measured, such as the lambda of a linear probe.
    """

    metrics: Mapping[str, float | None]
    chance: Mapping[str, float]
    baselines: Mapping[str, float]
    items: Mapping[str, NDArray[Any]]
    num_items: int
    ceiling: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    twins: Mapping[str, int] = field(default_factory=dict)
    main_metric: str = ""
    feature_rank: float | None = None
    start_cosine: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


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
    figures = {
        "dataset": wanted.dataset,
        "model": model,
        "pretrained": pretrained,
        "task": wanted.task,
        "metrics": dict(outcome.metrics),
        "language": "en",
        BLOCK: {
            **wanted.block,
            "num_items": outcome.num_items,
            "chance": dict(outcome.chance),
            "baselines": dict(outcome.baselines),
            "ceiling": dict(outcome.ceiling),
            "sizes": dict(outcome.sizes),
            "twins": dict(outcome.twins),
            "main_metric": outcome.main_metric,
            "feature_rank": outcome.feature_rank,
            **({} if outcome.start_cosine is None else {"start_cosine": outcome.start_cosine}),
            **({"about": dict(outcome.about)} if outcome.about else {}),
        },
    }
    write_figures(wanted.json_uri, figures, buffer.getvalue())


def _short(value: object) -> str:
    return f"{value[:12]!r}" if isinstance(value, str) else repr(value)
