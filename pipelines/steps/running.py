"""Run a job from a step: follow it, retry it, and write failure.json and a log if it fails.

Modules that are slow to import are not imported here, so that a finished step exits within a fraction of a second.
"""

import contextlib
import contextvars
import dataclasses
import functools
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from pipelines.jobs.backends import backend_for
from pipelines.jobs.base import Job, JobSpec, Outcome
from pipelines.jobs.lock import job_lock
from pipelines.planning.parameters import check_root
from pipelines.planning.request import Request, read_request
from pipelines.planning.runs import Run
from pipelines.profile.profile import Profile, job_settings, parallel_cells_of, placement_of, read_profile, use_store_of_profile
from pipelines.profile.settings import JobSettings
from pipelines.steps.notes import FAILED, note
from trainer import logs
from trainer.errors import Corrupt, InputError, RunError, words_of
from trainer.progress import STOP_VARIABLE, check_stop
from trainer.storage import join, layout, open_store, read_bytes, write_bytes
from trainer.storage.base import absolute, local_path
from trainer.storage.failures import read_failure, write_failure
from trainer.storage.plans import read_plan
from trainer.storage.scratch import temporary_folder

PARENT_VARIABLE = "FIRSTSIGHT_PARENT"
_IN_RUN = re.compile(r"(?P<uri>.*\.json)#(?P<run>[\w.-]{1,100})")
BY_HAND = "by-hand"
"""Replaces the run's id if a step is called by hand with only the request's URI."""
_RECORDED = "firstsight_recorded"
"""Set on an error whose failure.json has been written, so that outer callers do not report it again."""
ATTEMPTS = 2
"""A stage that was killed or failed during the run is started once more: it resumes from its last checkpoint."""
POLL_SECONDS = 0.1

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class CallerGone(RunError):
    """The caller asked its steps to stop, or has ended."""


