"""Resolve arms, seeds and data into cells: the configuration of every stage, and its place in the store.

`resolve` is a pure function; writing.py writes its result.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
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
    recipe_hash,
)
from trainer.configs import parse_config
from trainer.errors import InputError
from trainer.labels import named_labels
from trainer.representation import RepresentationConfig
from trainer.storage import exists, join, layout, read_bytes
from trainer.storage.base import absolute
from trainer.storage.committed import read_committed
from trainer.storage.manifest import as_data, read_manifest
from trainer.storage.outlines import check_representation, outlines, planned_rdms, read_rdms
from trainer.storage.plans import recipe_key

ConfigT = TypeVar("ConfigT", StageConfig, EvaluateConfig)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm with one seed, at one point: its stages in the order in which they run, and its evaluation.

    Attributes:
        name: `<arm>-seed<k>`, or `<arm>-<point>-seed<k>`.
        arm: the arm's name.
        point: which variation of the recipe it is; empty if the experiment has one recipe.
        seed: the seed.
        recipe: everything that determines its numbers except data, arm and seed.
        perceptual: stage 1, shared with other cells; None if the arm has none.
        contrastive: stage 2; for `posthoc`, stage 2 of its base arm.
        posthoc: fine-tuning after it; None if the arm has none.
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
    """The requested experiment.

    Attributes:
        root: store URI.
        name: name of the experiment.
        recipe: everything that determines its numbers except data, arm and seed.
        pairs: the sealed pairs.
        triplets: the sealed triplets.
        placement: where and how each stage runs unless its job says otherwise.
        weights: for each `from:` arm, by name, the SHA-256 of the tower's weights.
        sets: evaluation sets in addition to those that were staged with the pairs.
        representation: what is measured in addition to the figures.
        rdms: its RDMs, pinned.
        request: URI of the stored request that asked for it.
        parallel_cells: how many of its cells run at once; 0: all.
        axes: axes along which the request varies the recipe.
        points: points of the axes, as in plan.json.
        declared: endpoints, axes and tests, as the request declares them (declared.py).
        idle_axes: axes that change no arm.
        asked_arms: names of the request's arms, recorded with its declarations.
        asked_seeds: the request's seeds, recorded with its declarations.
        unread: the root and other addresses that this machine cannot read, which is allowed in a dry run.
    """

    root: str
    name: str
    recipe: Recipe
    pairs: DataConfig
    triplets: DataConfig
    placement: Placement = Placement()
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    sets: tuple[DataConfig, ...] = ()
    representation: RepresentationConfig = RepresentationConfig()
    rdms: tuple[DataConfig, ...] = ()
    request: str = ""
    parallel_cells: int = 1
    axes: Mapping[str, Mapping[str, list[Any]]] = dataclasses.field(default_factory=dict)
    points: tuple[dict[str, Any], ...] = ()
    declared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    idle_axes: tuple[str, ...] = ()
    asked_arms: tuple[str, ...] = ()
    asked_seeds: tuple[int, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def readable(self) -> bool:
        """Whether this machine can read the root."""
        return self.root not in self.unread

    @property
    def uri(self) -> str:
        """The experiment's folder."""
        return layout.experiment(self.root, self.name)


def resolve(experiment: Experiment, arm: Arm, seed: int, point: str = "", base_point: str | None = None) -> Cell:
    """The cell of one arm and seed, by the experiment's recipe.

    Args:
        experiment: has the recipe.
        arm: arm of the cell.
        seed: seed of the cell.
        point: names the recipe if the experiment has several.
        base_point: for a fine-tuned arm, the point of the cell whose model it starts from; None: its own.
    """
    posthoc = None
    if arm.finetuned:
        base = resolve(experiment, ARMS[experiment.recipe.posthoc.base], seed, point if base_point is None else base_point)
        perceptual, contrastive = base.perceptual, base.contrastive
        posthoc = _posthoc(experiment, arm, seed, point, contrastive)
        measured = [posthoc]
    else:
        perceptual = _tower(experiment, arm.labels, arm.tower, seed) if arm.labels else None
        contrastive = _contrastive(experiment, arm, seed, point, perceptual)
        # The tower as trained does not describe an arm that starts from its permuted weights.
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
    """Refuse an arm whose labels these triplets cannot have, such as FLIP's if FLIP was the judge anyway."""
    for arm in arms:
        refusal = named_labels(arm.labels).refusal(judge, recipe.staging) if arm.labels else ""
        if refusal:
            raise InputError(f"arms has {arm.name!r}, but its labels {refusal}")


