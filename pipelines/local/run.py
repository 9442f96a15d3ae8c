"""Run the pipeline from this machine: kfp.local runs its steps as subprocesses while this process draws their progress.

The jobs of the steps run here too, or on the cluster of the current kubeconfig (`--backend`, `--profile`).
kfp runs in a separate thread, so that this thread can handle Ctrl-C and SIGTERM: they create the stop marker,
upon which running steps end their jobs and queued ones do not start.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from pipelines.jobs.backends import require_reachable
from pipelines.jobs.lease import Taken
from pipelines.jobs.lock import JOBS_VARIABLE, Held, exclusive
from pipelines.jobs.owners import HOLDER_VARIABLE, shell_id
from pipelines.jobs.shapes import require_backend
from pipelines.kubeflow.sdk import import_kfp
from pipelines.local.finished import find_finished
from pipelines.local.progress import Display, jobs_of
from pipelines.planning.plan import Cell, Experiment
from pipelines.planning.request import Request
from pipelines.planning.resolving import resolve
from pipelines.planning.runs import sweep_leftovers
from pipelines.planning.summary import preview, print_summary, read_beside
from pipelines.profile.profile import PROFILE_VARIABLE, Profile, job_settings, read_profile, use_store_of_profile
from pipelines.steps.checking import check_experiment
from pipelines.steps.links import CHECKED_VARIABLE
from pipelines.steps.running import PARENT_VARIABLE, by_reason, failures, forget_failures, root_of_run
from trainer.errors import InputError, RunError
from trainer.progress import PROGRESS_VARIABLE, STOP_AT_ONCE, STOP_VARIABLE
from trainer.storage import join, layout, open_store
from trainer.storage.scratch import temporary_folder

POLL_SECONDS = 0.2
_COLOURS = re.compile(r"\x1b\[\d*m")
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request that this machine can run.

    Attributes:
        request: the resolved request.
        root: store URI under which everything is stored.
        profile: the request's profile, with the request's backend applied.
        experiment: the experiment that would be planned, with its data as far as they are staged.
        cells: cells of the experiment.
        notes: what the user should know before it runs.
    """

    request: Request
    root: str
    profile: Profile
    experiment: Experiment
    cells: list[Cell]
    notes: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """The experiment's folder."""
        return layout.experiment(self.root, self.request.experiment)

    @property
    def asked(self) -> Request:
        """The request as the first step stores it."""
        return dataclasses.replace(self.request, root=self.root)


def prepare(merged: Request, *, unread_ok: bool = False) -> Prepared:
    """Check a request before anything is written, and let this process and its steps use its profile.

    Args:
        merged: the request from flags and file.
        unread_ok: whether the root or another address of the request may be unreadable from here, which is then noted.

    Raises:
        InputError: a wrong arm, seed, recipe, name, number of nodes …, `judged` where FLIP will be the judge, or a store that
            the jobs' pods do not reach, a source that is missing, a recipe that does not fit the machines.
    """
    request = resolve(merged)
    if request.profile:
        os.environ[PROFILE_VARIABLE] = request.profile
    use_store_of_profile()
    profile = read_profile(backend=request.backend)
    require_backend(profile.backend)
    root, settings = root_of_run(request.root, profile, default="runs"), job_settings(profile, request)
    if profile.backend != "local":
        require_reachable(root, settings)
    unread = {uri: why for uri in (root, *read_beside(request)) if (why := _why_unreadable(uri))} if unread_ok else {}
    experiment, cells = preview(request, root, unread=unread)
    notes = [f"{'what is staged and finished' if uri == root else f'what lies at {uri}'} is unknown: {why}" for uri, why in unread.items()]
    notes += check_experiment(experiment, cells, profile, request)
    return Prepared(request=request, root=root, profile=profile, experiment=experiment, cells=cells, notes=tuple(notes))


