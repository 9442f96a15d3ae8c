"""What happens to runs on a Kubeflow: scenarios, and a table of what was seen. `python -m tests.kubeflow` runs them.

A scenario knows a world: a real server (worlds.py), or the stand-in whose steps are pretended (dry.py). It goes on after a row that is not
as it should be, since a run on a real server takes an hour and is to be looked at as a whole.
"""

import contextlib
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.kubeflow.client import Kubeflow, NotFound
from pipelines.kubeflow.follow import RunFollower
from pipelines.kubeflow.nodes import steps
from pipelines.kubeflow.steplog import StepLog
from trainer.errors import InputError, RunError
from trainer.storage import join, pages, read_json
from trainer.storage.base import MissingObject

TRAINS = re.compile(r"contrastive(?: lane \d+)? \| .*\bstep \d+ of \d+")
"""A line by which a job is known to train: one of its first node, streamed."""
_LINE = re.compile(r"([a-z-]+(?: lane \d+)?) \| (.*)")
_RUN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
GPUS_FREE_SECONDS = 120.0


class World(Protocol):
    """Where scenarios run.

    Attributes:
        name: for the table.
        server: a client of it.
        seconds: after which a scenario waits no longer.
    """

    name: str
    server: Kubeflow
    seconds: float

    def command(self, *arguments: str) -> list[str]:
        """The command line of a submission."""

    def break_job(self, experiment: str, cell: str) -> str:
        """Take away the contrastive job of a cell that trains; empty, or why it cannot be done."""

    def jobs(self, experiment: str) -> list[str] | None:
        """The jobs of an experiment that are there; None if that cannot be seen."""

    def uninstall(self) -> str:
        """Uninstall the chart; empty, or why it is not done."""


@dataclass(frozen=True)
class Row:
    """One thing that was looked at; `good` is None if it is only told."""

    scenario: str
    what: str
    seen: str
    good: bool | None


class Submission:
    """`python -m pipelines submit --json`, as CI runs it."""

    def __init__(self, world: World, *arguments: str) -> None:
        self._world = world
        self._process = subprocess.Popen(world.command(*arguments, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, found: Callable[[str], object], then: Callable[[], object]) -> bool:
        """Do something at the first line that is found; whether there was one."""
        end, looked = time.monotonic() + self._world.seconds, 0
        while time.monotonic() < end and (self._process.poll() is None or looked < len(self.lines)):
            new, looked = self.lines[looked:], len(self.lines)
            if any(map(found, new)):
                then()
                return True
            time.sleep(0.05)
        return False

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, dict[str, Any]]:
        """Exit code, and the JSON on stdout."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        out = self._process.stdout.read()
        code = self._process.wait(self._world.seconds)
        self._thread.join()
        self._process.stdout.close()
        self._process.stderr.close()
        return code, json.loads(out or "{}")

    @property
    def run(self) -> str:
        """Id of the run, which is in the first line."""
        found = _RUN.search(self.lines[0]) if self.lines else None
        return found[0] if found else ""

    def streamed(self) -> dict[str, list[str]]:
        """Lines of the steps' logs by step."""
        by_step: dict[str, list[str]] = {}
        for line in self.lines:
            match = _LINE.fullmatch(line)
            if match:
                by_step.setdefault(match[1], []).append(match[2])
        return by_step


