"""What an evaluation wants: every model of the cell on every set that suits it. No torch here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config import EvaluateConfig, ModelToEvaluate, StartConfig
from trainer.errors import Corrupt, InputError, RunError
from trainer.evaluation.read_sets import TWO_AFC, EvaluationSet, describe_set
from trainer.evaluation.representation import find_tasks
from trainer.evaluation.results import Wanted, version
from trainer.storage import join, layout, open_store
from trainer.storage.committed import NAME, Committed, read_committed
from trainer.storage.figures import untrained_hash
from trainer.storage.manifest import Manifest, require_manifest, staged_sets
from trainer.storage.recipes import what_differs

TRIPLET_SPLITS = ("val", "test")
CHECKPOINT_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelAt:
    """A model at one moment.

    Attributes:
        stage: untrained, perceptual, contrastive or posthoc.
        when: `final`, or the step of a checkpoint.
        recipe_hash: of the stage that made it; for the untrained model, of its sizes and seed.
        start: where the weights of a final model lie.
        weights_sha256: their hash, from its seal.
        checkpoint: URI of the weights' file of a checkpoint.
        checkpoint_sha256: hash of that file, from its seal.
    """

    stage: str
    when: str
    recipe_hash: str
    start: StartConfig | None = None
    weights_sha256: str = ""
    checkpoint: str = ""
    checkpoint_sha256: str = ""

    @property
    def name(self) -> str:
        """As its folder is called."""
        return f"{self.stage}-{self.when}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model on one set: an evaluation set (`described`), or one split of the triplets.

    Of representation, `group` says with which other results it shares a pass (layers, probes), `count` how many pictures that runs,
    and `training` what a probe learns from.
    """

    model: ModelAt
    wanted: Wanted
    described: EvaluationSet | None = None
    triplets: Manifest | None = None
    split: str = ""
    group: str = ""
    count: int = 0
    training: EvaluationSet | None = None

    @property
    def num_items(self) -> int:
        """Pictures to run, 0 if that is not known before."""
        if self.group:
            return self.count
        if self.triplets:
            return 3 * sum(shard.num_samples for shard in self.triplets.split(self.split))
        return self.described.num_items if self.described else 0


def find_models(config: EvaluateConfig, asked: ModelToEvaluate, unfinished_ok: bool = False) -> list[ModelAt]:
    """The model of a stage at every moment that is asked for: its checkpoints by step, then the final one.

    Args:
        config: of the evaluation.
        asked: the stage.
        unfinished_ok: whether a stage without a final model is accepted; it gives the checkpoints that it has.

    Raises:
        InputError: the stage is not finished, a seal has another recipe hash, or a requested step is missing.
        Corrupt: the final model's seal is damaged.
    """
    if asked.stage == "untrained":
        return [ModelAt(stage=asked.stage, when="final", recipe_hash=untrained_hash(config.model, config.seed))]
    by_epoch = config.evaluation.trajectory or config.evaluation.every_epochs > 0
    found = [_at_checkpoint(asked, folder, seal) for folder, seal in _checkpoints(asked, by_epoch)]
    folder = layout.final(asked.uri)
    try:
        seal = read_committed(folder)
    except Corrupt as error:
        if not unfinished_ok:
            raise Corrupt(f"{error}: run the {asked.stage} stage again, which recreates its final model") from error
        seal = None
    if seal is not None:
        _check_recipe(asked, folder, seal)
        if asked.checkpoints in ("", "all"):  # the last checkpoint has the final weights
            found = [model for model in found if model.when != str(seal.step)]
        found.append(_at_final(asked, folder, seal))
    elif not unfinished_ok:
        raise InputError(f"{folder}: no COMMITTED.json: the {asked.stage} stage is not finished")
    return found


def _checkpoints(asked: ModelToEvaluate, by_epoch: bool) -> list[tuple[str, Committed]]:
    """Sealed weights that are asked for, by step, with their folders; of a damaged seal a line says that it is passed over.

    Weights kept by epoch lie in trajectory/; firstsight 0.1.0 kept whole checkpoints instead, and marked them.
    """
    if not asked.checkpoints and not by_epoch:
        return []
    found: dict[int, tuple[str, Committed]] = {}
    for folder in _sealed_folders(asked.uri):
        try:
            seal = read_committed(folder)
        except Corrupt as error:
            print(f"evaluate: {error}: skipped", flush=True)
            continue
        if seal is not None:  # None: pruned since it was listed
            found[int(folder[-9:])] = folder, seal
    prefix = join(asked.uri, "checkpoints")
    if asked.checkpoints not in ("", "all"):
        wanted = sorted({int(part) for part in asked.checkpoints.split(",")})
        missing = [step for step in wanted if step not in found]
        if missing:
            raise InputError(f"{prefix}: no sealed checkpoint of step {missing[0]}, there are {sorted(found) or 'none'}")
        found = {step: found[step] for step in wanted}
    elif not asked.checkpoints:
        found = {step: (folder, seal) for step, (folder, seal) in found.items() if _is_kept(folder, seal)}
    for folder, seal in found.values():
        _check_recipe(asked, folder, seal)
    return [found[step] for step in sorted(found)]


