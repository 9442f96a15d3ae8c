"""Report the size of a staged data set, and compare it with the batches of the stages that will train on it."""

from collections.abc import Collection

from pipelines.planning.request import Request
from pipelines.steps.notes import note
from trainer.config import Recipe
from trainer.dose import fraction, short_of_a_batch, warm_up_too_long, what_helps
from trainer.errors import InputError
from trainer.storage.manifest import describe_rows, require_manifest


def described(uri: str) -> str:
    """How many rows of a sealed data set were used and lost, in words, and where the lost ones are listed."""
    return describe_rows(require_manifest(uri).rows, uri)


def training_stages(asked: Request) -> tuple[str, ...]:
    """The stages that the arms of a request train."""
    learns = any(arm.labels is not None and not arm.finetuned for arm in asked.all_arms)
    finetuned = any(arm.finetuned for arm in asked.all_arms)
    return (*(["perceptual"] if learns else []), "contrastive", *(["posthoc"] if finetuned else []))


def _recipes(asked: Request) -> list[tuple[Recipe, Collection[str]]]:
    """Every recipe of a request's cells, with the stages that are trained with it."""
    if not asked.vary:
        return [(asked.load_recipe(), training_stages(asked))]
    from pipelines.planning.points import Points  # here: slow to import

    return list(Points(asked).recipes().items())


def require_rows(uri: str, kind: str, rows: int, recipe: Recipe, stages: Collection[str]) -> None:
    """InputError if so many rows of a data set do not fill one batch of a stage that trains on it.

    Args:
        uri: URI of the data set.
        kind: pairs or triplets.
        rows: rows to train on, or of all its splits if no more is known.
        recipe: the recipe, which sets the batch sizes.
        stages: stages that will train.
    """
    for stage, batch in _batches(kind, recipe, stages):
        if rows < batch:
            raise InputError(
                f"{uri}: {rows:,} {kind} to train on, needs at least {batch:,} for recipe {recipe.name or '(unnamed)'} "
                f"({stage}.global_batch_size); {what_helps(recipe, stage, rows)}"
            )


def check_size(uri: str, asked: Request, name: str) -> None:
    """Report how much of a sealed data set an epoch leaves out.

    Args:
        uri: URI of the data set.
        asked: the request, with arms and recipe.
        name: name of the reporting step.

    Raises:
        InputError: it does not fill one batch.
    """
    manifest = require_manifest(uri)
    splits = manifest.facts.get("splits")
    if not isinstance(splits, dict):
        return
    train, said = splits.get("train", 0), dict[str, None]()
    for recipe, stages in _recipes(asked):
        require_rows(uri, manifest.kind, train, recipe, stages)
        for stage, batch in _batches(manifest.kind, recipe, stages):
            settings = getattr(recipe, stage)
            if wrong := short_of_a_batch(stage, settings, train) or warm_up_too_long(stage, settings, train):
                raise InputError(f"{uri}: {wrong}")
            taken = round(fraction(settings) * train)
            if taken % batch:
                used = f"{taken - taken % batch:,} of {taken:,} {manifest.kind}, in batches of {batch:,}"
                said[f"{stage}: an epoch takes {used}; the subset varies by epoch"] = None
    for line in said:
        note(name, line)


def _batches(kind: str, recipe: Recipe, stages: Collection[str]) -> list[tuple[str, int]]:
    """The stages that train on a kind of data set, with their batches."""
    of_kind = ("contrastive",) if kind == "pairs" else ("perceptual", "posthoc")
    return [(stage, int(getattr(recipe, stage).global_batch_size)) for stage in of_kind if stage in stages]
