"""The one training loop, for every stage. Torch is imported here and below; trainer/train.py decides whether to come here.

Read `train` first: it is the table of contents. trainer/starting.py says where a run starts, trainer/records.py what it writes.
"""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainer import checkpoint, distributed, optimizer, records
from trainer.config import OptimizerConfig, StageConfig, stream_seed
from trainer.distributed import Distributed
from trainer.errors import RunError, Stopped
from trainer.metrics import PROGRESS_FILE, StepTimer, StoredLines
from trainer.progress import check_stop
from trainer.records import Run
from trainer.stages import Stage
from trainer.starting import from_main, start

log = logging.getLogger("trainer")


def train(config: StageConfig) -> None:
    """Run one stage to its end, from wherever it stands; returns when final/ is committed.

    Raises:
        InputError: the input or configuration is wrong.
        RunError: something failed on the way.
        Stopped: asked to stop; the checkpoint is committed.
    """
    # 1. Ranks
    dist = distributed.start(config.placement)
    fence = checkpoint.Fence(config.output, config.placement.attempt)
    try:
        with records.log_to_store(config, dist), _stop_requests() as stop_requested:
            from_main(dist, lambda: records.open_folder(config, fence))
            # 2. Model, data, optimiser
            stage = build_stage(config, dist)
            loader = stage.loader()
            settings = stage_settings(config)
            built = optimizer.build(stage.module, settings.optimizer)
            # 3. Where to start
            state, started_from = start(config, dist, stage, built)
            run = Run(
                config=config,
                dist=dist,
                stage=stage,
                optimizer=built,
                state=state,
                fence=fence,
                steps_per_epoch=loader.steps_per_epoch,
                steps=loader.steps_per_epoch * settings.epochs,
                global_batch_size=settings.global_batch_size,
                started_from=started_from,
                lines=StoredLines(config.output, PROGRESS_FILE) if dist.main else None,
                writer=records.writer(config, fence) if dist.main else None,
            )
            try:
                # 4. Steps
                records.write_lineage(run, {})
                _steps(run, loader, stop_requested)
                # 5. The finished model
                from_main(dist, lambda: records.finish(run))
            finally:
                loader.close()
                records.close(run)
    finally:
        distributed.stop()


def build_stage(config: StageConfig, dist: Distributed) -> Stage:
    """The stage that the configuration names."""
    if config.stage == "contrastive":
        from trainer.stages.contrastive import ContrastiveStage

        return ContrastiveStage(config, dist, dist.device)
    if config.stage == "perceptual":
        from trainer.stages.perceptual import PerceptualStage

        return PerceptualStage(config, dist, dist.device)
    from trainer.stages.posthoc import PosthocStage

    return PosthocStage(config, dist, dist.device)


# ------------------------------------------------------------------------------------------------------- steps


def _steps(run: Run, loader: Any, stop_requested: Callable[[], bool]) -> None:
    """From the present step to the last. Every rank takes the same decisions at the same step."""
    config, state, placement = run.config, run.state, run.config.placement
    if run.lines is not None:
        run.lines.keep_until(state.step)
    if state.step >= run.steps:
        return
    timer, saved, logged = StepTimer(), time.monotonic(), state.step
    batches = loader.batches(state.step)
    began = time.monotonic() - state.seconds
    run.stage.module.train()
    records.say(run, {})
    while state.step < run.steps:
        with timer.measure("data_wait"):
            batch = next(batches)
        figures = _step(run, batch)
        timer.add("communication", float(figures.get("communication_seconds", 0.0)))
        state.step += 1
        state.seconds = time.monotonic() - began
        epoch, in_epoch = divmod(state.step, run.steps_per_epoch)
        if in_epoch == 0:
            with timer.measure("evaluation"):
                figures.update(run.stage.end_epoch(epoch - 1))
        stop = distributed.all_any(stop_requested())
        if state.step == run.steps or state.step - logged >= placement.log_every_steps or in_epoch == 0 or stop:
            records.log_step(run, figures, timer.take(state.step - logged, (state.step - logged) * run.global_batch_size))
            logged = state.step
        keep = in_epoch == 0 and placement.checkpoint_every_epochs > 0 and epoch % placement.checkpoint_every_epochs == 0
        due = placement.checkpoint_every_steps > 0 and state.step % placement.checkpoint_every_steps == 0
        due = due or time.monotonic() - saved >= placement.checkpoint_every_minutes * 60
        if run.writer is not None and (keep or ((due or stop) and state.step < run.steps)):
            with timer.measure("checkpoint_stall"):
                records.save(run, keep)
            saved = time.monotonic()
        if stop and state.step < run.steps:
            if run.writer is not None:
                run.writer.wait()
            distributed.barrier()
            raise Stopped(f"{run.name}: stopped on request at step {state.step} of {run.steps}; run the same command again to go on")
    log.info("%s: %d steps of %s in %.0f s", run.name, run.steps, config.stage, state.seconds)


def _step(run: Run, batch: Any) -> dict[str, Any]:
    """One optimiser step. A gradient that is not finite is skipped and counted; the count may not pass the limit."""
    config, state = run.config, run.state
    settings: OptimizerConfig = stage_settings(config).optimizer
    rate = optimizer.learning_rate(settings, state.step, _horizon(run))
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    # what is drawn in a step is a function of the step, so a checkpoint need not hold a generator's state
    torch.manual_seed(stream_seed(config.seed, f"step:{state.step}:rank:{run.dist.rank}"))
    figures = dict(run.stage.forward_backward(batch, state.step))
    trained = [p for p in run.stage.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if settings.clip_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(trained, settings.clip_norm, norm)
    if distributed.all_any(not bool(torch.isfinite(norm))):
        state.nonfinite_steps += 1
        log.warning("%s: step %d skipped, its gradient is not finite (%d so far)", run.name, state.step + 1, state.nonfinite_steps)
        if state.nonfinite_steps > config.placement.max_nonfinite_steps:
            raise RunError(
                f"{run.name}: step {state.step + 1}: {state.nonfinite_steps} steps had a gradient that is not finite, "
                f"placement.max_nonfinite_steps is {config.placement.max_nonfinite_steps}"
            )
    else:
        run.optimizer.step()
        run.stage.after_optimizer()
    run.optimizer.zero_grad(set_to_none=True)
    state.flops += float(figures.get("flops", 0.0)) * run.dist.world_size
    return {**figures, "grad_norm": norm, "learning_rate": rate}


def _horizon(run: Run) -> int:
    as_coded = run.config.contrastive is not None and run.config.contrastive.schedule_horizon == "as_coded"
    return run.steps * (optimizer.AS_CODED_ACCUMULATION if as_coded else 1)


def stage_settings(config: StageConfig) -> Any:
    """The settings of this stage: PerceptualConfig, ContrastiveConfig or PosthocConfig."""
    return getattr(config, config.stage)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, Ctrl-C and the parent's stop marker into a question that the loop asks every step."""
    asked: list[int] = []

    def handle(number: int, _frame: object) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C means now
        asked.append(number)

    def requested() -> bool:
        try:
            check_stop()
        except RunError:
            return True
        return bool(asked)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