@dataclass
class Campaign:
    """Runs scenarios in a world and keeps what it saw."""

    world: World
    prefix: str
    say: Callable[[str], None] = print
    rows: list[Row] = field(default_factory=list)
    _scenario: str = ""
    _first: str = ""

    def go(self, only: Sequence[str] = ()) -> bool:
        """All scenarios, or those named; whether every row is good."""
        for name, scenario in self.scenarios():
            if not only or name in only:
                self._scenario = name
                self.say(f"--- {name}")
                try:
                    scenario()
                except (InputError, RunError, OSError, LookupError, ValueError, subprocess.SubprocessError) as error:
                    self.see("it goes through", f"{type(error).__name__}: {error}", False)
        return all(row.good is not False for row in self.rows)

    def scenarios(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """In order: the last one uninstalls."""
        yield "run", self.complete
        yield "wrong input", self.wrong_input
        for cells in (1, 3):
            yield f"failed, {cells} in a lane", lambda cells=cells: self.failed(cells)  # type: ignore[misc]
            yield f"stopped, {cells} in a lane", lambda cells=cells: self.stopped(cells)  # type: ignore[misc]
        yield "12 cells, 3 lanes", self.twelve
        yield "uninstall", self.uninstalled

    def see(self, what: str, seen: object, good: bool | None = None) -> None:
        """Keep a row."""
        self.rows.append(Row(self._scenario, what, str(seen), good))
        self.say(f"{'    ' if good is None else 'ok  ' if good else 'FAIL'} {what}: {seen}")

    def table(self) -> str:
        """Everything that was seen, as Markdown."""
        lines = [f"What was seen on {self.world.name}", "", "| scenario | what | seen | |", "|---|---|---|---|"]
        marks = {True: "ok", False: "FAIL", None: ""}
        lines += [f"| {row.scenario} | {row.what} | {row.seen.replace('|', '/')} | {marks[row.good]} |" for row in self.rows]
        return "\n".join([*lines, ""])

    def complete(self) -> None:
        """A run from its submission to its page, and once more."""
        experiment = f"{self.prefix}-run"
        first = self._submit(experiment)
        result = self._ended(first, 0, "SUCCEEDED")
        self._first = first.run
        self._streamed(first)
        self._page(result, [])
        again = self._submit(experiment)
        began = time.monotonic()
        self._ended(again, 0, "SUCCEEDED")
        self.see("the same again, which finds all done, takes (s)", round(time.monotonic() - began))

    def wrong_input(self) -> None:
        """What only the cluster can see."""
        submission = self._submit(f"{self.prefix}-wrong", "--pairs", "s3://no-such-bucket-of-firstsight/pictures")
        code, result = submission.end()
        self.see("exit code 2, state FAILED", f"{code}, {result.get('state')}: {result.get('line', '')[:200]}", code == 2)

    def failed(self, cells: int) -> None:
        """A cell's job is taken away; its run fails, and Retry makes it whole."""
        experiment, broken = f"{self.prefix}-failed-{cells}", "random-seed0" if cells == 1 else "random-seed1"
        submission = self._submit(experiment, "--seeds", _seeds(cells))
        why: list[str] = []
        trains = submission.wait_for(
            lambda line: TRAINS.match(line) and broken in line, lambda: why.append(self.world.break_job(experiment, broken))
        )
        if why and why[0]:
            self.see("its job is taken away", why[0])
            submission.end()
            return
        self.see(f"{broken} trains, and its job is taken away", trains, trains)
        result = self._ended(submission, 1, "FAILED")
        self._page(result, [broken])
        self._retry(submission.run, result)

    def stopped(self, cells: int) -> None:
        """Ctrl-C once a job trains; nothing of the run works after it, and Retry makes it whole."""
        experiment = f"{self.prefix}-stopped-{cells}"
        submission = self._submit(experiment, "--seeds", _seeds(cells))
        trains = submission.wait_for(TRAINS.match, submission.interrupt)
        self.see("a job trains before Ctrl-C", trains, trains)
        result = self._ended(submission, 130, "FAILED")
        self._jobs_gone(experiment)
        self._page(result, None)
        self._retry(submission.run, result)

    def twelve(self) -> None:
        """Twelve cells on three lanes."""
        arms = "random,perceptual,posthoc,permuted"
        submission = self._submit(f"{self.prefix}-twelve", "--arms", arms, "--seeds", "0,1,2", "--parallel-cells", "3")
        result = self._ended(submission, 0, "SUCCEEDED")
        tasks = self.world.server.run(submission.run).run_details.task_details
        self.see("tasks of the run", len(tasks))
        self.see("lanes that ran", len({step.lane for step in steps(tasks)} - {-1}), None)
        self._streamed(submission)
        self._page(result, [])

    def uninstalled(self) -> None:
        """What a run's page in the UI needs stays when the chart goes."""
        if not self._first:
            self.see("an earlier run", "none in this campaign")
            return
        reference = self.world.server.run(self._first).pipeline_version_reference
        why = self.world.uninstall()
        if why:
            self.see("the chart is uninstalled", why)
            return
        try:
            found = self.world.server.version(reference.pipeline_id, reference.pipeline_version_id)
            self.see("the old run's pipeline version is there", found.display_name, True)
        except NotFound as error:
            self.see("the old run's pipeline version is there", error, False)

    def _submit(self, experiment: str, *arguments: str) -> Submission:
        given = arguments if "--arms" in arguments else ("--arms", "random", *arguments)
        return Submission(self.world, "--recipe", "smoke", "--experiment", experiment, *given)

    def _ended(self, submission: Submission, code: int, state: str) -> dict[str, Any]:
        seen, result = submission.end()
        said = f": {result['line'][:200]}" if result.get("line") else ""
        self.see(f"exit code {code}, state {state}", f"{seen}, {result.get('state')}{said}", (seen, result.get("state")) == (code, state))
        return result

    def _streamed(self, submission: Submission) -> None:
        """Every line of every step once and in order, by the logs that Kubeflow keeps."""
        found = steps(self.world.server.run(submission.run).run_details.task_details)
        several, streamed, lines, wrong = len({step.lane for step in found} - {-1}) > 1, submission.streamed(), 0, []
        for step in found:
            title = f"{step.name} lane {step.lane + 1}" if several and step.lane >= 0 else step.name
            kept = StepLog().take(self.world.server.ended_log(submission.run, step.node) or "", ended=True)
            lines += len(kept)
            if streamed.get(title, []) != kept:
                wrong.append(f"{title}: {len(streamed.get(title, []))} of {len(kept)}")
        self.see(
            "streamed lines, each once and in order", f"{lines}{', but ' + '; '.join(wrong) if wrong else ''}", not wrong and lines > 0
        )

    def _page(self, result: dict[str, Any], missing: list[str] | None) -> None:
        """What the page says: the cells that are missing; None: there must be no page."""
        page = _read_page(str(result.get("folder", "")))
        wanted = "no page" if missing is None else f"the page lacks {', '.join(missing) or 'nothing'}"
        if isinstance(page, str):
            self.see(wanted, page, True if missing is None and page == "no page" else None if page != "no page" else False)
            return
        lacks = sorted(entry["cell"] for entry in page.get("missing", []))
        as_of = f" ({page['as_of']})" if page.get("as_of") else ""
        self.see(wanted, f"the page lacks {', '.join(lacks) or 'nothing'}{as_of}", lacks == missing and bool(as_of) == bool(missing))

    def _retry(self, run: str, result: dict[str, Any]) -> None:
        self.world.server.retry(run)
        with _impatient(self.world.seconds):
            followed = RunFollower(self.world.server, run, lambda line: None).follow()
        self.see("Retry ends SUCCEEDED", followed.run.state, followed.run.state == "SUCCEEDED")
        self._page({"folder": result.get("folder") or followed.experiment}, [])

    def _jobs_gone(self, experiment: str) -> None:
        began = time.monotonic()
        left = self.world.jobs(experiment)
        while left and time.monotonic() < began + GPUS_FREE_SECONDS:
            time.sleep(1)
            left = self.world.jobs(experiment)
        seen = "not seen from here" if left is None else f"{', '.join(left) or 'none'} after {time.monotonic() - began:.0f} s"
        self.see("jobs that are left", seen, None if left is None else not left)


def _seeds(cells: int) -> str:
    return ",".join(map(str, range(cells)))


def _read_page(experiment: str) -> dict[str, Any] | str:
    """The figures of the page that counts; or in words, that there is none or that it cannot be read from here."""
    if not experiment:
        return "not seen from here: the experiment's folder is not known"
    try:
        return dict(read_json(join(pages.folder_of(experiment), "results.json")))
    except MissingObject:
        return "no page"
    except (InputError, RunError) as error:
        return f"not seen from here: {error}"


@contextlib.contextmanager
def _impatient(seconds: float) -> Iterator[None]:
    """A run that hangs must not hang the campaign."""

    def late(number: int, frame: object) -> None:
        raise RunError(f"the run has not ended after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
