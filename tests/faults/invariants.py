"""What must hold after faults: each a function that names what is broken, and nothing if nothing is."""

import contextlib
import io
import re
import signal
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.operate.verify import verify
from tests.faults.experiment import NAME, Experiment, Objects
from tests.faults.places import Place
from tests.faults.trials import differences
from trainer.storage import join
from trainer.storage.states import kind_of

MAY_STAY = (
    "run's record", "record of a failed cell", "record of a step's start", "lane's sign of life", "job's log", "record of a failure",
    "file of a checkpoint", "checkpoint's seal", "record of a check", "stage's newest attempt", "file of a page",
)  # fmt: skip
"""Kinds of object of which a disturbed run may leave more than one that was left alone."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a command ended.

    Attributes:
        code: exit code, or minus the signal that killed it; None if it did not end.
        said: all that it printed.
        steps: what its steps and their jobs printed, for who looks for a cause.
        signals: that it got from a fault.
        faults: names of those that were injected while it ran.
    """

    code: int | None
    said: str
    steps: str = ""
    signals: frozenset[int] = frozenset()
    faults: frozenset[str] = frozenset()

    @property
    def line(self) -> str:
        """The last line."""
        return self.said.rstrip().rpartition("\n")[2]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What lies under the root, and what a run that was left alone leaves."""

    place: Place
    content: Objects
    result: Any
    whole: Objects
    whole_result: Any
    ends: list[End] = field(default_factory=list)


SHORT_OF_MEMORY = {"address space limited (RLIMIT_AS)"}
"""What nothing can be foreseen of: a thread that cannot be started, a library that has no room."""
INVARIANTS: dict[str, Callable[[Outcome], Iterator[str]]] = {}


def invariant(name: str) -> Callable[[Callable[[Outcome], Iterator[str]]], Callable[[Outcome], Iterator[str]]]:
    """Register a check by the name in the counts."""

    def register(check: Callable[[Outcome], Iterator[str]]) -> Callable[[Outcome], Iterator[str]]:
        INVARIANTS[name] = check
        return check

    return register


def broken(outcome: Outcome) -> list[str]:
    """All that does not hold."""
    return [f"{name}: {what}" for name, check in INVARIANTS.items() for what in check(outcome)]


@invariant("same weights and figures")
def same_result(found: Outcome) -> Iterator[str]:
    """SHA-256 of every final model and of per-item outcomes, figures, losses, and what the report says."""
    yield from differences(found.whole_result, found.result)


@invariant("each step once")
def steps_once(found: Outcome) -> Iterator[str]:
    """The log of a stage counts from 1 without a gap."""
    for name, data in found.content.items():
        if name.endswith("/progress.jsonl"):
            steps = [int(step) for step in re.findall(rb'"step": ?(\d+)', data)]
            if steps != list(range(1, len(steps) + 1)):
                yield f"{name}: {steps}"


@invariant("each row in one place")
def rows_once(found: Outcome) -> Iterator[str]:
    """No key is in two samples of a data set, and shards and indexes are those of a run that was left alone."""
    keys: Counter[tuple[str, str]] = Counter()
    for name, data in found.content.items():
        folder, _, file = name.rpartition("/")
        if re.fullmatch(r"datasets/[^/]+/[0-9a-f]+", folder) and file.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                keys.update((folder, key) for key in {member.partition(".")[0] for member in tar.getnames()})
    yield from (f"{folder}: sample {key} is there {count} times" for (folder, key), count in keys.items() if count > 1)
    for name, data in found.whole.items():
        if re.search(r"^datasets/.*\.(tar|index)$", name) and found.content.get(name) != data:
            yield f"{name}: {'other bytes' if name in found.content else 'missing'}"


@invariant("no wrong object readable")
def verified(found: Outcome) -> Iterator[str]:
    """`pipelines verify` finds nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        walk = verify(found.place.root, NAME)
    yield from (str(one) for one in walk.found)
    yield from (f"{uri}: unknown" for uri in walk.unknown)


@invariant("no state that a rerun does not leave")
def nothing_else(found: Outcome) -> Iterator[str]:
    """Objects are those of an undisturbed run, except records of what happened."""
    known = {_anonymous(name) for name in found.whole}
    for name in found.content:
        kind = kind_of(found.place.root, join(found.place.root, name))
        if kind is None:
            yield f"{name}: no kind of object"
        elif _anonymous(name) not in known and kind.name not in MAY_STAY:
            yield f"{name}: {kind.name}"
    wanted = {_anonymous(name) for name in found.whole if "/checkpoints/" not in name}  # a stage that was stopped saved others
    yield from (f"{name}: missing" for name in wanted - {_anonymous(name) for name in found.content})


def _anonymous(name: str) -> str:
    return re.sub(r"^runs/[^/]+?(?=/|\.json$)", "runs/*", re.sub(r"generation-\d+", "generation-*", name))


@invariant("no partial file, temporary folder or multipart upload")
def nothing_partial(found: Outcome) -> Iterator[str]:
    """Looked for on disk and server."""
    yield from found.place.leftovers()


@invariant("exit code and last line")
def right_ends(found: Outcome) -> Iterator[str]:
    """0, 1 with a line, 2 where another run holds the experiment or the disk is read-only, or what the signal says; no traceback."""
    for end in found.ends:
        if "Traceback" in end.said or ("Traceback" in end.steps and not end.faults & SHORT_OF_MEMORY):
            yield f"a traceback, exit {end.code}: {(end.said + end.steps).partition('Traceback')[2][:4000]}"
        elif end.code is None:
            yield f"did not end: {end.line}"
        elif end.code == 2 and not _may_refuse(end):
            yield f"exit 2: {end.line}"
        elif end.code in (-signal.SIGINT, -signal.SIGTERM, 130, 143) and not end.signals & {-end.code, end.code - 128}:
            yield f"exit {end.code} without such a signal: {end.line}"
        elif end.code < 0 and -end.code not in end.signals:
            yield f"killed by {-end.code}"
        elif end.code not in (0, 1, 2, 130, 143) and end.code > 0:
            yield f"exit {end.code}: {end.line}"
        elif end.code == 1 and not end.line:
            yield "exit 1 without a line"


def _may_refuse(end: End) -> bool:
    is_away = "the source away for a while" in end.faults and "source" in end.said
    return is_away or "is being run by" in end.line or ("the root's disk read-only" in end.faults and "read-only" in end.line)


def experiment_of(place: Place) -> Experiment:
    """To read what lies there."""
    return Experiment(root=place.root, source=place.folder / "source")
