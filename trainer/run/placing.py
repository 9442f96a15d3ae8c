"""What each `auto` of the placement becomes on this machine, and placement.json, by which a resumed run takes the same again.

Values are recorded for each world size, device and version: where all three are as before, a run that was killed ends in the
same bits, whatever the rules here say by then. Anything else chooses again, which keeps the loss, not the bits. What the
configuration states wins always. Torch is imported only to look at the device.
"""

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import lineage
from trainer.config import Placement, StageConfig, loader_workers_for
from trainer.configs.sizes import largest_local_batch_size, whole_batch_size
from trainer.data.machine import available_cores
from trainer.errors import Corrupt
from trainer.run.failure import warn
from trainer.storage import layout
from trainer.storage.documents import read_document, write_document

if TYPE_CHECKING:
    from trainer.model.distributed import Distributed

FORMAT_VERSION = 2
NO_COMPILER = "no C compiler (CC, gcc or clang)"
SAME_LOSS = "the loss stays the same, the bits do not"
log = logging.getLogger("trainer")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under which recorded values hold.

    Attributes:
        world_size: ranks.
        device: name of the GPU; of a CPU with the threads that a rank computes with.
        firstsight: version.
        torch: version.
    """

    world_size: int
    device: str
    firstsight: str
    torch: str

    def __str__(self) -> str:
        """As a person reads it."""
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        return f"{ranks} on {self.device}, firstsight {self.firstsight}, torch {self.torch}"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the rules look at, as rank 0 finds it.

    Attributes:
        conditions: under which a choice holds.
        cuda: whether ranks compute on GPUs.
        gpu_bytes: memory of one; 0 without.
        cores: of a rank.
        compiler: whether there is a C compiler.
    """

    conditions: Conditions
    cuda: bool
    gpu_bytes: int
    cores: int
    compiler: bool


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Values in force; see `trainer.config.Placement`."""

    compile: bool
    loader_workers: int
    local_batch_size: int


def has_compiler() -> bool:
    """Whether torch.compile finds a C compiler."""
    return any(map(shutil.which, (os.environ.get("CC", ""), "gcc", "clang")))


def device_name(dist: "Distributed") -> str:
    """Name of the GPU or the CPU."""
    import torch

    if dist.device.type == "cuda":
        return torch.cuda.get_device_name(dist.device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or os.uname().machine


def look(dist: "Distributed") -> Machine:
    """The machine of this rank."""
    import torch

    cuda, threads = dist.device.type == "cuda", torch.get_num_threads()
    return Machine(
        conditions=Conditions(
            world_size=dist.world_size,
            device=device_name(dist) if cuda else f"{device_name(dist)} ({threads} {'thread' if threads == 1 else 'threads'})",
            firstsight=lineage.code_facts()["version"],
            torch=torch.__version__,
        ),
        cuda=cuda,
        gpu_bytes=torch.cuda.get_device_properties(dist.device).total_memory if cuda else 0,
        cores=available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        compiler=has_compiler(),
    )


def settle(config: StageConfig, machine: Machine) -> Chosen:
    """The values in force for this run, recorded in the stage's folder; rank 0 calls it, before step 1.

    Raises:
        InputError: placement.json is of a newer format, or no micro-batch fits the GPU.
    """
    record = _read(config)
    before = record.get(machine.conditions)
    if record and before is None:
        last = list(record)[-1]
        log.info("%s: placement recomputed for %s; it was %s: %s", layout.stage_title(config), machine.conditions, last, SAME_LOSS)
    chosen = Chosen(
        compile=_compile(config.placement, machine, before),
        loader_workers=_loader_workers(config.placement, machine, before),
        local_batch_size=_local_batch_size(config, machine, before),
    )
    if before is not None:
        for name in ("compile", "local_batch_size"):  # who decodes changes no number
            old, new = getattr(before, name), getattr(chosen, name)
            if old != new:
                log.info("%s: placement.%s is now %s, previously %s: %s", layout.stage_title(config), name, new, old, SAME_LOSS)
    if chosen != before:
        record.pop(machine.conditions, None)
        record[machine.conditions] = chosen
        runs = [{**asdict(conditions), **asdict(values)} for conditions, values in record.items()]
        write_document(layout.placement(config.output), {"format_version": FORMAT_VERSION, "runs": runs})
    return chosen


def placed(placement: Placement, chosen: Chosen) -> Placement:
    """The placement with the values in force."""
    return dataclasses.replace(placement, **asdict(chosen))


# ------------------------------------------------------------------------------------------------------- rules


def _compile(placement: Placement, machine: Machine, before: Chosen | None) -> bool:
    if placement.compile != "auto":
        return placement.compile
    wanted = machine.cuda if before is None else before.compile
    if wanted and not machine.compiler:
        log.warning("placement.compile auto: %s here, so the towers run uncompiled", NO_COMPILER)
        return False
    return wanted


def _loader_workers(placement: Placement, machine: Machine, before: Chosen | None) -> int:
    if placement.loader_workers != "auto":
        return placement.loader_workers
    if before is not None:
        return before.loader_workers
    return loader_workers_for(machine.cores) if machine.cuda else 0


def _local_batch_size(config: StageConfig, machine: Machine, before: Chosen | None) -> int:
    if config.placement.local_batch_size != "auto":
        return config.placement.local_batch_size
    if before is not None:
        return before.local_batch_size
    if not machine.cuda:
        return 0
    ranks = machine.conditions.world_size
    most, whole = largest_local_batch_size(config, ranks, machine.gpu_bytes), whole_batch_size(config, ranks)
    if most >= whole:
        return 0
    samples, how = ("triplets", "accumulated gradients keep") if config.contrastive is None else ("pairs", "the gradient cache keeps")
    gpu = f"{machine.conditions.device} ({machine.gpu_bytes / 1e9:.0f} GB)"
    log.info(
        "placement.local_batch_size auto: %d of a rank's %d %s at a time, the most that %s is estimated to hold; %s the loss the same",
        *(most, whole, samples, gpu, how),
    )
    return most


# ------------------------------------------------------------------------------------------------------ record


def _read(config: StageConfig) -> dict[Conditions, Chosen]:
    """What is recorded, oldest first; nothing if the record is damaged, which is said."""
    uri = layout.placement(config.output)
    try:
        value = read_document(uri, "a record of placement", FORMAT_VERSION, checked_from=2)
        return {} if value is None else dict(_parse(uri, run) for run in value["runs"])
    except (Corrupt, KeyError, TypeError) as error:
        why = str(error) if isinstance(error, Corrupt) else f"{uri}: not a record of placement: {type(error).__name__}: {error}"
        warn(config, f"{why}; values are chosen again: the loss stays the same, the bits may not")
        return {}


def _parse(uri: str, run: Mapping[str, Any]) -> tuple[Conditions, Chosen]:
    parts: list[Any] = []
    for kind in (Conditions, Chosen):
        fields = dataclasses.fields(kind)
        wrong = next((item.name for item in fields if type(run[item.name]) is not item.type), None)
        if wrong is not None or any(isinstance(run[item.name], int) and run[item.name] < 0 for item in fields):
            raise Corrupt(f"{uri}: not a placement record: {wrong or 'a negative number'}")
        parts.append(kind(**{item.name: run[item.name] for item in fields}))
    return parts[0], parts[1]
