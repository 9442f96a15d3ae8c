"""A finished stage of a fabricated experiment, written through the store's own codecs."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from trainer.config import StageConfig, recipe_hash
from trainer.storage import join, layout, read_bytes, write_bytes, write_json
from trainer.storage.committed import Committed, write_committed
from trainer.storage.recipes import write_config_file


def write_stage(config: StageConfig, steps: int, generator: np.random.Generator) -> None:
    """A finished stage: config.yaml, lineage.json, progress.jsonl and the seal."""
    digest, own = weights_of(config), recipe_hash(config)
    write_config_file(layout.config(config.output), config)
    lines = _progress(config, steps, generator)
    write_bytes(join(config.output, "progress.jsonl"), ("\n".join(lines) + "\n").encode())
    tower = config.stage == "perceptual"
    facts = {
        "data_identity": config.data.identity,
        "samples_per_second": 910.0,
        "seconds": 95.0 if tower else 310.0,
        "flops": 2e12 if tower else 9e14,
    }
    facts |= {"vision_sha256": digest} if tower else {"weights_sha256": digest, "vision_sha256": digest[::-1]}
    lineage = {
        "format_version": 1,
        "experiment": config.experiment,
        "arm": config.arm,
        "seed": config.seed,
        "stage": config.stage,
        "recipe_hash": own,
        "start": {**asdict(config.start), "weights_sha256": "ab" * 32 if config.start.kind != "random" else ""},
        "data": {
            "uri": config.data.uri,
            "identity": config.data.identity,
            "name": "demo-triplets" if config.stage != "contrastive" else "demo-pairs",
            "judge": "FLIP",
        },
        "weights_sha256": digest,
        "vision_sha256": digest if tower else digest[::-1],
        "code": {"version": "0.1.0", "git_commit": "0123456789abcdef" * 2, "dirty": False},
        "image_digest": "",
        "request": "/runs/experiments/demo/requests/0123456789abcdef.json",
        "world_size": 1,
        "threads": 2,
        "torch": "2.15.0",
        "device": "cpu",
        "created": "2026-11-24T03:00:00Z",
        "seconds": facts["seconds"],
    }
    write_json(join(config.output, "lineage.json"), lineage)
    weights = join(layout.final(config.output), "vision.safetensors" if tower else "open_clip_model.safetensors")
    write_bytes(weights, digest.encode())
    records = {name: read_bytes(join(config.output, name)) for name in (layout.LINEAGE, layout.PROGRESS)}
    write_config_file(layout.config(layout.final(config.output)), config)
    for name, data in records.items():
        write_bytes(join(layout.final(config.output), name), data)
    beside = {name: sealed(data) for name, data in records.items()}
    files = {weights.rpartition("/")[2]: sealed(digest.encode())}
    seal = Committed(recipe_hash=own, attempt=0, step=steps, files=files, facts=facts, beside=beside)
    write_committed(layout.final(config.output), seal)


def sealed(data: bytes) -> dict[str, Any]:
    """What a seal says of a file."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _progress(config: StageConfig, steps: int, generator: np.random.Generator) -> list[str]:
    """The lines of progress.jsonl: a loss that falls, and 2AFC that rises where it is measured."""
    lines = []
    for step in range(1, steps + 1):
        loss = (
            (0.06 if config.stage == "perceptual" else 4.0)
            * (0.3 + 0.7 * np.exp(-3 * step / steps))
            * (1 + 0.03 * generator.standard_normal())
        )
        line = {
            "time": 1.7e9 + step,
            "step": step,
            "steps": steps,
            "epoch": step * 12 // steps,
            "samples": 64 * step,
            "loss": loss,
            "samples_per_second": 900.0,
            "data_wait_seconds": 0.004,
            "step_seconds": 0.1,
        }
        if config.stage == "perceptual" and step % 10 == 0:
            line["val_2afc"] = 0.68 + 0.2 * step / steps
        lines.append(json.dumps(line))
    return lines


def weights_of(config: StageConfig) -> str:
    """The hash that stands for a stage's final weights."""
    return hashlib.sha256(recipe_hash(config).encode()).hexdigest()
