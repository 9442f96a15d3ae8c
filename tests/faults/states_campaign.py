"""Damages every object of a real experiment in every state, alone and in random pairs: `python -m tests.faults.states_campaign --help`.

To repeat a failed trial, pass what it prints to `--only`. With `--record` a campaign that was stopped resumes where it stopped.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.faults.experiment import STATES, Experiment
from tests.faults.making import in_this_process, make
from tests.faults.trials import ROTTEN, Trial, attempt, attempt_rotten, kind, trials_of
from tests.servers import minio, seaweedfs
from trainer.config import canonical_hash

STOPS = {signal.SIGTERM, signal.SIGINT}


def main() -> int:
    """Run the campaign; 1 if a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed for the places of damage and for the pairs")
    parser.add_argument(
        "--trials", type=int, default=0, help="number of trials, drawn from all; 0: every damage to every object, and --pairs"
    )
    parser.add_argument("--pairs", type=int, default=200, help="number of additional random pairs of damage")
    parser.add_argument("--store", choices=["file", "seaweedfs", "minio"], default="file")
    parser.add_argument("--states", default=",".join(STATES), help=f"some of {', '.join(STATES)}")
    parser.add_argument("--only", default="", help="part of the names of the objects to damage")
    parser.add_argument("--record", type=Path, help="file with a line for each finished trial; trials in it are not repeated")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    # A stop waits for the end of the trial: in the middle a step would take it for its own, and the trial count as failed.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    with tempfile.TemporaryDirectory(prefix="firstsight-states-") as folder, store(options.store, Path(folder)) as root, in_this_process():
        began = time.monotonic()
        made = make(root, Path(folder) / "source")
        print(
            f"made in {time.monotonic() - began:.0f} s: {', '.join(f'{name} {len(made.states[name])}' for name in STATES)} objects",
            flush=True,
        )
        return run(made, chosen(made, options), began, Record(options))


def chosen(made: Experiment, options: argparse.Namespace) -> list[Trial]:
    """The trials that the options ask for."""
    draw = random.Random(options.seed)
    states = options.states.split(",")
    singles = [
        trial
        for state, checked in itertools.product(states, (True, False))
        for name in made.states[state]
        if options.only in name
        for trial in trials_of(made, state, name, seed=int(canonical_hash([options.seed, name])[:8], 16), checked=checked)
        if checked or set(trial.damages.values()) == {"flipped"}
    ]
    singles += [
        dataclasses.replace(trial, damages=dict.fromkeys(trial.damages, ROTTEN))
        for trial in singles
        if not trial.checked and not any(name.endswith("CHECKED.json") for name in trial.damages)
    ]
    pairs = []
    for number in range(options.pairs):
        one, other = draw.sample([trial for trial in singles if ROTTEN not in trial.damages.values()], 2)
        if one.state == other.state:
            pairs.append(Trial(state=one.state, damages={**one.damages, **other.damages}, seed=number, checked=one.checked))
    every = [*singles, *pairs]
    return draw.sample(every, min(options.trials, len(every))) if options.trials else every


class Record:
    """Which trials were carried out, and how they ended; in the file of `--record`, so that another process goes on.

    Attributes:
        done: (kind of object, what went wrong) of each trial, in their order.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._path: Path | None = options.record
        asked = {name: value for name, value in vars(options).items() if name != "record"}
        self.done: list[tuple[str, list[str]]] = []
        if self._path is not None and self._path.exists():
            first, *lines = map(json.loads, self._path.read_text().splitlines())
            if first != asked:
                sys.exit(f"{self._path} is of another campaign: {first}")
            self.done = [(name, problems) for name, problems in lines]
        elif self._path is not None:
            self._path.write_text(f"{json.dumps(asked)}\n")

    @property
    def is_kept(self) -> bool:
        """Whether there is a file."""
        return self._path is not None

    def add(self, kind_name: str, problems: list[str]) -> None:
        """Note one more trial."""
        self.done.append((kind_name, problems))
        if self._path is not None:
            with open(self._path, "a") as file:
                file.write(f"{json.dumps([kind_name, problems])}\n")


def run(made: Experiment, trials: list[Trial], began: float, record: Record) -> int:
    """Carry them out; say each that fails, and at the end how many there were of each kind."""
    for trial in trials[len(record.done) :]:
        row = kind(made, next(iter(trial.damages)))
        name = (row.name if row else "no row") if len(trial.damages) == 1 else "pairs"
        try:
            problems = (attempt_rotten if ROTTEN in trial.damages.values() else attempt)(made, trial)
        except Exception as error:
            problems = [f"{type(error).__name__}: {error}"]
        record.add(name, problems)
        if problems:
            print(f"FAILED {trial}: {'; '.join(problems)}", flush=True)
        if signal.sigpending() & STOPS:
            print("stopped; the same command resumes from its record" if record.is_kept else "stopped", flush=True)
            return 143
        if len(record.done) % 100 == 0:
            print(f"{len(record.done)} of {len(trials)} trials, {sum(bool(bad) for _, bad in record.done)} failed", flush=True)
    counts, failed = Counter(name for name, _ in record.done), Counter(name for name, bad in record.done if bad)
    for name, count in counts.items():
        print(f"{name}: {count - failed[name]} of {count} as their rows say")
    print(
        f"{len(trials)} trials in {time.monotonic() - began:.0f} s, {time.process_time():.0f} s of CPU: {failed.total()} failed", flush=True
    )
    return 1 if failed else 0


@contextlib.contextmanager
def store(name: str, folder: Path) -> Iterator[str]:
    """The URI of a fresh root, its server running where it needs one."""
    if name == "file":
        yield str(folder / "root")
        return
    (folder / name).mkdir()
    with (seaweedfs if name == "seaweedfs" else minio)(folder / name) as server:
        os.environ.update(server.environment)
        yield f"{server.make_bucket()}/root"


if __name__ == "__main__":
    sys.exit(main())
