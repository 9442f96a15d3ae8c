"""Runs whole experiments under several faults at once, drawn from a seed, and checks invariants: `python -m tests.faults --help`.

`make faults SEED=1 MINUTES=10`, `make faults-soak HOURS=8`. With `--record` a campaign that was stopped resumes where it stopped;
`--trial` repeats one trial; `--table` prints the counts of records, for docs/RELIABILITY.md.
"""

import argparse
import dataclasses
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from tests.faults.counts import PAGE, page, table
from tests.faults.disturbed import Laboratory, Result, draw_trial
from tests.faults.forked import Zygote
from tests.faults.making import write_sources
from tests.faults.places import STORES, place


def main() -> int:
    """Run the campaign; return 1 if an invariant was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="determines all trials; without root they differ, as disks cannot be made")
    parser.add_argument("--store", choices=STORES, default="file")
    parser.add_argument("--minutes", type=float, default=0.0, help="start no new trial after this many minutes")
    parser.add_argument("--trials", type=int, default=0, help="total number of trials, including those in the record")
    parser.add_argument("--trial", type=int, default=-1, help="run only this trial, and show its output")
    parser.add_argument("--record", type=Path, help="file with a line for each finished trial; trials in it are not repeated")
    parser.add_argument("--table", type=Path, nargs="+", metavar="RECORD", help="print the counts of these records")
    parser.add_argument("--write", action="store_true", help="with --table: write them into docs/RELIABILITY.md instead")
    options = parser.parse_args()
    if options.table:
        if options.write:
            PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), options.table), encoding="utf-8")
        else:
            print(table(options.table), end="")
        return 0
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory(prefix="firstsight-faults-") as folder:
        return run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> int:
    """Carry out trials until time or number is reached; say each that breaks something."""
    end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    with place(options.store, folder, lambda where: write_sources(where, seed=0)) as here, Zygote() as zygote:
        record = Record(options.record, {"seed": options.seed, "store": options.store, "abilities": sorted(here.abilities)})
        laboratory, broken = Laboratory(here, zygote), 0
        numbers = range(record.done, options.trials or sys.maxsize) if options.trial < 0 else range(options.trial, options.trial + 1)
        for number in numbers:
            if time.monotonic() > end:
                break
            trial, began = draw_trial(options.seed, number, here.abilities), time.monotonic()
            if options.trial >= 0:
                print(trial, flush=True)
            try:
                result = laboratory.carry_out(trial)
            except (OSError, RuntimeError, ValueError, AssertionError) as error:
                result = Result(problems=[f"{type(error).__name__}: {error}"])
            if options.trial < 0:
                record.add(number, result, time.monotonic() - began)
            broken += bool(result.problems)
            shown = "".join(f"\n    {problem}" for problem in result.problems)
            print(
                f"{options.store} seed {options.seed} trial {number}: {len(result.faults)} faults in {result.runs} runs{shown}", flush=True
            )
        if options.trial >= 0:
            for path in sorted(laboratory.outputs.iterdir(), key=lambda one: int(one.name.partition(".")[0])):
                print(f"--- {path.name}\n{path.read_text(errors='replace')}")
            print(result.faults)
    return 1 if broken else 0


class Record:
    """Which trials were carried out; in the file of `--record`, so that another process goes on."""

    def __init__(self, path: Path | None, asked: dict[str, Any]) -> None:
        self._path, self.done = path, 0
        if path is not None and path.exists():
            first, *lines = map(json.loads, path.read_text().splitlines())
            if first != asked:
                sys.exit(f"{path} is of another campaign: {first}")
            self.done = 1 + max((line["trial"] for line in lines), default=-1)
        elif path is not None:
            path.write_text(f"{json.dumps(asked)}\n")

    def add(self, number: int, result: Result, seconds: float) -> None:
        """Note one more trial."""
        if self._path is not None:
            with open(self._path, "a") as file:
                file.write(f"{json.dumps({'trial': number, 'seconds': round(seconds, 1), **dataclasses.asdict(result)})}\n")


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # in order: servers end, disks go; the trial under way counts for nothing


if __name__ == "__main__":
    sys.exit(main())
