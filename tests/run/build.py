"""Real but tiny stages: pictures of 16 pixels, towers of one block, seconds on one core."""

import dataclasses
from pathlib import Path
from typing import Any

from tests.data.datasets import pairs, triplets, write_dataset
from trainer.config import (
    ContrastiveConfig,
    ModelConfig,
    OptimizerConfig,
    PerceptualConfig,
    Placement,
    PosthocConfig,
    Precision,
    StageConfig,
    StartConfig,
    recipe_hash,
)
from trainer.configs import dump_yaml

MODEL = ModelConfig(
    image_size=16, patch_size=8, vision_layers=1, vision_width=16, vision_head_width=8, embed_dim=8,
    text_layers=1, text_width=16, text_heads=2, context_length=16, logit_scale_init="1/0.07",
)  # fmt: skip


def placed(**settings: Any) -> Placement:
    """One CPU thread, a line of the log each step."""
    return Placement(**{"device": "cpu", "threads": 1, "log_every_steps": 1, **settings})


def perceptual(root: Path, *, epochs: int = 2, precision: Precision = "fp32", handoff: Any = "last", **settings: Any) -> StageConfig:
    """Stage 1 on 12 training and 6 validation triplets."""
    data = write_dataset(str(root / "triplets"), "triplets", [*triplets([8, 4], side=16), *triplets([6], side=16, split="val")])
    return StageConfig(
        stage="perceptual",
        experiment="tests",
        arm="perceptual",
        output=str(root / "towers" / "one"),
        data=data,
        model=MODEL,
        perceptual=PerceptualConfig(
            optimizer=OptimizerConfig(learning_rate=1e-2),
            global_batch_size=6,
            epochs=epochs,
            min_votes=0,
            precision=precision,
            handoff=handoff,
        ),
        placement=placed(**settings),
    )


def contrastive(
    root: Path, *, epochs: int = 2, precision: Precision = "fp32", start: StartConfig | None = None, **settings: Any
) -> StageConfig:
    """Stage 2 on 24 pairs, batches of 12."""
    data = write_dataset(str(root / "pairs"), "pairs", pairs([16, 8]))
    return StageConfig(
        stage="contrastive",
        experiment="tests",
        arm="random" if start is None else "perceptual",
        output=str(root / "cell" / "contrastive"),
        data=data,
        model=MODEL,
        start=start or StartConfig(),
        contrastive=ContrastiveConfig(
            optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2, no_decay="gains_biases_and_positions", clip_norm=3.0),
            global_batch_size=12,
            contrast_batch_size=12,
            epochs=epochs,
            precision=precision,
        ),
        placement=placed(**settings),
    )


def posthoc(root: Path, base: StageConfig, **settings: Any) -> StageConfig:
    """Post-hoc tuning of what `base` ended with, on stage 1's triplets."""
    return StageConfig(
        stage="posthoc",
        experiment="tests",
        arm="posthoc",
        output=str(root / "cell" / "posthoc"),
        data=perceptual(root).data,
        model=MODEL,
        start=start_from(base, "model"),
        posthoc=PosthocConfig(global_batch_size=6, epochs=2, precision="fp32"),
        placement=placed(**settings),
    )


def start_from(config: StageConfig, kind: Any) -> StartConfig:
    """The start that hands over what `config` ended with."""
    return StartConfig(kind=kind, uri=f"{config.output}/final", recipe_hash=recipe_hash(config))


def written(config: StageConfig, **changes: Any) -> str:
    """The URI of the configuration, written where `plan` writes it."""
    config = dataclasses.replace(config, **changes)
    path = Path(config.output) / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_yaml(config))
    return str(path)
