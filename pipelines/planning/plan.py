"""From arms, seeds and data to cells: every stage's configuration, resolved, and where it lies.

`resolve` is a pure function; `write_plan` looks at what the experiment holds already, refuses another recipe for a cell that is
planned and other data for any, and writes each stage's config.yaml, each cell's evaluation/config.yaml and plan.json.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pipelines.planning.arms import ARMS, Arm
from trainer.config import (
    DataConfig,
    EvaluateConfig,
    ModelToEvaluate,
    Placement,
    Recipe,
    StageConfig,
    StartConfig,
    differing_keys,
    recipe_fields,
    recipe_hash,
)
from trainer.configs import dump_yaml, load_yaml, read_stored
from trainer.errors import InputError
from trainer.labels import named_labels
from trainer.storage import exists, join, layout, read_bytes, read_text, write_bytes, write_json
from trainer.storage.base import MissingObject, absolute
from trainer.storage.committed import read_committed
from trainer.storage.manifest import read_manifest
from trainer.storage.plans import FORMAT_VERSION, NAME, Plan, read_plan, recipe_key
from trainer.storage.recipes import shown

ConfigT = TypeVar("ConfigT", StageConfig, EvaluateConfig)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm with one seed, at one point: its stages in the order in which they run, and its evaluation.

    Attributes:
        name: `<arm>-seed<k>`, or `<arm>-<point>-seed<k>`.
        arm: the arm's name.
        point: which variation of the recipe it is; empty where the experiment has one recipe.
        seed: the seed.
        recipe: all that decides its numbers but for data, arm and seed.
        perceptual: stage 1, shared with other cells; None where the arm has none.
        contrastive: stage 2; of `posthoc` that of its base arm.
        posthoc: fine-tuning after it; None where the arm has none.
        evaluation: what is measured.
    """

    name: str
    arm: str
    point: str = ""
    seed: int
    recipe: Recipe
    perceptual: StageConfig | None
    contrastive: StageConfig
    posthoc: StageConfig | None
    evaluation: EvaluateConfig

    def stages(self) -> list[StageConfig]:
        """The stages it has, in order."""
        return [stage for stage in (self.perceptual, self.contrastive, self.posthoc) if stage is not None]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What one experiment is asked to be.

    Attributes:
        root: store URI.
        name: of the experiment.
        recipe: all that decides its numbers but for data, arm and seed.
        pairs: the sealed pairs.
        triplets: the sealed triplets.
        placement: where and how each stage runs unless its job says otherwise.
        weights: of each `from:` arm by its name, the SHA-256 of the tower's weights.
        sets: evaluation sets beside those that were staged with the pairs.
        request: URI of the stored request that asked for it.
    """

    root: str
    name: str
    recipe: Recipe
    pairs: DataConfig
    triplets: DataConfig
    placement: Placement = Placement()
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    sets: tuple[DataConfig, ...] = ()
    request: str = ""

    @property
    def uri(self) -> str:
        """The experiment's folder."""
        return layout.experiment(self.root, self.name)


def resolve(experiment: Experiment, arm: Arm, seed: int, point: str = "") -> Cell:
    """The cell of one arm and seed, by the experiment's recipe; `point` names that recipe where others stand beside it."""
    posthoc = None
    if arm.finetuned:
        base = resolve(experiment, ARMS[experiment.recipe.posthoc.base], seed, point)
        perceptual, contrastive = base.perceptual, base.contrastive
        posthoc = _posthoc(experiment, arm, seed, point, contrastive)
        measured = [posthoc]
    else:
        perceptual = _tower(experiment, arm.labels, arm.tower, seed) if arm.labels else None
        contrastive = _contrastive(experiment, arm, seed, point, perceptual)
        # The tower as it was trained says nothing of an arm that starts from its permuted weights.
        measured = [stage for stage in (perceptual if arm.start == "tower" else None, contrastive) if stage is not None]
    return Cell(
        name=layout.cell_name(arm.name, seed, point),
        arm=arm.name,
        point=point,
        seed=seed,
        recipe=experiment.recipe,
        perceptual=perceptual,
        contrastive=contrastive,
        posthoc=posthoc,
        evaluation=_evaluation(experiment, arm, seed, point, measured),
    )


def require_judge(arms: tuple[Arm, ...], judge: str, recipe: Recipe) -> None:
    """Refuse an arm whose labels these triplets cannot have, such as FLIP's where FLIP was the judge anyway."""
    for arm in arms:
        refusal = named_labels(arm.labels).refusal(judge, recipe.staging) if arm.labels else ""
        if refusal:
            raise InputError(f"arms has {arm.name!r}, whose labels {refusal}")


def weights_of(arms: tuple[Arm, ...]) -> dict[str, str]:
    """Of each `from:` arm by its name, the SHA-256 by which its tower is known.

    A folder with COMMITTED.json says it itself; of a URI that ends in .safetensors it is the file's own.
    """
    return {arm.name: _weights_sha256(arm.source) for arm in arms if arm.source}


