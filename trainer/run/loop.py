"""The training loop of all stages. This module needs torch; trainer/run/train.py imports it only if there is something to train.

Read `train` first: it is the table of contents. trainer/run/starting.py decides where a run starts, trainer/run/records.py what it
writes.
"""

import dataclasses
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from trainer.config import OptimizerConfig, StageConfig, kept_epochs, stream_seed
from trainer.device import Leaving
from trainer.dose import steps_in_all
from trainer.errors import RunError, Stopped
from trainer.model import distributed, optimizer
from trainer.model.distributed import Distributed
from trainer.progress import check_stop
from trainer.run import placing, preflight, records
from trainer.run.failure import write_failure
from trainer.run.health import Profiler, Watchdog
from trainer.run.metrics import StepTimer, StoredLines
from trainer.run.records import Run
from trainer.run.sinks import Endpoint, optional_sinks
from trainer.run.starting import from_main, start
from trainer.stages import Stage
from trainer.storage import layout, write_bytes
from trainer.storage.fence import Fence
from trainer.storage.manifest import require_manifest

SKIPPED = "skipped"
"""Metric of a step: whether it was skipped because its gradient contains NaN or Inf."""
_ASK_SECONDS, _MOST_STEPS_UNASKED = 1.0, 100
"""Ranks agree on requests to stop after this many seconds, but at the latest after this many steps, should steps suddenly get slow."""
_AFTER_WATCHDOG_SECONDS = 120.0
"""The process group's timeout is longer, since a rank that it ends could not write its stack traces."""
log = logging.getLogger("trainer")


def train(config: StageConfig) -> None:
    """Run one stage to its end, from wherever it stopped; returns when final/ is committed.

    Raises:
        InputError: the input or configuration is wrong.
        RunError: something failed during the run.
        Stopped: asked to stop; the checkpoint is committed.
    """
    # 1. Ranks
    dist = distributed.start(config.placement)
    fence = Fence(config.output, config.placement.attempt)
    try:
        with records.log_to_store(config, dist), _stop_requests() as stop_requested, distributed.peers_named(layout.stage_title(config)):
            from_main(dist, lambda: records.open_folder(config, fence))
            chosen = from_main(dist, lambda: placing.settle(config, placing.look(dist)))
            placed = dataclasses.replace(config, placement=placing.placed(config.placement, chosen))
            in_force = json.dumps(records.placement_in_force(placed, dist), sort_keys=True)
            log.info("%s: placement %s", layout.stage_title(config), in_force)
            # 2. Model, data, optimiser
            stage = build_stage(placed, dist)
            loader = stage.loader()
            settings = stage_settings(config)
            built = optimizer.build(stage.module, settings.optimizer)
            # 3. Where to start
            state, started_from = start(config, dist, stage, built)
            run = Run(
                config=placed,
                dist=dist,
                stage=stage,
                optimizer=built,
                state=state,
                fence=fence,
                manifest=require_manifest(config.data.uri, config.data.identity, config.data.manifest_sha256),
                steps_per_epoch=loader.steps_per_epoch,
                steps=steps_in_all(settings, loader.steps_per_epoch),
                global_batch_size=settings.global_batch_size,
                started_from=started_from,
                config_text=records.write_config(config, dist),
                leaving=Leaving(dist.device),
                lines=StoredLines(config.output, layout.PROGRESS, state.lines) if dist.main else None,
                writer=records.writer(config, fence) if dist.main else None,
                endpoint=_endpoint(config, dist, records.totals(state, settings.global_batch_size)),
                sinks=optional_sinks(config) if dist.main else [],
            )
            try:
                # 4. Steps
                records.write_lineage(run)
                preflight.check(run)
                _steps(run, loader, stop_requested)
                # 5. The finished model
                from_main(dist, lambda: records.finish(run))
            finally:
                loader.close()
                records.close(run)
    finally:
        distributed.stop()


def _endpoint(config: StageConfig, dist: Distributed, totals: Mapping[str, float]) -> Endpoint | None:
    """/metrics of this machine, on its local rank 0, if a port is given."""
    placement = config.placement
    if dist.local_rank != 0 or not placement.metrics_port:
        return None
    gpus = placement.processes_per_node if dist.device.type == "cuda" else 0
    return Endpoint(config, placement.metrics_port, totals, gpus)


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


