"""`python -m tests.benchmarks.shuffle` measures the canonical order at 15 M samples and writes docs/SHUFFLE.md.

No data is read: an order needs nothing but the shards' sizes.
"""

import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.harness import machine
from tests.peak import peak_bytes
from trainer.data.order import CanonicalOrder

SHARDS, SHARD_SAMPLES, LAST = 14_700, 1024, 500
BATCH, RUNS, BLOCK = 4096, 32, 4
SAMPLE_BYTES = 60_000  # 57 KB of picture, caption and tar headers
MIN_RANGE = 1 << 20
PAGE = Path(__file__).parents[2] / "docs" / "SHUFFLE.md"


def sizes() -> NDArray[np.int64]:
    """Samples of each shard of a data set of 15 M."""
    result = np.full(SHARDS, SHARD_SAMPLES)
    result[-1] = LAST
    return result


def order(runs: int = RUNS, block_shards: int = BLOCK) -> CanonicalOrder:
    """The paper's order, or one with other runs or block."""
    return CanonicalOrder(sizes(), seed=0, global_batch_size=BATCH, runs=runs, block_shards=block_shards)


def fetched(world_size: int, ranks_per_node: int) -> float:
    """Bytes fetched in an epoch over the bytes of its samples; the ranks of a node share what they fetch."""
    made = order()
    total = 0
    for node in range(world_size // ranks_per_node):
        ranks = range(node * ranks_per_node, (node + 1) * ranks_per_node)
        reads = {(read.run, read.shard): read.stop_row - read.first_row for rank in ranks for read in made.reads(0, rank, world_size)}
        total += sum(max(rows * SAMPLE_BYTES, MIN_RANGE) for rows in reads.values())
    return total / (made.steps_per_epoch * BATCH * SAMPLE_BYTES)


def cost() -> None:
    """Print seconds an epoch and peak MB of rank 5 of 64, over 32 epochs (in a process of its own)."""
    made = order()
    before = peak_bytes()
    start = time.process_time()
    for epoch in range(32):
        made.reads(epoch, 5, 64)
        for b in range(made.steps_per_epoch):
            made.part(epoch, b, 5, 64)
    seconds = (time.process_time() - start) / 32
    print(seconds, (peak_bytes() - before) / 2**20)


def quality(made: CanonicalOrder) -> tuple[float, float, float]:
    """How far batches are from draws of a full permutation, over two epochs.

    Returns:
        Distinct shards in a batch; pairs of one shard in a batch, and pairs that meet in both epochs, each as a
        multiple of what a full permutation gives.
    """
    offsets = np.concatenate([[0], np.cumsum(sizes())])
    total, steps, per_run = int(offsets[-1]), made.steps_per_epoch, BATCH // made.runs
    met = np.full((2, total), -1, np.int32)  # the batch of each sample in each epoch
    counts = np.zeros(0, np.int64)  # samples of each shard in each batch of the first epoch
    for epoch in range(2):
        shard_in_batch = []
        for run in range(made.runs):  # all batches at once: what `batch` would give one by one
            state = made._epoch(epoch)
            shuffled = state.run(run)
            samples = state.locate(shuffled.astype(np.int64) + run * len(shuffled))
            batches = np.arange(len(shuffled)) // per_run
            met[epoch, offsets[samples[:, 0]] + samples[:, 1]] = batches
            shard_in_batch.append(batches * SHARDS + samples[:, 0])
        if epoch == 0:
            counts = np.unique(np.concatenate(shard_in_batch), return_counts=True)[1]
    shards, same = len(counts) / steps, float((counts * (counts - 1) // 2).sum()) / steps
    pairs = BATCH * (BATCH - 1) / 2
    both = met[:, (met >= 0).all(axis=0)].astype(np.int64)
    cells = np.bincount(both[0] * steps + both[1], minlength=steps**2)
    again = float((cells * (cells - 1) // 2).sum())
    by_chance = both.shape[1] ** 2 / 2 / steps**2
    return shards, same / (pairs * (SHARD_SAMPLES - 1) / total), again / by_chance


def main() -> None:
    """Measure and write the page."""
    seconds, megabytes = subprocess.run(
        [sys.executable, "-c", "from tests.benchmarks.shuffle import cost; cost()"], capture_output=True, text=True, check=True
    ).stdout.split()
    made = order()
    lines = [
        "# The canonical order at 15 M samples",
        "",
        "Written by `python -m tests.benchmarks.shuffle`, never by hand, from a simulation that needs only the sizes of shards:",
        f"{SHARDS:,} shards of {SHARD_SAMPLES:,} samples and batches of {BATCH:,}. As in the recipe `paper`, a batch is drawn from",
        f"C = {RUNS} runs of samples, and each run is shuffled in blocks of K = {BLOCK} shards (docs/ARCHITECTURE.md).",
        f"Measured on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {machine()}.",
        "",
        "## Cost",
        "",
        f"Computing the order of every batch takes one rank of 64 {float(seconds):.2f} CPU-seconds per epoch (mean of 32) and at most",
        f"{float(megabytes):.0f} MB (the limits are 1 s and 100 MB). Worker processes do not compute it. {made.dropped:,} samples",
        "are left over in each epoch, different ones each time.",
        "",
        "## Bytes fetched in an epoch, as a multiple of the bytes of its samples",
        "",
        "| ranks | nodes | multiple |",
        "|---:|---:|---:|",
    ]
    for world_size, ranks_per_node in ((1, 1), (2, 1), (8, 1), (8, 8), (64, 8), (64, 1)):
        lines.append(f"| {world_size} | {world_size // ranks_per_node} | {fetched(world_size, ranks_per_node):.3f} |")
    lines += [
        "",
        f"A run is read once if the number of nodes divides C = {RUNS}. With more nodes than runs, several nodes read the same",
        "run: 64 nodes with one rank each fetch every run twice. `order_runs: 64` fixes that, but is a different recipe.",
        "",
        "## How good the shuffle is",
        "",
        "Rows are permuted once, when staging is planned, so a shard is a random sample of the data and no batch is biased.",
        "Shuffling in blocks has a price: samples of one shard meet more often than by chance, in a batch and again in the next epoch.",
        "",
        "| order | shards in a batch | pairs of one shard in a batch | pairs that meet in two consecutive epochs |",
        "|---|---:|---:|---:|",
    ]
    for name, runs, block in (
        ("full permutation (C = 1, K = 0)", 1, 0), ("C = 32, K = 1", 32, 1), ("**C = 32, K = 4**", 32, 4), ("C = 32, K = 16", 32, 16),
        ("C = 1, K = 128: one shuffle buffer of as many shards", 1, 128),
    ):  # fmt: skip
        shards, same, again = quality(order(runs, block))
        lines.append(f"| {name} | {shards:.0f} | {same:.1f}x | {again:.2f}x |")
    lines += ["", "Multiples are relative to the expected value for a full permutation."]
    PAGE.write_text("\n".join(lines) + "\n")
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
