"""The stages of a cell as the report reads them: seal, configuration, lineage and course, each exactly as written, or not at all.

Files named by a stage's seal (format 2) are checked against its checksums. For older stages, the course must reach the sealed step.
"""

import json
from typing import Any

from trainer.config import StageConfig, recipe_hash
from trainer.errors import Corrupt, InputError, RunError
from trainer.progress import read_record
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
    """One finished stage of a cell. Damaged parts that affect no result are left out of the experiment, by name.

    Args:
        experiment: records what is left out.
        entry: the cell's entry in the plan.
        name: the stage's name.

    Raises:
        InputError: the stage is not finished, or has a recipe other than planned.
        Corrupt: something that figures depend on is damaged or gone.
    """
    uri = entry[name]
    seal, damaged = read_final(uri)
    if seal is None:
        for place, why in damaged.items():
            raise Corrupt(f"{place}: {why}")
        if _was_finished(entry, name):
            raise Corrupt(f"{join(layout.final(uri), NAME)}: missing, although the {name} stage was finished: later results exist")
        raise InputError(f"{name} is not finished")
    _check_types(join(layout.final(uri), NAME), seal.facts, _FACTS)
    for place, why in damaged.items():
        beside = place.rpartition("/")[2] in seal.beside
        experiment.exclude(place, f"{why}; {'its other copy' if beside else 'the earlier measurement of this model'} is used", damaged=True)
    config = _config(experiment, uri)
    lineage = _lineage(uri, seal)
    _check_recipe(uri, name, entry.get("recipe_hashes", {}).get(name, ""), (config, lineage, seal))
    run = StageRun(uri=uri, config=config, lineage=lineage, committed=seal, progress=_course(experiment, uri, seal))
    recorded = {lineage[key] for key in ("weights_sha256", "vision_sha256") if lineage.get(key)}
    if run.weights and recorded and not run.weights & recorded:
        raise Corrupt(f"{name}: the sealed weights differ from those that its lineage names; rejected")
    return run


def _was_finished(entry: dict[str, Any], name: str) -> bool:
    """Whether something exists that only a finished stage leaves: figures of its final model, or a later stage's seal."""
    if entry.get("evaluation") and open_store(entry["evaluation"]).holds(join(entry["evaluation"], f"{name}-final")):
        return True
    later = STAGES[STAGES.index(name) + 1 :]
    return any(entry.get(stage) and read_committed(layout.final(entry[stage])) is not None for stage in later)


def _check_recipe(uri: str, name: str, planned: str, found: tuple[StageConfig, dict[str, Any], Committed]) -> None:
    config, lineage, seal = found
    own = recipe_hash(config)
    for source, value in (("the plan", planned or own), ("lineage.json", lineage.get("recipe_hash")), ("its seal", seal.recipe_hash)):
        if value != own:
            raise Corrupt(f"{name}: {source} names a different recipe from config.yaml{what_differs(uri, str(value), config)}: rejected")


def _config(experiment: Experiment, uri: str) -> StageConfig:
    """The stage's configuration; if it is damaged, its copy in final/, which must still match the sealed recipe."""
    place = layout.config(uri)
    try:
        return read_stage(place)
    except (MissingObject, Corrupt) as error:
        why = "missing" if isinstance(error, MissingObject) else str(error).removeprefix(f"{place}: ")
        try:
            config = read_stage(layout.config(layout.final(uri)))
        except (InputError, RunError) as second:
            raise Corrupt(f"{place}: {why}") from second
        experiment.exclude(place, f"{why}; its other copy is used", damaged=True)
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
        raise Corrupt(f"{place}: not a firstsight lineage file")
    _check_types(place, value, _LINEAGE)
    return value


def _course(experiment: Experiment, uri: str, seal: Committed) -> list[dict[str, Any]]:
    """Records of progress.jsonl by step; [] if it is damaged, which is then named. A resumed run repeats steps: the last record counts."""
    place = layout.progress(uri)
    try:
        by_step: dict[int, dict[str, Any]] = {}
        for number, line in enumerate(read_beside(uri, seal, layout.PROGRESS).splitlines(), 1):
            record = read_record(line)
            if record is None or type(record.get("step")) is not int or not isinstance(record.get("steps"), int | None):
                raise Corrupt(f"{place}: line {number} is not a record of a step")
            by_step[record["step"]] = record
        if max(by_step, default=0) != seal.step or "loss" not in by_step[seal.step]:
            raise Corrupt(f"{place}: it ends at step {max(by_step, default=0)}, but the stage ended at {seal.step}")
    except (MissingObject, Corrupt) as error:
        why = "missing" if isinstance(error, MissingObject) else str(error).removeprefix(f"{place}: ")
        experiment.exclude(place, f"{why}; the stage is shown without its losses", damaged=True)
        return []
    return [by_step[step] for step in sorted(by_step)]


def _check_types(place: str, value: dict[str, Any], types: dict[str, Any]) -> None:
    """Files written by older versions have no checksum; check at least that every value has the right type."""
    for key, kind in types.items():
        if not isinstance(value.get(key), kind):
            raise Corrupt(f"{place}: {key} is {value[key]!r}")
