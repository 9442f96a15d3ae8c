"""Runs that take, hold, leave and lose the lock of one experiment at random, killed at any moment: never two at once.

Who holds the lock shows itself by a flock on a file of the test's own, which the kernel releases when it is killed.
"""

import itertools
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = """
import fcntl, random, sys, time
from pipelines.jobs import lease, lock
from trainer.errors import InputError
root, witness, seed, own_folder = sys.argv[1:]
lease.HEARTBEAT_SECONDS, lease.STALE_SECONDS, lease.WATCH_SECONDS = 0.5, 12.0, 2.0
draw = random.Random(int(seed))
if own_folder:  # as in a container of its own: nobody else can know at once that it was killed
    lock.boot_id = lambda: ""
while True:
    try:
        with lock.exclusive(root) as held, open(witness, "a") as alone:
            try:
                fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("two at once", flush=True)
                raise SystemExit(3)
            print("held", flush=True)
            time.sleep(draw.uniform(0, 1.0))
            if held.lost():
                print(held.lost(), flush=True)
                raise SystemExit(4)
    except InputError:
        time.sleep(draw.uniform(0, 0.2))
"""
RUNS, KILLS = 4, 12


@pytest.mark.parametrize(
    ("seed", "elsewhere"),
    [pytest.param(*case, marks=pytest.mark.slow if case == (1, 1) else pytest.mark.campaign) for case in itertools.product((1, 2), (0, 1))],
)
def test_there_are_never_two_holders(root: str, tmp_path: Path, seed: int, elsewhere: int):
    """`elsewhere` of them are on machines of their own; on files the flock tells of those too."""
    draw, witness = random.Random(seed), tmp_path / "witness"
    runs: list[subprocess.Popen[str]] = []
    outputs = [tmp_path / f"{number}.txt" for number in range(RUNS)]

    def start(number: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", RUN, root, str(witness), str(draw.randrange(1 << 30)), "yes" if number < elsewhere else ""]
        with outputs[number].open("a") as stream:
            return subprocess.Popen(command, stdout=stream, text=True)

    try:
        runs = [start(number) for number in range(RUNS)]
        for _ in range(KILLS):
            before = _held(outputs)
            while _held(outputs) < before + draw.randrange(1, 6):
                assert [run.poll() for run in runs] == [None] * RUNS, [path.read_text()[-300:] for path in outputs]
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.5))
            number = draw.randrange(RUNS)
            runs[number].send_signal(signal.SIGKILL)
            runs[number].wait()
            runs[number] = start(number)
    finally:
        for run in runs:
            run.kill()
            run.wait()
    assert not any("two at once" in path.read_text() for path in outputs)


def _held(outputs: list[Path]) -> int:
    return sum(path.read_text().count("held\n") for path in outputs)
