"""Running a job from a step: follow it, retry it, and leave failure.json and a log where it fails.

Whatever is slow to import stays out of this module, so that a step which is done finds that out in a fraction of a second.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from pipelines.jobs.backends import backend_for
from pipelines.jobs.base import Job, JobSpec, Outcome
from pipelines.jobs.lock import job_lock
from pipelines.planning.cells import read_plan
from pipelines.planning.request import Request, check_root, read_request
from pipelines.profile.profile import Profile, job_settings, placement_of, read_profile, use_store_of_profile
from pipelines.profile.settings import JobSettings
from pipelines.steps.notes import note
from trainer.errors import Corrupt, InputError, RunError
from trainer.progress import STOP_VARIABLE, check_stop
from trainer.storage import join, layout, open_store, read_bytes, write_bytes
from trainer.storage.base import absolute, local_path
from trainer.storage.failures import read_failure, write_failure
from trainer.storage.scratch import temporary_folder

PARENT_VARIABLE = "FIRSTSIGHT_PARENT"
_RECORDED = "firstsight_recorded"
"""Set on an error whose failure.json is written: what is further out says nothing more."""
ATTEMPTS = 2
"""A stage that was killed or failed on the way is started once more: it goes on from its last checkpoint."""
POLL_SECONDS = 0.1

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class CallerGone(RunError):
    """The caller asked its steps to stop, or has ended."""


def step(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A step's failure is one line on its log and its exit code, never a traceback."""

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            check_stop()
            use_store_of_profile()
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except Exception as error:
            if not isinstance(error, InputError | RunError | OSError):
                traceback.print_exc(file=sys.stdout)  # a fault of firstsight's own: for its developers
            print(f"{function.__name__}: {_line(error)}", file=sys.stderr, flush=True)
            raise SystemExit(getattr(error, "exit_code", 1)) from None
        finally:
            signal.signal(signal.SIGTERM, before)

    return run


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What every step knows: the request, where the experiment lies, and the profile that it runs under.

    Attributes:
        request: as it was stored.
        uri: of the stored request.
        root: store URI under which everything lies.
        profile: with the request's backend laid over it.
    """

    request: Request
    uri: str
    root: str
    profile: Profile

    @property
    def experiment(self) -> str:
        """The experiment's folder."""
        return layout.experiment(self.root, self.request.experiment)

    @property
    def settings(self) -> JobSettings:
        """How jobs of this run look on a cluster."""
        return job_settings(self.profile, self.request)

    @property
    def placement(self) -> dict[str, Any]:
        """What profile and request say of how a stage runs."""
        return placement_of(self.profile, self.request)


def open_scene(request_uri: str) -> Scene:
    """What a step is given, from the URI of the stored request."""
    root, name = layout.of_request(request_uri)
    with recorded(layout.experiment(root, name), "request"):
        request = read_request(request_uri)
        return Scene(request=request, uri=request_uri, root=root, profile=read_profile(backend=request.backend))


def failures(uri: str, cells: list[str], since: float) -> list[dict[str, Any]]:
    """What failure.json says, since a time, in the folders of a run's steps; the report's first, which only follows from the others.

    Args:
        uri: the experiment's folder.
        cells: names of the run's cells.
        since: POSIX time; what is older belongs to an earlier run.
    """
    folders = [layout.report(uri), join(uri, "staging", "triplets"), join(uri, "staging", "pairs"), uri]
    try:
        entries = (read_plan(uri) or {"cells": []})["cells"]
    except Corrupt as error:
        print(f"{error}; how the stages of its cells failed is unknown", file=sys.stderr, flush=True)
        entries = []
    for entry in entries:
        if entry["cell"] in cells:
            folders += [entry[name] for name in ("perceptual", "contrastive", "posthoc", "evaluation") if entry[name]]
    found = [read_failure(folder) for folder in dict.fromkeys(folders)]
    return [dataclasses.asdict(failure) for failure in found if failure is not None and failure.time >= since]


def root_of_run(root: str, profile: Profile, default: str = "") -> str:
    """The store URI of a run: its own, else the profile's.

    Raises:
        InputError: neither names one, and there is no default; or it cannot be one.
    """
    root = root or profile.root or default
    if not root:
        raise InputError("root must be a store URI such as s3://bucket/prefix where the profile names none, got ''")
    check_root(root)
    return absolute(root)


def run_job(scene: Scene, spec: JobSpec, *, attempts: int) -> None:
    """Run the job, again where that may help, and leave failure.json where it does not."""
    with recorded(spec.folder, spec.name):
        _run_job(scene, spec, attempts)


def _run_job(scene: Scene, spec: JobSpec, attempts: int) -> None:
    open_store(spec.folder).delete(layout.failure(spec.folder))
    profile = scene.profile
    on_cluster = spec.purpose != "report" and profile.backend != "local"
    attempts = 1 if on_cluster else attempts  # there the launcher counts what happens to a job
    with job_lock() as descriptors, _log(spec.folder, stored=not (on_cluster and spec.purpose == "train")) as log:
        for attempt in range(1, attempts + 1):
            number = "" if on_cluster else f", attempt {attempt}"
            log(f"--- {spec.name}{number}, {time.strftime('%Y-%m-%d %H:%M:%S %Z')}")
            try:
                outcome = _follow(backend_for(spec, profile, scene.request, descriptors).submit(spec), log)
            except InputError as error:
                outcome = Outcome(exit_code=error.exit_code, line=str(error))
            if outcome.exit_code == 0:
                return
            if outcome.exit_code == 2 or attempt == attempts:
                break
            note(spec.name, f"{outcome.line}; starting it once more")
            spec = dataclasses.replace(spec, resume="auto" if spec.resume == "never" else spec.resume)
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
                raise CallerGone("stopped on request")
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
            path = stack.enter_context(temporary_folder("log")) / layout.LOG
            if open_store(uri).head(uri) is not None:
                path.write_bytes(read_bytes(uri))
            stack.callback(lambda: write_bytes(uri, path.read_bytes()))
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = stack.enter_context(path.open("a", buffering=1))

        def log(line: str) -> None:
            stream.write(f"{line}\n")
            print(line, flush=True)

        yield log


@contextlib.contextmanager
def recorded(folder: str, name: str) -> Iterator[None]:
    """Whatever fails inside is said, here and in failure.json of the folder, where a caller finds cause and exit code; once only."""
    try:
        yield
    except CallerGone:
        raise
    except Exception as error:
        if not getattr(error, _RECORDED, False):
            setattr(error, _RECORDED, True)
            line, code = _line(error), getattr(error, "exit_code", 1)
            note(name, f"failed: {line}")  # first: the store may be what failed
            try:
                write_failure(folder, stage=name, exit_code=code, line=line)
            except (InputError, RunError, OSError) as second:
                note(name, f"{layout.failure(folder)}: could not be written: {second}")
        raise


def _line(error: Exception) -> str:
    """The cause in one line; of an error that nobody foresaw also its type."""
    line = " ".join(str(error).split())
    return line if line and isinstance(error, InputError | RunError | OSError) else f"{type(error).__name__}: {line}"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
