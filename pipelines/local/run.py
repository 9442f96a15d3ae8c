"""The pipeline from this machine: kfp.local runs its steps as subprocesses while this process draws their progress.

What the steps run, runs here too, or as jobs on the cluster of the current kubeconfig: `--backend`, `--profile`.
kfp runs in a thread of its own, so that Ctrl-C and SIGTERM are this thread's to handle: they leave the
stop marker, on which running steps end their jobs and queued ones do not begin.
"""

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from pipelines.jobs.backends import require_reachable
from pipelines.jobs.lock import JOBS_VARIABLE, exclusive
from pipelines.jobs.owners import HOLDER_VARIABLE, shell_id
from pipelines.jobs.shapes import require_backend
from pipelines.kubeflow.sdk import import_kfp
from pipelines.local.progress import Display
from pipelines.planning import plan
from pipelines.planning.arms import parse_arms, parse_seeds
from pipelines.planning.summary import print_summary
from pipelines.profile.profile import BACKEND_VARIABLE, PROFILE_VARIABLE, Overrides, read_profile, use_store_of_profile
from pipelines.profile.profile import job_settings as laid_over
from pipelines.steps import steps
from trainer.config import canonical_hash
from trainer.errors import InputError
from trainer.progress import PROGRESS_VARIABLE, STOP_VARIABLE
from trainer.storage import layout
from trainer.storage.base import absolute

POLL_SECONDS = 0.2
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The pipeline's parameters, made absolute; see pipelines/kubeflow/definition.py."""

    root: str
    experiment: str
    pairs: str
    triplets: str
    arms: str
    seeds: str
    recipe: str
    eval_sets: str
    max_reject_fraction: float
    nodes: int = 0
    gpus_per_node: int = -1
    image: str = ""
    queue: str = ""
    resume: str = "auto"

    @property
    def overrides(self) -> Overrides:
        """What this run asks of its jobs beside the profile."""
        return Overrides(nodes=self.nodes, gpus_per_node=self.gpus_per_node, image=self.image, queue=self.queue, resume=self.resume)

    @property
    def uri(self) -> str:
        """The experiment's folder."""
        return layout.experiment(self.root, self.experiment)

    @property
    def cells(self) -> list[str]:
        """The names of the cells asked for."""
        return [layout.cell_name(arm.name, seed) for seed in parse_seeds(self.seeds) for arm in parse_arms(self.arms)]


def resolve_arguments(
    *,
    root: str,
    experiment: str,
    pairs: str,
    triplets: str,
    arms: str,
    seeds: str,
    recipe: str,
    eval_sets: str,
    max_reject_fraction: float,
    **jobs: Any,
) -> Arguments:
    """What a person typed, checked before anything is written.

    Raises:
        InputError: a wrong arm, seed, recipe, name, number of nodes …, `judged` where FLIP will be the judge, or a store that
            the jobs' pods do not reach.
    """
    profile = read_profile()
    require_backend(profile.backend)
    root = root or profile.root or "runs"
    chosen = parse_arms(arms)
    parse_seeds(seeds)
    recipe = absolute(recipe) if recipe.endswith((".yaml", ".yml")) else recipe
    settings = plan.read_recipe(recipe)
    pairs, triplets = (absolute(source) if source and source != "demo" else "" for source in (pairs, triplets))
    plan.require_judge(chosen, "" if triplets else "FLIP", settings)
    if not 0 <= max_reject_fraction <= 1:
        raise InputError(f"--max-reject-fraction must be between 0 and 1, got {max_reject_fraction}")
    experiment = experiment or default_experiment(settings.name, pairs, triplets)
    arguments = Arguments(
        root=absolute(root),
        experiment=layout.check_name("experiment", experiment),
        pairs=pairs,
        triplets=triplets,
        arms=arms,
        seeds=seeds,
        recipe=recipe,
        eval_sets=",".join(absolute(uri.strip()) for uri in eval_sets.split(",") if uri.strip()),
        max_reject_fraction=max_reject_fraction,
        **jobs,
    )
    job_settings = laid_over(profile, arguments.overrides)
    if profile.backend != "local":
        require_reachable(arguments.root, job_settings)
    return arguments


def choose(profile: str, backend: str) -> None:
    """Let this process and its steps use a profile and a backend; what is empty stays as the environment says.

    Args:
        profile: a YAML file.
        backend: local, or a kind of job.
    """
    if profile:
        os.environ[PROFILE_VARIABLE] = absolute(profile)
    if backend:
        os.environ[BACKEND_VARIABLE] = backend
    use_store_of_profile()


