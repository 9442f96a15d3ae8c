"""`run --dry-run`: every manifest that an experiment would submit, and what it takes; no cluster is touched, nothing is written."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.jobs.backends import shape_for, stage_settings
from pipelines.jobs.base import JobSpec
from pipelines.jobs.launcher import annotated
from pipelines.jobs.specs import evaluate_spec, train_spec
from pipelines.planning.checks import check_recipe
from pipelines.planning.cost import Machines, Rate, estimate
from pipelines.planning.plan import Cell, Experiment, entry_of
from pipelines.planning.sources import training_samples
from pipelines.planning.summary import outline
from pipelines.profile.profile import BackendName, Overrides, Profile, job_settings
from pipelines.profile.settings import JobSettings
from trainer.config import Recipe, StageConfig
from trainer.storage import layout
from trainer.storage.committed import Committed, read_committed

GPU_LABEL = "nvidia.com/gpu.product"
"""The node label of NVIDIA's device plugin: where jobs.pod_template selects by it, the GPU's name is known."""


def render(
    experiment: Experiment,
    cells: list[Cell],
    profile: Profile,
    overrides: Overrides,
    *,
    sources: Mapping[str, str] | None = None,
    asked: Mapping[str, Any] | None = None,
    base: Recipe | None = None,
) -> str:
    """The manifests as YAML documents, then as comments what they take; a tower that cells share is there once.

    On this machine there are no manifests. Arguments are those of `takes`.
    """
    documents = []
    for spec in job_specs(experiment, cells, overrides.resume):
        if profile.backend != "local":
            documents.append(yaml.safe_dump(job_manifest(spec, profile.backend, profile, overrides), sort_keys=False))
    lines = takes(experiment, cells, profile, overrides, sources=sources, asked=asked, base=base)
    return "---\n".join(documents) + "".join(f"# {line}\n" for line in lines)


def takes(
    experiment: Experiment,
    cells: list[Cell],
    profile: Profile,
    overrides: Overrides,
    *,
    sources: Mapping[str, str] | None = None,
    asked: Mapping[str, Any] | None = None,
    base: Recipe | None = None,
) -> list[str]:
    """What the cells take, line by line, and what should be known of it.

    Args:
        experiment: with its data as far as they are staged.
        cells: of it.
        profile: where jobs run.
        overrides: what this run asks for beside it.
        sources: of `pairs` and `triplets` as the run names them, for the size of what is not staged; missing: the demo's.
        asked: placement's fields as the profile and the run ask for them; what is missing is `auto`.
        base: what the recipe is compared with; None: the shipped one of its name, else `paper`.

    Raises:
        InputError: the recipe cannot run there (`check_recipe`).
    """
    sources = sources or {}
    pairs = training_samples("pairs", experiment.pairs, sources.get("pairs", ""), experiment.recipe)
    triplets = training_samples("triplets", experiment.triplets, sources.get("triplets", ""), experiment.recipe)
    machines = machines_of(job_settings(profile, overrides), profile.backend)
    stages = {stage.stage for cell in cells for stage in cell.stages()}
    notes = check_recipe(experiment.recipe, pairs, triplets, machines, profile.backend, stages=stages, asked=asked)
    stages_of = {
        stage.output: (stage, train_spec(experiment.root, experiment.experiment, entry_of(cell), stage.stage))
        for cell in cells
        for stage in cell.stages()
    }
    finished = {folder: read_committed(layout.final(folder)) for folder in stages_of}
    estimates = {}
    for folder, (stage, spec) in stages_of.items():
        there = machines_of(stage_settings(profile, overrides, spec), profile.backend)
        alike = [folder, *(other for other, (one, _) in stages_of.items() if one.stage == stage.stage)]
        measured = next((rate for other in alike if (rate := _measured(finished[other], stage, there)) is not None), None)
        data = pairs if stage.stage == "contrastive" else triplets
        estimates[folder] = estimate(stage, data, there, asked, measured)
    done = {folder for folder, (_, spec) in stages_of.items() if (one := finished[folder]) and one.recipe_hash == spec.recipe_hash}
    return [*outline(experiment.recipe, estimates, base, done), *(f"note: {note}" for note in notes)]


def job_specs(experiment: Experiment, cells: list[Cell], resume: str = "auto") -> Iterator[JobSpec]:
    """The jobs of all cells in the order in which they run. How the data are staged depends on their source: not shown."""
    seen = set()
    for cell in cells:
        entry = entry_of(cell)
        specs = [train_spec(experiment.root, experiment.experiment, entry, stage.stage, resume) for stage in cell.stages()]
        for spec in [*specs, evaluate_spec(experiment.root, experiment.experiment, entry)]:
            if spec.folder not in seen:
                seen.add(spec.folder)
                yield spec


def job_manifest(spec: JobSpec, backend: BackendName, profile: Profile, overrides: Overrides) -> dict[str, Any]:
    """What would be submitted as a first attempt; the namespace is the launcher's where the profile names none."""
    settings = stage_settings(profile, overrides, spec)
    manifest = annotated(shape_for(backend, spec, settings), spec, 1)
    if not manifest["metadata"].get("namespace"):
        manifest["metadata"].pop("namespace", None)
    return manifest


def machines_of(settings: JobSettings, backend: BackendName) -> Machines:
    """What jobs with these settings run on; on this machine, where nothing else is asked for, what is in it."""
    template: Mapping[str, Any] = settings.pod_template.get("spec") or {}
    gpu = str((template.get("nodeSelector") or {}).get(GPU_LABEL, ""))
    nodes, gpus, cores = settings.nodes, settings.gpus_per_node, _cores(settings.cpu_of_pod)
    if backend == "local" and not gpus:
        nodes, gpus, cores = 1, min(len(list(Path("/dev").glob("nvidia[0-9]*"))), 1), len(os.sched_getaffinity(0))
    cores = max(cores // max(gpus, 1), 1)
    return Machines(nodes=nodes, gpus_per_node=gpus, gpu_bytes=settings.gpu_memory_bytes, gpu=gpu, cores=cores)


def _cores(quantity: str) -> int:
    """Whole cores of a Kubernetes quantity; at least one."""
    return max(int(float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)), 1)


def _measured(committed: Committed | None, stage: StageConfig, machines: Machines) -> Rate | None:
    """What a finished stage of this kind reached; on another number of ranks it says nothing certain of these."""
    if committed is None or not committed.facts.get("samples_per_second"):
        return None
    ranks = max(int(committed.facts.get("world_size", 1)), 1)
    rate = float(committed.facts["samples_per_second"]) / ranks
    same = ranks == machines.ranks
    return Rate(rate=rate, measured=same, said=f"a finished {stage.stage} stage of this experiment on {ranks} rank{'s' * (ranks > 1)}")
