"""What each component of the pipeline does: decide whether there is anything to do, run the job, retry, explain.

A component (pipelines/kubeflow/components.py) only calls one of these. Whatever is slow to import stays out of this
module, so that a step which is done finds that out in a fraction of a second.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Literal, ParamSpec, TypeVar

from pipelines.jobs.backends import backend_for
from pipelines.jobs.base import Job, JobSpec, Outcome
from pipelines.jobs.lock import job_lock
from pipelines.jobs.specs import evaluate_spec, train_spec
from pipelines.planning.cells import find_cell, read_plan
from pipelines.profile.profile import Overrides, job_settings, read_profile, use_store_of_profile
from pipelines.steps.notes import note
from trainer.config import DataConfig
from trainer.errors import InputError, RunError
from trainer.progress import STOP_VARIABLE, check_stop
from trainer.storage import join, layout, open_store, read_bytes, read_json, write_bytes, write_json
from trainer.storage.base import local_path
from trainer.storage.committed import read_committed
from trainer.storage.manifest import NAME as MANIFEST
from trainer.storage.manifest import require_manifest

PARENT_VARIABLE = "FIRSTSIGHT_PARENT"
ATTEMPTS = 2
"""A stage that was killed or failed on the way is started once more: it goes on from its last checkpoint."""
POLL_SECONDS = 0.1

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Stopped(RunError):
    """The person who waits asked to stop, or is gone."""


def step(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A step's failure is one line on its log and its exit code, never a traceback."""

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            check_stop()
            use_store_of_profile()
            return function(*args, **kwargs)
        except (InputError, RunError, OSError) as error:
            print(f"{function.__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            raise SystemExit(getattr(error, "exit_code", 1)) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        finally:
            signal.signal(signal.SIGTERM, before)

    return run


@step
def stage(
    what: Literal["pairs", "triplets"],
    *,
    root: str,
    experiment: str,
    pairs: str,
    triplets: str,
    recipe: str,
    max_reject_fraction: float,
    image: str = "",
    queue: str = "",
) -> str:
    """Stage `pairs` or `triplets`; the folder of the sealed data set."""
    from pipelines.steps.staging import StagingRequest, prepare, run_staging  # here: the other steps have no use for it

    source, from_pairs = (pairs or "demo", "") if what == "pairs" else (triplets or "demo", "" if triplets else pairs)
    request = StagingRequest(
        what=what,
        root=root_of_run(root),
        experiment=experiment,
        source=source,
        from_pairs=from_pairs,
        recipe=recipe,
        max_reject_fraction=max_reject_fraction,
    )
    overrides, profile, started = Overrides(image=image, queue=queue), read_profile(), time.time()
    try:
        prepared = prepare(request, profile, job_settings(profile, overrides))
    except (InputError, RunError) as error:
        record_failure(request.folder, f"stage {what}", Outcome(exit_code=error.exit_code, line=str(error)))
        raise
    uri = run_staging(prepared, lambda spec: _run(spec, overrides, attempts=1))
    manifest = open_store(uri).head(join(uri, MANIFEST))
    note(f"stage {what}", "sealed before" if manifest and manifest.modified < started else "sealed")
    return uri


@step
def make_plan(
    *, root: str, experiment: str, arms: str, seeds: str, recipe: str, pairs: str, triplets: str, eval_sets: str = ""
) -> list[str]:
    """Write the plan of the experiment; the names of the cells to run."""
    from pipelines.planning import plan  # here: reading YAML into configurations takes longer than all that the other steps import
    from pipelines.planning.arms import parse_arms, parse_seeds

    root = root_of_run(root)
    uri = layout.experiment(root, experiment)
    open_store(uri).delete(layout.failure(uri))
    try:
        chosen = parse_arms(arms)
        manifest = require_manifest(triplets)
        settings = plan.read_recipe(recipe)
        plan.require_judge(chosen, manifest.judge, settings)
        request = plan.Experiment(
            root=root,
            experiment=experiment,
            recipe=settings,
            pairs=DataConfig(uri=pairs, identity=require_manifest(pairs).identity),
            triplets=DataConfig(uri=triplets, identity=manifest.identity),
            weights=plan.weights_of(chosen),
            sets=plan.read_sets(eval_sets),
        )
        cells = [plan.resolve(request, arm, seed) for seed in parse_seeds(seeds) for arm in chosen]
        plan.write_plan(request, cells)
    except (InputError, RunError) as error:
        record_failure(uri, "plan", Outcome(exit_code=error.exit_code, line=str(error)))
        raise
    return [cell.name for cell in cells]


@step
def train(
    name: str,
    *,
    root: str,
    experiment: str,
    cell: str,
    nodes: int = 0,
    gpus_per_node: int = -1,
    image: str = "",
    queue: str = "",
    resume: str = "auto",
) -> None:
    """Run one stage of one cell, unless the cell has none or its final model is committed."""
    root = root_of_run(root)
    entry = find_cell(layout.experiment(root, experiment), cell)
    title = f"{name} {cell}"
    folder = entry[name]
    if not folder:
        note(title, "not needed by this arm", detail=True)
        return
    recipe_hash = entry["recipe_hashes"][name]
    final = read_committed(layout.final(folder))
    if final is not None and final.recipe_hash == recipe_hash:
        open_store(folder).delete(layout.failure(folder))
        note(title, "done before")
        return
    spec = train_spec(root, experiment, entry, name, resume)
    _run(spec, Overrides(nodes=nodes, gpus_per_node=gpus_per_node, image=image, queue=queue, resume=resume), attempts=ATTEMPTS)


@step
def evaluate(*, root: str, experiment: str, cell: str, image: str = "", queue: str = "") -> None:
    """Measure the models of one cell."""
    root = root_of_run(root)
    entry = find_cell(layout.experiment(root, experiment), cell)
    spec = evaluate_spec(root, experiment, entry)
    _run(spec, Overrides(image=image, queue=queue), attempts=ATTEMPTS)


@step
def finish(*, root: str, experiment: str, state: str) -> str:
    """Release what the run holds, then report the cells that finished; the page's URI, empty where there is nothing to report."""
    root = root_of_run(root)
    _release(root, experiment)
    uri = layout.experiment(root, experiment)
    if read_plan(uri) is None:
        print(f"finish: the run ended {state} before it was planned: nothing to report", flush=True)
        return ""
    # Always in place: it needs no torch, and the jobs' machines may be gone.
    _run(JobSpec(name="report", arguments=("report", "--experiment", uri), folder=layout.report(uri)), Overrides(), attempts=1)
    return join(layout.report(uri), "index.html")


def failures(root: str, experiment: str, cells: list[str], since: float) -> list[dict[str, Any]]:
    """What failure.json says, since a time, in the folders of the run's steps."""
    uri = layout.experiment(root, experiment)
    folders = [join(uri, "staging", "triplets"), join(uri, "staging", "pairs"), uri, layout.report(uri)]
    for entry in (read_plan(uri) or {"cells": []})["cells"]:
        if entry["cell"] in cells:
            folders += [entry[name] for name in ("perceptual", "contrastive", "posthoc", "evaluation") if entry[name]]
    store = open_store(uri)
    uris = [layout.failure(folder) for folder in dict.fromkeys(folders)]
    found = [read_json(uri) for uri in uris if store.head(uri) is not None]
    return [failure for failure in found if failure["time"] >= since]


def root_of_run(root: str) -> str:
    """The store URI of this run: its own, else the profile's."""
    root = root or read_profile().root
    if not root:
        raise InputError("root must be a store URI such as s3://bucket/prefix where the profile names none, got ''")
    return root


def _release(root: str, experiment: str) -> None:
    """Let go of every job of the experiment that this run holds still; whoever reports must not fail for it."""
    profile = read_profile()
    if profile.backend == "local":
        return
    from pipelines.jobs.leftovers import release_all

    try:
        for line in release_all(profile.jobs.namespace, experiment):
            note("finish", line)
    except (InputError, RunError) as error:
        note("finish", f"jobs that this run holds could not be let go of, the reaper will: {error}")


def _run(spec: JobSpec, overrides: Overrides, *, attempts: int) -> None:
    """Run the job, again where that may help, and leave failure.json where it does not."""
    open_store(spec.folder).delete(layout.failure(spec.folder))
    profile = read_profile()
    on_cluster = spec.kind != "report" and profile.backend != "local"
    attempts = 1 if on_cluster else attempts  # there the launcher counts what happens to a job
    with job_lock() as descriptors, _log(spec.folder, stored=not (on_cluster and spec.kind == "train")) as log:
        for attempt in range(1, attempts + 1):
            number = "" if on_cluster else f", attempt {attempt}"
            log(f"--- {spec.name}{number}, {time.strftime('%Y-%m-%d %H:%M:%S %Z')}")
            try:
                outcome = _follow(backend_for(spec, profile, overrides, descriptors).submit(spec), log)
            except InputError as error:
                outcome = Outcome(exit_code=error.exit_code, line=str(error))
            if outcome.exit_code == 0:
                return
            if outcome.exit_code == 2 or attempt == attempts:
                break
            note(spec.name, f"{outcome.line}; starting it once more")
            spec = dataclasses.replace(spec, resume="auto" if spec.resume == "never" else spec.resume)
    record_failure(spec.folder, spec.name, outcome)
    raise (InputError if outcome.exit_code == 2 else RunError)(outcome.line)


def _follow(job: Job, log: Callable[[str], None]) -> Outcome:
    """Pass on the job's output until it ends; end it where the run is stopped."""
    reader = threading.Thread(target=job.logs, args=(log,), name="job log", daemon=True)
    reader.start()
    parent = _Parent()
    try:
        while True:
            outcome = job.watch()
            if outcome is not None:
                reader.join(timeout=10)
                return job.watch() or outcome  # now with the last line of its output
            if os.path.exists(os.environ.get(STOP_VARIABLE, "")) or parent.is_gone():
                raise Stopped("stopped on request")
            time.sleep(POLL_SECONDS)
    except BaseException:
        job.leave()
        reader.join(timeout=2)  # what it said while it saved belongs into the log
        raise


class _Parent:
    """The process that runs the pipeline, whose death (kill -9) must end the jobs too."""

    def __init__(self) -> None:
        self._pid = os.environ.get(PARENT_VARIABLE, "")
        self._start = self._start_time()

    def is_gone(self) -> bool:
        """Whether it has ended, even if its number is another's by now."""
        return bool(self._pid) and self._start_time() != self._start

    def _start_time(self) -> str:
        try:
            return Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[19]
        except OSError:
            return ""


@contextlib.contextmanager
def _log(folder: str, *, stored: bool) -> Iterator[Callable[[str], None]]:
    """Lines go to this step's output and, where nobody else writes it, to log.txt: at once on a file root, at the end on any other."""
    if not stored:
        yield lambda line: print(line, flush=True)
        return
    uri = layout.log(folder)
    path = local_path(uri)
    with contextlib.ExitStack() as stack:
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / layout.LOG
            if open_store(uri).head(uri) is not None:
                path.write_bytes(read_bytes(uri))
            stack.callback(lambda: write_bytes(uri, path.read_bytes()))
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = stack.enter_context(path.open("a", buffering=1))

        def log(line: str) -> None:
            stream.write(f"{line}\n")
            print(line, flush=True)

        yield log


def record_failure(folder: str, name: str, outcome: Outcome) -> None:
    """Say that a step failed, here and in failure.json of its folder, where a caller finds the exit code."""
    note(name, f"failed: {outcome.line}")  # first: the store may be what failed
    write_json(layout.failure(folder), {"time": time.time(), "stage": name, "exit_code": outcome.exit_code, "line": outcome.line})


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
