"""The layout under a root. All modules get their paths from here."""

import re

from trainer.config import StageConfig, canonical_hash
from trainer.errors import InputError
from trainer.storage.base import join

CONFIG, LINEAGE, PROGRESS, LOG, FAILURE = "config.yaml", "lineage.json", "progress.jsonl", "log.txt", "failure.json"
"""The files in a job's folder besides its results; jobs that measure or stage have only LOG, FAILURE and perhaps CONFIG."""
FINAL = "final"
TRAJECTORY = "trajectory"
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")


def check_name(what: str, name: str) -> str:
    """A name that is safe in a URI, a label and a file: lower case, digits, `.`, `_`, `-`; at most 63."""
    if not _NAME.fullmatch(name) or len(name) > 63:
        raise InputError(f"{what} {name!r} must be 1 to 63 of a-z, 0-9, '.', '_', '-', and begin and end with a letter or digit")
    return name


def dataset(root: str, name: str, plan_id: str) -> str:
    """A staged data set: plan.json, manifest.json, shards and their indexes, rejects/."""
    return join(root, "datasets", check_name("data set", name), plan_id)


def experiment(root: str, name: str) -> str:
    """One experiment: towers/, cells, report/."""
    return join(root, "experiments", check_name("experiment", name))


def tower(experiment_uri: str, recipe_hash: str) -> str:
    """A stage-1 run, shared by the arms that start from the same tower."""
    return join(experiment_uri, "towers", recipe_hash)


def cell_name(arm: str, seed: int, point: str = "") -> str:
    """The name of an arm with a seed, and with a point if the request varies its recipe, as used for folders and people."""
    return f"{arm}-{point}-seed{seed}" if point else f"{arm}-seed{seed}"


def stage_title(config: StageConfig) -> str:
    """A stage of a cell, as people name it."""
    return f"{config.stage} {cell_name(config.arm, config.seed, config.point)}"


def cell(experiment_uri: str, arm: str, seed: int, point: str = "") -> str:
    """The folder of one arm with one seed, at one point."""
    return join(experiment_uri, cell_name(arm, seed, point))


def stage(cell_uri: str, name: str) -> str:
    """A stage of a cell (contrastive, posthoc): config.yaml, lineage.json, progress.jsonl, checkpoints/, trajectory/, final/."""
    return join(cell_uri, name)


def config(folder: str) -> str:
    """The resolved configuration of the stage or job that writes the folder."""
    return join(folder, CONFIG)


def lineage(stage_uri: str) -> str:
    """The origin of a stage's weights: inputs and configuration."""
    return join(stage_uri, LINEAGE)


def progress(stage_uri: str) -> str:
    """A stage's figures, one JSON object per logged step."""
    return join(stage_uri, PROGRESS)


def log(folder: str) -> str:
    """A job's log."""
    return join(folder, LOG)


def failure(folder: str) -> str:
    """How a job failed: time, stage, exit_code, line. Only there until it is started again."""
    return join(folder, FAILURE)


def final(stage_uri: str) -> str:
    """The finished model of a stage; it counts once it holds COMMITTED.json."""
    return join(stage_uri, FINAL)


def placement(stage_uri: str) -> str:
    """The values chosen for placement fields set to `auto`, so that a resumed run uses the same."""
    return join(stage_uri, "placement.json")


def attempt(stage_uri: str) -> str:
    """The number of the stage's newest attempt: a writer with a lower one must not commit."""
    return join(stage_uri, "attempt.json")


def checkpoint(stage_uri: str, step: int) -> str:
    """The checkpoint of one step."""
    return join(stage_uri, "checkpoints", f"step-{step:09d}")


def kept(stage_uri: str, step: int) -> str:
    """The weights of one step, kept for curves through time."""
    return join(stage_uri, TRAJECTORY, f"step-{step:09d}")


def hung(stage_uri: str, step: int, rank: int) -> str:
    """What a rank was doing when its watchdog ended it, after `step` steps."""
    return join(stage_uri, "hung", f"step-{step:09d}", f"rank-{rank}.txt")


def evaluation(cell_uri: str, stage_name: str, when: str) -> str:
    """Figures of one model: `when` is a step's number or `final`; the untrained model is `untrained-final`."""
    return join(cell_uri, "evaluation", f"{stage_name}-{when}")


def declared(experiment_uri: str, number: int | None = None, sha256: str = "") -> str:
    """What an experiment declared, one document each time; without a number the folder of them."""
    folder = join(experiment_uri, "declared")
    return folder if number is None else join(folder, f"{number:04d}-{sha256[:16]}.json")


def report(experiment_uri: str) -> str:
    """index.html and results.json, and below it the generations of the page (trainer/storage/pages.py)."""
    return join(experiment_uri, "report")


def report_generation(experiment_uri: str, generation: int) -> str:
    """The files of one generation of the report's page."""
    return join(report(experiment_uri), f"generation-{generation:06d}")


def request(experiment_uri: str, request_id: str) -> str:
    """A stored request: what a run of the experiment asked for."""
    return join(experiment_uri, "requests", f"{request_id}.json")


def id_of_request(request_uri: str) -> str:
    """The id of a stored request, by where it is stored."""
    return request_uri.rpartition("/")[2].removesuffix(".json")


def request_begun(experiment_uri: str, request_id: str, stage_uri: str) -> str:
    """Marker: a request with `resume: never`, or a checkpoint's URI, has started a stage."""
    return join(experiment_uri, "requests", request_id, "begun", f"{canonical_hash(stage_uri)[:16]}.json")


def of_request(request_uri: str) -> tuple[str, str]:
    """Root and experiment of a stored request, by where it is stored."""
    root, marker, rest = request_uri.rpartition("/experiments/")
    name, folder, _ = rest.partition("/requests/")
    if not marker or not folder:
        raise InputError(f"{request_uri}: not the URI of a stored request, <root>/experiments/<experiment>/requests/<id>.json")
    return root, name


def kubeflow_run(root: str, run_id: str) -> str:
    """Which request a Kubeflow run stored, by the run's id."""
    return join(root, "runs", f"{run_id}.json")


def run_failure(root: str, run_id: str, cell_name: str) -> str:
    """How a cell failed in a run."""
    return join(root, "runs", run_id, "failed", f"{cell_name}.json")


def run_start(root: str, run_id: str, lane: str, step: str) -> str:
    """Marker: a step of a lane has started in a run."""
    return join(root, "runs", run_id, "started", f"{lane}-{step}.json")


def run_life(root: str, run_id: str, lane: str) -> str:
    """Heartbeat of a lane's running step."""
    return join(root, "runs", run_id, "alive", f"{lane}.json")