def step(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Report a step's failure as one line in its log and an exit code, never as a traceback."""

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        _interrupts.clear()
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with contextlib.ExitStack() as stack:
                try:
                    check_stop()
                    use_store_of_profile()
                    stack.enter_context(_speaking())
                    return function(*args, **kwargs)
                except KeyboardInterrupt:
                    raise SystemExit(130) from None
                except Exception as error:
                    foreseen = isinstance(error, InputError | RunError | OSError)  # otherwise a bug in firstsight: for its developers
                    logs.say(f"{function.__name__}: {one_line_of(error)}", "error", None if foreseen else error)
                    raise SystemExit(getattr(error, "exit_code", 1)) from None
        finally:
            signal.signal(signal.SIGTERM, before)

    return run


def _speaking() -> contextlib.AbstractContextManager[None]:
    """The step's log, in the form that the profile or the pod asks for."""
    try:
        logs.is_json()
    except ValueError as error:
        raise InputError(str(error)) from error
    return logs.speaking("launcher")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The context of every step: the request, the place of the experiment, and the profile under which it runs.

    Attributes:
        request: the stored request.
        uri: URI of the stored request.
        root: store URI under which everything is stored.
        profile: the profile, with the request's backend applied.
        run: the run that the step belongs to.
        halt: set if a step that runs several jobs at once is stopped, so that each thread leaves its job.
    """

    request: Request
    uri: str
    root: str
    profile: Profile
    run: Run
    halt: threading.Event = field(default_factory=threading.Event, compare=False)

    @property
    def experiment(self) -> str:
        """The experiment's folder."""
        return layout.experiment(self.root, self.request.experiment)

    @property
    def settings(self) -> JobSettings:
        """How jobs of this run look on a cluster."""
        return job_settings(self.profile, self.request)

    @property
    def parallel_cells(self) -> int:
        """How many cells run at once; 0: all are submitted to the queue."""
        return parallel_cells_of(self.profile, self.request)

    @property
    def placement(self) -> dict[str, Any]:
        """The placement of a stage from profile and request."""
        return placement_of(self.profile, self.request)


def in_run(request_uri: str, run_id: str) -> str:
    """The URI of a stored request with the id of the run, as passed to the steps of the run."""
    return f"{request_uri}#{run_id}"


def open_scene(request: str) -> Scene:
    """The scene of a step.

    Args:
        request: URI of the stored request, with the run's id (`in_run`).

    Raises:
        InputError: there is no such request, or its place or content is outside what the profile allows.
    """
    found = _IN_RUN.fullmatch(request)
    uri, run_id = (found["uri"], found["run"]) if found else (request, BY_HAND)
    root, name = layout.of_request(uri)
    logs.bind(experiment=name)
    read_profile().check_root("request", uri)  # before anything is read or written that may belong to another tenant
    with recorded(layout.experiment(root, name), "request"):
        stored = read_request(uri)
        profile = read_profile(backend=stored.backend)
        profile.check_addresses(stored)
        return Scene(request=stored, uri=uri, root=root, profile=profile, run=Run(root, run_id))


def failures(uri: str, cells: list[str], since: float) -> list[dict[str, Any]]:
    """The contents of failure.json in the folders of a run's steps since a time; the report's first, since it only follows from the others.

    Args:
        uri: the experiment's folder.
        cells: names of the run's cells.
        since: POSIX time; older failures belong to an earlier run.
    """
    found = [read_failure(folder) for folder in _folders_of_steps(uri, cells)]
    return [dataclasses.asdict(failure) for failure in found if failure is not None and failure.time >= since]


def forget_failures(uri: str, cells: list[str]) -> None:
    """Remove them: everything that a run of these cells does has been done since."""
    for folder in _folders_of_steps(uri, cells):
        open_store(folder).delete(layout.failure(folder))


def _folders_of_steps(uri: str, cells: list[str]) -> list[str]:
    folders = [layout.report(uri), join(uri, "staging", "triplets"), join(uri, "staging", "pairs"), uri]
    try:
        entries = (read_plan(uri) or {"cells": []})["cells"]
    except Corrupt as error:
        logs.say(f"{error}; how the stages of its cells failed is unknown", "warning")
        entries = []
    for entry in entries:
        if entry["cell"] in cells:
            folders += [entry[name] for name in ("perceptual", "contrastive", "posthoc", "evaluation") if entry[name]]
    return list(dict.fromkeys(folders))


def by_reason(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Why steps failed: each reason once, with its line and the steps that it ended. `found`: the result of `failures`."""
    lines = dict.fromkeys(str(failure["line"]) for failure in found)
    return {line: f"{', '.join(failure['stage'] for failure in found if failure['line'] == line)}: {line}" for line in lines}


def root_of_run(root: str, profile: Profile, default: str = "") -> str:
    """The store URI of a run: its own, or else the profile's.

    Raises:
        InputError: neither names one and there is no default, or it is invalid or outside the profile's.
    """
    root = root or profile.root or default
    if not root:
        raise InputError("root must be a store URI such as s3://bucket/prefix if the profile sets none, got ''")
    check_root(root)
    profile.check_root("root", absolute(root))
    return absolute(root)


def run_job(scene: Scene, spec: JobSpec, *, attempts: int, speaker: str = "") -> None:
    """Run the job, retry it if that may help, and write failure.json if it fails.

    Args:
        scene: the step's scene.
        spec: the job's spec.
        attempts: largest number of starts, if no launcher counts incidents of the job.
        speaker: prefix of its lines in the step's output if several jobs run at once.
    """
    whose = spec.identity
    fields = {"arm": whose.arm, "point": whose.point, "seed": whose.seed, "stage": whose.stage} if whose is not None else {}
    with logs.about(**fields), recorded(spec.folder, spec.name):
        _run_job(scene, spec, attempts, speaker)


def _run_job(scene: Scene, spec: JobSpec, attempts: int, speaker: str) -> None:
    open_store(spec.folder).delete(layout.failure(spec.folder))
    profile = scene.profile
    on_cluster = spec.purpose != "report" and profile.backend != "local"
    attempts = 1 if on_cluster else attempts  # there the launcher counts a job's incidents
    with job_lock() as descriptors, _log(spec.folder, stored=not (on_cluster and spec.purpose == "train"), speaker=speaker) as log:
        for attempt in range(1, attempts + 1):
            number = "" if on_cluster else f", attempt {attempt}"
            log(f"--- {spec.name}{number}, {time.strftime('%Y-%m-%d %H:%M:%S %Z')}")
            try:
                outcome = _follow(backend_for(spec, profile, scene.request, descriptors).submit(spec), log, scene.halt)
            except InputError as error:
                outcome = Outcome(exit_code=error.exit_code, line=str(error))
            if outcome.exit_code == 0:
                return
            if outcome.exit_code == 2 or attempt == attempts:
                break
            note(spec.name, f"{outcome.line}; starting it again")
            spec = dataclasses.replace(spec, resume="auto" if spec.resume == "never" else spec.resume)
    raise (InputError if outcome.exit_code == 2 else RunError)(outcome.line)


def check_caller(halt: threading.Event) -> None:
    """Raise CallerGone if this step, or the whole run, is being stopped."""
    if _interrupts and threading.current_thread() is threading.main_thread():  # lanes are stopped by `halt`
        raise KeyboardInterrupt
    if halt.is_set() or os.path.exists(os.environ.get(STOP_VARIABLE, "")):
        raise CallerGone("stopped on request")


def _follow(job: Job, log: Callable[[str], None], halt: threading.Event) -> Outcome:
    """Forward the job's output until it ends; end the job if the run is stopped."""
    about_it = contextvars.copy_context()  # so that the other thread's records have the same fields
    reader = threading.Thread(target=about_it.run, args=(job.logs, log), name="job log", daemon=True)
    reader.start()
    parent = _Parent()
    try:
        while True:
            outcome = job.watch()
            if outcome is not None:
                reader.join(timeout=10)
                return job.watch() or outcome  # now with the last line of its output
            if parent.is_gone():
                raise CallerGone("stopped on request")
            check_caller(halt)
            time.sleep(POLL_SECONDS)
    except BaseException:
        job.leave()
        reader.join(timeout=2)  # its output while it was saving belongs in the log
        raise


class _Parent:
    """The process that runs the pipeline, whose death (kill -9) must end the jobs too."""

    def __init__(self) -> None:
        self._pid = os.environ.get(PARENT_VARIABLE, "")
        self._start = self._start_time()

    def is_gone(self) -> bool:
        """Whether it has ended, even if another process has its number now."""
        return bool(self._pid) and self._start_time() != self._start

    def _start_time(self) -> str:
        try:
            return Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[19]
        except OSError:
            return ""


@contextlib.contextmanager
def _log(folder: str, *, stored: bool, speaker: str) -> Iterator[Callable[[str], None]]:
    """Write lines to this step's output and, if nothing else writes it, to log.txt: immediately on a file root, otherwise at the end."""
    prefix = f"{speaker}: " if speaker else ""

    def say(line: str) -> None:
        said = line if logs.record_of(line) else f"{prefix}{line}"  # a record already names its source
        sys.stdout.write(f"{said}\n")  # in one call, so that lines of other threads do not get in between
        sys.stdout.flush()

    if not stored:
        yield say
        return
    uri = layout.log(folder)
    path = local_path(uri)
    with contextlib.ExitStack() as stack:
        if path is None:
            path = stack.enter_context(temporary_folder("log")) / layout.LOG
            if open_store(uri).head(uri) is not None:
                path.write_bytes(read_bytes(uri))
            stack.callback(lambda: write_bytes(uri, path.read_bytes()))
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = stack.enter_context(path.open("a", buffering=1))

        def log(line: str) -> None:
            stream.write(f"{line}\n")
            say(line)

        yield log


@contextlib.contextmanager
def recorded(folder: str, name: str) -> Iterator[None]:
    """Report a failure within this context once, here and in the folder's failure.json, where a caller finds cause and exit code."""
    try:
        yield
    except CallerGone:
        raise
    except Exception as error:
        if not getattr(error, _RECORDED, False):
            setattr(error, _RECORDED, True)
            line, code = one_line_of(error), getattr(error, "exit_code", 1)
            note(name, f"{FAILED}{line}")  # first: the store may be what failed
            try:
                write_failure(folder, stage=name, exit_code=code, line=line)
            except (InputError, RunError, OSError) as second:
                note(name, f"{layout.failure(folder)}: could not be written: {second}")
        raise


def one_line_of(error: Exception) -> str:
    """The cause in one line; for an unexpected error also its type."""
    line, kind = words_of(error), type(error).__name__
    return line if line == kind or isinstance(error, InputError | RunError | OSError) else f"{kind}: {line}"


_interrupts: list[int] = []


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the step; if the signal arrives in a hook of logging, whose exceptions os.fork swallows, when the job is next looked at."""
    _interrupts.append(number)
    if frame is None or frame.f_code.co_filename != logging.__file__:
        raise KeyboardInterrupt