def _sealed_folders(stage_uri: str) -> list[str]:
    """Checkpoints, then weights kept by epoch, by step: where a step has both, the latter count."""
    places = [join(stage_uri, name) for name in ("checkpoints", layout.TRAJECTORY)]
    sealed = [info.uri.rpartition("/")[0] for place in places for info in open_store(place).list(place) if info.uri.endswith(f"/{NAME}")]
    return sorted((folder for folder in sealed if re.search(r"/step-\d{9}$", folder)), key=lambda folder: folder.rsplit("/", 2)[1:])


def _is_kept(folder: str, seal: Committed) -> bool:
    return f"/{layout.TRAJECTORY}/" in folder or bool(seal.facts.get("kept"))


def _check_recipe(asked: ModelToEvaluate, folder: str, seal: Committed) -> None:
    if seal.recipe_hash != asked.recipe_hash:
        differing = what_differs(asked.uri, seal.recipe_hash, asked.recipe_hash)
        raise InputError(f"{folder}: contains a different recipe from the one this evaluation was planned for{differing}")


def _at_final(asked: ModelToEvaluate, folder: str, seal: Committed) -> ModelAt:
    tower = asked.stage == "perceptual"
    return ModelAt(
        stage=asked.stage,
        when="final",
        recipe_hash=seal.recipe_hash,
        start=StartConfig(kind="tower" if tower else "model", uri=folder, recipe_hash=seal.recipe_hash),
        weights_sha256=str(seal.facts.get("vision_sha256" if tower else "weights_sha256", "")),
    )


def _at_checkpoint(asked: ModelToEvaluate, folder: str, seal: Committed) -> ModelAt:
    if CHECKPOINT_FILE not in seal.files:
        raise InputError(f"{folder}: its seal does not list {CHECKPOINT_FILE}, only {sorted(seal.files)}")
    return ModelAt(
        stage=asked.stage,
        when=str(seal.step),
        recipe_hash=seal.recipe_hash,
        checkpoint=join(folder, CHECKPOINT_FILE),
        checkpoint_sha256=str(seal.files[CHECKPOINT_FILE]["sha256"]),
    )


def find_jobs(config: EvaluateConfig, models: Sequence[ModelAt]) -> tuple[list[Job], list[InputError | RunError]]:
    """Every model on every set that suits it, and the errors of sets that cannot be used."""
    places = list(config.sets)
    if config.pairs.uri:
        pairs = require_manifest(config.pairs.uri, config.pairs.identity, config.pairs.manifest_sha256)
        places += staged_sets(config.pairs.uri, pairs, config.pairs.evaluation_sha256)
    jobs: list[Job] = []
    errors: list[InputError | RunError] = []
    named: dict[tuple[str, str], EvaluationSet] = {}
    for place in {(place.uri, place.identity): place for place in places}.values():
        try:
            described = describe_set(place.uri, place.identity, manifest_sha256=place.manifest_sha256)
            other = named.setdefault((described.name, described.task), described)
            if other.uri != described.uri:
                raise InputError(f"{described.uri}: a second {described.task} set called {described.name}; the other is {other.uri}")
        except (InputError, RunError) as error:
            print(f"evaluate: {error}", flush=True)
            errors.append(error)
            continue
        for model in models:
            if model.stage != "perceptual":  # it has no text tower
                wanted = _wanted(config, model, described.name, described.task, described.identity, described.attribution)
                wanted.block["prompts"] = described.prompts
                jobs.append(Job(model=model, wanted=wanted, described=described))
    if config.triplets.uri:
        triplets = require_manifest(config.triplets.uri, config.triplets.identity, config.triplets.manifest_sha256)
        for split in TRIPLET_SPLITS:
            for model in models:
                wanted = _wanted(config, model, f"{triplets.name}-{split}", TWO_AFC, triplets.identity, triplets.attribution)
                wanted.block["judge"] = triplets.judge
                jobs.append(Job(model=model, wanted=wanted, triplets=triplets, split=split))
    try:
        jobs += _of_representation(config, models, list(named.values()))
    except (InputError, RunError) as error:
        print(f"evaluate: {error}", flush=True)
        errors.append(error)
    return jobs, errors


def _of_representation(config: EvaluateConfig, models: Sequence[ModelAt], sets: Sequence[EvaluationSet]) -> list[Job]:
    """Layers of every model, checkpoints too; probes of final models."""
    jobs = []
    for task in find_tasks(config, sets):
        one = task.described
        for model in models:
            if task.group == "layers" or model.when == "final":
                wanted = _wanted(config, model, one.name, task.name, one.identity, one.attribution)
                wanted.block["basis"] = task.basis
                job = Job(model=model, wanted=wanted, described=one, group=task.group, count=task.count, training=task.training)
                jobs.append(job)
    return jobs


def _wanted(config: EvaluateConfig, model: ModelAt, dataset: str, task: str, identity: str, attribution: str) -> Wanted:
    return Wanted(
        folder=join(config.output, model.name),
        dataset=dataset,
        task=task,
        block={
            "experiment": config.experiment,
            "arm": config.arm,
            "seed": config.seed,
            "stage": model.stage,
            "step": "final" if model.when == "final" else int(model.when),
            "recipe_hash": model.recipe_hash,
            "weights_sha256": model.weights_sha256,
            "checkpoint_sha256": model.checkpoint_sha256,
            "dataset_identity": identity,
            "prompts": "",
            "judge": "",
            "attribution": attribution,
            "evaluation_version": version(config.evaluation, config.evaluation_version),
        },
    )
