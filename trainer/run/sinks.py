"""Where a run's figures go besides progress.jsonl: Prometheus, and on request TensorBoard and Weights & Biases.

All of them show what progress.jsonl shows; the libraries of the optional ones are imported only when asked for, and none of
them can end a run.
"""

import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, start_http_server
from prometheus_client.registry import Collector

from trainer.config import StageConfig, recipe_fields, recipe_hash
from trainer.errors import InputError
from trainer.run.failure import best_effort
from trainer.storage import join, layout

PREFIX = "firstsight_train"
LINGER_SECONDS = 45.0
"""Longest wait at the end for one more scrape; the usual interval is 30 s or less."""

_LABELS = ("experiment", "cell", "arm", "point", "seed", "stage", "node_rank")
"""`cell` is empty if cells share the stage: then `arm` is the tower's name. `point` is empty if no axis varies the recipe."""
_GAUGES = {
    "loss": "Loss of the last logged step, over all ranks.",
    "logit_scale": "Exponential of the logit scale.",
    "grad_norm": "Gradient norm before clipping.",
    "mfu_ratio": "Counted model FLOP/s over the device's peak.",
    "learning_rate": "Learning rate of the last logged step.",
    "samples_per_second": "Samples per second of all ranks, over the last logged steps.",
    "checkpoint_seconds": "Seconds from the start of the last finished save to its commit.",
    "checkpoint_stall_seconds": "Seconds for which the last save stalled training.",
    "start_timestamp_seconds": "When this process began to train.",
    "last_step_timestamp_seconds": "When the last step ended.",
    "last_checkpoint_timestamp_seconds": "When the last save began.",
    "compute_seconds": "Seconds of computation per step, mean over the last logged steps.",
    "communication_seconds": "Seconds per step spent waiting for other ranks; communication that overlaps with computation is not counted.",
    "step": "Optimiser step that the run has reached.",
    "nonfinite_steps": "Steps that the run skipped because their gradient contained NaN or Inf, earlier processes included.",
    "restarts": "How often the run resumed from a checkpoint.",
}
_COUNTERS = {
    "samples": "Samples that this process trained on.",
    "steps": "Optimiser steps of this process.",
    "data_wait_seconds": "Seconds in which this process's steps waited for data.",
    "nonfinite": "Steps that this process skipped because their gradient contained NaN or Inf.",
    "gpu_seconds": "GPUs of this machine's ranks times the seconds for which this process has held them; 0 on CPUs.",
}
"""All start at 0 in each process, as Prometheus expects: from a run's total on, increase() would count it again at every restart."""


class Sink(Protocol):
    """Takes every record of progress.jsonl."""

    def log(self, record: Mapping[str, Any]) -> None:
        """One record."""
        ...

    def close(self) -> None:
        """The run has ended."""
        ...


class Endpoint:
    """/metrics of one machine, served by its local rank 0."""

    def __init__(self, config: StageConfig, port: int, totals: Mapping[str, float], gpus: int = 0) -> None:
        """Serve on `port`.

        Args:
            config: of the run.
            port: 0 for any that is free.
            totals: the run's `step`, `samples`, `nonfinite_steps` and `restarts` so far; the counters count from there.
            gpus: that this machine's ranks hold.

        Raises:
            InputError: the port is taken.
        """
        self._registry = CollectorRegistry()
        whose = (config.experiment, config.cell, config.arm, config.point, str(config.seed), config.stage)
        labels = (*whose, os.environ.get("GROUP_RANK", "0"))
        self._gauges = {
            name: Gauge(f"{PREFIX}_{name}", text, _LABELS, registry=self._registry).labels(*labels) for name, text in _GAUGES.items()
        }
        self._counters = {
            name: Counter(f"{PREFIX}_{name}", text, _LABELS, registry=self._registry).labels(*labels) for name, text in _COUNTERS.items()
        }
        self._step_seconds = Histogram(
            f"{PREFIX}_step_seconds", "Wall time of a step.", _LABELS, registry=self._registry, buckets=_buckets()
        ).labels(*labels)
        info = Info(PREFIX, "Identity of the run.", _LABELS, registry=self._registry).labels(*labels)
        info.info({"recipe_hash": recipe_hash(config), "data": config.data.identity, "output": config.output})
        self._scrapes = _Scrapes()
        self._registry.register(self._scrapes)
        self._told = _counted(totals)
        self._gpus, self._paid_until = gpus, time.time()
        self._set(totals)
        self._gauges["start_timestamp_seconds"].set_to_current_time()
        try:
            self._server, self._thread = start_http_server(port, registry=self._registry)
        except OSError as error:
            raise InputError(f"placement.metrics_port must be a free port, got {port}: {error.strerror}") from error

    @property
    def port(self) -> int:
        """Where it is served."""
        return int(self._server.server_port)

    def step(self, seconds: float, data_wait_seconds: float) -> None:
        """A step of `seconds` has ended."""
        self._step_seconds.observe(seconds)
        self._counters["data_wait_seconds"].inc(data_wait_seconds)
        self._gauges["last_step_timestamp_seconds"].set_to_current_time()
        now = time.time()
        self._counters["gpu_seconds"].inc(self._gpus * max(0.0, now - self._paid_until))  # a clock may be set back
        self._paid_until = now

    def saved(self, stall_seconds: float, last_save_seconds: float) -> None:
        """A save has begun, and held the training up for `stall_seconds`."""
        self._gauges["checkpoint_stall_seconds"].set(stall_seconds)
        self._gauges["checkpoint_seconds"].set(last_save_seconds)
        self._gauges["last_checkpoint_timestamp_seconds"].set_to_current_time()

    def log(self, record: Mapping[str, Any]) -> None:
        """The figures of progress.jsonl."""
        self._set(record)
        for name, total in _counted(record).items():
            self._counters[name].inc(max(0.0, total - self._told[name]))
            self._told[name] = total

    def _set(self, figures: Mapping[str, Any]) -> None:
        for name, gauge in self._gauges.items():
            if name in figures:
                gauge.set(figures[name])

    def close(self, linger_seconds: float = LINGER_SECONDS) -> None:
        """Wait until the last figures were scraped, if anybody ever scraped, then stop serving."""
        seen, deadline = self._scrapes.count, time.monotonic() + linger_seconds
        while seen and self._scrapes.count == seen and time.monotonic() < deadline:
            time.sleep(0.1)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _counted(totals: Mapping[str, Any]) -> dict[str, float]:
    """Counter -> the run's total."""
    return {"samples": totals["samples"], "steps": totals["step"], "nonfinite": totals["nonfinite_steps"]}


