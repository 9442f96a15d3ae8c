"""What a run writes into its stage's folder: config.yaml, lineage.json, progress.jsonl, log.txt, checkpoints/ and final/."""

import dataclasses
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from trainer import lineage, logs
from trainer.config import StageConfig, recipe_fields, recipe_hash
from trainer.device import Leaving
from trainer.errors import Corrupt, InputError, RunError, words_of
from trainer.model import optimizer, towers
from trainer.model.distributed import Distributed
from trainer.model.optimizer import Adam
from trainer.progress import progress, step_line
from trainer.run import checkpoint, placing
from trainer.run.health import peak_flops
from trainer.run.metrics import StoredLines, StoredLogHandler, json_line
from trainer.run.sinks import LINGER_SECONDS, Endpoint, Sink
from trainer.run.starting import State
from trainer.stages import Stage
from trainer.storage import committed, join, layout, open_store, write_json
from trainer.storage.base import MissingObject, encode_json
from trainer.storage.committed import read_final
from trainer.storage.fence import Fence
from trainer.storage.manifest import Manifest
from trainer.storage.recipes import config_bytes, read_stage, write_config_file
from trainer.storage.scratch import temporary_folder

log = logging.getLogger("trainer")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the phases of one run share."""

    config: StageConfig
    dist: Distributed
    stage: Stage
    optimizer: Adam
    state: State
    fence: Fence
    manifest: Manifest
    """Of the data set, as it was at the start: the run's end must not depend on it."""
    steps_per_epoch: int
    steps: int
    global_batch_size: int
    started_from: str
    config_text: bytes
    """config.yaml as it lies in the stage's folder; rank 0 has it."""
    leaving: Leaving
    """Figures of steps that the device may still be at."""
    lines: StoredLines | None
    """progress.jsonl; rank 0 has it."""
    writer: checkpoint.Writer | None
    """Saves checkpoints; rank 0 has it."""
    endpoint: Endpoint | None
    """/metrics; local rank 0 of each machine has it, where a port is given."""
    sinks: list[Sink]
    """TensorBoard and the like; rank 0 has them."""

    @property
    def name(self) -> str:
        """This run's name for people."""
        return layout.stage_title(self.config)


def log_step(run: Run, step: int, figures: Mapping[str, float], times: Mapping[str, float]) -> None:
    """Write a line of progress.jsonl for `step`, pass the figures to /metrics and other sinks, and move the progress bar."""
    if run.dist.local_rank != 0:
        return
    state = run.state
    plain = {name: float(value) for name, value in figures.items() if name != "flops"}
    peak = peak_flops(run.dist.device)
    if peak is not None:
        plain["mfu_ratio"] = float(figures.get("flops", 0.0)) / times["step_seconds"] / peak
    record = {
        "time": time.time(),
        "steps": run.steps,
        "epoch": step / run.steps_per_epoch,
        **plain,
        **times,
        **totals(dataclasses.replace(state, step=step), run.global_batch_size),
    }
    if run.writer is not None and run.writer.last_seconds:
        record["checkpoint_seconds"] = run.writer.last_seconds
    if run.endpoint is not None:
        run.endpoint.log(record)
    if run.lines is None:
        return
    run.lines.add(json_line(record))
    for sink in run.sinks:
        sink.log(record)
    rate = times["samples_per_second"]
    logs.bind(step=step)
    log.info("%s", step_line(run.name, step, run.steps, plain["loss"], rate))
    say(run, {"loss": plain["loss"], "samples_per_second": rate})


def totals(state: State, global_batch_size: int) -> dict[str, int]:
    """What the run has counted so far, over all its processes."""
    return {
        "step": state.step,
        "samples": state.step * global_batch_size,
        "nonfinite_steps": state.nonfinite_steps,
        "restarts": state.restarts,
    }


def say(run: Run, figures: Mapping[str, float]) -> None:
    """Move the progress bar."""
    if run.dist.main:
        done, total = run.state.step * run.global_batch_size, run.steps * run.global_batch_size
        progress(run.name, done, total, "samples" if run.config.stage == "contrastive" else "triplets", **figures)


def open_folder(config: StageConfig, fence: Fence) -> None:
    """Claim the stage's folder; remove the last attempt's failure record and partial files, and a damaged final model's seal."""
    fence.claim()
    store = open_store(config.output)
    store.delete(layout.failure(config.output))
    store.sweep(config.output)
    if any(read_final(config.output)):  # trainer/run/train.py has said why it does not count: nobody else may take it for finished
        store.delete(join(layout.final(config.output), committed.NAME))


def write_config(config: StageConfig, dist: Distributed) -> bytes:
    """config.yaml: from now on the folder is this recipe's. Only once model, data and start were found to be right.

    Its placement stays as it was given: what `auto` became here belongs to this machine.

    Returns:
        The file as it is, with its checksum, for the copies in checkpoints and final/; on rank 0 only.
    """
    if not dist.main:
        return b""
    uri = layout.config(config.output)
    try:
        config = read_stage(uri)
    except MissingObject:
        write_config_file(uri, config)
    except (InputError, Corrupt) as error:  # it was intact when this run began
        log.warning("%s", error)
    return config_bytes(config)


def placement_in_force(config: StageConfig, dist: Distributed) -> dict[str, Any]:
    """Every field of the placement as this run has it: nothing is `auto`, and threads are counted."""
    return {**asdict(config.placement), "device": dist.device.type, "threads": torch.get_num_threads()}


def writer(config: StageConfig, fence: Fence) -> checkpoint.Writer:
    """The checkpointer of this run."""
    return checkpoint.Writer(config.output, recipe_hash=recipe_hash(config), fence=fence, keep_last=config.placement.keep_last)