def _weights_sha256(uri: str) -> str:
    if uri.endswith(".safetensors"):
        return hashlib.sha256(read_bytes(uri)).hexdigest()
    committed = read_committed(uri)
    if committed is None:
        raise InputError(f"arm from:{uri}: no COMMITTED.json there: give the final/ folder of a finished stage, or a .safetensors file")
    if not committed.facts.get("vision_sha256"):
        raise InputError(f"arm from:{uri}: its COMMITTED.json names no vision_sha256, so its tower cannot be checked")
    return str(committed.facts["vision_sha256"])


def read_sets(text: str) -> tuple[DataConfig, ...]:
    """Evaluation sets by their comma-separated URIs; one that firstsight staged carries its identity.

    Raises:
        InputError: neither a staged set nor one of CLIP_benchmark's layout lies there: said now, not behind the training.
    """
    uris = [absolute(uri.strip()) for uri in text.split(",") if uri.strip()]
    manifests = [(uri, read_manifest(uri)) for uri in uris]
    for uri, manifest in manifests:
        if manifest is None and not exists(join(uri, "test", "nshards.txt")):
            raise InputError(f"evaluation set {uri}: neither manifest.json nor test/nshards.txt lies there")
    return tuple(DataConfig(uri=uri, identity=manifest.identity if manifest else "") for uri, manifest in manifests)


def write_plan(experiment: Experiment, cells: list[Cell]) -> None:
    """Write the configurations and plan.json, beside those of the cells that earlier runs finished.

    Raises:
        InputError: one of the cells was planned with another recipe, or the experiment with other data; nothing is written.
    """
    earlier = read_plan(experiment.uri)
    if earlier is None:
        earlier = {"cells": [], "recipes": {}}
    else:
        _refuse_what_differs(experiment, cells, earlier)
    stages = list({stage.output: stage for cell in cells for stage in cell.stages()}.values())
    written = [_written(stage) for stage in stages]
    for stage, before in zip(stages, written, strict=True):
        if before is not None:
            differing = list(differing_keys(recipe_fields(before, complete=True), recipe_fields(stage, complete=True)))
            _refuse(f"experiment {experiment.name} ({layout.config(stage.output)})", differing)
    names = {cell.name for cell in cells}
    kept = [entry for entry in earlier["cells"] if entry["cell"] not in names and _is_finished(entry)]
    for stage, before in zip(stages, written, strict=True):
        _write_config(stage, before)
    for cell in cells:
        _write_config(cell.evaluation, _written_evaluation(cell.evaluation))
    entries = [*kept, *map(entry_of, cells)]
    recipes = earlier["recipes"] | {recipe_key(recipe): recipe for recipe in (asdict(cell.recipe) for cell in cells)}
    plan = {
        "format_version": FORMAT_VERSION,
        "experiment": experiment.name,
        "root": experiment.root,
        "request": experiment.request,
        "recipes": {entry["recipe"]: recipes[entry["recipe"]] for entry in entries},
        "arms": list(dict.fromkeys(entry["arm"] for entry in entries)),
        "seeds": sorted({entry["seed"] for entry in entries}),
        "pairs": asdict(experiment.pairs),
        "triplets": asdict(experiment.triplets),
        "sets": [asdict(part) for part in experiment.sets],
        "cells": entries,
    }
    write_json(join(experiment.uri, NAME), plan)


def _tower(experiment: Experiment, labels: str, name: str, seed: int) -> StageConfig:
    stage = StageConfig(
        stage="perceptual",
        experiment=experiment.name,
        arm=name,
        seed=seed,
        output=experiment.uri,
        data=experiment.triplets,
        labels=labels,
        model=experiment.recipe.model,
        perceptual=experiment.recipe.perceptual,
        placement=experiment.placement,
        request=experiment.request,
    )
    return dataclasses.replace(stage, output=layout.tower(experiment.uri, recipe_hash(stage)))  # the place is no part of the hash


def _contrastive(experiment: Experiment, arm: Arm, seed: int, point: str, tower: StageConfig | None) -> StageConfig:
    start = StartConfig()
    if tower is not None:
        start = StartConfig(kind=arm.start, uri=layout.final(tower.output), recipe_hash=recipe_hash(tower))
    elif arm.source:
        start = StartConfig(kind="tower", uri=arm.source, recipe_hash=experiment.weights[arm.name])
    return StageConfig(
        stage="contrastive",
        experiment=experiment.name,
        cell=layout.cell_name(arm.name, seed, point),
        arm=arm.name,
        point=point,
        seed=seed,
        output=layout.stage(layout.cell(experiment.uri, arm.name, seed, point), "contrastive"),
        data=experiment.pairs,
        start=start,
        model=experiment.recipe.model,
        contrastive=experiment.recipe.contrastive,
        placement=dataclasses.replace(experiment.placement, checkpoint_every_epochs=experiment.recipe.evaluation.every_epochs),
        request=experiment.request,
    )


