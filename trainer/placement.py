"""Where and how a stage runs. No field is part of a hash. `trainer.config` re-exports it with the other configurations."""

import re
from dataclasses import dataclass
from typing import Literal

from trainer.fields import at_least, placement, require


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how a stage runs. Nothing here changes what is learned."""

    nodes: int = placement(1, "Machines (pods) of the job.")
    processes_per_node: int = placement(1, "Ranks on each machine; one per GPU.")
    threads: int = placement(
        0, "CPU threads per rank; 0: cores / ranks, or 1 with a GPU. Recorded, since the order of summation depends on it."
    )
    device: Literal["auto", "cpu", "cuda"] = placement("auto", "auto: cuda if there is a GPU.")
    local_batch_size: int | Literal["auto"] = placement(
        "auto",
        "Pairs or triplets that a rank processes at once, at most; the loss does not depend on it (gradient cache, accumulation). 0: the "
        "rank's whole share of the batch. auto: the whole share or, on CUDA, as much of it as is estimated to fit in memory.",
    )
    loader_workers: int | Literal["auto"] = placement(
        "auto", "Decoding processes per rank; 0: threads in the rank instead. auto: 0; on CUDA, the rank's cores minus one, at most 16."
    )
    cache_dir: str = placement("", "Local folder for shards; empty: a folder in the system's temporary directory.")
    cache_bytes: int = placement(32 << 30, "Bytes of shards kept in cache_dir, over all ranks of a node.")
    checkpoint_every_steps: int = placement(0, "Save every this many steps; 0: only by time.")
    checkpoint_every_minutes: float = placement(10.0, "Save at least this often.")
    checkpoint_every_epochs: int = placement(
        0, "Keep the weights only (no optimiser state) every this many epochs, for curves over training."
    )
    trajectory: bool = placement(False, "Also keep the weights at epochs 0, 1, 2, 4, 8 ….")
    keep_last: int = placement(2, "Committed checkpoints kept; weights kept per epoch are not counted.")
    resume: str = placement("auto", "auto, never, or the URI of a checkpoint.")
    attempt: int = placement(0, "Fences off a writer that is still running: a commit by an older attempt is refused. 0: unfenced.")
    max_restarts: int = placement(0, "How many times the elastic agent restarts the group in place.")
    max_nonfinite_steps: int = placement(10, "Number of steps with a non-finite gradient to skip before the run stops.")
    watchdog_seconds: float = placement(
        1800.0, "A step that takes longer ends the run and writes stack traces to hung/; 600 is enough if steps are short."
    )
    metrics_port: int = placement(0, "Port of local rank 0's Prometheus endpoint; 0: none. On a cluster only the profile can set it.")
    preflight: bool = placement(False, "Measure the network and the store before step 1 and report what is too slow for the recipe.")
    log_every_steps: int = placement(10, "Steps between two lines of progress.jsonl.")
    compile: bool | Literal["auto"] = placement(
        "auto", "torch.compile the blocks of the towers. auto: on CUDA if there is a C compiler; it gains little on a CPU."
    )
    profile_steps: str = placement("", "A:B writes a torch profiler trace of steps A to B.")
    tensorboard_dir: str = placement("", "Also log to TensorBoard in this folder, one subfolder per stage (needs the tensorboard package).")
    wandb_project: str = placement("", "Also log to Weights & Biases (needs the wandb package).")

    def __post_init__(self) -> None:
        """Check ranges."""
        at_least(1, "placement", self, "nodes", "processes_per_node", "keep_last", "log_every_steps")
        at_least(0, "placement", self, "threads", "cache_bytes", "checkpoint_every_steps", "checkpoint_every_epochs")
        at_least(0, "placement", self, "attempt", "max_restarts", "max_nonfinite_steps")
        for name in ("local_batch_size", "loader_workers"):
            value = getattr(self, name)
            require(f"placement.{name}", value, "auto or >= 0", value == "auto" or value >= 0)
        require("placement.checkpoint_every_minutes", self.checkpoint_every_minutes, "> 0", self.checkpoint_every_minutes > 0)
        require("placement.watchdog_seconds", self.watchdog_seconds, "> 0", self.watchdog_seconds > 0)
        profiled_steps(self.profile_steps)
        require("placement.metrics_port", self.metrics_port, "between 0 and 65535", 0 <= self.metrics_port <= 65535)


def kept_epochs(epochs: int, *, trajectory: bool, every: int) -> list[int]:
    """The epochs after which a stage of `epochs` keeps its weights, except the last, whose weights are the final model.

    Args:
        epochs: of the stage.
        trajectory: also keep them at epoch 0, before the first step, and at the powers of two.
        every: also keep them at each multiple of this; 0: never.
    """
    doubling = [0, *(1 << power for power in range(epochs.bit_length()))] if trajectory else []
    multiples = range(every, epochs, every) if every else ()
    return sorted(epoch for epoch in {*doubling, *multiples} if epoch < epochs)


def profiled_steps(text: str) -> tuple[int, int]:
    """`A:B` as two numbers, from step A to step B, both counted from 1; (0, 0) for an empty text.

    Raises:
        InputError: it is not of that form.
    """
    if not text:
        return 0, 0
    match = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    require("placement.profile_steps", text, "A:B with 1 <= A <= B", 1 <= first <= last)
    return first, last


def unless_auto(value: int | Literal["auto"]) -> int:
    """A number of the placement. An unresolved `auto` (in an evaluation, or in a loader used on its own) is 0, as on a CPU."""
    return 0 if isinstance(value, str) else value


def loader_workers_for(cores: int) -> int:
    """Decoding processes of a rank with a GPU, if placement.loader_workers is `auto`: all its cores but one, which the rank itself needs.

    Fourteen decode 20,000 pairs per second and an H100 consumes 7,600 (docs/BENCHMARKS.md, rows K and M), so more than 16 do not help.
    """
    return min(max(cores - 1, 0), 16)
