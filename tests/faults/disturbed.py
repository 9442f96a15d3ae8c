"""One trial: a whole experiment run under faults that a seed decides, then without; and what of it is not as it must be."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults.experiment import NAME, PLACEMENT, RECIPE, Objects
from tests.faults.forked import STALE_SECONDS, WATCH_SECONDS, Command, Zygote, descendants, role
from tests.faults.injecting import FAULTS, Scene
from tests.faults.invariants import End, Outcome, broken, experiment_of
from tests.faults.places import Place

ATTEMPT_SECONDS = 900.0
"""After which a command that has not ended counts as hung."""
ORPHAN_SECONDS = 240.0
"""How long jobs may live on after their command: a trainer saves first, which takes its time on a busy machine."""
PATIENCE = {"FIRSTSIGHT_S3_RETRY_SECONDS": "8", "FIRSTSIGHT_S3_TIMEOUT_SECONDS": "2"}
Planned = tuple[str, float, int]
"""Name of a fault, its moment as a share of the objects that are still to be written, and the seed of what it does."""
PART_BYTES = 5 << 20
"""The least that S3 takes for a part."""
AT_ONCE = "several runs at once"
OTHER_HOST = "another host, its clock set wrong"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at the experiment, disturbed.

    Attributes:
        faults: by their moments; those that its end leaves over go to the next attempt.
        runs: commands that start at the same time.
        host: that they run on; empty: this machine.
        skew: seconds that its clock is ahead.
    """

    faults: tuple[Planned, ...]
    runs: int = 1
    host: str = ""
    skew: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An experiment and its attempts; without faults at the end.

    Attributes:
        ranks: processes that train.
        large: weights that go to a store in several parts.
        executed: the real programs in place of forks.
    """

    attempts: tuple[Attempt, ...]
    ranks: int = 1
    large: bool = False
    executed: bool = False

    @property
    def recipe(self) -> dict[str, Any]:
        """Of its experiment."""
        return {**RECIPE, "model": {**RECIPE["model"], "text_width": 32}} if self.large else RECIPE  # type: ignore[dict-item]


@dataclass(kw_only=True)
class Result:
    """How a trial went.

    Attributes:
        faults: names of those that were injected, with what they hit.
        runs: commands that were started.
        problems: one line each.
    """

    faults: list[tuple[str, str]] = field(default_factory=list)
    runs: int = 0
    problems: list[str] = field(default_factory=list)


def draw_trial(seed: int, number: int, abilities: set[str]) -> Trial:
    """The trial of this number, the same for the same seed and the same abilities of the place."""
    draw = random.Random(f"{seed} {number}")
    kind = draw.random()
    executed = kind > 0.985
    names = [name for name, one in FAULTS.items() if one.needs in abilities]
    attempts = []
    for place in range(draw.choice((1, 2, 2, 3, 4))):
        count = draw.choice((2, 3, 4, 6, 8))
        faults = tuple(sorted(((draw.choice(names), draw.random(), draw.randrange(1 << 30)) for _ in range(count)), key=lambda one: one[1]))
        host = f"host-{place}" if draw.random() < 0.15 and not executed else ""  # real programs wait longer for a lost host
        runs = draw.choice((1, 1, 1, 1, 1, 1, 2, 3))
        attempts.append(Attempt(faults=faults, runs=runs, host=host, skew=draw.choice((-180.0, 180.0, 7200.0)) if host else 0.0))
    large = "store" in abilities and 0.1 < kind < 0.25
    return Trial(attempts=tuple(attempts), ranks=2 if kind < 0.03 else 1, large=large, executed=executed)


class Laboratory:
    """A place, a zygote, and what runs that were left alone leave there."""

    def __init__(self, place: Place, zygote: Zygote) -> None:
        self.place, self.zygote = place, zygote
        self.outputs = place.folder / "outputs"
        self.outputs.mkdir()
        self._count = 0
        self._whole: dict[tuple[int, bool], tuple[Objects, Any]] = {}

    def whole(self, trial: Trial) -> tuple[Objects, Any]:
        """Objects and outcome of a run of this trial's experiment that was left alone."""
        key = trial.ranks, trial.large
        if key not in self._whole:
            for _ in range(3):  # a machine that is busy enough loses a lock without a fault
                self.place.clear()
                (end,) = self._attempt(Trial(attempts=(), ranks=trial.ranks, large=trial.large), Attempt(faults=()), Result())
                if end.code == 0:
                    break
            else:
                sys.exit(f"a run that is left alone ends with {end.code}: {end.said}")  # counts for no trial
            with self._store():
                made = experiment_of(self.place)
                self._whole[key] = made.content(), made.outcome()
        return self._whole[key]

    def carry_out(self, trial: Trial) -> Result:
        """Disturb, then run once more without faults, and judge."""
        whole, whole_result = self.whole(trial)
        self.place.clear()
        result, ends = Result(), []
        left: list[Planned] = []  # of an attempt that a fault ended, for the next one
        for attempt in trial.attempts:
            left = sorted([*left, *attempt.faults], key=lambda one: one[1])
            ends += self._attempt(trial, attempt, result, left)
            if attempt.host:  # it is lost, and nobody here knows that the lock's holder has ended
                shutil.rmtree(self.place.tmp / attempt.host, ignore_errors=True)
                time.sleep(STALE_SECONDS + WATCH_SECONDS if self.place.server else 0)
            if result.problems or any(end.code == 0 for end in ends):
                break
        if not result.problems:
            ends += self._attempt(trial, Attempt(faults=()), result)
            if ends[-1].code != 0:
                result.problems.append(f"still exit {ends[-1].code} without faults: {ends[-1].said[-1500:]}")
        with self._store():
            made = experiment_of(self.place)
            found = made.content()
            result.problems += broken(
                Outcome(place=self.place, content=found, result=made.outcome(), whole=whole, whole_result=whole_result, ends=ends)
            )
            if not result.problems:
                (again,) = self._attempt(trial, Attempt(faults=()), result)
                changed = sorted(name for name, data in made.content().items() if found.get(name) != data)
                if again.code or changed:
                    result.problems.append(f"a run that finds all done: exit {again.code}, writes {', '.join(changed)}")
        return result

    def _attempt(self, trial: Trial, attempt: Attempt, result: Result, waiting: list[Planned] | None = None) -> list[End]:
        """Start the attempt's commands, inject what waits when its moment comes, and see them end; patient where nothing waits."""
        patient, waiting = waiting is None, [] if waiting is None else waiting
        scene = Scene(place=self.place, zygote=self.zygote.pid, draw=random.Random(0))
        names: set[str] = set()
        if not patient:
            result.faults += [(OTHER_HOST, f"{attempt.skew:.0f} s")] if attempt.host else []
            result.faults += [(AT_ONCE, str(attempt.runs))] if attempt.runs > 1 else []
        commands = [self._command(trial, attempt, patient) for _ in range(attempt.runs)]
        before = self.place.written()
        expected = max(1, len(self.whole(trial)[0]) - before) if not patient else 1
        pids: list[int] = []
        deadline = time.monotonic() + ATTEMPT_SECONDS
        try:
            early = [one for one in waiting if one[1] < 0.05 and FAULTS[one[0]].needs]  # not of processes, of which there are none
            self._inject(scene, early, 1.0, names, result)
            waiting[:] = [one for one in waiting if one[1] >= 0.05 or not FAULTS[one[0]].needs]
            pids = [self.zygote.start(command) for command in commands]
            result.runs += len(pids)
            while any([self.zygote.code(pid) is None for pid in pids]) and time.monotonic() < deadline:
                self._inject(scene, waiting, (self.place.written() - before) / expected, names, result)
                scene.end_faults(all_of_them=False)
                time.sleep(0.05)
        finally:
            scene.end_faults(all_of_them=True)
            if self.place.proxy:
                self.place.proxy.faults.clear()
        ends = [self._end(pid, command, scene, names) for pid, command in zip(pids, commands, strict=True)]
        self._no_orphans(result)
        return ends

    def _inject(self, scene: Scene, waiting: list[Planned], share: float, names: set[str], result: Result) -> None:
        while waiting and waiting[0][1] <= share:
            name, moment, seed = waiting.pop(0)
            scene.draw = random.Random(seed)
            hit = FAULTS[name].do(scene)
            if hit:
                names.add(name)
                result.faults.append((name, hit))
            elif moment < 0.9:  # there was nothing to strike: once more a little later
                waiting.append((name, max(moment, share) + 0.05, seed))
                waiting.sort(key=lambda one: one[1])

    def _end(self, pid: int, command: Command, scene: Scene, names: set[str]) -> End:
        said, steps = (
            path.read_text(errors="replace") if path.exists() else "" for path in (Path(command.output), Path(f"{command.output}.steps"))
        )
        return End(code=self.zygote.code(pid), said=said, steps=steps, signals=frozenset(scene.hits.get(pid, ())), faults=frozenset(names))

    def _no_orphans(self, result: Result) -> None:
        deadline = time.monotonic() + ORPHAN_SECONDS
        while left := descendants(self.zygote.pid):
            if time.monotonic() > deadline:
                result.problems.append(f"no orphan process: {', '.join(map(role, left))}")
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                return
            self.zygote.code(0)
            time.sleep(0.05)

    def _command(self, trial: Trial, attempt: Attempt, patient: bool) -> Command:
        self._count += 1
        request, output = (self.place.folder / name for name in ("request.yaml", f"outputs/{self._count}.txt"))
        asked = {
            "recipe": trial.recipe, "root": self.place.root, "experiment": NAME, "arms": ["perceptual"], "max_reject_fraction": 0.1,
            "placement": {**PLACEMENT, "processes_per_node": trial.ranks},
            "pairs": f"{self.place.sources}/pairs", "triplets": f"{self.place.sources}/triplets",
        }  # fmt: skip
        request.write_text(json.dumps(asked))
        tmp = self.place.tmp / attempt.host
        tmp.mkdir(exist_ok=True)
        environment = {**self.place.environment, "TMPDIR": str(tmp), **({} if patient else PATIENCE)}
        return Command(
            request=str(request), output=str(output), environment=environment, skew=attempt.skew, host=attempt.host,
            part_bytes=PART_BYTES if trial.large else 0, executed=trial.executed,
        )  # fmt: skip

    @contextmanager
    def _store(self) -> Iterator[None]:
        """This process finds the store."""
        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in self.place.environment.items():
                patch.setenv(name, value)
            yield
