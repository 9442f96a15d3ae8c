"""Every manifest that an experiment would submit, and the GPU-hours it would take; no cluster is touched."""

from typing import Any

import yaml

from pipelines import cost
from pipelines.jobs import pytorchjob
from pipelines.jobs.naming import Identity
from pipelines.jobs.settings import JobSettings
from pipelines.plan import Cell, Request, config_uri
from trainer.config import StageConfig, recipe_hash
from trainer.configs import load_yaml, parse_config
from trainer.storage import layout, read_bytes
from trainer.storage.committed import read_committed
from trainer.storage.manifest import read_manifest

YFCC15M = 14_829_396
"""Rows of OpenAI's list: what the pairs are taken for while none are staged."""
NIGHTS = 15_941
"""Training triplets of NIGHTS: what the triplets are taken for while none are staged."""


def read_settings(uri: str) -> JobSettings:
    """The settings in a YAML file; empty: the defaults."""
    return parse_config(JobSettings, load_yaml(read_bytes(uri).decode(), uri), source=uri) if uri else JobSettings()


def render(request: Request, cells: list[Cell], settings: JobSettings) -> str:
    """The manifests as YAML documents, then the cost as comments; a tower that cells share is there once."""
    documents, table = [], []
    stages = {stage.output: stage for cell in cells for stage in cell.stages()}
    for stage in stages.values():
        documents.append(yaml.safe_dump(job_manifest(request, stage, settings), sort_keys=False))
        table.append(_cost(request, stage, settings))
    total, ranks = sum(estimate.gpu_hours for _, estimate in table), settings.world_size
    lines = [line for line, _ in table] + [f"in all: {total:,.1f} GPU-hours, {total / ranks:,.1f} hours on {ranks}"]
    return "---\n".join(documents) + "".join(f"# {line}\n" for line in lines)


def job_manifest(request: Request, stage: StageConfig, settings: JobSettings) -> dict[str, Any]:
    """The PyTorchJob of one stage. A tower is known by its labels and seed, whichever arm asks for it first."""
    identity = Identity(root=request.root, experiment=request.experiment, arm=stage.arm, seed=stage.seed, stage=stage.stage)
    return pytorchjob.manifest(identity, settings, ["train", stage.stage, "--config", config_uri(stage)], recipe_hash(stage))


def _cost(request: Request, stage: StageConfig, settings: JobSettings) -> tuple[str, cost.Estimate]:
    count, what = _samples(request, stage)
    estimate = cost.estimate(stage, count, _measured_rate(stage))
    assumed = "measured" if estimate.measured else f"{cost.UTILISATION:.0%} of an H100's {cost.PEAK_TFLOPS:.0f} TFLOP/s assumed"
    line = (
        f"{stage.stage} {layout.cell_name(stage.arm, stage.seed)}: {estimate.samples:,} samples ({what}), "
        f"{estimate.flops / 1e18:,.2f} EFLOP, {estimate.rate:,.0f} samples/s a GPU ({assumed}): {estimate.gpu_hours:,.1f} GPU-hours"
    )
    return line, estimate


def _samples(request: Request, stage: StageConfig) -> tuple[int, str]:
    """Samples of an epoch, and where the number is from."""
    data, known, name = (request.pairs, YFCC15M, "YFCC15M") if stage.stage == "contrastive" else (request.triplets, NIGHTS, "NIGHTS")
    manifest = read_manifest(data.uri) if data.uri else None
    if manifest is None:
        return known, f"none are staged: taken for {name}"
    return sum(shard.num_samples for shard in manifest.split("train")), manifest.name


def _measured_rate(stage: StageConfig) -> float:
    """Samples a second on one rank, where this very stage ran before."""
    committed = read_committed(layout.final(stage.output))
    if committed is None or not committed.facts.get("samples_per_second"):
        return 0.0
    return float(committed.facts["samples_per_second"]) / max(int(committed.facts.get("world_size", 1)), 1)
