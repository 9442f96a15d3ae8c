"""Measure a model on a set, as `firstsight evaluate` does, without writing anything."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from firstsight.models import Model
from trainer.config import DataConfig, EvaluateConfig, EvaluationConfig, Placement
from trainer.errors import InputError
from trainer.evaluation.jobs import Job, ModelAt
from trainer.evaluation.measure import measure_set
from trainer.evaluation.read_sets import TWO_AFC, describe_set
from trainer.evaluation.results import Outcome, Wanted, version
from trainer.storage.base import absolute
from trainer.storage.manifest import read_manifest, require_manifest


@dataclass(frozen=True, kw_only=True)
class Result:
    """Figures of one model on one set.

    Attributes:
        dataset: name of the set.
        task: zeroshot_classification, zeroshot_retrieval or 2afc.
        evaluation_version: results are comparable if this is equal.
        metrics: name to figure in [0, 1]; None if it is undefined, as acc5 below five classes.
        chance: score of random guessing, for the same metrics.
        baselines: scores of baselines on the same items, such as pixel_mse.
        ceiling: highest score that any model can reach on this set, for the metrics where it is known.
        items: one array over the items for each of: key, and correct or rank.
        num_items: test items.
    """

    dataset: str
    task: str
    evaluation_version: str
    metrics: Mapping[str, float | None]
    chance: Mapping[str, float]
    baselines: Mapping[str, float]
    ceiling: Mapping[str, float]
    items: Mapping[str, NDArray[Any]]
    num_items: int


def evaluate(model: Model, uri: str, *, split: str = "test", batch_size: int = 64, threads: int = 0) -> Result:
    """Measure a model: zero-shot classification, retrieval, or 2AFC on triplets, whatever the set is.

    Args:
        model: from `load_model`.
        uri: an evaluation set (`open_dataset(…).evaluation_sets`, `firstsight stage eval`, or CLIP_benchmark's layout), or triplets.
        split: split of the triplets; evaluation sets have only `test`.
        batch_size: pictures that are encoded at once.
        threads: threads that decode pictures; 0: one per core.

    Raises:
        InputError: there is no such set or split, or the model is a vision tower and the task needs text.
        Corrupt: the bytes of the set differ from those that were staged.
        RunError: features contain NaN or Inf, or a picture cannot be decoded.
    """
    place = absolute(uri)
    triplets = read_manifest(place)
    config = EvaluateConfig(
        experiment="library", arm=model.arm, seed=model.seed, output=model.uri, model=model._config,
        triplets=DataConfig(uri=place), evaluation=EvaluationConfig(), placement=Placement(local_batch_size=batch_size),
    )  # fmt: skip
    at = ModelAt(stage=model.stage, when="final", recipe_hash=model.recipe_hash)
    if triplets is not None and triplets.kind == "triplets":
        triplets = require_manifest(place)
        if not triplets.split(split):
            raise InputError(f"{place}: has no split {split!r}, only {', '.join(dict.fromkeys(shard.split for shard in triplets.shards))}")
        wanted = Wanted(folder="", dataset=f"{triplets.name}-{split}", task=TWO_AFC, block={})
        job = Job(model=at, wanted=wanted, triplets=triplets, split=split)
    else:
        described = describe_set(place)
        if not model.has_text:
            raise InputError(f"{place}: {described.task} needs texts, and {model.uri} is only a vision tower")
        job = Job(model=at, wanted=Wanted(folder="", dataset=described.name, task=described.task, block={}), described=described)
    threads = threads or len(os.sched_getaffinity(0))
    _, outcome = next(measure_set(config, [job], {at: model._encoder}, threads, lambda done: None))
    if not isinstance(outcome, Outcome):
        raise outcome
    return Result(
        dataset=job.wanted.dataset, task=job.wanted.task, evaluation_version=version(config.evaluation, config.evaluation_version),
        metrics=outcome.metrics, chance=outcome.chance, baselines=outcome.baselines, ceiling=outcome.ceiling, items=outcome.items,
        num_items=outcome.num_items,
    )  # fmt: skip
