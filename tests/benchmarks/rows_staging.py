"""Row T-folder: what it costs to stage people's own pictures from a folder."""

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
"""


@row(
    "T-folder",
    what=f"staging a folder of captioned photos, against commit {BEFORE}, before twins and layouts",
    unit="images / CPU-s",
    target=0.95,
)
def staging_a_folder(folder: Path) -> Measured:
    """Whole processes, imports included: what a person waits for. Both read, hash, check and write the same pictures."""
    source = folder / "photos"
    source.mkdir()
    for number, photo in enumerate(photos(PHOTOS)):
        (source / f"{number:05d}.jpg").write_bytes(photo)
        (source / f"{number:05d}.txt").write_text(CAPTION.format(number))
    tries = iter(range(1000))
    program = folder / "program.py"
    program.write_text(PROGRAM)

    def side(tree: Path) -> Callable[[], float]:
        def measure() -> float:
            began, root = cpu_seconds(), folder / f"root-{next(tries)}"
            command = [sys.executable, str(program), str(root), str(source)]
            subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True, stdout=subprocess.DEVNULL)
            return PHOTOS / (cpu_seconds() - began)

        return measure

    return interleaved(side(tree_of(BEFORE, folder / "before")), side(HERE), rounds=3)