class _Cadence:
    """What is due after a step."""

    def __init__(self, run: Run) -> None:
        self._placement, self._run = run.config.placement, run
        self._logged, self._saved = run.state.step, time.monotonic()
        place, per_epoch = run.config.placement, run.steps_per_epoch
        epochs = kept_epochs(run.steps // per_epoch, trajectory=place.trajectory, every=place.checkpoint_every_epochs)
        self._kept = {epoch * per_epoch for epoch in epochs}

    def steps_to_log(self, stop: bool) -> int:
        """Steps since the last log line if one is due, otherwise 0."""
        step = self._run.state.step
        since = step - self._logged
        if not (stop or since >= self._placement.log_every_steps or step % self._run.steps_per_epoch == 0):
            return 0
        self._logged = step
        return since

    def save(self, stop: bool) -> bool:
        """Whether a checkpoint is due; never after the last step, when the final model is written."""
        step, placement = self._run.state.step, self._placement
        due = placement.checkpoint_every_steps > 0 and step % placement.checkpoint_every_steps == 0
        due = due or stop or time.monotonic() - self._saved >= placement.checkpoint_every_minutes * 60
        due = due and step < self._run.steps
        if due:
            self._saved = time.monotonic()
        return due

    def keep(self) -> bool:
        """Whether the weights of this step are among those kept by epoch."""
        return self._run.state.step in self._kept


def _steps(run: Run, loader: Any, stop_requested: Callable[[], bool]) -> None:
    """Train from the current step to the last. Every rank makes the same decisions at the same step."""
    state, placement = run.state, run.config.placement
    if run.lines is not None:
        run.lines.keep_until(state.step)
    if state.step >= run.steps:
        return
    timer, cadence, began = StepTimer(), _Cadence(run), time.monotonic() - state.seconds
    stops = _Stops(run, stop_requested)
    profiler = Profiler(placement.profile_steps if run.dist.main else "", run.config.output)
    batches = loader.batches(state.step)
    run.stage.module.train()
    records.say(run, {})
    if state.step == 0 and cadence.keep():  # a resumed run has those of later epochs: they are sealed before any later checkpoint
        records.keep_weights(run)
    distributed.communication_seconds()  # what came before the first step does not count
    with _watched(run) as beat:
        while state.step < run.steps:
            profiler.before(state.step + 1)
            with timer.step():
                with timer.measure("data_wait"):
                    batch = next(batches)
                figures = _step(run, batch)
            state.step += 1
            state.seconds = time.monotonic() - began
            profiler.after(state.step)
            if run.endpoint is not None:
                run.endpoint.step(*timer.last_step)
            if state.step % run.steps_per_epoch == 0:
                with timer.measure("evaluation"):
                    figures.update(run.stage.end_epoch(state.step // run.steps_per_epoch - 1))
            stop = stops.asked()
            steps, save, keep = cadence.steps_to_log(stop), cadence.save(stop), cadence.keep()
            times = None
            if steps:
                timer.add("communication", distributed.communication_seconds())
                times = timer.take(steps, steps * run.global_batch_size)
            run.leaving.add(state.step, figures if steps else {SKIPPED: figures[SKIPPED]}, times)
            _tell(run, wait=stop or save or keep or state.step == run.steps)
            if save or keep:
                with timer.measure("saving"):
                    if save:
                        records.save(run, keep)
                    else:
                        records.keep_weights(run)
            beat()
            if stop and state.step < run.steps:
                _stop(run)
    log.info("%s: %d steps in %.0f s", run.name, run.steps, state.seconds)


def _stop(run: Run) -> None:
    """End the run after a committed checkpoint; every rank waits for it."""
    if run.writer is not None:
        run.writer.wait()
    distributed.barrier()
    raise Stopped(f"{run.name}: stopped on request at step {run.state.step} of {run.steps}; run the same command again to resume")


def _step(run: Run, batch: Any) -> dict[str, Any]:
    """One optimiser step. A step whose gradient contains NaN or Inf is skipped and counted; the count must not exceed the limit."""
    config, state = run.config, run.state
    settings: OptimizerConfig = stage_settings(config).optimizer
    rate = optimizer.learning_rate(settings, state.step, _horizon(run))
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    # random numbers are a function of the step, so a checkpoint need not contain the state of a generator
    torch.manual_seed(stream_seed(config.seed, f"step:{state.step}:rank:{run.dist.rank}"))
    figures = dict(run.stage.forward_backward(batch, state.step))
    trained = [p for p in run.stage.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if settings.clip_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(trained, settings.clip_norm, norm)
    # the gradient is the sum over ranks, so all of them see the same
    skipped = ~torch.isfinite(norm)
    run.optimizer.step(unless=skipped)
    run.stage.after_optimizer()
    run.optimizer.zero_grad()
    state.flops += float(figures.get("flops", 0.0)) * run.dist.world_size
    return {**figures, "grad_norm": norm, "learning_rate": rate, SKIPPED: skipped}


def _tell(run: Run, wait: bool) -> None:
    """Count and log the finished steps; `wait`: until the device has finished all of them. RunError if too many were skipped."""
    state, limit = run.state, run.config.placement.max_nonfinite_steps
    for step, figures, times in run.leaving.arrived(wait=wait):
        if figures.pop(SKIPPED):
            state.nonfinite_steps += 1
            log.warning("%s: step %d skipped because its gradient contains NaN or Inf (%d so far)", run.name, step, state.nonfinite_steps)
            if state.nonfinite_steps > limit:
                raise RunError(
                    f"{run.name}: step {step}: {state.nonfinite_steps} steps had a gradient containing NaN or Inf; "
                    f"placement.max_nonfinite_steps is {limit}"
                )
        if times is not None:
            records.log_step(run, step, figures, times)


def _horizon(run: Run) -> int:
    as_coded = run.config.contrastive is not None and run.config.contrastive.schedule_horizon == "as_coded"
    return run.steps * (optimizer.AS_CODED_ACCUMULATION if as_coded else 1)


def stage_settings(config: StageConfig) -> Any:
    """The settings of this stage: PerceptualConfig, ContrastiveConfig or PosthocConfig."""
    return getattr(config, config.stage)


@contextmanager
def _watched(run: Run) -> Iterator[Callable[[], None]]:
    """Watch the steps within this context; call the result after each step. The process group's timeout follows the limit."""

    def say(line: str, stacks: str) -> None:
        uri = layout.hung(run.config.output, run.state.step, run.dist.rank)
        write_failure(run.config, RunError(f"{line}; what each rank was doing is in {uri.rpartition('/')[0]}"))
        write_bytes(uri, stacks.encode())

    watchdog = Watchdog(run.config.placement.watchdog_seconds, run.name, say)

    def beat() -> None:
        before = watchdog.limit
        watchdog.beat()
        if watchdog.limit != before:
            distributed.wait_at_most(watchdog.limit + _AFTER_WATCHDOG_SECONDS)

    try:
        yield beat
    finally:
        watchdog.close()
        distributed.wait_at_most(distributed.PATIENCE_SECONDS)


class _Stops:
    """Whether any rank was asked to stop. Ranks agree on this about once a second, at a number of steps set by the slowest rank."""

    def __init__(self, run: Run, requested: Callable[[], bool]) -> None:
        self._run, self._requested = run, requested
        self._asked, self._since, self._next = run.state.step, time.monotonic(), run.state.step + 1

    def asked(self) -> bool:
        """The answer after the current step, the same on all ranks; False if this step is not one at which they agree."""
        run, step = self._run, self._run.state.step
        if run.dist.world_size == 1:
            return self._requested()
        if step < self._next and step % run.steps_per_epoch:  # validation may have taken long
            return False
        seconds = (time.monotonic() - self._since) / (step - self._asked)
        stop, slowest = distributed.largest(float(self._requested()), seconds)
        self._asked, self._since = step, time.monotonic()
        self._next = step + max(1, min(_MOST_STEPS_UNASKED, int(_ASK_SECONDS / slowest)))
        return stop > 0


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Record SIGTERM, Ctrl-C and the parent's stop marker, which the loop checks at every step."""
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
