"""Configuration: frozen dataclasses, and the hash that tells one experiment from another.

Every field is either *recipe* (it changes the numbers, so it is part of the recipe hash) or *placement* (where and how it runs: it
may change between attempts of the same run). A recipe field also has an explanation and a tag that says how sure we are of its value:
`known`, `as coded` (in the follow-on code of the paper, arXiv 2505.14204), `unknown`, or `ours` (chosen by firstsight).
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from trainer.errors import InputError
from trainer.fields import at_least, placement, recipe
from trainer.fields import canonical_hash as canonical_hash
from trainer.fields import differing_keys as differing_keys
from trainer.fields import recipe_fields as recipe_fields
from trainer.fields import require as require
from trainer.placement import Placement as Placement
from trainer.placement import kept_epochs as kept_epochs
from trainer.placement import loader_workers_for as loader_workers_for
from trainer.placement import profiled_steps as profiled_steps
from trainer.placement import unless_auto as unless_auto
from trainer.representation import INTRODUCED, RepresentationConfig

StageName = Literal["perceptual", "contrastive", "posthoc"]
StartKind = Literal["random", "tower", "permuted", "model"]
Precision = Literal["fp32", "bf16", "fp64"]
EVALUATION_VERSION = 2  # of new experiments (docs/EVALUATION.md); raised where the same model and data would give other figures


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two towers. `open_clip_name` takes any open_clip ViT; otherwise the sizes below apply."""

    open_clip_name: str = recipe("", "ours", "Any open_clip ViT, by name; if empty, the sizes below (their defaults are ViT-B-32's).")
    image_size: int = recipe(224, "known", "Input side in pixels.")
    patch_size: int = recipe(32, "known", "Side of a vision patch in pixels.")
    vision_layers: int = recipe(12, "known", "Transformer blocks of the vision tower.")
    vision_width: int = recipe(768, "known", "Width of the vision tower; heads are 64 wide, or `vision_head_width`.")
    vision_head_width: int = recipe(64, "known", "Width of one attention head of the vision tower.")
    embed_dim: int = recipe(512, "known", "Width of the joint space.")
    text_layers: int = recipe(12, "known", "Transformer blocks of the text tower.")
    text_width: int = recipe(512, "known", "Width of the text tower.")
    text_heads: int = recipe(8, "known", "Attention heads of the text tower.")
    context_length: int = recipe(77, "known", "Longest caption in tokens, start and end included.")
    vision_init: Literal["published", "paper", "open_clip"] = recipe(
        "paper",
        "as coded",
        "published: tensor by tensor as the follow-on code initialises it; paper: an earlier interpretation of that code, with biases 0 "
        "and positions as in open_clip; open_clip: PyTorch's defaults.",
    )
    text_init: Literal["published", "clip"] = recipe(
        "clip",
        "as coded",
        "published: as the follow-on code initialises it, every bias included; clip: open_clip's own, attention biases 0.",
        since="0.2.0",
        introduced="clip",
    )
    text_tower: Literal["clip_causal_eot", "mean_pooled_unmasked"] = recipe(
        "clip_causal_eot", "ours", "CLIP's causal tower pooled at EOT, a declared deviation: the code mean-pools without a mask."
    )
    logit_scale_init: Literal["100", "1/0.07"] = recipe("100", "as coded", "The code starts at ln 100, CLIP at ln(1/0.07).")

    def __post_init__(self) -> None:
        """Check what can be checked without torch."""
        if self.text_tower == "mean_pooled_unmasked":
            raise InputError(
                "model.text_tower mean_pooled_unmasked, the follow-on code's tower, is not supported: it attends to padding, so captions "
                "could not be cut to their length exactly, and open_clip could not load the model; use clip_causal_eot"
            )
        at_least(1, "model", self, *_SIZES)
        require("model.context_length", self.context_length, "between 8 and 77", 8 <= self.context_length <= 77)
        if not self.open_clip_name:
            for name, by in (("image_size", "patch_size"), ("vision_width", "vision_head_width"), ("text_width", "text_heads")):
                whole, part = getattr(self, name), getattr(self, by)
                require(f"model.{name}", whole, f"a multiple of {by} {part}", whole % part == 0)
        elif any(getattr(self, f.name) != f.default for f in dataclasses.fields(self) if f.name in _SIZES):
            raise InputError(
                f"model.open_clip_name is {self.open_clip_name!r}, so the model's sizes come from open_clip: leave {', '.join(_SIZES)} out"
            )


