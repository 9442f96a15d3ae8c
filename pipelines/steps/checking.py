"""What a request cannot do is refused before anything is staged: its sources, its recipe on these machines."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.planning.checks import check_recipe
from pipelines.planning.cost import Machines, Samples
from pipelines.planning.plan import Cell, Experiment
from pipelines.planning.request import Request
from pipelines.planning.sources import require_source, training_samples
from pipelines.profile.profile import Profile, job_settings, placement_of
from pipelines.profile.settings import JobSettings

GPU_LABEL = "nvidia.com/gpu.product"
"""The node label of NVIDIA's GPU feature discovery: where jobs.pod_template selects by it, the GPU's name is known."""


def check_experiment(experiment: Experiment, cells: list[Cell], profile: Profile, request: Request) -> list[str]:
    """Notes on an experiment that can run.

    Args:
        experiment: with its data as far as they are staged.
        cells: of it.
        profile: where jobs run.
        request: resolved.

    Raises:
        InputError: a source that is not there, or what `check_recipe` refuses.
    """
    for name, staged in (("pairs", experiment.pairs), ("triplets", experiment.triplets)):
        if not staged.uri:
            require_source(name, getattr(request, name))
    pairs, triplets = data_of(experiment, request)
    machines = machines_of(job_settings(profile, request), profile, request)
    stages = {stage.stage for cell in cells for stage in cell.stages()}
    asked = placement_of(profile, request)
    return check_recipe(experiment.recipe, pairs, triplets, machines, profile.backend, stages=stages, asked=asked)


def data_of(experiment: Experiment, request: Request) -> tuple[Samples, Samples]:
    """Training pairs and triplets, as far as they are known."""
    return (
        training_samples("pairs", experiment.pairs, request.pairs, experiment.recipe),
        training_samples("triplets", experiment.triplets, request.triplets, experiment.recipe),
    )


def machines_of(settings: JobSettings, profile: Profile, request: Request) -> Machines:
    """What jobs with these settings run on; on this machine what a run asks for, else what is in it."""
    template: Mapping[str, Any] = settings.pod_template.get("spec") or {}
    gpu = str((template.get("nodeSelector") or {}).get(GPU_LABEL, ""))
    nodes, gpus, cores = settings.nodes, settings.gpus_per_node, _cores(settings.cpu_of_pod)
    if profile.backend == "local":
        here = min(len(list(Path("/dev").glob("nvidia[0-9]*"))), 1)
        nodes, gpus, cores = 1, here if request.gpus_per_node is None else request.gpus_per_node, len(os.sched_getaffinity(0))
    processes = settings.ranks_per_node or max(gpus, 1)
    return Machines(
        nodes=nodes,
        gpus_per_node=gpus,
        processes_per_node=processes,
        gpu_bytes=settings.gpu_memory_bytes,
        gpu=gpu,
        cores=max(cores // processes, 1),
    )


def _cores(quantity: str) -> int:
    """Whole cores of a Kubernetes quantity; at least one."""
    return max(int(float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)), 1)