class _Scrapes(Collector):
    """Counts how often /metrics was read; adds nothing to it."""

    def __init__(self) -> None:
        self.count = 0

    def collect(self) -> Iterator[Any]:
        self.count += 1
        return iter(())


class TensorBoard:
    """Scalars for TensorBoard."""

    def __init__(self, folder: str) -> None:
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(folder)

    def log(self, record: Mapping[str, Any]) -> None:
        """One record, a scalar a figure."""
        for name, value in _scalars(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run in Weights & Biases; going on after a restart continues the same one. Its account comes from its environment."""

    def __init__(self, project: str, config: StageConfig) -> None:
        wandb = importlib.import_module("wandb")
        name = f"{config.stage}-{layout.cell_name(config.arm, config.seed, config.point)}"
        run_id = recipe_hash(config)[:16]
        self._run = wandb.init(project=project, group=config.experiment, name=name, id=run_id, resume="allow", config=recipe_fields(config))

    def log(self, record: Mapping[str, Any]) -> None:
        """One record."""
        self._run.log(dict(_scalars(record)), step=record["step"])

    def close(self) -> None:
        """End the run there."""
        self._run.finish()


def optional_sinks(config: StageConfig) -> list[Sink]:
    """Those that the placement asks for. InputError if a package is missing."""
    placement, sinks = config.placement, list[Sink]()
    if placement.tensorboard_dir:
        _require("tensorboard", "placement.tensorboard_dir")
        sinks.append(_Guarded("placement.tensorboard_dir", lambda: TensorBoard(_run_folder(config))))
    if placement.wandb_project:
        _require("wandb", "placement.wandb_project")
        sinks.append(_Guarded("placement.wandb_project", lambda: WeightsAndBiases(placement.wandb_project, config)))
    return sinks


def _run_folder(config: StageConfig) -> str:
    """A folder a stage: TensorBoard shows what lies in one folder as one run."""
    cell = layout.cell_name(config.arm, config.seed, config.point)
    return join(config.placement.tensorboard_dir, config.experiment, cell, config.stage)


class _Guarded:
    """A sink that cannot end the run: the first time it fails is logged, and from then on it is left out."""

    def __init__(self, setting: str, make: Callable[[], Sink]) -> None:
        self._setting = setting
        self._sink: Sink | None = None
        with best_effort(setting):
            self._sink = make()

    def log(self, record: Mapping[str, Any]) -> None:
        """One record."""
        self._try(lambda sink: sink.log(record))

    def close(self) -> None:
        """The run has ended."""
        self._try(lambda sink: sink.close())

    def _try(self, call: Callable[[Sink], None]) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            with best_effort(self._setting):
                call(sink)
                self._sink = sink


def _require(package: str, key: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{key} is set, but the package {package} is not installed") from error


def _scalars(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in record.items() if isinstance(value, int | float) and name not in ("time", "step")]


def _buckets() -> Sequence[float]:
    """From a millisecond to half an hour, each 1.8 times the one before."""
    return tuple(round(0.001 * 1.8**power, 4) for power in range(25))
