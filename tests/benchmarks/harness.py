"""The bench: a row is a function that measures the reference and ours in one run.

A module `rows_*.py` beside this file registers its rows:

    @row("C", what="shard reading …", unit="samples / CPU-s", target=8.0)
    def shard_reading(folder: Path) -> Measured:
        ...
        return interleaved(cpu_rate(reference), cpu_rate(ours))

Only ratios mean anything: both sides run on the same bytes, in turns, in the same process, and the
medians of their rounds are compared. Below 1.2x is noise.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import statistics
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import tests.benchmarks

HERE = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a row measured; `note` gives what the reader needs to know besides the figures (sizes, a delay, a bound)."""

    reference: float
    ours: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the bench.

    Attributes:
        row: its name in the table, such as `A` or `G1`.
        what: what is compared, in a sentence.
        unit: of both figures.
        target: what ours / reference must reach.
        at_least: whether the ratio must be at least the target (a rate) or at most (a cost).
        gpu: whether it needs one; such rows run only when asked for by name or by --gpu.
        measure: takes an empty folder that is removed afterwards.
    """

    row: str
    what: str
    unit: str
    target: float
    at_least: bool
    gpu: bool
    measure: Callable[[Path], Measured]


ROWS: dict[str, Row] = {}


def row(
    name: str, *, what: str, unit: str, target: float, at_least: bool = True, gpu: bool = False
) -> Callable[[Callable[[Path], Measured]], Callable[[Path], Measured]]:
    """Register the decorated function as a row."""

    def register(measure: Callable[[Path], Measured]) -> Callable[[Path], Measured]:
        assert name not in ROWS, f"row {name} is registered twice"
        ROWS[name] = Row(row=name, what=what, unit=unit, target=target, at_least=at_least, gpu=gpu, measure=measure)
        return measure

    return register


def load_rows() -> dict[str, Row]:
    """All rows, by importing every `rows_*` module of this folder."""
    for module in pkgutil.iter_modules(tests.benchmarks.__path__):
        if module.name.startswith("rows_"):
            importlib.import_module(f"tests.benchmarks.{module.name}")
    return dict(sorted(ROWS.items()))


def interleaved(reference: Callable[[], float], ours: Callable[[], float], *, rounds: int = 5, note: str = "") -> Measured:
    """The medians of both over `rounds` rounds, taken in turns after one warm-up of each."""
    reference(), ours()
    figures = [(reference(), ours()) for _ in range(rounds)]
    medians = [statistics.median(column) for column in zip(*figures, strict=True)]
    return Measured(reference=medians[0], ours=medians[1], note=note)


def cpu_rate(work: Callable[[], int]) -> Callable[[], float]:
    """Units per CPU-second of `work` (it returns how many it did), ended children included."""

    def measure() -> float:
        start = cpu_seconds()
        done = work()
        return done / (cpu_seconds() - start)

    return measure


def cpu_cost(work: Callable[[], float]) -> Callable[[], float]:
    """CPU-seconds per unit of `work` (it returns how many it did)."""
    return lambda: 1.0 / cpu_rate(work)()  # type: ignore[arg-type]


def wall_seconds(work: Callable[[], object]) -> Callable[[], float]:
    """Seconds that one `work` takes."""

    def measure() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return measure


def cpu_seconds() -> float:
    """CPU time of this process, its threads and its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def tree_of(commit: str, folder: Path) -> Path:
    """The trainer as it was at a commit, unpacked into a folder; the folder."""
    archive = subprocess.run(["git", "archive", commit, "trainer"], cwd=HERE, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@contextlib.contextmanager
def server_of(*command: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that measures once a line of input: imports are paid for once, and what it talks to uses another's CPU."""
    with subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.communicate()


def answer_of(process: "subprocess.Popen[str]", request: dict[str, Any]) -> float:
    """What such a process answers to one request."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f"{process.args} ended"
    return float(answer)


def machine() -> str:
    """The machine in words: processor, cores that may be used, accelerator."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    words = f"{names[0] if names else 'unknown processor'}, {len(os.sched_getaffinity(0))} cores"
    import torch

    return f"{words}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else words
