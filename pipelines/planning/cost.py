"""Estimate the cost of a stage before it starts: steps, GPU memory, rate, hours and disk, marking what is only assumed.

The arithmetic is meant to be checked by hand: `Estimate.lines` prints every factor. Multiplications and additions count as one
floating-point operation each, captions count at their full length, and the backward pass costs twice the forward pass. A ViT-B/32
pair of 77 tokens takes 44.3 GFLOP, its image alone 26.5.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.config import ContrastiveConfig, ModelConfig, PerceptualConfig, PosthocConfig, StageConfig, kept_epochs, loader_workers_for
from trainer.configs import sizes
from trainer.configs.sizes import Memory
from trainer.dose import Dose, dose, fraction
from trainer.errors import InputError

PEAK_TFLOPS = 798.0
"""TFLOP/s that a bf16 matrix product reaches on an H100 (measured; the SXM data sheet says 989)."""
UTILISATION = 0.466
"""Fraction of the peak that a step is assumed to reach, as ViT-B/32 did in row M (below). Other GPUs are scaled by their data sheets."""
FED_RATE, FED_PAIRS = 8390.0, 1024
"""Row M of docs/BENCHMARKS.md: pairs/s of ViT-B/32 on an H100, fed from JPEG shards, compiled, MoCo-v2, captions of mean 24 tokens,
at this local batch size. A test compares it with docs/benchmarks.json."""
CACHE_SHARE = 3 / 4
"""Fraction of the rate with the gradient cache, which runs the forward pass twice: 3 units of work (backward is 2) become 4."""
UNCOMPILED_SHARE = 110 / 147
"""The rate without torch.compile as a fraction of the rate with it: ms per step in docs/PERFORMANCE_NOTES.md, "one block at a time"."""
STEP_SECONDS = 0.025
"""Shortest time of a step, for the host to launch its kernels: assumed (20 to 30 ms). It matters below some 200 pairs per GPU."""
_WORTH_SAYING = 1.2
"""Factor by which another use of the nodes must be faster to be advised; smaller differences are within the estimate's error."""
CORE_GFLOPS = 50.0
"""GFLOP/s of a CPU core: assumed. On a 2-core EPYC the demo reached 37 to 51 and ViT-B/32 in bf16 150 (row O); a Xeon without bf16, 20."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The machines on which a stage runs.

    Attributes:
        nodes: number of machines.
        gpus_per_node: GPUs on each machine, with one rank per GPU; 0: CPUs.
        processes_per_node: ranks on each node without GPUs.
        gpu_bytes: memory of one GPU; 0: not known.
        gpu: product name of the GPU, such as NVIDIA-H100-80GB-HBM3; empty: not known, assumed to be an H100.
        cores: CPU cores of a rank.
    """

    nodes: int = 1
    gpus_per_node: int = 1
    processes_per_node: int = 1
    gpu_bytes: int = 0
    gpu: str = ""
    cores: int = 1

    @property
    def ranks(self) -> int:
        """One per GPU; without GPUs, one per process."""
        return self.nodes * (self.gpus_per_node or self.processes_per_node)

    def one_node(self) -> "Machines":
        """One of them."""
        return dataclasses.replace(self, nodes=1)

    def __str__(self) -> str:
        """`2 x 8 GPUs`, or `2 x 1 process of 2 cores`."""
        if self.gpus_per_node:
            return f"{self.nodes} x {self.gpus_per_node} GPU{'s' * (self.gpus_per_node > 1)}"
        several, cores = "es" * (self.processes_per_node > 1), "s" * (self.cores > 1)
        return f"{self.nodes} x {self.processes_per_node} process{several} of {self.cores} core{cores}"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The size of a training split, its origin, and whether it is known (if not, it is 0 or a guess).

    `guessed`: nothing is known about the named source, so estimates from the number do not describe it.
    `at_most`: upper limit, if one is known; 0: unknown.
    """

    count: int
    said: str
    known: bool = True
    guessed: bool = False
    at_most: int = 0


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Samples per second of one rank, and the origin of the figure. `measured`: nothing in it is assumed."""

    rate: float
    measured: bool
    said: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated cost of one stage.

    Attributes:
        stage: its resolved configuration.
        machines: machines on which it runs.
        asked: placement fields that the run sets; the others are `auto`.
        data: samples of an epoch.
        local_batch_size: samples of a micro-batch.
        whole: samples that a rank would run at once if memory set no limit.
        memory: memory of a rank's GPU; None on CPUs.
        rate: rate of a rank.
    """

    stage: StageConfig
    machines: Machines
    data: Samples
    local_batch_size: int
    whole: int
    memory: Memory | None
    rate: Rate
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dose(self) -> Dose:
        """The part of the training split that it uses, and its steps."""
        return dose(settings(self.stage), self.data.count)

    @property
    def steps(self) -> int:
        """In all."""
        return self.dose.steps

    @property
    def epochs(self) -> int:
        """Complete epochs in all steps."""
        return self.steps // max(self.dose.steps_per_epoch, 1)

    @property
    def samples(self) -> int:
        """Seen in all steps."""
        return self.steps * settings(self.stage).global_batch_size

    @property
    def flops(self) -> float:
        """Floating-point operations for all samples, forward and backward."""
        return self.samples * sample_flops(self.stage)

    @property
    def hours(self) -> float:
        """From the first step to the last."""
        return self.samples / (self.rate.rate * self.machines.ranks) / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs (times CPU processes if there are no GPUs)."""
        return self.hours * self.machines.ranks

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints (one more while it is written), the weights by epoch and the final model."""
        weights = (len(self.kept_epochs) + 1) * sizes.final_bytes(self.stage)
        return self.checkpoints * sizes.checkpoint_bytes(self.stage) + weights

    @property
    def checkpoints(self) -> int:
        """Largest number of checkpoints in the store at a time."""
        return int(self._asked("keep_last")) + 1

    @property
    def kept_epochs(self) -> list[int]:
        """Epochs after which only the weights are kept, in addition to the final model."""
        every = int(self._asked("checkpoint_every_epochs"))
        return kept_epochs(self.epochs, trajectory=bool(self._asked("trajectory")), every=every)

    def _asked(self, name: str) -> Any:
        return self.asked.get(name, getattr(self.stage.placement, name))

    @property
    def what(self) -> str:
        """What the samples are: pairs or triplets."""
        return "pairs" if self.stage.stage == "contrastive" else "triplets"

    def lines(self) -> list[str]:
        """The estimates, one per line, with every factor."""
        what, unit = self.what, "GPU" if self.machines.gpus_per_node else "process"
        ranks, recipe, mark = self.machines.ranks, settings(self.stage), "measured" if self.rate.measured else "assumed"
        batch, together = recipe.global_batch_size, self.rate.rate * ranks
        checkpoint, final = sizes.checkpoint_bytes(self.stage), sizes.final_bytes(self.stage)
        return [
            f"data: {self._data()} = {self.steps:,} steps, {self.samples:,} {what}; warm-up {recipe.optimizer.warmup_steps:,} steps",
            f"ranks: {self.machines} = {ranks}; {batch:,} / {ranks} = {batch // ranks:,} {what} per rank",
            f"placement: {', '.join(self._placement())}",
            f"memory: {self._memory()}",
            f"rate: {number(self.rate.rate)} {what}/s per {unit} x {ranks} = {number(together)} {what}/s [{mark}: {self.rate.said}]",
            f"time: {self.samples:,} / {number(together)} / 3600 = {number(self.hours)} hours; x {ranks} = {number(self.gpu_hours)} "
            f"{unit}-hours [{mark}]",
            f"disk: {self.checkpoints} checkpoints x {checkpoint / 1e9:,.2f} GB + {self._weights_kept()}final {final / 1e9:,.2f} GB "
            f"= {self.disk / 1e9:,.1f} GB",
        ]

    def _weights_kept(self) -> str:
        kept, size = self.kept_epochs, sizes.final_bytes(self.stage)
        return f"weights at epochs {', '.join(map(str, kept))}: {len(kept)} x {size / 1e9:,.2f} GB + " if kept else ""

    def _data(self) -> str:
        """The number of steps that follows from the data, with every factor."""
        recipe, found, part = settings(self.stage), self.dose, fraction(settings(self.stage))
        taken = f" x {part:g} = {found.samples:,}" if part < 1 else ""
        said = f"{self.data.count:,} {self.what} ({self.data.said}){taken}"
        if recipe.samples_seen:
            return f"{said}; {recipe.samples_seen:,} samples seen // {recipe.global_batch_size:,}"
        return f"{said} // {recipe.global_batch_size:,} = {found.steps_per_epoch:,} steps x {recipe.epochs} epochs"

    def _placement(self) -> list[str]:
        way = "the gradient cache" if self.stage.stage == "contrastive" else "accumulation"
        held = "the whole share" if self.local_batch_size == self.whole else f"of {self.whole:,}, through {way}"
        workers, cores = self.asked.get("loader_workers", "auto"), self.machines.cores
        if workers == "auto":
            most = loader_workers_for(cores) if self.machines.gpus_per_node else 0
            workers = f"{most} (of {cores} core{'s' * (cores > 1)} per rank)"
        compiled = "on" if is_compiled(self.asked, self.machines) else "off"
        return [f"compile {compiled}", f"loader_workers {workers}", f"local_batch_size {self.local_batch_size:,} ({held})"]

    def _memory(self) -> str:
        memory, gpu_bytes = self.memory, self.machines.gpu_bytes
        if memory is None:
            return "no GPU: not estimated"
        parts = (
            f"weights, gradients, moments {memory.state / 1e9:,.2f} + {memory.samples:,} {self.what} x {memory.sample / 1e6:,.1f} MB "
            f"+ share and loss {memory.share / 1e9:,.2f} + CUDA {memory.context / 1e9:,.2f} = {memory.total / 1e9:,.1f} GB per rank"
        )
        if not gpu_bytes:
            return f"{parts} [assumed; jobs.gpu_memory is not set]"
        return f"{parts}, {memory.total / gpu_bytes:.0%} of {gpu_bytes / 1e9:,.1f} GB (at most {sizes.USABLE_FRACTION:.0%}) [assumed]"


def estimate(
    stage: StageConfig, data: Samples, machines: Machines, asked: Mapping[str, Any] | None = None, measured: Rate | None = None
) -> Estimate:
    """Estimate the cost of `stage`.

    Args:
        stage: the resolved stage.
        data: size of its training split.
        machines: machines on which it runs.
        asked: placement fields that the run sets; missing and `auto` values are chosen here.
        measured: rate that an earlier run reached there; None: the rate follows from a benchmark, or from the peak.

    Raises:
        InputError: an unknown model, ranks that do not divide the batch, or a batch that does not fit.
    """
    asked = asked or {}
    whole = sizes.whole_batch_size(stage, machines.ranks)
    local = chosen_batch_size(stage, machines, asked.get("local_batch_size", "auto"))
    return Estimate(
        stage=stage,
        machines=machines,
        data=data,
        local_batch_size=local,
        whole=whole,
        memory=sizes.training_memory(stage, machines.ranks, local) if machines.gpus_per_node else None,
        rate=measured or _rate(stage, machines, local, is_compiled(asked, machines)),
        asked=asked,
    )


def side_by_side(runs: Sequence[Estimate]) -> str:
    """Advice if equal runs finish sooner side by side on parts of the nodes than one after another on all nodes; otherwise empty.

    Args:
        runs: estimates of stages that differ in arm or seed only.
    """
    first, count = runs[0], len(runs)
    machines, in_turn = first.machines, first.hours * count
    best, at_once = in_turn / _WORTH_SAYING, 1
    for parts in (parts for parts in range(2, count + 1) if machines.gpus_per_node and machines.nodes % parts == 0):
        try:
            part = estimate(first.stage, first.data, dataclasses.replace(machines, nodes=machines.nodes // parts), first.asked)
        except InputError:  # it does not fit on fewer GPUs
            continue
        hours = part.hours * -(-count // parts)
        if hours < best * 1.01:  # among equally fast choices, the fewest GPUs for each run
            best, at_once = hours, parts
    if at_once == 1:
        return ""
    nodes, share = machines.nodes // at_once, settings(first.stage).global_batch_size // machines.ranks
    return (
        f"advice: {at_once} at a time on {nodes} node{'s' * (nodes > 1)} each: {number(best)} hours for these {count}, one after another "
        f"on {machines.nodes} nodes {number(in_turn)}: a share of {share} {first.what} leaves a GPU waiting for its host"
    )


def chosen_batch_size(stage: StageConfig, machines: Machines, asked: int | str) -> int:
    """The micro-batch: as set by the run, otherwise the largest that fits the GPU if its memory is known, otherwise the rank's whole share.

    Raises:
        InputError: the requested size does not fit, or no size does.
    """
    whole = sizes.whole_batch_size(stage, machines.ranks)
    known = machines.gpus_per_node and machines.gpu_bytes
    if asked == "auto":
        return sizes.largest_local_batch_size(stage, machines.ranks, machines.gpu_bytes) if known else whole
    given = min(int(asked) or whole, whole)
    needed = sizes.training_bytes(stage, machines.ranks, given)
    if known and needed > machines.gpu_bytes:
        raise InputError(
            f"placement.local_batch_size must fit a GPU of {machines.gpu_bytes / 1e9:,.1f} GB, got {asked}: {given:,} samples of the "
            f"{stage.stage} stage need an estimated {needed / 1e9:,.1f} GB; `auto` picks a size that fits"
        )
    return given


def settings(stage: StageConfig) -> PerceptualConfig | ContrastiveConfig | PosthocConfig:
    """The stage's own settings."""
    found = stage.perceptual or stage.contrastive or stage.posthoc
    assert found is not None, "a stage has its settings"
    return found


