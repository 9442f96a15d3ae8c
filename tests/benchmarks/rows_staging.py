"""Rows T-folder and T-memory: time and memory for staging a user's own pictures from a folder."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.harness import HERE, Measured, cpu_seconds, interleaved, row, tree_of
from tests.benchmarks.photos import CAPTION, photos

BEFORE, PHOTOS = "ff8ea55", 1500
PROGRAM = """
import sys
from trainer.configs import load_recipe
from trainer.staging.stage import stage_pairs
if __name__ == "__main__":
    stage_pairs(root=sys.argv[1], source=sys.argv[2], recipe=load_recipe("smoke"), max_reject_fraction=0.0)
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@row(
    "T-folder",
    what=f"staging a folder of captioned photos, against commit {BEFORE}, which had no twins and layouts",
    unit="images / CPU-s",
    target=0.95,
)
def staging_a_folder(folder: Path) -> Measured:
    """Whole processes including imports, since a user waits for all of it. Both read, hash, check and write the same pictures."""
    stage = stager(folder)

    def side(tree: Path) -> Callable[[], float]:
        def measure() -> float:
            began = cpu_seconds()
            stage(tree)
            return PHOTOS / (cpu_seconds() - began)

        return measure

    return interleaved(side(tree_of(BEFORE, folder / "before")), side(HERE), rounds=3)


@row("T-memory", what=f"peak memory of the same, against commit {BEFORE}", unit="MB", target=1.05, at_least=False)
def memory_of_staging(folder: Path) -> Measured:
    """Of the whole process, imports included."""
    stage, before = stager(folder), tree_of(BEFORE, folder / "before")
    return interleaved(lambda: stage(before), lambda: stage(HERE), rounds=3)


def stager(folder: Path) -> Callable[[Path], float]:
    """Stage photos with the trainer of a source tree, in a separate process and root; return its peak memory in MB."""
    source, program, tries = folder / "photos", folder / "program.py", iter(range(1000))
    source.mkdir()
    for number, photo in enumerate(photos(PHOTOS)):
        (source / f"{number:05d}.jpg").write_bytes(photo)
        (source / f"{number:05d}.txt").write_text(CAPTION.format(number))
    program.write_text(PROGRAM)

    def stage(tree: Path) -> float:
        command = [sys.executable, str(program), str(folder / f"root-{next(tries)}"), str(source)]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return int(done.stdout.split()[-1]) / 1000

    return stage
