"""How much a stage learns from: its part of the training split, and the steps that follow from it."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from trainer.config import ContrastiveConfig, PerceptualConfig, PosthocConfig, Recipe

Settings = PerceptualConfig | ContrastiveConfig | PosthocConfig


@dataclass(frozen=True, kw_only=True)
class Dose:
    """What a stage takes of a training split.

    Attributes:
        samples: that it learns from.
        steps_per_epoch: whole batches of them; 0: they do not fill one.
        steps: in all.
    """

    samples: int
    steps_per_epoch: int
    steps: int


def fraction_field(settings: Settings) -> str:
    """Which field of a stage says what part of its data it learns from."""
    return "pair_fraction" if isinstance(settings, ContrastiveConfig) else "triplet_fraction"


def fraction(settings: Settings) -> float:
    """The part of its training split that a stage learns from, in (0, 1]."""
    return float(getattr(settings, fraction_field(settings)))


def dose(settings: Settings, total: int) -> Dose:
    """What a stage takes of a training split of `total` samples.

    Steps shrink with the fraction, unless `samples_seen` fixes them.
    """
    samples = round(fraction(settings) * total)
    per_epoch = samples // settings.global_batch_size
    return Dose(samples=samples, steps_per_epoch=per_epoch, steps=steps_in_all(settings, per_epoch))


def steps_in_all(settings: Settings, steps_per_epoch: int) -> int:
    """The steps of a stage whose epochs have so many."""
    return settings.samples_seen // settings.global_batch_size if settings.samples_seen else steps_per_epoch * settings.epochs


def _smaller_batch(stage: str, settings: Settings, total: int) -> str:
    """Settings with which a stage fills a batch and outlasts its warm-up, as --set takes them; empty if nothing helps.

    Args:
        stage: its name.
        settings: of the stage, whose batch is too large.
        total: samples of the training split.
    """
    samples = dose(settings, total).samples
    if samples < 2:
        return ""
    batch = 1 << (samples.bit_length() - 1)  # a power of two, which divides among ranks
    changed: dict[str, Any] = {"global_batch_size": batch}
    if isinstance(settings, ContrastiveConfig):
        changed["contrast_batch_size"] = batch
        changed |= {"order_runs": math.gcd(batch, settings.order_runs)} if batch % settings.order_runs else {}
    steps = dose(dataclasses.replace(settings, **changed), total).steps
    warm_up = {"optimizer.warmup_steps": steps // 10} if steps <= settings.optimizer.warmup_steps else {}
    return " ".join(f"{stage}.{name}={value}" for name, value in (changed | warm_up).items())


def what_helps(recipe: Recipe, stage: str, train: int) -> str:
    """What to change where the training split of a stage's data does not fill a batch."""
    smoke = "" if recipe.name == "smoke" else "RECIPE=smoke"
    smaller = _smaller_batch(stage, getattr(recipe, stage), train)
    tries = [smoke, f"a smaller global_batch_size, --set '{smaller}' (with make SET=)" if smaller else ""]
    return f"try {' or '.join(filter(None, tries))}" if any(tries) else "use more data"


def short_of_a_batch(stage: str, settings: Settings, total: int) -> str:
    """What is wrong where the samples do not fill one batch, as the rest of a line; empty if they do.

    Args:
        stage: its name.
        settings: of the stage.
        total: samples of the training split.
    """
    what, batch = "pairs" if isinstance(settings, ContrastiveConfig) else "triplets", settings.global_batch_size
    samples = dose(settings, total).samples
    if samples >= batch:
        return ""
    if total < batch:
        return f"{stage}.global_batch_size must be at most the {total:,} training {what}, got {batch}"
    field = fraction_field(settings)
    return (
        f"{stage}.{field} must leave at least one batch, got {fraction(settings):g}: that is {samples:,} of {total:,} training {what}, "
        f"and {stage}.global_batch_size is {batch:,}"
    )


def warm_up_too_long(stage: str, settings: Settings, total: int) -> str:
    """What is wrong where a stage that learns from a part of its data, or for so many samples, does not outlast its warm-up; else empty.

    Args:
        stage: its name.
        settings: of the stage.
        total: samples of the training split.
    """
    whole = fraction(settings) == 1 and not settings.samples_seen
    return "" if whole else within_warm_up(stage, settings, total)


def within_warm_up(stage: str, settings: Settings, total: int) -> str:
    """What is wrong where a stage on a training split of `total` samples does not outlast its warm-up; empty if it does."""
    found, batch = dose(settings, total), settings.global_batch_size
    if settings.optimizer.warmup_steps < found.steps:
        return ""
    how = f"{found.samples:,} // {batch:,} x {settings.epochs} epochs"
    how = f"{settings.samples_seen:,} samples seen // {batch:,}" if settings.samples_seen else how
    return (
        f"{stage}.optimizer.warmup_steps must be less than the stage's {found.steps:,} steps ({how}), got {settings.optimizer.warmup_steps}"
    )
