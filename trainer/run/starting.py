"""Where a run starts: its own checkpoint, another stage's weights, or the seed's named streams. The same on every rank."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainer import lineage
from trainer.config import StageConfig, recipe_fields, recipe_hash
from trainer.errors import InputError, RunError
from trainer.model import optimizer, towers
from trainer.model.distributed import Distributed
from trainer.run import checkpoint
from trainer.run.failure import warn
from trainer.stages import Stage
from trainer.storage import layout

T = TypeVar("T")
log = logging.getLogger("trainer")


@dataclass
class State:
    """Where a run stands; all of it is in a checkpoint.

    Attributes:
        lines: of rank 0: progress.jsonl up to this step; None: a checkpoint of format 1 leaves them to the stage's folder.
    """

    step: int = 0
    nonfinite_steps: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    restarts: int = 0
    lines: bytes | None = b""


def from_main(dist: Distributed, make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank; what it raises for a user's eyes is raised on every rank."""
    if dist.world_size == 1:
        return make()
    box: list[Any] = [None, None]
    if dist.main:
        try:
            box[0] = make()
        except (InputError, RunError) as error:
            box[1] = error
    torch.distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    result: T = box[0]
    return result


def start(config: StageConfig, dist: Distributed, stage: Stage, built: optimizer.Adam) -> tuple[State, str]:
    """Bring stage, optimiser and state to where the run resumes; the hash of the weights it first started from, too.

    1. This run has a checkpoint (or is told one): resume from it, exactly.
    2. The run is finished: trainer/run/train.py has seen that and never came here.
    3. It starts from a tower, a permuted tower or a whole model: load it, strictly; anything unexpected ends the run.
    4. From scratch: the weights are those of the seed's named streams, equal on every rank.
    """
    found = _find_checkpoint(config, dist)
    if found is not None:  # 1
        state = _resume(found, stage, built)
        log.info("resumed %s at step %d", found.uri, state.step)
        return state, str(found.state["started_from"])
    if config.start.kind == "random":  # 4
        return State(), ""
    weights, digest = lineage.read_start(config.start)  # 3
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    if config.start.kind == "permuted":
        tensors = towers.permute_within(tensors, config.seed)
    if config.start.kind == "model":
        towers.load_strict(stage.model, tensors, config.start.uri)
    else:
        towers.load_vision(stage.model, tensors, config.start.uri)
    log.info("starts from %s (%s, weights %s)", config.start.uri, config.start.kind, digest[:12])
    return State(), digest


def _find_checkpoint(config: StageConfig, dist: Distributed) -> checkpoint.Checkpoint | None:
    """Rank 0 reads and verifies; the others get its bytes, so that all resume from the same."""
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    fields = recipe_fields(config)
    kept: list[checkpoint.Checkpoint | None] = [None]

    def look() -> tuple[str, int, dict[str, Any], dict[str, dict[str, tuple[torch.dtype, torch.Size]]]] | None:
        going_on = restarted or checkpoint.written_by(config.output, config.placement.attempt)
        resume = "auto" if going_on else config.placement.resume
        if resume == "never":
            checkpoint.clear(config.output)
        kept[0], skipped = checkpoint.find(config.output, resume, recipe_hash=recipe_hash(config), recipe=fields)
        for reason in skipped:
            warn(config, f"skipped {reason}")
        if kept[0] is None:
            if skipped:
                warn(config, f"{config.output}: none of {len(skipped)} checkpoints is intact: the stage begins again at step 0")
            return None
        described = {file: {name: (t.dtype, t.shape) for name, t in part.items()} for file, part in kept[0].tensors.items()}
        return kept[0].uri, kept[0].step, kept[0].state, described

    answer = from_main(dist, look)
    if answer is None or dist.world_size == 1:
        return kept[0]
    uri, step, state, described = answer
    tensors: dict[str, dict[str, Tensor]] = {}
    for file, part in described.items():
        tensors[file] = {}
        for name, (dtype, shape) in part.items():
            tensor = kept[0].tensors[file][name] if kept[0] is not None else torch.empty(shape, dtype=dtype)
            torch.distributed.broadcast(tensor, src=0)
            tensors[file][name] = tensor
    records = kept[0].records if kept[0] is not None else {}
    return checkpoint.Checkpoint(uri=uri, step=step, state=state, tensors=tensors, records=records)


def _resume(found: checkpoint.Checkpoint, stage: Stage, built: optimizer.Adam) -> State:
    towers.load_strict(stage.module, found.tensors[checkpoint.MODEL_FILE], found.uri)
    optimizer.load_state(built, stage.module, found.tensors[checkpoint.OPTIMIZER_FILE])
    stage.memory.clear()
    stage.memory.update(found.tensors.get("memory.safetensors", {}))
    state = found.state
    return State(
        step=found.step,
        nonfinite_steps=state["nonfinite_steps"],
        seconds=state["seconds"],
        flops=state["flops"],
        restarts=state["restarts"] + 1,
        lines=found.records.get(layout.PROGRESS),
    )
