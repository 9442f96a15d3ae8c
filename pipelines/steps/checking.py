"""Check a request's sources, and its recipe on these machines, before anything is staged."""

import functools
import os
import subprocess

from pipelines.planning.checks import check_recipe
from pipelines.planning.cost import Machines, Samples
from pipelines.planning.plan import Cell, Experiment
from pipelines.planning.request import Request
from pipelines.planning.resolving import refuse_other_epochs
from pipelines.planning.sources import require_source, training_samples
from pipelines.profile.profile import Profile, job_settings, parallel_cells_of, placement_of
from pipelines.profile.settings import JobSettings
from trainer.config import Recipe
from trainer.configs import load_yaml
from trainer.errors import InputError
from trainer.storage import exists, read_text

DRIVER_SECONDS = 10.0
"""Seconds to wait for the driver, which is loaded by the first call after a boot."""
GPU_LABELS = ("product", "product-name")
"""Ends of the node labels of NVIDIA's GPU feature discovery and of AMD's node labeller, after the resource: where a pod template
selects by one, the GPU's name is known."""


def check_experiment(experiment: Experiment, cells: list[Cell], profile: Profile, request: Request) -> list[str]:
    """Notes on an experiment that can run.

    Args:
        experiment: the experiment, with its data as far as they are staged.
        cells: cells of the experiment.
        profile: where jobs run.
        request: the resolved request.

    Raises:
        InputError: a missing source, an address outside what the profile allows, or what `check_recipe` refuses.
    """
    profile.check_addresses(request)
    _require_queue(profile, request)
    for name, staged in (("pairs", experiment.pairs), ("triplets", experiment.triplets)):
        if not staged.uri and getattr(request, name) not in experiment.unread:
            _check_described(profile, getattr(request, name))
            require_source(name, getattr(request, name))
    pairs, triplets = data_of(experiment, request)
    machines = machines_of(job_settings(profile, request), profile, request)
    asked, stages = placement_of(profile, request), dict[Recipe, set[str]]()
    refuse_other_epochs(asked, experiment.recipe)
    for cell in cells:
        stages.setdefault(cell.recipe, set()).update(stage.stage for stage in cell.stages())
    said = (check_recipe(recipe, pairs, triplets, machines, profile.backend, stages=of_it, asked=asked) for recipe, of_it in stages.items())
    notes = list(dict.fromkeys(line for lines in said for line in lines))
    notes += [f"axis {axis!r} changes no stage of the arms {', '.join(experiment.asked_arms)}" for axis in experiment.idle_axes]
    if profile.backend == "local" and request.parallel_cells not in (None, 1) and len(cells) > 1:
        notes.append(f"parallel_cells is {request.parallel_cells}, and on this machine cells run one at a time")
    return notes


def _check_described(profile: Profile, source: str) -> None:
    """Refuse a list's description that names addresses outside the profile, before reading any of them."""
    if profile.places is not None and source.endswith((".yaml", ".yml")) and exists(source):
        profile.check_address(source, load_yaml(read_text(source), source))


def _require_queue(profile: Profile, request: Request) -> None:
    """Refuse to submit all cells suspended if no queue would admit them."""
    settings = job_settings(profile, request)
    if parallel_cells_of(profile, request) == 0 and not settings.labels.get(settings.queue_label):
        raise InputError(
            f"parallel_cells is 0: every cell waits, suspended, for a queue to admit it, but neither the request's queue nor "
            f"jobs.labels ({settings.queue_label}) in the profile names one"
        )


def data_of(experiment: Experiment, request: Request) -> tuple[Samples, Samples]:
    """Training pairs and triplets, as far as they are known."""
    unread = experiment.unread
    return (
        training_samples("pairs", experiment.pairs, request.pairs, experiment.recipe, readable=request.pairs not in unread),
        training_samples("triplets", experiment.triplets, request.triplets, experiment.recipe, readable=request.triplets not in unread),
    )


def machines_of(settings: JobSettings, profile: Profile, request: Request, purpose: str = "train") -> Machines:
    """The machines for jobs of this purpose with these settings; for this machine, what the run requests or else what it has."""
    labels = settings.node_selector(purpose)
    gpu = next((str(labels[label]) for end in GPU_LABELS if (label := f"{settings.gpu_resource}.{end}") in labels), "")
    gpu = "" if "MIG" in gpu else gpu  # a slice has the name of the whole GPU, but is slower
    nodes, gpus, cores = settings.nodes, settings.gpus_per_node, _cores(settings.cpu_of_pod)
    memory = settings.gpu_memory_bytes
    if profile.backend == "local":
        here = gpus_here()
        wanted = min(len(here), 1) if request.gpus_per_node is None else request.gpus_per_node
        nodes, gpus, cores = 1, wanted, len(os.sched_getaffinity(0))
        gpu, memory = here[0] if here and wanted else (gpu, memory)
    processes = settings.ranks_per_node or max(gpus, 1) if purpose == "train" else 1
    return Machines(
        nodes=nodes,
        gpus_per_node=gpus,
        processes_per_node=processes,
        gpu_bytes=memory,
        gpu=gpu,
        cores=max(cores // processes, 1),
    )


@functools.cache
def gpus_here() -> list[tuple[str, int]]:
    """Name and memory in bytes of each GPU of this machine, from its driver; none if no driver responds."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [line.rpartition(", ") for line in said.splitlines()]
    return [(name, int(mebibytes) << 20) for name, _, mebibytes in lines if mebibytes.isdecimal()]


def _cores(quantity: str) -> int:
    """Whole cores of a Kubernetes quantity; at least one."""
    return max(int(float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)), 1)