def sample_flops(stage: StageConfig) -> float:
    """Forward and backward of one sample: an image with its caption, or a triplet's three images."""
    size = sizes.sizes(stage.model)
    return size.flops(size.text.tokens) if stage.stage == "contrastive" else sizes.IMAGES_A_TRIPLET * size.flops(0)


def is_compiled(asked: Mapping[str, Any], machines: Machines) -> bool:
    """Whether the towers are compiled: as set by the run, otherwise if there are GPUs."""
    chosen = asked.get("compile", "auto")
    return machines.gpus_per_node > 0 if chosen == "auto" else bool(chosen)


def _rate(stage: StageConfig, machines: Machines, local: int, compiled: bool) -> Rate:
    flops = sample_flops(stage)
    if not machines.gpus_per_node:
        said = f"{machines.cores} cores x {CORE_GFLOPS:.0f} GFLOP/s / {flops / 1e9:,.3g} GFLOP"
        return Rate(rate=machines.cores * CORE_GFLOPS * 1e9 / flops, measured=False, said=said)
    found = (_fed(stage, machines, local) if compiled else None) or _from_peak(flops, machines)
    if stage.stage == "contrastive" and local < sizes.whole_batch_size(stage, machines.ranks):
        found = Rate(
            rate=found.rate * CACHE_SHARE, measured=False, said=f"{found.said} x 3/4: the gradient cache runs the forward pass twice"
        )
    if not compiled:
        found = Rate(rate=found.rate * UNCOMPILED_SHARE, measured=False, said=f"{found.said} x {UNCOMPILED_SHARE:.2f}: not compiled")
    share = settings(stage).global_batch_size // machines.ranks
    if share / found.rate < STEP_SECONDS:
        said = f"{share} / {STEP_SECONDS * 1e3:.0f} ms, the host's part of a step; the GPU alone: {found.rate:,.0f}"
        return Rate(rate=share / STEP_SECONDS, measured=False, said=said)
    return found