def _posthoc(experiment: Experiment, arm: Arm, seed: int, point: str, base: StageConfig) -> StageConfig:
    return StageConfig(
        stage="posthoc",
        experiment=experiment.name,
        cell=layout.cell_name(arm.name, seed, point),
        arm=arm.name,
        point=point,
        seed=seed,
        output=layout.stage(layout.cell(experiment.uri, arm.name, seed, point), "posthoc"),
        data=experiment.triplets,
        labels=arm.labels or "votes",
        start=StartConfig(kind="model", uri=layout.final(base.output), recipe_hash=recipe_hash(base)),
        model=experiment.recipe.model,
        posthoc=experiment.recipe.posthoc,
        placement=experiment.placement,
        request=experiment.request,
    )


def _evaluation(experiment: Experiment, arm: Arm, seed: int, point: str, measured: list[StageConfig]) -> EvaluateConfig:
    models = [ModelToEvaluate(stage=stage.stage, uri=stage.output, recipe_hash=recipe_hash(stage)) for stage in measured]
    return EvaluateConfig(
        experiment=experiment.name,
        cell=layout.cell_name(arm.name, seed, point),
        arm=arm.name,
        point=point,
        seed=seed,
        output=join(layout.cell(experiment.uri, arm.name, seed, point), "evaluation"),
        model=experiment.recipe.model,
        models=(ModelToEvaluate(stage="untrained"), *models),
        pairs=experiment.pairs,
        triplets=experiment.triplets,
        sets=experiment.sets,
        evaluation=experiment.recipe.evaluation,
        placement=experiment.placement,
    )


def entry_of(cell: Cell) -> dict[str, Any]:
    """The cell as plan.json has it."""
    return {
        "cell": cell.name,
        "arm": cell.arm,
        "point": cell.point,
        "seed": cell.seed,
        "recipe": recipe_key(asdict(cell.recipe)),
        "perceptual": cell.perceptual.output if cell.perceptual else "",
        "contrastive": cell.contrastive.output,
        "posthoc": cell.posthoc.output if cell.posthoc else "",
        "evaluation": cell.evaluation.output,
        "recipe_hashes": {stage.stage: recipe_hash(stage) for stage in cell.stages()},
        "stage_labels": {stage.stage: {"cell": stage.cell, "arm": stage.arm, "point": stage.point} for stage in cell.stages()},
    }


def _refuse_what_differs(experiment: Experiment, cells: list[Cell], earlier: Plan) -> None:
    """What the experiment's plan says of its data and of these cells is what is asked for now; other cells may have other recipes."""
    data = {"pairs": experiment.pairs.identity, "triplets": experiment.triplets.identity}
    _refuse(f"experiment {experiment.name}", list(differing_keys({what: earlier[what]["identity"] for what in data}, data)))
    planned = {entry["cell"]: entry["recipe"] for entry in earlier["cells"]}
    for cell in cells:
        key = planned.get(cell.name, "")
        if key and key != recipe_key(asdict(cell.recipe)):
            before = read_stored(Recipe, earlier["recipes"][key], join(experiment.uri, NAME))
            old, new = {"recipe": recipe_fields(before, complete=True)}, {"recipe": recipe_fields(cell.recipe, complete=True)}
            _refuse(f"cell {cell.name} of experiment {experiment.name}", list(differing_keys(old, new)))


def _written(config: ConfigT) -> ConfigT | None:
    """The configuration that lies where `config` belongs; None where there is none. What says the same is not parsed, which is slow."""
    uri = layout.config(config.output)
    try:
        values = load_yaml(read_text(uri), uri)
    except MissingObject:
        return None
    return config if _meaning(values) == _meaning(asdict(config)) else read_stored(type(config), values, uri)


def _written_evaluation(config: EvaluateConfig) -> EvaluateConfig | None:
    """As `_written`; one that cannot be read is written anew, for nothing was made from it that would be lost."""
    try:
        return _written(config)
    except InputError:
        return None


def _write_config(config: ConfigT, before: ConfigT | None) -> None:
    """Write config.yaml, unless the one that is there says the same.

    A job of an older version may still run, and reads its file again at each restart: it must not find keys that it does not know.
    """
    if before is None or _meaning(asdict(before)) != _meaning(asdict(config)):
        write_bytes(layout.config(config.output), dump_yaml(config).encode())


def _meaning(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration is neither for people nor, as placement is, said anew by each job's arguments; as JSON has it."""
    kept = {key: value for key, value in values.items() if key not in ("cell", "point", "request", "placement")}
    placement = values.get("placement")
    kept["checkpoint_every_epochs"] = placement.get("checkpoint_every_epochs", 0) if isinstance(placement, Mapping) else placement
    return dict(json.loads(json.dumps(kept, skipkeys=True, default=str)))


def _refuse(what: str, differing: list[str]) -> None:
    if differing:
        raise InputError(f"{what} was planned with another recipe or other data: {shown(differing)}: give the experiment another name")


def _is_finished(entry: dict[str, Any]) -> bool:
    last = "posthoc" if entry["posthoc"] else "contrastive"
    committed = read_committed(layout.final(entry[last]))
    return committed is not None and committed.recipe_hash == entry["recipe_hashes"][last]
