"""`run --dry-run`: every manifest that an experiment would submit, and the GPU-hours it would take; no cluster is touched."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pipelines.jobs.backends import shape_for, stage_settings
from pipelines.jobs.base import JobSpec
from pipelines.jobs.launcher import annotated
from pipelines.jobs.specs import evaluate_spec, train_spec
from pipelines.planning import cost
from pipelines.planning.plan import Cell, Experiment, entry_of
from pipelines.planning.request import Request
from pipelines.profile.profile import Profile, placement_of
from trainer.config import StageConfig
from trainer.storage import layout
from trainer.storage.committed import read_committed
from trainer.storage.manifest import read_manifest

YFCC15M = 14_829_396
"""Rows of OpenAI's list: what the pairs are taken for while none are staged."""
NIGHTS = 15_941
"""Training triplets of NIGHTS: what the triplets are taken for while none are staged."""


def render(experiment: Experiment, cells: list[Cell], profile: Profile, request: Request) -> str:
    """The manifests as YAML documents, then the cost as comments; a tower that cells share is there once.

    On this machine there are no manifests, only the cost.
    """
    documents = []
    for spec in job_specs(experiment, cells, request, placement_of(profile, request)):
        if profile.backend != "local":
            documents.append(yaml.safe_dump(job_manifest(spec, profile.backend, profile, request), sort_keys=False))
    lines, total, longest = [], 0.0, 0.0
    for stage, spec in _stages(experiment, cells, request).values():
        line, estimate = _cost(experiment, stage)
        ranks = stage_settings(profile, request, spec).world_size
        lines.append(f"{line}, {estimate.gpu_hours / ranks:,.1f} hours on {ranks}")
        total, longest = total + estimate.gpu_hours, longest + estimate.gpu_hours / ranks
    lines.append(f"in all: {total:,.1f} GPU-hours, {longest:,.1f} hours one after another; staging and evaluation come on top")
    return "---\n".join(documents) + "".join(f"# {line}\n" for line in lines)


def job_specs(experiment: Experiment, cells: list[Cell], request: Request, placement: Mapping[str, Any]) -> Iterator[JobSpec]:
    """The jobs of all cells in the order in which they run. How the data are staged depends on their source: not shown."""
    seen = set()
    for cell in cells:
        entry = entry_of(cell)
        specs = [train_spec(experiment.root, entry, stage.stage, request, placement) for stage in cell.stages()]
        for spec in [*specs, evaluate_spec(experiment.root, entry, request, placement)]:
            if spec.folder not in seen:
                seen.add(spec.folder)
                yield spec


def job_manifest(spec: JobSpec, backend: str, profile: Profile, request: Request) -> dict[str, Any]:
    """What would be submitted as a first attempt; the namespace is the launcher's where the profile names none."""
    settings = stage_settings(profile, request, spec)
    manifest = annotated(shape_for(backend, spec, settings), spec, 1)
    if not manifest["metadata"].get("namespace"):
        manifest["metadata"].pop("namespace", None)
    return manifest


def _stages(experiment: Experiment, cells: list[Cell], request: Request) -> dict[str, tuple[StageConfig, JobSpec]]:
    return {
        stage.output: (stage, train_spec(experiment.root, entry_of(cell), stage.stage, request, {}))
        for cell in cells
        for stage in cell.stages()
    }


def _cost(experiment: Experiment, stage: StageConfig) -> tuple[str, cost.Estimate]:
    count, what = _samples(experiment, stage)
    estimate = cost.estimate(stage, count, _measured_rate(stage))
    assumed = "measured" if estimate.measured else f"{cost.UTILISATION:.0%} of an H100's {cost.PEAK_TFLOPS:.0f} TFLOP/s assumed"
    line = (
        f"{stage.stage} {layout.cell_name(stage.arm, stage.seed)}: {estimate.samples:,} samples ({what}), "
        f"{estimate.flops / 1e18:,.2f} EFLOP, {estimate.rate:,.0f} samples/s a GPU ({assumed}): {estimate.gpu_hours:,.1f} GPU-hours"
    )
    return line, estimate


def _samples(experiment: Experiment, stage: StageConfig) -> tuple[int, str]:
    """Samples of an epoch, and where the number is from."""
    data, known, name = (experiment.pairs, YFCC15M, "YFCC15M") if stage.stage == "contrastive" else (experiment.triplets, NIGHTS, "NIGHTS")
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
