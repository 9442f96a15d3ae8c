"""`run --dry-run`: every manifest that an experiment would submit, and the resources it needs; contacts no cluster, writes nothing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from pipelines.jobs.backends import shape_for, stage_settings
from pipelines.jobs.base import JobSpec
from pipelines.jobs.launcher import annotated
from pipelines.jobs.shapes.indexed import sized
from pipelines.jobs.specs import evaluate_spec, train_spec
from pipelines.planning.cost import Estimate, Machines, Rate, estimate, number
from pipelines.planning.measuring import Measuring, evaluation_lines, measuring
from pipelines.planning.plan import Cell, Experiment, entry_of
from pipelines.planning.request import Request
from pipelines.planning.summary import outline
from pipelines.profile.profile import Profile, job_settings, parallel_cells_of, placement_of
from pipelines.profile.settings import JobSettings
from pipelines.steps.checking import data_of, machines_of
from trainer.config import StageConfig
from trainer.storage.committed import Committed, read_final
from trainer.storage.recipes import read_base


def render(experiment: Experiment, cells: list[Cell], profile: Profile, request: Request, notes: Sequence[str]) -> str:
    """The manifests as YAML documents, then their resources and `notes` as comments; a tower shared by several cells appears once.

    On this machine there are no manifests.
    """
    lines = takes(experiment, cells, profile, request, notes)
    documents = []
    for spec in job_specs(experiment, cells, request, profile):
        if profile.backend != "local":
            documents.append(yaml.safe_dump(job_manifest(spec, profile.backend, profile, request), sort_keys=False))
    return "---\n".join(documents) + "".join(f"# {line}\n" for line in lines)


def takes(experiment: Experiment, cells: list[Cell], profile: Profile, request: Request, notes: Sequence[str]) -> list[str]:
    """The resources that the cells need, line by line, then `notes`.

    Args:
        experiment: the experiment, with its data as far as they are staged.
        cells: its cells.
        profile: where jobs run.
        request: the resolved request.
        notes: remarks about it (`check_experiment`).
    """
    pairs, triplets = data_of(experiment, request)
    stages = {
        stage.output: (stage, train_spec(experiment.root, entry_of(cell), stage.stage, request, {}))
        for cell in cells
        for stage in cell.stages()
    }
    finished = {folder: find_seal(folder) if experiment.readable else None for folder in stages}
    estimates = {}
    for folder, (stage, spec) in stages.items():
        machines = machines_of(stage_settings(profile, request, spec), profile, request)
        alike = [folder, *(other for other, (one, _) in stages.items() if one.stage == stage.stage)]
        measured = next((rate for other in alike if (rate := _measured(finished[other], stage, machines)) is not None), None)
        data = pairs if stage.stage == "contrastive" else triplets
        estimates[folder] = estimate(stage, data, machines, placement_of(profile, request), measured)
    done = {folder for folder, (_, spec) in stages.items() if (one := finished[folder]) and one.recipe_hash == spec.recipe_hash}
    lines = outline(experiment.recipe, estimates, read_base(request.recipe), done, experiment.axes)
    measured_in = _evaluations(experiment, cells, profile, request, estimates)
    pools = pool_lines(job_settings(profile, request), profile, list(estimates.values()), measured_in)
    return [*lines, *evaluation_lines(measured_in), *pools, *(f"note: {note}" for note in notes)]


def pool_lines(settings: JobSettings, profile: Profile, estimates: Sequence[Estimate], evaluations: Sequence[Measuring]) -> list[str]:
    """Hours by pool, one per line; a pool is the machines of one queue, in which a request's stages and evaluations wait."""
    queue = settings.labels.get(settings.queue_label, "")
    where = "this machine" if profile.backend == "local" else f"queue {queue}" if queue else "without a queue"
    pools: dict[tuple[str, str], list[float]] = {}
    training = ((one.machines, one.gpu_hours, 0) for one in estimates)
    for machines, hours, place in (*training, *((one.machines, one.other_hours + one.trajectory_hours, 1) for one in evaluations)):
        name = f"{where}, {machines.gpu}" if machines.gpu else where
        pools.setdefault((name, "GPU" if machines.gpus_per_node else "process"), [0.0, 0.0])[place] += hours
    return [
        f"pool {name}: {number(trained)} of training + {number(measured)} of evaluation = {number(trained + measured)} {unit}-hours"
        for (name, unit), (trained, measured) in pools.items()
    ]


def _evaluations(
    experiment: Experiment, cells: list[Cell], profile: Profile, request: Request, estimates: Mapping[str, Estimate]
) -> list[Measuring]:
    """The cost of evaluating the cells, with kept epochs listed separately."""
    found = []
    for cell in cells:
        spec = evaluate_spec(experiment.root, entry_of(cell), request, {})
        machines = machines_of(sized(stage_settings(profile, request, spec), spec.purpose), profile, request, spec.purpose)
        found.append(measuring(experiment, request, cell, [estimates[stage.output] for stage in cell.stages()], machines))
    return found


def job_specs(experiment: Experiment, cells: list[Cell], request: Request, profile: Profile) -> Iterator[JobSpec]:
    """The jobs of all cells in the order in which they run, without staging, which depends on the source of the data."""
    seen = set()
    placement, suspended = placement_of(profile, request), parallel_cells_of(profile, request) == 0
    for cell in cells:
        entry = entry_of(cell)
        specs = [train_spec(experiment.root, entry, stage.stage, request, placement, suspended=suspended) for stage in cell.stages()]
        for spec in [*specs, evaluate_spec(experiment.root, entry, request, placement, suspended=suspended)]:
            if spec.folder not in seen:
                seen.add(spec.folder)
                yield spec


def job_manifest(spec: JobSpec, backend: str, profile: Profile, request: Request) -> dict[str, Any]:
    """The manifest of a first attempt; its namespace is the launcher's if the profile names none."""
    settings = stage_settings(profile, request, spec)
    manifest = annotated(shape_for(backend, spec, settings), spec, 1)
    if not manifest["metadata"].get("namespace"):
        manifest["metadata"].pop("namespace", None)
    return manifest


def find_seal(stage_uri: str) -> Committed | None:
    """The seal of a stage that is finished and intact; otherwise None."""
    seal, damage = read_final(stage_uri)
    return None if damage else seal


def _measured(committed: Committed | None, stage: StageConfig, machines: Machines) -> Rate | None:
    """The rate that a finished stage of this kind reached; on another number of ranks it is only a guess."""
    if committed is None or not committed.facts.get("samples_per_second"):
        return None
    ranks = max(int(committed.facts.get("world_size", 1)), 1)
    rate = float(committed.facts["samples_per_second"]) / ranks
    same = ranks == machines.ranks
    return Rate(rate=rate, measured=same, said=f"a finished {stage.stage} stage of this experiment on {ranks} rank{'s' * (ranks > 1)}")
