"""Record what Prometheus would hold of real processes: `python -m tests.chart.record` rewrites tests/chart/recorded.json.

The cast: a tower that cells share, then two seeds of one arm at the same time, one of which is told to stop and resumes; and a reaper
before an API server on which a job waits, another fails, a third loses its run, and a run fails. Each /metrics is read every two
seconds, over HTTP. Times are kept relative to the beginning, as promtool's clock begins at 0.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from pipelines.cluster.connection import Cluster
from pipelines.operate.reap import Reaper
from pipelines.operate.reaper_server import serve
from tests.chart.series import Labels, braces
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.fake_jobs import ago, identity, put_job, put_workflow
from tests.run import build
from tests.servers import free_ports
from trainer.config import StageConfig

FILE = Path(__file__).parent / "recorded.json"
SECONDS = 2
"""Between two scrapes."""
SCENE_SECONDS = 24
"""From the moment at which those who belong to a scene answer."""
POD = "contrastive-random-s{}-{}-worker-0"


class Recorder:
    """Reads endpoints on a clock of its own and keeps every sample."""

    def __init__(self) -> None:
        self.began, self.ticks = time.time(), 0
        self.series: dict[tuple[str, Labels], dict[int, float]] = {}
        self._targets: dict[str, tuple[int, dict[str, str]]] = {}

    def watch(self, pod: str, container: str, port: int) -> None:
        """From now on read this port, as a PodMonitor would of this pod."""
        target = {"job": "firstsight", "endpoint": "metrics", "namespace": "ml", "pod": pod, "container": container}
        self._targets[pod] = (port, target)

    def forget(self, pod: str) -> None:
        """The pod is gone."""
        self._targets.pop(pod, None)

    def scene(self) -> None:
        """Read on until all that is watched answers, and for a while longer."""
        left = SCENE_SECONDS // SECONDS
        while left:
            self.ticks += 1
            time.sleep(max(0.0, self.began + self.ticks * SECONDS - time.time()))
            self.ticks = round((time.time() - self.began) / SECONDS)  # a scrape that came too late is left out
            answered = [self._scrape(port, target) for port, target in self._targets.values()]
            left -= all(answered)

    def _scrape(self, port: int, target: Mapping[str, str]) -> bool:
        text = read(port)
        self._put("up", target, 0.0 if text is None else 1.0)
        for sample in (sample for family in text_string_to_metric_families(text or "") for sample in family.samples):
            if not sample.name.endswith("_created"):
                since = self.began if sample.name.endswith("_timestamp_seconds") and sample.value else 0.0
                self._put(sample.name, {**sample.labels, **target}, sample.value - since)
        return text is not None

    def _put(self, name: str, labels: Mapping[str, str], value: float) -> None:
        self.series.setdefault((name, tuple(sorted(labels.items()))), {})[self.ticks] = value


def read(port: int) -> str | None:
    """What is served there; None: nothing answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=1.0) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