_SIZES = (
    "image_size", "patch_size", "vision_layers", "vision_width", "vision_head_width",
    "embed_dim", "text_layers", "text_width", "text_heads", "context_length",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser and its schedule."""

    name: Literal["adamw", "adam"] = recipe("adamw", "known", "AdamW as published; post-hoc tuning's Adam as coded.")
    learning_rate: float = recipe(5e-4, "as coded", "Peak, after warm-up.")
    weight_decay: float = recipe(0.1, "as coded", "")
    beta1: float = recipe(0.9, "as coded", "")
    beta2: float = recipe(0.98, "as coded", "")
    eps: float = recipe(1e-8, "as coded", "")
    warmup_steps: int = recipe(0, "as coded", "Linear from 0.")
    schedule: Literal["cosine", "constant"] = recipe(
        "cosine", "as coded", "After warm-up: cosine to 0 at the horizon (`contrastive.schedule_horizon`), or constant at the peak."
    )
    clip_norm: float = recipe(
        0.0,
        "as coded",
        "Gradient norm is clipped to this; 0: never. The code's JSON has 3 for stage 2, but its Trainer is not passed the value.",
    )
    no_decay: Literal["gains_and_biases", "gains_biases_and_positions"] = recipe(
        "gains_and_biases",
        "as coded",
        "Parameters exempt from weight decay; the code's single optimiser factory exempts positions in every stage.",
    )

    def __post_init__(self) -> None:
        """Check ranges; a learning rate of 0 is a typo."""
        require("optimizer.learning_rate", self.learning_rate, "> 0 and < 1", 0 < self.learning_rate < 1)
        at_least(0, "optimizer", self, "weight_decay", "warmup_steps", "clip_norm")
        require("optimizer.beta1", self.beta1, "in [0, 1)", 0 <= self.beta1 < 1)
        require("optimizer.beta2", self.beta2, "in [0, 1)", 0 <= self.beta2 < 1)
        require("optimizer.eps", self.eps, "> 0", self.eps > 0)


def _fraction(what: str) -> Any:
    return recipe(
        1.0, "ours", f"Fraction of the training {what} used; smaller fractions are subsets of larger ones.", since="0.2.0", introduced=1.0
    )


def _samples_seen(what: str) -> Any:
    said = f"{what} seen in total, in whole batches, however many there are in the data; 0: set by `epochs`."
    return recipe(0, "ours", said, since="0.2.0", introduced=0)


def _check_dose(stage: str, fraction: str, config: "PerceptualConfig | ContrastiveConfig | PosthocConfig") -> None:
    """How much of the data a stage learns from, and for how long."""
    require(f"{stage}.{fraction}", getattr(config, fraction), "> 0 and <= 1", 0 < getattr(config, fraction) <= 1)
    seen, batch = config.samples_seen, config.global_batch_size
    require(f"{stage}.samples_seen", seen, f"0, or at least one batch ({stage}.global_batch_size {batch})", seen == 0 or seen >= batch)


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """Stage 1: the vision tower alone on triplets (ref, 0, 1)."""

    optimizer: OptimizerConfig = recipe(OptimizerConfig(warmup_steps=150), "as coded", "")
    loss: Literal["hinge", "logistic"] = recipe("hinge", "known", "logistic accepts fractional votes.")
    margin: float = recipe(0.05, "as coded", "m of mean(relu(m - y (d0 - d1))).")
    global_batch_size: int = recipe(768, "as coded", "128 on each of 6 GPUs.")
    epochs: int = recipe(32, "as coded", "")
    min_votes: int = recipe(6, "as coded", "Triplets with fewer human votes are left out at staging.")
    handoff: Literal["last", "best_val"] = recipe("last", "as coded", "Which checkpoint stage 2 starts from.")
    precision: Precision = recipe("bf16", "as coded", "Autocast; weights and optimiser stay fp32 (fp64 is for tests).")
    flip_augmentation: bool = recipe(False, "ours", "Mirror a triplet's three pictures together at random.")
    triplet_fraction: float = _fraction("triplets")
    samples_seen: int = _samples_seen("Triplets")

    def __post_init__(self) -> None:
        """Check ranges."""
        require("perceptual.margin", self.margin, "> 0", self.margin > 0)
        at_least(1, "perceptual", self, "global_batch_size", "epochs")
        _check_dose("perceptual", "triplet_fraction", self)
        at_least(0, "perceptual", self, "min_votes")


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Stage 2: both towers on image-text pairs."""

    optimizer: OptimizerConfig = recipe(
        OptimizerConfig(warmup_steps=2500, no_decay="gains_biases_and_positions", clip_norm=3.0), "as coded", ""
    )
    global_batch_size: int = recipe(
        4096,
        "unknown",
        "As in the published YFCC15M baselines; the code's 1024 per GPU, accumulated 6 times, does not give the number of GPUs.",
    )
    contrast_batch_size: int = recipe(4096, "unknown", "Number of pairs that are contrasted with each other; the same at any world size.")
    accumulation: Literal["gradcache", "independent"] = recipe("gradcache", "ours", "How a batch that does not fit is split.")
    epochs: int = recipe(32, "as coded", "")
    schedule_horizon: Literal["optimizer_steps", "as_coded"] = recipe(
        "optimizer_steps",
        "ours",
        "In the follow-on code the horizon ignores the accumulation of 6, so the rate stays above 93 % of its peak.",
    )
    augmentation: Literal["moco_v2", "crop", "none"] = recipe("moco_v2", "as coded", "As DeCLIP.")
    crop_scale_min: float = recipe(0.2, "as coded", "Smallest area of a random resized crop, as a fraction of the picture.")
    precision: Precision = recipe("bf16", "as coded", "Autocast; weights and optimiser stay fp32 (fp64 is for tests).")
    logit_scale_max: float = recipe(100.0, "known", "exp(logit scale) is clamped to this value.")
    logit_scale_clamp: Literal["parameter", "forward"] = recipe(
        "parameter",
        "as coded",
        "parameter: clamped after each step, as open_clip does; forward: clamped only in the loss, as coded, so that above the maximum it "
        "has no gradient.",
        since="0.2.0",
        introduced="parameter",
    )
    decoder: Literal["fast", "exact"] = recipe(
        "fast", "ours", "fast: simplejpeg with torch's antialiased resize, where possible; exact: PIL."
    )
    order_runs: int = recipe(1, "ours", "C of the canonical order: number of runs of samples from which a global batch is drawn.")
    order_block_shards: int = recipe(
        0, "ours", "K of the canonical order: number of shards that a run shuffles at a time; 0: a full permutation."
    )
    pair_fraction: float = _fraction("pairs")
    samples_seen: int = _samples_seen("Pairs")

    def __post_init__(self) -> None:
        """Check ranges and reject contradictory settings."""
        at_least(2, "contrastive", self, "global_batch_size", "contrast_batch_size")
        at_least(1, "contrastive", self, "epochs")
        rule = f"a divisor of contrastive.global_batch_size {self.global_batch_size}"
        require("contrastive.contrast_batch_size", self.contrast_batch_size, rule, self.global_batch_size % self.contrast_batch_size == 0)
        require("contrastive.crop_scale_min", self.crop_scale_min, "in (0, 1]", 0 < self.crop_scale_min <= 1)
        require("contrastive.logit_scale_max", self.logit_scale_max, "> 1", self.logit_scale_max > 1)
        require("contrastive.order_runs", self.order_runs, rule, self.order_runs >= 1 and self.global_batch_size % self.order_runs == 0)
        require("contrastive.order_block_shards", self.order_block_shards, ">= 0", self.order_block_shards >= 0)
        _check_dose("contrastive", "pair_fraction", self)


@dataclass(frozen=True, kw_only=True)
class PosthocConfig:
    """Perceptual fine-tuning after contrastive training: only the vision tower's QKV weights are trained."""

    optimizer: OptimizerConfig = recipe(
        OptimizerConfig(name="adam", learning_rate=1e-5, weight_decay=0.0, beta2=0.999, schedule="constant"), "as coded", ""
    )
    base: Literal["random", "perceptual"] = recipe(
        "random", "ours", "The paper's argument concerns the baseline; the code starts from `perceptual`."
    )
    margin: float = recipe(0.05, "as coded", "")
    global_batch_size: int = recipe(16, "as coded", "")
    epochs: int = recipe(64, "as coded", "")
    precision: Precision = recipe("bf16", "as coded", "")
    triplet_fraction: float = _fraction("triplets")
    samples_seen: int = _samples_seen("Triplets")

    def __post_init__(self) -> None:
        """Check ranges."""
        require("posthoc.margin", self.margin, "> 0", self.margin > 0)
        at_least(1, "posthoc", self, "global_batch_size", "epochs")
        _check_dose("posthoc", "triplet_fraction", self)


@dataclass(frozen=True, kw_only=True)
class StagingConfig:
    """What the shards contain. Every field is part of a data set's plan id."""

    image_policy: Literal["original", "short256"] = recipe(
        "original", "known", "original: bytes unchanged; short256: short side 256 at quality 90."
    )
    triplet_side: int = recipe(224, "known", "Triplets are resized to this side without keeping the aspect ratio, stored losslessly.")
    demo_side: int = recipe(64, "ours", "Side to which the demo's pictures are rendered.")
    demo_triplets: int = recipe(6000, "ours", "Triplets made from the demo's pictures and judged by FLIP.")
    flip_min_difference: float = recipe(0.03, "ours", "Triplets whose two FLIP distances differ by less are left out.")
    flip_judges_too: bool = recipe(False, "ours", "FLIP also judges triplets that people voted on: the arm `judged` needs it.")
    shard_samples: int = recipe(1024, "ours", "Samples per shard.")
    heldout_fraction: float = recipe(0.2, "ours", "Fraction of the families (or pictures) held out for evaluation.")

    def __post_init__(self) -> None:
        """Check ranges."""
        require("staging.triplet_side", self.triplet_side, ">= 8", self.triplet_side >= 8)
        require("staging.demo_side", self.demo_side, ">= 16", self.demo_side >= 16)
        require("staging.demo_triplets", self.demo_triplets, ">= 60", self.demo_triplets >= 60)
        require("staging.shard_samples", self.shard_samples, "between 1 and 65536", 1 <= self.shard_samples <= 65536)
        require("staging.heldout_fraction", self.heldout_fraction, "in (0, 0.5]", 0 < self.heldout_fraction <= 0.5)
        require("staging.flip_min_difference", self.flip_min_difference, "in [0, 1)", 0 <= self.flip_min_difference < 1)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a model is measured; part of an evaluation's version, so that only like is compared with like."""

    precision: Literal["fp32", "bf16"] = recipe("fp32", "ours", "")
    decoder: Literal["fast", "exact"] = recipe("exact", "ours", "exact is PIL, as in open_clip and CLIP_benchmark.")
    every_epochs: int = recipe(0, "ours", "Also keep and evaluate the weights every this many epochs of stage 2; 0: never.")
    trajectory: bool = placement(False, "Also keep and evaluate the weights at epochs 0, 1, 2, 4, 8 … of stage 2.")

    def __post_init__(self) -> None:
        """Check ranges."""
        at_least(0, "evaluation", self, "every_epochs")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the numbers of an experiment, except data, arm and seed."""

    name: str = placement("", "A label; the fields decide the hash.")
    model: ModelConfig = recipe(ModelConfig(), "known", "")
    staging: StagingConfig = recipe(StagingConfig(), "ours", "")
    perceptual: PerceptualConfig = recipe(PerceptualConfig(), "as coded", "")
    contrastive: ContrastiveConfig = recipe(ContrastiveConfig(), "as coded", "")
    posthoc: PosthocConfig = recipe(PosthocConfig(), "as coded", "")
    evaluation: EvaluationConfig = recipe(EvaluationConfig(), "ours", "")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A sealed data set: its place may change, its identity may not."""

    uri: str = placement("", "Folder that contains manifest.json.")
    identity: str = recipe("", "ours", "Hash of what the manifest says about all that is read; in format 1, about plan id and shards.")
    manifest_sha256: str = placement("", "SHA-256 of a manifest.json of format 1, as on first use; its identity does not cover all of it.")
    evaluation_sha256: tuple[str, ...] = placement((), "The same for each evaluation set that was staged with it, in their order.")


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """What the stage's weights start from."""

    kind: StartKind = recipe("random", "ours", "random; a stage-1 tower; that tower permuted within each tensor; a whole model.")
    uri: str = placement("", "Folder with COMMITTED.json (a tower's or a model's final/).")
    recipe_hash: str = recipe("", "ours", "Recipe hash that its COMMITTED.json must contain; for from:<uri> the weights' SHA-256.")

    def __post_init__(self) -> None:
        """A start that is not random needs a place and a hash."""
        if self.kind != "random":
            require("start.uri", self.uri, f"set if start.kind is {self.kind}", bool(self.uri))
            require("start.recipe_hash", self.recipe_hash, f"set if start.kind is {self.kind}", bool(self.recipe_hash))


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of one cell, resolved: what `python -m trainer train --config <uri>` reads."""

    stage: StageName = recipe("contrastive", "ours", "")
    experiment: str = placement("", "")
    cell: str = placement("", "The cell whose folder contains this stage; empty: cells share it, and `arm` is the tower's name.")
    arm: str = placement("", "A name for people; start, labels and data define what the arm *is*.")
    point: str = placement("", "The cell's point, if the request varies its recipe; otherwise empty.")
    seed: int = recipe(0, "ours", "Root of the named random streams.")
    output: str = placement("", "Folder of this stage: config.yaml, checkpoints/, final/.")
    request: str = placement("", "The stored request that planned it; lineage.json and the page name it.")
    data: DataConfig = recipe(DataConfig(), "ours", "")
    labels: str = recipe("votes", "ours", "Which judgement a perceptual stage learns from: a kind of trainer/labels/.")
    start: StartConfig = recipe(StartConfig(), "ours", "")
    model: ModelConfig = recipe(ModelConfig(), "known", "")
    perceptual: PerceptualConfig | None = recipe(None, "ours", "Set if stage is perceptual.")
    contrastive: ContrastiveConfig | None = recipe(None, "ours", "Set if stage is contrastive.")
    posthoc: PosthocConfig | None = recipe(None, "ours", "Set if stage is posthoc.")
    placement: Placement = placement(Placement(), "")

    def __post_init__(self) -> None:
        """Exactly the settings of this stage are given."""
        for name in ("perceptual", "contrastive", "posthoc"):
            given = getattr(self, name) is not None
            require(name, "set" if given else "missing", "set for this stage and no other", given == (name == self.stage))
        require("seed", self.seed, "between 0 and 2**31 - 1", 0 <= self.seed < 2**31)
        require("output", self.output, "a URI", bool(self.output))


def stream_seed(seed: int, stream: str) -> int:
    """The seed of a named random stream (63 bits): arms of one seed share every stream that should be the same."""
    return int.from_bytes(hashlib.sha256(f"firstsight:{seed}:{stream}".encode()).digest()[:8], "big") >> 1


def recipe_hash(config: StageConfig) -> str:
    """The identity of a stage: its recipe fields, data identity, start and seed, but not its placement."""
    return canonical_hash(recipe_fields(config))


@dataclass(frozen=True, kw_only=True)
class ModelToEvaluate:
    """One model of a cell: `untrained` (the arm's initial weights), `perceptual` (its tower), `contrastive` or `posthoc`."""

    stage: Literal["untrained", "perceptual", "contrastive", "posthoc"] = recipe("contrastive", "ours", "")
    uri: str = placement("", "The stage's folder (final/ and checkpoints/ below it); empty for untrained.")
    recipe_hash: str = recipe("", "ours", "Recipe hash that its COMMITTED.json must contain; empty for untrained.")
    checkpoints: str = placement("", "Besides final/: empty (those kept by epoch), all, or steps with commas.")

    def __post_init__(self) -> None:
        """The checkpoints are named by word or by step."""
        ok = self.checkpoints in ("", "all") or all(part.strip().isdecimal() for part in self.checkpoints.split(","))
        require("models.checkpoints", self.checkpoints, "empty, all, or steps with commas", ok)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The evaluation of one cell, resolved: what `python -m trainer evaluate --config <uri>` reads."""

    experiment: str = placement("", "")
    cell: str = placement("", "The cell that is measured.")
    arm: str = placement("", "")
    point: str = placement("", "The cell's point, if the request varies its recipe.")
    seed: int = recipe(0, "ours", "The cell's seed: the untrained model is drawn from it.")
    output: str = placement("", "The cell's folder evaluation/.")
    model: ModelConfig = recipe(ModelConfig(), "known", "")
    models: tuple[ModelToEvaluate, ...] = recipe((), "ours", "")
    pairs: DataConfig = recipe(DataConfig(), "ours", "Its manifest names the evaluation sets staged with it.")
    triplets: DataConfig = recipe(DataConfig(), "ours", "2AFC is measured on its val and test splits.")
    sets: tuple[DataConfig, ...] = recipe((), "ours", "Further evaluation sets (`stage eval`, or CLIP_benchmark's layout).")
    evaluation: EvaluationConfig = recipe(EvaluationConfig(), "ours", "")
    representation: RepresentationConfig = recipe(
        RepresentationConfig(), "ours", "As given in the request.", since="0.2.0", introduced=INTRODUCED
    )
    rdms: tuple[DataConfig, ...] = recipe(
        (), "ours", "Its RDMs as they were planned; `identity` is their SHA-256.", since="0.2.0", introduced=[]
    )
    evaluation_version: int = recipe(EVALUATION_VERSION, "ours", "That of the experiment.", since="0.2.0", introduced=1)
    placement: Placement = placement(Placement(), "")