def save(run: Run, keep: bool) -> None:
    """Save a checkpoint of the present step, on rank 0; `keep`: and its weights alone, for good."""
    if run.writer is None or run.lines is None:
        return
    began = time.perf_counter()
    tensors: dict[str, Mapping[str, Tensor]] = {
        checkpoint.MODEL_FILE: run.stage.module.state_dict(),
        checkpoint.OPTIMIZER_FILE: optimizer.state(run.optimizer, run.stage.module),
    }
    if run.stage.memory:
        tensors["memory.safetensors"] = run.stage.memory
    facts = _facts(run)
    state = {
        "nonfinite_steps": run.state.nonfinite_steps,
        "seconds": run.state.seconds,
        "flops": run.state.flops,
        "restarts": run.state.restarts,
        "started_from": run.started_from,
        "recipe": recipe_fields(run.config),
        **facts,
    }
    beside = {layout.PROGRESS: run.lines.data(), layout.CONFIG: run.config_text}
    run.writer.save(run.state.step, tensors, state, facts, beside=beside, keep=keep)
    if run.endpoint is not None:
        run.endpoint.saved(time.perf_counter() - began, run.writer.last_seconds)


def keep_weights(run: Run) -> None:
    """Keep the weights of the present step for good, on rank 0. It is no checkpoint, and does not count as one."""
    if run.writer is not None:
        run.writer.keep(run.state.step, run.stage.module.state_dict(), _facts(run))


def _facts(run: Run) -> dict[str, Any]:
    return {"data_identity": run.config.data.identity, "world_size": run.dist.world_size, "threads": torch.get_num_threads()}


def finish(run: Run) -> None:
    """Write final/, with lineage.json, which has the hashes of what was made, and progress.jsonl beside it."""
    assert run.writer is not None
    assert run.lines is not None
    run.writer.wait()
    if broken := towers.find_nonfinite(run.stage.module.state_dict()):
        raise RunError(f"{run.name}: {broken} contains NaN or Inf after the last step: no final model was written")
    samples = run.steps * run.global_batch_size
    with temporary_folder("final") as folder:
        facts = run.stage.save_final(folder)
        facts |= {
            "data_identity": run.config.data.identity,
            "judge": run.manifest.judge,
            "seconds": run.state.seconds,
            "samples": samples,
            "samples_per_second": samples / run.state.seconds if run.state.seconds else 0.0,
            "flops": run.state.flops,
            "world_size": run.dist.world_size,
            "threads": torch.get_num_threads(),
            "nonfinite_steps": run.state.nonfinite_steps,
            "restarts": run.state.restarts,
        }
        run.lines.end()
        checkpoint.write_final(
            run.config.output,
            folder,
            recipe_hash=recipe_hash(run.config),
            step=run.steps,
            fence=run.fence,
            facts=facts,
            beside={layout.LINEAGE: encode_json(describe_lineage(run, facts)), layout.PROGRESS: run.lines.data()},
            copies={layout.CONFIG: run.config_text},
        )
    open_store(run.config.output).delete(layout.failure(run.config.output))
    log.info("%s: final model committed", run.name)


def write_lineage(run: Run) -> None:
    """lineage.json as it is known before the first step: without the hashes of what will be made."""
    if run.dist.main:
        write_json(layout.lineage(run.config.output), describe_lineage(run, {}))


def describe_lineage(run: Run, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Weights -> configuration -> data -> code -> image."""
    config, manifest = run.config, run.manifest
    return {
        "format_version": lineage.FORMAT_VERSION,
        "experiment": config.experiment,
        "arm": config.arm,
        "seed": config.seed,
        "stage": config.stage,
        "request": config.request,
        "recipe_hash": recipe_hash(config),
        "recipe": recipe_fields(config),
        "labels": config.labels,
        "start": {
            "kind": config.start.kind,
            "uri": config.start.uri,
            "recipe_hash": config.start.recipe_hash,
            "weights_sha256": run.started_from,
        },
        "data": {"uri": config.data.uri, "identity": manifest.identity, "name": manifest.name, "judge": manifest.judge},
        "weights_sha256": facts.get("weights_sha256", facts.get("vision_sha256", "")),
        "vision_sha256": facts.get("vision_sha256", ""),
        "code": lineage.code_facts(),
        "image_digest": lineage.image_digest(),
        "world_size": run.dist.world_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": placing.device_name(run.dist),
        "placement": placement_in_force(config, run.dist),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": run.state.seconds,
    }


def close(run: Run) -> None:
    """End the background threads; if the run has already failed, its error takes precedence over theirs."""
    failing = sys.exc_info()[0] is not None
    if run.endpoint is not None:
        run.endpoint.close(0.0 if failing else LINGER_SECONDS)
    for part in (run.lines, run.writer, *run.sinks):
        try:
            if part is not None:
                part.close()
        except (InputError, RunError) as error:
            if not failing:
                raise
            log.error("%s", error)


@contextmanager
def log_to_store(config: StageConfig, dist: Distributed) -> Iterator[None]:
    """Rank 0's log lines go to standard error, and to log.txt in the stage's folder."""
    if not dist.main:
        yield
        return
    lines = StoredLines(config.output, layout.LOG)
    stored = StoredLogHandler(lines)
    handlers: list[logging.Handler] = [stored, *logs.handlers()]
    for handler in handlers:
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        # whoever catches it tells the person who waits
        stored.handle(log.makeRecord(log.name, logging.ERROR, "", 0, words_of(error), (), None))
        raise
    finally:
        for handler in handlers:
            log.removeHandler(handler)
        lines.close()