def _why_unreadable(root: str) -> str:
    """Why this machine cannot read the store, such as missing credentials; empty if it can."""
    try:
        open_store(root).head(join(root, "experiments"))  # whether it exists or not
    except (InputError, RunError) as error:
        return str(error)
    return ""


def run(prepared: Prepared, *, verbose: bool) -> int:
    """Run the experiment; the exit code is 0, 1 (failed during the run), 2 (wrong input), 130 or 143 (stopped)."""
    console = Console(file=sys.stdout, highlight=False)  # this stdout: kfp's thread puts another in its place
    started = time.time()
    with contextlib.ExitStack() as stack, temporary_folder("run") as scratch:
        held, refused = _hold(prepared, stack)
        if held:
            sweep_leftovers(prepared.root, prepared.uri)
        display = Display(scratch / "progress.jsonl", console, verbose=verbose, jobs=jobs_of(prepared.cells))
        variables = _variables(scratch, held.jobs if held else None)
        variables[CHECKED_VARIABLE] = layout.request(prepared.uri, prepared.asked.id)
        marker = StopMarker(Path(variables[STOP_VARIABLE]))
        with _environment(variables), _signals(marker) as received, display:
            display.say(f"experiment {prepared.request.experiment} in {prepared.uri}: {', '.join(prepared.request.cells)}")
            for line in prepared.notes:
                display.say(f"note: {line}")
            pipeline = _Pipeline(prepared, scratch, display if verbose else None)
            known: list[dict[str, Any]] = []
            finished = find_finished(prepared.asked, prepared.profile)
            if finished is None:
                if refused:
                    raise refused
                known = failures(prepared.uri, prepared.request.cells, started)  # of an earlier run, on a machine whose clock was ahead
                pipeline.start()
            else:
                for step, said in finished:
                    display.say(f"{step}: {said}")
                if held:
                    forget_failures(prepared.uri, prepared.request.cells)
            stopping = False
            while pipeline.is_alive():
                pipeline.join(POLL_SECONDS)
                if received and not stopping:
                    stopping = True
                    display.say("stopping… (running jobs are saving their state, which may take a minute; queued ones will not start)")
                display.poll()
                if held and held.lost():
                    marker.leave(at_once=True)
    if held and held.lost():
        print(f"the experiment's lock was lost, so this run and its jobs were stopped: {held.lost()}", file=sys.stderr)
        return 1
    if received:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 128 + received[0]
    recorded = failures(prepared.uri, prepared.request.cells, started) if finished is None else []
    failed = [failure for failure in recorded if failure not in known]
    seen = [] if print_summary(console, prepared.uri) or not _is_one_stream() else display.last_reasons
    for reason, line in by_reason(failed).items():
        if reason not in seen:  # printed once, as the last thing that the user sees
            print(line, file=sys.stderr)
    if failed:
        return 2 if all(failure["exit_code"] == 2 for failure in failed) else 1
    if pipeline.error:
        print(f"pipeline: {pipeline.error}", file=sys.stderr)
        return 1
    return 0


