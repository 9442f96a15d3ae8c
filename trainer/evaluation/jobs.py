"""What an evaluation wants: every model of the cell on every set that suits it. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config import EvaluateConfig, ModelToEvaluate, StartConfig, canonical_hash, recipe_fields
from trainer.errors import InputError, RunError
from trainer.evaluation.read_sets import TWO_AFC, EvaluationSet, describe_set
from trainer.evaluation.results import Wanted, version
from trainer.storage import join, layout
from trainer.storage.committed import Committed, read_committed
from trainer.storage.manifest import Manifest, require_manifest

TRIPLET_SPLITS = ("val", "test")


@dataclass(frozen=True, kw_only=True)
class ModelAt:
    """A model at one moment.

    Attributes:
        stage: untrained, perceptual, contrastive or posthoc.
        when: `final`, or the step of a checkpoint.
        start: where its weights lie; None: drawn from the seed.
        recipe_hash: of the stage that made it; for the untrained model, of its sizes and seed.
        weights_sha256: from its seal; empty for the untrained model.
    """

    stage: str
    when: str
    start: StartConfig | None
    recipe_hash: str
    weights_sha256: str

    @property
    def name(self) -> str:
        """As its folder is called."""
        return f"{self.stage}-{self.when}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model on one set: an evaluation set (`described`), or one split of the triplets."""

    model: ModelAt
    wanted: Wanted
    described: EvaluationSet | None = None
    triplets: Manifest | None = None
    split: str = ""

    @property
    def num_items(self) -> int:
        """Pictures to run, 0 where that is not known before."""
        if self.triplets:
            return 3 * sum(shard.num_samples for shard in self.triplets.split(self.split))
        return self.described.num_items if self.described else 0


def find_model(config: EvaluateConfig, asked: ModelToEvaluate) -> ModelAt:
    """The finished model of a stage, or the untrained one.

    Raises:
        InputError: the stage is not finished, or its seal has another recipe hash.
    """
    if asked.stage == "untrained":
        own = canonical_hash({"untrained": recipe_fields(config.model), "seed": config.seed})
        return ModelAt(stage=asked.stage, when="final", start=None, recipe_hash=own, weights_sha256="")
    folder = layout.final(asked.uri)
    seal = read_committed(folder)
    if seal is None:
        raise InputError(f"{folder}: no COMMITTED.json: the {asked.stage} stage is not finished")
    if seal.recipe_hash != asked.recipe_hash:
        raise InputError(f"{folder}: holds recipe {seal.recipe_hash[:12]}, this evaluation was planned for {asked.recipe_hash[:12]}")
    return _at(asked, "final", folder, seal)


def _at(asked: ModelToEvaluate, when: str, folder: str, seal: Committed) -> ModelAt:
    tower = asked.stage == "perceptual"
    return ModelAt(
        stage=asked.stage,
        when=when,
        start=StartConfig(kind="tower" if tower else "model", uri=folder, recipe_hash=seal.recipe_hash),
        recipe_hash=seal.recipe_hash,
        weights_sha256=str(seal.facts.get("vision_sha256" if tower else "weights_sha256", "")),
    )


def find_jobs(config: EvaluateConfig, models: Sequence[ModelAt]) -> tuple[list[Job], list[InputError | RunError]]:
    """Every model on every set that suits it, and the errors of sets that cannot be used."""
    jobs: list[Job] = []
    errors: list[InputError | RunError] = []
    if config.pairs.uri:
        for entry in require_manifest(config.pairs.uri, config.pairs.identity).evaluation:
            try:
                described = describe_set(_under_root(config.pairs.uri, entry["uri"]), entry["identity"], entry["name"])
            except (InputError, RunError) as error:
                print(f"evaluate: {entry['name']}: {error}", flush=True)
                errors.append(error)
                continue
            for model in models:
                if model.stage != "perceptual":  # it has no text tower
                    wanted = _wanted(config, model, described.name, described.task, described.identity, described.attribution)
                    wanted.block["prompts"] = described.prompts
                    jobs.append(Job(model=model, wanted=wanted, described=described))
    if config.triplets.uri:
        triplets = require_manifest(config.triplets.uri, config.triplets.identity)
        for split in TRIPLET_SPLITS:
            for model in models:
                wanted = _wanted(config, model, f"{triplets.name}-{split}", TWO_AFC, triplets.identity, triplets.attribution)
                wanted.block["judge"] = triplets.judge
                jobs.append(Job(model=model, wanted=wanted, triplets=triplets, split=split))
    return jobs, errors


def _under_root(pairs_uri: str, uri: str) -> str:
    """The evaluation set's URI: manifests name it relative to the root, which holds datasets/<name>/<plan id>."""
    return uri if "://" in uri or uri.startswith("/") else join(pairs_uri.rstrip("/").rsplit("/", 3)[0], uri)


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
            "dataset_identity": identity,
            "prompts": "",
            "judge": "",
            "attribution": attribution,
            "evaluation_version": version(config.evaluation),
        },
    )
