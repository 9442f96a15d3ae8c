"""Row X: CPU time of a rank before its first batch."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.harness import HERE, Measured, cpu_seconds, interleaved, row, tree_of

BEFORE = "ad127be"
PROGRAM = """
import torch
from trainer.config import OptimizerConfig
from {loop} import loop
from {optimizer} import optimizer
from trainer.stages import contrastive
module = torch.nn.Linear(2, 2)
built = optimizer.build(module, OptimizerConfig())
module(torch.ones(1, 2)).sum().backward()
built.step()
"""
"""A rank without data: all its imports, and an optimiser step, which used to import torch._dynamo."""


@row("X", what=f"start of a rank: imports and a first optimiser step, against commit {BEFORE}", unit="CPU-s", target=0.5, at_least=False)
def start_up(folder: Path) -> Measured:
    """Most of the remaining time is torch itself. Importing the old commit's configuration parser is not counted."""
    tree_of(BEFORE, folder)
    (folder / "jsonargparse.py").write_text("ArgumentError = ArgumentParser = Namespace = object\n")

    def side(tree: Path, **rooms: str) -> Callable[[], float]:
        def measure() -> float:
            began = cpu_seconds()
            subprocess.run(
                [sys.executable, "-c", PROGRAM.format(**rooms)], cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True
            )
            return cpu_seconds() - began

        return measure

    alone = cpu_seconds()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    alone = cpu_seconds() - alone
    measured = interleaved(
        side(folder, loop="trainer", optimizer="trainer"), side(HERE, loop="trainer.run", optimizer="trainer.model"), rounds=3
    )
    return Measured(reference=measured.reference, ours=measured.ours, note=f"`import torch` alone: {alone:.1f} CPU-s")
