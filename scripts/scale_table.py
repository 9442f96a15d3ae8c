"""Write the table of ranks in docs/PERFORMANCE_NOTES.md: `python scripts/scale_table.py`.

What 8, 64 and 256 GPUs ask of their nodes and of a store, computed from the plan's own estimate (pipelines/planning/cost.py). Between
two markers stands what this script writes. A test compares the two.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.planning.checks import stage_of
from pipelines.planning.cost import Estimate, Machines, Samples, estimate, number
from scripts.marked import rewrite
from trainer.config import loader_workers_for
from trainer.configs import load_recipe
from trainer.configs.sizes import checkpoint_bytes, sizes

PAGE = Path(__file__).parents[1] / "docs" / "PERFORMANCE_NOTES.md"
BEGIN, END = "<!-- written by scripts/scale_table.py -->\n", "<!-- end of what is written -->\n"
YFCC15M = Samples(count=14_829_396, said="YFCC15M")
PAIR_BYTES, CONNECTION_BYTES = {"originals": 57e3, "short256": 25e3}, 90e6
"""Bytes of a pair, and of a connection in a second."""
CORES, WORKER_BYTES, RANK_BYTES, BATCHES = 8, 0.3e9, 5e9, 5
"""Cores a GPU; memory of a loader process and of a rank beside a GPU; decoded batches at a time ("The size of a pod")."""
LEAST_CONNECTIONS, MOST_CONNECTIONS, OTHER_DESCRIPTORS = 4, 16, 40


def table() -> str:
    """A column a number of GPUs, the paper's second stage on each."""
    found = {gpus: of_gpus(gpus) for gpus in (8, 64, 256)}
    names = {f"one cell on {gpus}": run for gpus, run in found.items()}
    sizes_of, ranks_of = PAIR_BYTES.values(), lambda run: run.machines.ranks
    rows = [
        ("pairs per GPU and step", lambda run: f"{share(run):,}"),
        ("milliseconds per step", lambda run: number(share(run) / run.rate.rate * 1e3)),
        ("pairs/s in total", lambda run: f"{rate(run):,.0f}"),
        ("hours per cell; GPU-hours", lambda run: f"{number(run.hours)}; {number(run.gpu_hours)}"),
        ("hours for eight cells, one after another", lambda run: number(8 * run.hours)),
        ("hours for eight cells, each on 8 GPUs", lambda run: number(math.ceil(64 / run.machines.ranks) * found[8].hours)),
        ("GB/s from the store: originals; short256", lambda run: "; ".join(number(rate(run) * size / 1e9) for size in sizes_of)),
        ("connections per rank that these rates need", lambda run: "; ".join(f"{connections(run, size)}" for size in sizes_of)),
        ("connections to the store", lambda run: f"{LEAST_CONNECTIONS * ranks_of(run):,} to {MOST_CONNECTIONS * ranks_of(run):,}"),
        ("file descriptors per rank, at most", lambda run: f"{MOST_CONNECTIONS + OTHER_DESCRIPTORS + ranks_of(run)}"),
        ("host memory per node of eight GPUs", lambda run: f"{host_bytes(run) / 1e9:,.0f} GB"),
    ]  # fmt: skip
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    lines += [f"| {what} | {' | '.join(say(run) for run in names.values())} |" for what, say in rows]
    return "\n".join([*lines, ""])


def of_gpus(gpus: int) -> Estimate:
    """The paper's second stage on nodes of eight H100s."""
    stage = stage_of(load_recipe("paper"), "contrastive")
    return estimate(
        stage, YFCC15M, Machines(nodes=gpus // 8, gpus_per_node=8, gpu_bytes=80 << 30, gpu="NVIDIA-H100-80GB-HBM3", cores=CORES)
    )


def share(run: Estimate) -> int:
    """Pairs of a rank in a step."""
    assert run.stage.contrastive is not None
    return run.stage.contrastive.global_batch_size // run.machines.ranks


def rate(run: Estimate) -> float:
    """Pairs a second of all ranks."""
    return run.rate.rate * run.machines.ranks


def connections(run: Estimate, size: float) -> int:
    """Of one rank, whole ones."""
    return math.ceil(run.rate.rate * size / CONNECTION_BYTES)


def host_bytes(run: Estimate) -> float:
    """Of eight ranks on a node: themselves, their loaders, decoded batches; one of them saves."""
    pictures = BATCHES * share(run) * sizes(run.stage.model).image_bytes
    return 8 * (RANK_BYTES + loader_workers_for(CORES) * WORKER_BYTES + pictures) + checkpoint_bytes(run.stage)


def page(current: str) -> str:
    """The page with its table rewritten."""
    return rewrite(current, BEGIN, END, table())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