def _fed(stage: StageConfig, machines: Machines, local: int) -> Rate | None:
    """The rate of row M if it applies to this stage: the same model, GPU, precision and size of micro-batch."""
    recipe = stage.contrastive
    same = recipe is not None and recipe.precision == "bf16" and sizes.sizes(stage.model) == sizes.sizes(ModelConfig())
    if not same or "H100" not in machines.gpu or local < FED_PAIRS:
        return None
    return Rate(rate=FED_RATE, measured=True, said=f"row M of docs/BENCHMARKS.md, {FED_RATE:,.0f}/s on an H100")


def _from_peak(flops: float, machines: Machines) -> Rate:
    known = next((name for name in sizes.PEAK_FLOPS if name in machines.gpu), "H100")
    peak = PEAK_TFLOPS * sizes.PEAK_FLOPS[known] / sizes.PEAK_FLOPS["H100"]
    article = "a" if known.startswith("V") else "an"
    said = f"{UTILISATION:.1%} of {article} {known}'s {peak:.0f} TFLOP/s / {flops / 1e9:,.1f} GFLOP"
    return Rate(rate=peak * 1e12 * UTILISATION / flops, measured=False, said=said)


def number(value: float) -> str:
    """A number for people to read and check: rounded to whole numbers from 100 on, to three significant digits below."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
