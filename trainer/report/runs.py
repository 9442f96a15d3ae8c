"""The stages of a cell as the report reads them: seal, configuration, lineage and course, each as it was written or not at all.

What a stage's seal names (format 2) is compared with its checksum. Of older stages a course must be one that ran to the sealed step.
"""

import json
from typing import Any

from trainer.config import StageConfig, recipe_hash
from trainer.errors import Corrupt, InputError, RunError
from trainer.report.experiment import Experiment, StageRun
from trainer.storage import join, layout, open_store
from trainer.storage.base import MissingObject
from trainer.storage.committed import NAME, Committed, read_beside, read_committed, read_final
from trainer.storage.recipes import read_stage, what_differs

STAGES = ("perceptual", "contrastive", "posthoc")
Number = (int, float, type(None))
_FACTS = dict.fromkeys(("seconds", "samples_per_second", "flops", "feature_rank"), Number) | dict.fromkeys(
    ("weights_sha256", "vision_sha256"), (str, type(None))
)
_LINEAGE = dict.fromkeys(("world_size", "threads"), (int, type(None))) | {
    "seconds": Number,
    **dict.fromkeys(("start", "data", "code"), (dict, type(None))),
    **dict.fromkeys(("recipe_hash", "weights_sha256", "vision_sha256", "device", "torch", "image_digest", "request"), (str, type(None))),
}


def read_run(experiment: Experiment, entry: dict[str, Any], name: str) -> StageRun:
    """One finished stage of a cell. What of it is damaged and costs no figure is left out of the experiment by name.

    Args:
        experiment: takes what is left out.
        entry: of the cell in the plan.
        name: of the stage.

    Raises:
        InputError: the stage is not finished, or of another recipe than planned.
        Corrupt: something that figures depend on is damaged or gone.
    """
    uri = entry[name]
    seal, damaged = read_final(uri)
    if seal is None:
        for place, why in damaged.items():
            raise Corrupt(f"{place}: {why}")
        if _was_finished(entry, name):
            raise Corrupt(f"{join(layout.final(uri), NAME)}: missing, though the {name} stage was finished: what came after it is there")
        raise InputError(f"{name} is not finished")
    _check_types(join(layout.final(uri), NAME), seal.facts, _FACTS)
    for place, why in damaged.items():
        beside = place.rpartition("/")[2] in seal.beside
        experiment.exclude(place, f"{why}; {'its other copy' if beside else 'what was measured of this model before'} counts", damaged=True)
    config = _config(experiment, uri)
    lineage = _lineage(uri, seal)
    _check_recipe(uri, name, entry.get("recipe_hashes", {}).get(name, ""), (config, lineage, seal))
    run = StageRun(uri=uri, config=config, lineage=lineage, committed=seal, progress=_course(experiment, uri, seal))
    recorded = {lineage[key] for key in ("weights_sha256", "vision_sha256") if lineage.get(key)}
    if run.weights and recorded and not run.weights & recorded:
        raise Corrupt(f"{name}: the weights that were sealed are not those that its lineage names: refused")
    return run


def _was_finished(entry: dict[str, Any], name: str) -> bool:
    """Whether there is what only a finished stage leaves: figures of its final model, or a later stage's seal."""
    if entry.get("evaluation") and open_store(entry["evaluation"]).holds(join(entry["evaluation"], f"{name}-final")):
        return True
    later = STAGES[STAGES.index(name) + 1 :]
    return any(entry.get(stage) and read_committed(layout.final(entry[stage])) is not None for stage in later)


def _check_recipe(uri: str, name: str, planned: str, found: tuple[StageConfig, dict[str, Any], Committed]) -> None:
    config, lineage, seal = found
    own = recipe_hash(config)
    for source, value in (("the plan", planned or own), ("lineage.json", lineage.get("recipe_hash")), ("its seal", seal.recipe_hash)):
        if value != own:
            raise Corrupt(f"{name}: {source} says another recipe than config.yaml{what_differs(uri, str(value), config)}: refused")


def _config(experiment: Experiment, uri: str) -> StageConfig:
    """The stage's configuration; its copy in final/ where it is damaged, which must still be of the sealed recipe."""
    place = layout.config(uri)
    try:
        return read_stage(place)
    except (MissingObject, Corrupt) as error:
        why = "missing" if isinstance(error, MissingObject) else str(error).removeprefix(f"{place}: ")
        try:
            config = read_stage(layout.config(layout.final(uri)))
        except (InputError, RunError) as second:
            raise Corrupt(f"{place}: {why}") from second
        experiment.exclude(place, f"{why}; its other copy counts", damaged=True)
        return config


def _lineage(uri: str, seal: Committed) -> dict[str, Any]:
    place = layout.lineage(uri)
    try:
        value = json.loads(read_beside(uri, seal, layout.LINEAGE))
    except MissingObject as error:
        raise Corrupt(f"{place}: missing") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{place}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Corrupt(f"{place}: not a lineage of firstsight")
    _check_types(place, value, _LINEAGE)
    return value


def _course(experiment: Experiment, uri: str, seal: Committed) -> list[dict[str, Any]]:
    """Records of progress.jsonl by step, [] where it is damaged, and named. A resumed run repeats steps: the last record counts."""
    place = layout.progress(uri)
    try:
        by_step: dict[int, dict[str, Any]] = {}
        for number, line in enumerate(read_beside(uri, seal, layout.PROGRESS).splitlines(), 1):
            record = _record(line)
            if record is None:
                raise Corrupt(f"{place}: line {number} is not a record of a step")
            by_step[record["step"]] = record
        if max(by_step, default=0) != seal.step or "loss" not in by_step[seal.step]:
            raise Corrupt(f"{place}: it ends at step {max(by_step, default=0)}, the stage at {seal.step}")
    except (MissingObject, Corrupt) as error:
        why = "missing" if isinstance(error, MissingObject) else str(error).removeprefix(f"{place}: ")
        experiment.exclude(place, f"{why}; the stage is shown without its losses", damaged=True)
        return []
    return [by_step[step] for step in sorted(by_step)]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or not isinstance(record.get("steps"), int | None):
        return None
    return record


def _check_types(place: str, value: dict[str, Any], kinds: dict[str, Any]) -> None:
    """What older versions wrote has no checksum: at least nothing in it is of another kind."""
    for key, kind in kinds.items():
        if not isinstance(value.get(key), kind):
            raise Corrupt(f"{place}: {key} is {value[key]!r}")
