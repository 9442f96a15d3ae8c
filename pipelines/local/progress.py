"""Progress of a run on the terminal: steps append records to a file, and the parent draws them.

On a terminal there is one bar per step with rate and time left; otherwise, one plain line per step every ten seconds.
"""

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.planning.plan import Cell
from pipelines.steps.notes import FAILED
from trainer.progress import read_record
from trainer.storage import layout

LINE_SECONDS = 10.0
RATE_WINDOW_SECONDS = 20.0


@dataclass(kw_only=True)
class Step:
    """What is known about one running step."""

    name: str
    done: int = 0
    total: int = 0
    unit: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    history: deque[tuple[float, int]] = field(default_factory=deque)
    shown: float = float("-inf")

    def update(self, record: dict[str, Any]) -> None:
        """Take in one record of trainer.progress."""
        now, done = float(record["time"]), int(record["done"])
        if self.history and done < self.history[-1][1]:
            self.history.clear()  # it went back to a checkpoint, or moved on to its next part
        self.history.append((now, done))
        while len(self.history) > 2 and self.history[1][0] < now - RATE_WINDOW_SECONDS:
            self.history.popleft()
        self.done, self.total, self.unit = done, int(record["total"]), str(record["unit"])
        shown_already = ("time", "step", "done", "total", "unit", "rate", "samples_per_second")
        self.figures = {key: value for key, value in record.items() if key not in shown_already}

    @property
    def rate(self) -> float:
        """Units per second over the last records; 0 if there is only one."""
        (first, start), (last, end) = self.history[0], self.history[-1]
        return (end - start) / (last - first) if last > first else 0.0

    def amount(self) -> str:
        """`1,024/4,096 samples`."""
        return f"{self.done:,}{f'/{self.total:,}' if self.total else ''} {self.unit}"

    def pace(self) -> str:
        """`512/s, 0:12 left`, as far as it is known."""
        if not self.rate:
            return ""
        pace = f"{self.rate:,.3g}/s" if self.rate < 10 else f"{self.rate:,.0f}/s"
        left = (self.total - self.done) / self.rate
        return f"{pace}, {_clock(left)} left" if left > 0 else pace

    def extras(self) -> str:
        """`loss 3.21`."""
        return "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in self.figures.items())


def jobs_of(cells: Iterable[Cell]) -> list[str]:
    """The jobs of a run by the names they log under; shared jobs are listed once."""
    names = ["stage pairs", "stage triplets"]
    for cell in cells:
        names += [layout.stage_title(stage) for stage in cell.stages()]
        names.append(f"evaluate {cell.name}")
    return list(dict.fromkeys(names))


class Display:
    """Follows the file of records and draws it.

    Args:
        path: path of the file.
        console: the console to draw on.
        verbose: whether details are shown.
        jobs: of the run, by name (`jobs_of`): each of their lines shows the job's number in starting order and the total.

    Attributes:
        last_reasons: why steps failed, unless something else has been printed since.
    """

    def __init__(self, path: Path, console: Console, *, verbose: bool = False, jobs: Sequence[str] = ()) -> None:
        self._jobs = dict.fromkeys(jobs, 0)
        self._begun = 0
        self._path = path
        self._console = console
        self._verbose = verbose
        self._offset = 0
        self._steps: dict[str, Step] = {}
        self._reasons: set[str] = set()
        self.last_reasons: list[str] = []
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Display":
        """Begin to draw."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Draw what is left and remove the bars."""
        self.poll()
        for step in self._steps.values():
            if step.shown < step.history[-1][0]:
                self._say(step)
        if self._live:
            self._live.stop()

    def poll(self) -> None:
        """Read the records added since the last call."""
        for record in self._read():
            self._take(record)
        if self._live:
            self._live.update(_bars([(self._job(step.name), step) for step in self._steps.values()]), refresh=True)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.last_reasons = []
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _take(self, record: dict[str, Any]) -> None:
        name = str(record["step"])
        if "note" in record:
            self._job(name)  # a job that was already done counts as started
            if self._verbose or not record.get("detail"):
                self._note(name, str(record["note"]))
            return
        step = self._steps.setdefault(name, Step(name=name))
        step.update(record)
        if step.total and step.done >= step.total:
            self._say(step)
            del self._steps[name]
        elif not self._live and record["time"] - step.shown >= LINE_SECONDS:
            self._say(step)

    def _note(self, name: str, text: str) -> None:
        """Print what a step reports; a reason shared by several failures is printed once."""
        reason = text.removeprefix(FAILED)
        if reason == text:
            self.say(f"{name}: {text}")
            return
        last = self.last_reasons
        self.say(f"{name}: {'failed for the same reason' if reason in self._reasons else text}")
        self.last_reasons = [*last, reason]
        self._reasons.add(reason)

    def _job(self, name: str) -> str:
        """`job 3 of 9`, in the order in which they begin; empty for anything else. Staging also logs under the names of its parts."""
        part = re.match(r"(?:stage|judge|plan|fetch) .*?\b(pairs|triplets)\b", name)
        job = f"stage {part[1]}" if part else name
        if job not in self._jobs:
            return ""
        if not self._jobs[job]:
            self._begun += 1
            self._jobs[job] = self._begun
        return f"job {self._jobs[job]} of {len(self._jobs)}"

    def _say(self, step: Step) -> None:
        step.shown = step.history[-1][0]
        percent = f"{100 * step.done // step.total:3d} %" if step.total else "     "
        self.say("  ".join(part for part in (step.name, self._job(step.name), percent, step.amount(), step.pace(), step.extras()) if part))

    def _read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            data = stream.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [record for line in complete.splitlines() if (record := read_record(line)) is not None]


def _bars(steps: Sequence[tuple[str, Step]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for job, step in steps:
        bar = ProgressBar(total=step.total or None, completed=step.done, width=24, pulse=not step.total)
        table.add_row(Text(step.name), Text(job), bar, Text(step.amount()), Text(step.pace()), Text(step.extras(), style="dim"))
    return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
