"""Series as Prometheus would hold them, made by the real exporter (trainer/run/sinks.py) on a clock that a test turns.

A scene is a job of some nodes whose days go as the test says; every 15 s their registries are read, as Prometheus would over HTTP.
"""

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pipelines.operate.reaper_server import Metrics
from trainer.config import ContrastiveConfig, StageConfig
from trainer.run.sinks import Endpoint

SCRAPE_SECONDS = 15
Labels = tuple[tuple[str, str], ...]


@dataclasses.dataclass
class Node:
    """One machine of the job, and how it does.

    Attributes:
        endpoint: its real exporter.
        pod: its name.
        hangs: answers nobody.
        record: the figures of its last log line.
    """

    endpoint: Endpoint
    pod: str
    hangs: bool = False
    record: dict[str, float] = dataclasses.field(default_factory=dict)


class Scene:
    """A job that trains, and the series that it leaves. Time begins at 0, as promtool's does."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, nodes: int = 2, begin: float = 0.0, node_environment: str = "GROUP_RANK", **which: Any
    ) -> None:
        self.now, self._begin = begin, begin
        monkeypatch.setattr(time, "time", lambda: self.now)
        self.samples: dict[tuple[str, Labels], dict[int, float]] = {}
        named = {"cell": "perceptual-dose-10-seed0", "arm": "perceptual", "point": "dose-10", "seed": 0, **which}
        self._config = StageConfig(experiment="demo", output="s3://b/x", contrastive=ContrastiveConfig(), **named)
        self._monkeypatch, self._variable = monkeypatch, node_environment
        self._totals = {"samples": 0.0, "step": 0.0, "nonfinite_steps": 0.0, "restarts": 0.0}
        self.nodes = [self._node(rank) for rank in range(nodes)]
        self.reaper = Metrics(lambda: (self.jobs, self.workflows))
        self.jobs: list[dict[str, Any]] = []
        self.workflows: list[dict[str, Any]] = []
        self.reaper_pod = "fs-firstsight-reaper-6d8f9c7b5-x2x9k"
        """Of the reaper that is scraped; empty: none is."""

    def train(self, minutes: float, *, step_seconds: float = 1.0, wait: float = 0.05, rate: float = 512.0, **figures: Any) -> None:
        """So many minutes of steps.

        Args:
            minutes: of the scene's clock.
            step_seconds: of a step.
            wait: its share spent waiting for data.
            rate: samples per second over all ranks.
            **figures: of the log lines (loss …); a list gives each node its own.
        """
        for _ in range(round(minutes * 60 / SCRAPE_SECONDS)):
            steps = SCRAPE_SECONDS / step_seconds
            self._totals["step"] += steps
            self._totals["samples"] += rate * SCRAPE_SECONDS
            for rank, node in enumerate(self.nodes):
                for _ in range(math.ceil(steps)):
                    node.endpoint.step(step_seconds, step_seconds * wait)
                node.record = {
                    "loss": 5.0 - min(self._totals["step"], 4000) / 1000, "logit_scale": 14.3, "grad_norm": 1.0, "learning_rate": 1e-3,
                    "mfu_ratio": 0.3, "samples_per_second": rate, "compute_seconds": 0.8 * step_seconds, "communication_seconds": 0.1,
                    **{key: value[rank] if isinstance(value, list) else value for key, value in figures.items()}, **self._totals,
                }  # fmt: skip
                node.endpoint.log(node.record)
            self._tick()

    def save(self) -> None:
        """A checkpoint of every node."""
        for node in self.nodes:
            node.endpoint.saved(0.2, 8.0)

    def skip(self, steps: int) -> None:
        """So many steps were not finite."""
        self._totals["nonfinite_steps"] += steps

    def restart(self, *, resumed: bool = True) -> None:
        """All processes end and come back, in new pods' containers of the same name; `resumed` from a newer checkpoint than before."""
        self._totals["restarts"] += resumed
        self.close()
        self.nodes = [self._node(rank) for rank in range(len(self.nodes))]
        self._tick()

    def stand_still(self, minutes: float) -> None:
        """No step; whoever does not hang answers Prometheus."""
        for _ in range(round(minutes * 60 / SCRAPE_SECONDS)):
            self._tick()

    def go(self, minutes: float) -> None:
        """The job's pods are away for so long; only the reaper answers."""
        self.close()
        nodes, self.nodes = self.nodes, []
        self.stand_still(minutes)
        self.nodes = nodes

    def close(self) -> None:
        """End the exporters."""
        for node in self.nodes:
            node.endpoint.close(linger_seconds=0)

    def add(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """A sample of another exporter, now."""
        key = (name, tuple(sorted(labels.items())))
        self.samples.setdefault(key, {})[self._tick_number()] = value

    def promtool(self) -> list[dict[str, str]]:
        """As `input_series` of a rule test."""
        last = self._tick_number()
        return [
            {"series": f"{name}{braces(labels)}", "values": " ".join(_value(values.get(tick)) for tick in range(last))}
            for (name, labels), values in self.samples.items()
        ]

    def openmetrics(self) -> str:
        """As text with times, for `promtool tsdb create-blocks-from openmetrics`."""
        families: dict[str, list[str]] = {}
        for (name, labels), values in sorted(self.samples.items()):
            lines = (f"{name}{braces(labels)} {value} {self._begin + tick * SCRAPE_SECONDS:.0f}" for tick, value in sorted(values.items()))
            families.setdefault(name, []).extend(lines)
        blocks = (f"# TYPE {name} unknown\n" + "\n".join(lines) for name, lines in families.items())
        return "\n".join(blocks) + "\n# EOF\n"

    def _node(self, rank: int) -> Node:
        self._monkeypatch.setenv(self._variable, str(rank))
        return Node(Endpoint(self._config, 0, self._totals), f"contrastive-perceptual-s0-0123456789-worker-{rank}")

    def _tick(self) -> None:
        tick = self._tick_number()
        for node in self.nodes:
            target = {"namespace": "ml", "pod": node.pod, "container": "pytorch", "job": "firstsight", "endpoint": "metrics"}
            self._put("up", target, tick, 0.0 if node.hangs else 1.0)
            for name, labels, value in () if node.hangs else _samples(node.endpoint._registry):
                self._put(name, {**labels, **target}, tick, value)
        if self.reaper_pod:
            target = {"namespace": "ml", "pod": self.reaper_pod, "container": "reaper", "job": "firstsight", "endpoint": "metrics"}
            self._put("up", target, tick, 1.0)
            for name, labels, value in _samples(self.reaper.registry):
                self._put(name, {**labels, **target}, tick, value)
        self.now += SCRAPE_SECONDS

    def _put(self, name: str, labels: Mapping[str, str], tick: int, value: float) -> None:
        self.samples.setdefault((name, tuple(sorted(labels.items()))), {})[tick] = value

    def _tick_number(self) -> int:
        return round((self.now - self._begin) / SCRAPE_SECONDS)


def _samples(registry: CollectorRegistry) -> Iterable[tuple[str, Mapping[str, str], float]]:
    """What a scrape of it would give."""
    return ((sample.name, sample.labels, sample.value) for family in registry.collect() for sample in family.samples)


def braces(labels: Labels) -> str:
    """Labels as a selector of exactly them."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}"


def _value(value: float | None) -> str:
    return "_" if value is None else repr(value)