def default_experiment(recipe: str, pairs: str, triplets: str) -> str:
    """The recipe's name on the demo's data; with data of one's own a name made from it (and the recipe)."""
    source = pairs or triplets
    words = "".join(letter if letter in "abcdefghijklmnopqrstuvwxyz0123456789-" else "-" for letter in _last_part(source or recipe).lower())
    word = "-".join(part for part in words.split("-") if part)[:40]
    return f"{word or 'data'}-{canonical_hash([recipe, pairs, triplets])[:6]}" if source else word


def run(arguments: Arguments, *, verbose: bool) -> int:
    """Run the experiment; the exit code is 0, 1 (failed on the way), 2 (wrong input), 130 or 143 (stopped)."""
    console = Console(file=sys.stdout, highlight=False)  # this stdout: kfp's thread puts another in its place
    started = time.time()
    # Jobs on a cluster may be shared: a second run of the experiment follows those of the first.
    lock = exclusive(arguments.uri) if read_profile().backend == "local" else contextlib.nullcontext()
    with lock as jobs_lock, tempfile.TemporaryDirectory(prefix="firstsight-") as scratch:
        display = Display(Path(scratch) / "progress.jsonl", console, verbose=verbose)
        variables = _variables(Path(scratch), jobs_lock)
        with _environment(variables), _signals(Path(variables[STOP_VARIABLE])) as received, display:
            display.say(f"experiment {arguments.experiment} in {arguments.uri}: {', '.join(arguments.cells)}")
            pipeline = _Pipeline(arguments, Path(scratch), display if verbose else None)
            pipeline.start()
            while pipeline.is_alive():
                pipeline.join(POLL_SECONDS)
                display.poll()
    if received:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 128 + received[0]
    failures = steps.failures(arguments.root, arguments.experiment, arguments.cells, started)
    print_summary(console, arguments.uri)
    for failure in failures:
        print(f"{failure['stage']}: {failure['line']}", file=sys.stderr)
    if failures:
        return 2 if all(failure["exit_code"] == 2 for failure in failures) else 1
    if pipeline.error:
        print(f"pipeline: {pipeline.error}", file=sys.stderr)
        return 1
    return 0


class _Pipeline(threading.Thread):
    """kfp.local in a thread; what it and its steps print goes to a file, or above the bars where `display` is given."""

    def __init__(self, arguments: Arguments, scratch: Path, display: Display | None) -> None:
        super().__init__(name="pipeline")
        self.error = ""
        self._arguments = arguments
        self._scratch = scratch
        self._display = display

    def run(self) -> None:
        with (self._scratch / "kfp.log").open("w") as log, contextlib.redirect_stdout(_Lines(self._display) if self._display else log):
            try:
                self._run()
            except Exception as error:  # kfp's own words say which task; the steps' failure.json say why
                self.error = re.sub(r"\x1b\[\d*m", "", " ".join(str(error).split()))

    def _run(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of images and settings that mean nothing here
            local = import_kfp().local
            from pipelines.kubeflow.definition import firstsight

            logging.getLogger("kfp").setLevel(logging.WARNING)
            local.init(
                local.SubprocessRunner(use_venv=False),
                pipeline_root=str(self._scratch / "outputs"),
                workspace_root=str(self._scratch / "workspace"),
            )
            firstsight(**asdict(self._arguments))


class _Lines:
    """A text stream whose lines go above the bars."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._display.say(line)
        return len(text)

    def flush(self) -> None:
        """Lines are shown when they are whole."""


def _variables(scratch: Path, jobs_lock: Path | None) -> dict[str, str]:
    return {
        **({JOBS_VARIABLE: str(jobs_lock)} if jobs_lock else {}),
        HOLDER_VARIABLE: shell_id(),
        PROGRESS_VARIABLE: str(scratch / "progress.jsonl"),
        STOP_VARIABLE: str(scratch / "stop"),
        steps.PARENT_VARIABLE: str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "TMPDIR": str(scratch),  # kfp leaves a folder behind for each task
    }


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """The variables that steps inherit.

    kfp.local puts sys.executable in place of every `python3` in a task's command, its arguments included, so
    that a folder named python3 could not be staged. Under the name `python3`, first on PATH, nothing changes.
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


@contextlib.contextmanager
def _signals(stop: Path) -> Iterator[list[int]]:
    """Leave the stop marker on Ctrl-C and SIGTERM; yields the list of signals that came."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        stop.touch()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_part(source: str) -> str:
    return source.rstrip("/").rpartition("/")[2]