@contextlib.contextmanager
def training(config: StageConfig, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The trainer on this configuration; it is told to stop at the end, and saves."""
    placement = dataclasses.replace(config.placement, metrics_port=port)
    uri = build.written(dataclasses.replace(config, placement=placement))
    command = [sys.executable, "-m", "trainer", "train", config.stage, "--config", uri]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


def seeded(root: Path, seed: int) -> StageConfig:
    """A cell of the arm `random`, which goes on for longer than the record."""
    made = build.contrastive(root, epochs=5000, checkpoint_every_minutes=0.2, log_every_steps=20)
    cell = f"random-seed{seed}"
    return dataclasses.replace(made, experiment="demo", seed=seed, cell=cell, output=str(root / cell / "contrastive"))


def record_training(recorder: Recorder, root: Path) -> None:
    """The trainers' part of the cast."""
    tower, one, two = free_ports(3)
    shared, first, second = "perceptual-one-s0-89abcdef01-worker-0", POD.format(0, "0123456789"), POD.format(1, "fedcba9876")
    made = build.perceptual(root, epochs=5000, log_every_steps=20, checkpoint_every_minutes=0.2)
    with training(dataclasses.replace(made, experiment="demo"), tower):
        recorder.watch(shared, "pytorch", tower)
        recorder.scene()
        recorder.forget(shared)
    with training(seeded(root, 1), two):
        recorder.watch(second, "pytorch", two)
        with training(seeded(root, 0), one):
            recorder.watch(first, "pytorch", one)
            recorder.scene()
        with training(seeded(root, 0), one):
            recorder.scene()


def happen(server: FakeApi, stop: threading.Event) -> None:
    """What happens on the API server while the reaper watches."""
    run = put_workflow(server, metadata={"name": "firstsight-fghij", "namespace": "ml"})
    dead = put_workflow(server, metadata={"name": "firstsight-gone", "namespace": "ml"}, spec={"shutdown": "Terminate"})
    put_job(server, run, name="contrastive-random-s0-0123456789", labels=identity(), namespace="ml")
    put_job(
        server, run, name="contrastive-random-s1-fedcba9876", labels=identity(seed=1), namespace="ml", spec={"runPolicy": {"suspend": True}}
    )
    stop.wait(SCENE_SECONDS)
    put_job(server, dead, name="contrastive-random-s3-3333333333", labels=identity(seed=3), namespace="ml")
    stop.wait(SCENE_SECONDS)
    failed = {"conditions": [{"type": "Failed", "status": "True", "message": "BackoffLimitExceeded"}]}
    put_job(server, run, name="contrastive-random-s2-abcdef0123", labels=identity(seed=2), namespace="ml", status=failed)
    put_workflow(server, metadata={"name": "firstsight-abcde", "namespace": "ml"}, status={"phase": "Failed", "finishedAt": ago(0)})


@contextlib.contextmanager
def reaping(folder: Path, recorder: Recorder) -> Iterator[None]:
    """A reaper that watches an API server on which things happen."""
    with FakeApi() as server:
        server.namespaces.add("ml")
        os.environ["KUBECONFIG"] = str(server.kubeconfig(folder / "kubeconfig"))
        reaper, stop = Reaper(Cluster.connect(), [""], 600, print), threading.Event()
        threads = [
            threading.Thread(target=reaper.watch, args=(stop,)),
            threading.Thread(target=happen, args=(server, stop)),
        ]
        with serve(0, reaper.metrics, reaper.healthy) as port:
            for thread in threads:
                thread.start()
            recorder.watch("fs-firstsight-reaper-6d8f9c7b5-x2x9k", "reaper", port)
            try:
                yield
            finally:
                stop.set()
                for thread in threads:
                    thread.join()


def shortened(values: Mapping[int, float], ticks: int) -> str:
    """Samples as promtool writes them: `_` where there is none, and equal ones in a row as `_x4` (four) or `1+0x3` (four)."""
    parts = []
    for value, group in groupby(values.get(tick) for tick in range(ticks)):
        count, text = len(list(group)), "_" if value is None else f"{value:.9g}"
        parts.append(text if count == 1 else f"_x{count}" if value is None else f"{text}+0x{count - 1}")
    return " ".join(parts)


def main() -> None:
    """Record and write."""
    with tempfile.TemporaryDirectory() as name:
        recorder = Recorder()
        with reaping(Path(name), recorder):
            record_training(recorder, Path(name))
    ticks = recorder.ticks + 1
    rows = ((f"{name}{braces(labels)}", shortened(values, ticks)) for (name, labels), values in sorted(recorder.series.items()))
    lines = [json.dumps({"series": series, "values": values}) for series, values in rows]
    FILE.write_text(f'{{"seconds": {SECONDS}, "ticks": {ticks}, "series": [\n' + ",\n".join(lines) + "\n]}\n")
    print(f"{FILE}: {len(lines)} series of {ticks} scrapes")


if __name__ == "__main__":
    main()
