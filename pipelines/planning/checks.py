"""Check a recipe before anything is staged: refuse with one line what cannot work, and return notes on what the user should know."""

from collections.abc import Collection, Mapping
from typing import Any

from pipelines.planning.cost import CORE_GFLOPS, Estimate, Machines, Samples, estimate, settings
from trainer.config import Recipe, StageConfig
from trainer.configs import sizes
from trainer.dose import short_of_a_batch, within_warm_up
from trainer.errors import InputError

STAGES = ("perceptual", "contrastive", "posthoc")
SLOW_HOURS = 24.0
"""Hours for one run of each stage on CPU cores from which the plan mentions them."""


def check_recipe(
    recipe: Recipe,
    pairs: Samples,
    triplets: Samples,
    machines: Machines,
    backend: str,
    *,
    stages: Collection[str] = STAGES,
    asked: Mapping[str, Any] | None = None,
) -> list[str]:
    """Notes on a recipe that can run on these machines.

    Args:
        recipe: everything that determines the numbers.
        pairs: pairs of the training split; an assumed number refuses nothing that its upper limit would not refuse.
        triplets: triplets of the training split, in the same way.
        machines: machines of the contrastive stage; the other stages use one of its nodes.
        backend: local, or a cluster backend.
        stages: stages that the arms need.
        asked: placement fields that the run sets.

    Raises:
        InputError: an unknown model, ranks that do not divide a batch, a batch that does not fit the GPU or is larger than the data,
            or a warm-up as long as the stage.
    """
    notes, found = [], []
    for stage in STAGES:
        if stage not in stages:
            continue
        config = stage_of(recipe, stage)
        one = estimate(config, pairs if stage == "contrastive" else triplets, machines_of(machines, stage), asked)
        if one.data.known:
            _require_steps(one)
        elif one.data.at_most and short_of_a_batch(stage, settings(config), one.data.at_most):
            raise InputError(short_of_a_batch(stage, settings(config), one.data.count))
        notes += _split_note(one)
        found.append(one)
    if backend == "local" and not machines.gpus_per_node:
        notes += _slow_note(recipe, found)
    return [*notes, *_unknown_note(found)]


def stage_of(recipe: Recipe, stage: str) -> StageConfig:
    """A stage of the recipe without an experiment."""
    given = {stage: getattr(recipe, stage)}
    return StageConfig(stage=stage, output="none", model=recipe.model, **given)  # type: ignore[arg-type]


def machines_of(machines: Machines, stage: str) -> Machines:
    """The machines of a stage: stages that train on some ten thousand triplets run on one node (pipelines/jobs/backends.py)."""
    return machines if stage == "contrastive" else machines.one_node()


def _require_steps(one: Estimate) -> None:
    """Refuse less data than one batch, and a warm-up that is not shorter than the stage."""
    stage, recipe, count = one.stage.stage, settings(one.stage), one.data.count
    if wrong := short_of_a_batch(stage, recipe, count) or within_warm_up(stage, recipe, count):
        raise InputError(wrong)


def _split_note(one: Estimate) -> list[str]:
    """A note if a rank's share does not fit a GPU."""
    stage, machines = one.stage.stage, one.machines
    if one.memory is None or not machines.gpu_bytes or one.local_batch_size == one.whole:
        return []
    whole = sizes.training_bytes(one.stage, machines.ranks, one.whole)
    way = "through the gradient cache, which runs the forward pass twice" if stage == "contrastive" else "one after another"
    return [
        f"{stage}: {one.whole:,} samples per rank need an estimated {whole / 1e9:,.1f} GB, but a GPU has {machines.gpu_bytes / 1e9:,.1f}: "
        f"processed {one.local_batch_size:,} at a time {way}"
    ]


def _unknown_note(found: list[Estimate]) -> list[str]:
    """A note if the estimate could not be compared with the memory of a GPU."""
    unknown = [one for one in found if one.memory is not None and not one.machines.gpu_bytes]
    most = max((one.memory.total for one in unknown if one.memory is not None), default=0)
    said = f"a rank needs an estimated {most / 1e9:,.1f} GB of GPU memory, which could not be checked: set jobs.gpu_memory (such as 80Gi)"
    return [f"{said} in the profile"] if unknown else []


def _slow_note(recipe: Recipe, found: list[Estimate]) -> list[str]:
    """A note with the time for training on CPU cores, if it is long."""
    hours = sum(one.hours for one in found)
    if hours < SLOW_HOURS or any(one.data.guessed for one in found):
        return []
    side, data = sizes.sizes(recipe.model).image_size, ", ".join(f"{one.data.count:,} {one.what}" for one in found)
    return [
        f"training at {side} px on {found[0].machines.cores} cores takes about {float(f'{hours:.2g}'):,.0f} hours ({data}; "
        f"{CORE_GFLOPS:.0f} GFLOP/s per core assumed){'' if recipe.name == 'demo' else '; RECIPE=demo takes minutes'}"
    ]