def weights_of(arms: tuple[Arm, ...]) -> dict[str, str]:
    """For each `from:` arm, by name, the SHA-256 that identifies its tower.

    A folder's COMMITTED.json contains it; for a URI that ends in .safetensors it is the file's own.
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
    """Evaluation sets from comma-separated URIs; those that firstsight staged get their identity.

    Raises:
        InputError: there is neither a staged set nor one in CLIP_benchmark's layout; raised now rather than after training.
    """
    uris = [absolute(uri.strip()) for uri in text.split(",") if uri.strip()]
    manifests = [(uri, read_manifest(uri)) for uri in uris]
    for uri, manifest in manifests:
        if manifest is None and not exists(join(uri, "test", "nshards.txt")):
            raise InputError(f"evaluation set {uri}: neither manifest.json nor test/nshards.txt exists there")
    return tuple(as_data(uri) if manifest else DataConfig(uri=uri) for uri, manifest in manifests)


def represented(asked: Mapping[str, Any], sets: tuple[DataConfig, ...], pairs: DataConfig, *, complete: bool) -> dict[str, Any]:
    """A request's `representation` as fields of an Experiment, its RDMs read and pinned.

    Args:
        asked: the request's `representation`.
        sets: evaluation sets in addition to those staged with the pairs.
        pairs: pairs of the experiment, as far as they are staged.
        complete: whether they are staged; if not, checks that depend on their sets are left to the step `plan`.

    Raises:
        InputError: a file is not an RDM, its names are not pictures of the sets, or a set cannot be probed; raised before anything is
            trained.
    """
    config = parse_config(RepresentationConfig, asked, source="representation")
    if config == RepresentationConfig():
        return {}
    rdms = read_rdms(config)
    check_representation(config, rdms, outlines(sets, pairs), complete=complete)
    return {"representation": config, "rdms": planned_rdms(config, rdms)}


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
    return dataclasses.replace(stage, output=layout.tower(experiment.uri, recipe_hash(stage)))  # the place is not part of the hash


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
        placement=dataclasses.replace(
            experiment.placement,
            checkpoint_every_epochs=experiment.recipe.evaluation.every_epochs,
            trajectory=experiment.recipe.evaluation.trajectory,
        ),
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
        representation=experiment.representation,
        rdms=experiment.rdms,
        placement=experiment.placement,
    )


def entry_of(cell: Cell) -> dict[str, Any]:
    """The cell in the form of plan.json."""
    return entry(cell.name, cell.stages(), cell.recipe, cell.arm, cell.point, cell.seed)


def entry(name: str, stages: Sequence[StageConfig], recipe: Recipe, arm: str, point: str, seed: int) -> dict[str, Any]:
    """A cell with these stages in the form of plan.json."""
    folders = {stage.stage: stage.output for stage in stages}
    return {
        "cell": name,
        "arm": arm,
        "point": point,
        "seed": seed,
        "recipe": recipe_key(asdict(recipe)),
        **{stage: folders.get(stage, "") for stage in ("perceptual", "contrastive", "posthoc")},
        "evaluation": join((folders.get("posthoc") or folders["contrastive"]).rpartition("/")[0], "evaluation"),
        "recipe_hashes": {stage.stage: recipe_hash(stage) for stage in stages},
        "stage_labels": {stage.stage: {"cell": stage.cell, "arm": stage.arm, "point": stage.point} for stage in stages},
    }