def _is_one_stream() -> bool:
    """Whether stdout and stderr go to the same place, such as a terminal."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):
        return False


def _hold(prepared: Prepared, stack: contextlib.ExitStack) -> tuple[Held | None, InputError | RunError | None]:
    """Lock the experiment until the stack ends if its jobs run on this machine; jobs on a cluster may be shared by several runs.

    Returns:
        The lock; or, if the root is not writable, the reason why there is none: finished results can be read all the same.
    """
    if prepared.profile.backend != "local":
        return None, None
    try:
        return stack.enter_context(exclusive(prepared.uri)), None
    except Taken:
        raise
    except (InputError, RunError) as error:
        return None, error


class _Pipeline(threading.Thread):
    """kfp.local in a thread; its output and that of its steps goes to a file, or above the bars if `display` is given."""

    def __init__(self, prepared: Prepared, scratch: Path, display: Display | None) -> None:
        super().__init__(name="pipeline")
        self.error = ""
        self._prepared = prepared
        self._scratch = scratch
        self._display = display

    def run(self) -> None:
        try:
            with (self._scratch / "kfp.log").open("w") as log, contextlib.redirect_stdout(_Lines(self._display) if self._display else log):
                self._run()
        except Exception as error:  # kfp's message says which task; the steps' failure.json files say why
            self.error = _COLOURS.sub("", " ".join(str(error).split())) or type(error).__name__

    def _run(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about images and settings that have no effect here
            local = import_kfp().local
            _keep_inputs_of_loops()
            from pipelines.kubeflow.definition import firstsight

            logging.getLogger("kfp").setLevel(logging.WARNING)
            local.init(
                local.SubprocessRunner(use_venv=False),
                pipeline_root=str(self._scratch / "outputs"),
                workspace_root=str(self._scratch / "workspace"),
            )
            firstsight(request=json.dumps(self._prepared.asked.stored()))


def _keep_inputs_of_loops() -> None:
    """Work around kfp 2.17.0's local runner, which gives a loop's body the loop's item in place of every other task's output."""
    from kfp.local.orchestrator import task_spec_utils

    original = task_spec_utils.create_parameter_loop_iteration_task_spec

    def create(original_task_spec: Any, *arguments: Any, **options: Any) -> Any:
        iteration = original(original_task_spec, *arguments, **options)
        item = original_task_spec.parameter_iterator.item_input
        for name, given in original_task_spec.inputs.parameters.items():
            if given.HasField("task_output_parameter") and name != item:
                iteration.inputs.parameters[name].CopyFrom(given)
        return iteration

    task_spec_utils.create_parameter_loop_iteration_task_spec = create


class _Lines:
    """A text stream whose lines go above the bars, except the executor's own output: its imports, and its input as JSON."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._rest = ""
        self._ends_at = ""  # the line that ends the block of JSON that is being left out

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if self._ends_at:
                self._ends_at = "" if line == self._ends_at else self._ends_at
            elif line.strip() == "{":
                self._ends_at = line.replace("{", "}")
            elif line.strip(" -") and "[KFP Executor " not in line:
                self._display.say(_COLOURS.sub("", line))
        return len(text)

    def flush(self) -> None:
        """Show each line once it is complete."""


def _variables(scratch: Path, jobs_lock: Path | None) -> dict[str, str]:
    return {
        **({JOBS_VARIABLE: str(jobs_lock)} if jobs_lock else {}),
        HOLDER_VARIABLE: shell_id(),
        PROGRESS_VARIABLE: str(scratch / "progress.jsonl"),
        STOP_VARIABLE: str(scratch / "stop"),
        PARENT_VARIABLE: str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "TMPDIR": str(scratch),  # kfp leaves a folder behind for each task
    }


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """The variables that steps inherit.

    kfp.local replaces every `python3` in a task's command, including its arguments, with sys.executable, so a folder
    named python3 could not be staged. With an executable named `python3` first on PATH, nothing changes.
    """
    before, executable = {name: os.environ.get(name) for name in variables}, sys.executable
    os.environ.update(variables)
    sys.executable = "python3"
    try:
        yield
    finally:
        sys.executable = executable
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class StopMarker:
    """The file that asks steps to stop: written when the run begins, and later only renamed, which works on a full disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ready = {at_once: path.with_suffix(f".{at_once}") for at_once in (False, True)}
        for at_once, ready in self._ready.items():
            ready.write_text(STOP_AT_ONCE if at_once else "")

    def leave(self, *, at_once: bool = False) -> None:
        """Ask the steps to stop. `at once`: jobs must not save either."""
        if at_once or not self._path.exists():
            with contextlib.suppress(FileNotFoundError):  # it was created before
                self._ready[at_once].rename(self._path)


@contextlib.contextmanager
def _signals(marker: StopMarker) -> Iterator[list[int]]:
    """Create the stop marker on Ctrl-C and SIGTERM; yields the list of signals received.

    A handler prints nothing: it may interrupt this very process while it prints, or while it imports what prints.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        marker.leave()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
