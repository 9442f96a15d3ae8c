"""Check whether a source has enough samples for a recipe, before pictures are decoded, judged by FLIP or trained on."""

import math
from collections.abc import Collection

from trainer.config import Recipe
from trainer.dose import what_helps
from trainer.errors import InputError

STAGES_OF = {"pairs": ("contrastive",), "triplets": ("perceptual", "posthoc")}
"""The stages that train on a data set, by its kind."""


def require_enough(source: str, kind: str, train: int, total: int, recipe: Recipe, stages: Collection[str]) -> None:
    """Refuse a source whose training split does not fill one batch.

    Args:
        source: names it in errors.
        kind: pairs or triplets.
        train: samples of the training split, or how many there can be at most.
        total: samples of all splits.
        recipe: the recipe, which sets the batch sizes.
        stages: stages that will train; none: nothing is refused.

    Raises:
        InputError: too few samples; the message gives the number that is needed, and what else can be changed.
    """
    batches = {stage: int(getattr(recipe, stage).global_batch_size) for stage in STAGES_OF[kind] if stage in stages}
    if not batches or train >= max(batches.values()):
        return
    stage = max(batches, key=batches.__getitem__)
    needed = math.ceil(batches[stage] * total / train) if train else batches[stage]
    there = f"{total:,} {kind if total != 1 else kind[:-1]}, of which {train:,} {'is' if train == 1 else 'are'} left for training"
    raise InputError(
        f"{source}: {there}: needs at least {needed:,} for recipe {recipe.name or '(unnamed)'} "
        f"({stage}.global_batch_size {batches[stage]:,}); {what_helps(recipe, stage, train)}"
    )
