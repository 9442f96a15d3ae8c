"""How much a staged data set holds: said, and compared with the batches of what will train on it."""

from pipelines.planning.request import Request
from pipelines.steps.notes import note
from trainer.errors import InputError
from trainer.storage.manifest import describe_rows, require_manifest


def described(uri: str) -> str:
    """What became of the rows of a sealed data set, in words, and where those that were lost are listed."""
    return describe_rows(require_manifest(uri).rows, uri)


def training_stages(asked: Request) -> tuple[str, ...]:
    """The stages that the arms of a request train."""
    learns = any(arm.labels is not None and not arm.finetuned for arm in asked.all_arms)
    finetuned = any(arm.finetuned for arm in asked.all_arms)
    return (*(["perceptual"] if learns else []), "contrastive", *(["posthoc"] if finetuned else []))


def check_size(uri: str, asked: Request, name: str) -> None:
    """Say what of a sealed data set an epoch leaves out.

    Args:
        uri: of the data set.
        asked: has arms and recipe.
        name: of the step that says it.

    Raises:
        InputError: it does not fill one batch.
    """
    manifest = require_manifest(uri)
    splits = manifest.facts.get("splits")
    train = splits.get("train", 0) if isinstance(splits, dict) else None
    if train is None:
        return
    recipe = asked.load_recipe()
    of_kind = ("contrastive",) if manifest.kind == "pairs" else ("perceptual", "posthoc")
    for stage in (stage for stage in training_stages(asked) if stage in of_kind):
        batch = int(getattr(recipe, stage).global_batch_size)
        if train < batch:
            smoke = "RECIPE=smoke or " if recipe.name != "smoke" else ""
            raise InputError(
                f"{uri}: {train:,} {manifest.kind} to train on, needs at least {batch:,} for recipe {recipe.name or '(unnamed)'} "
                f"({stage}.global_batch_size); try {smoke}a smaller global_batch_size"
            )
        if train % batch:
            used = f"{train - train % batch:,} of {train:,} {manifest.kind}, in batches of {batch:,}"
            note(name, f"{stage}: an epoch takes {used}; each epoch leaves out others")
