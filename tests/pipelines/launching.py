"""Fixtures of the launcher's tests: a store on disk, an API server, an operator, and launchers that wait for one stage."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster import ending, watch
from pipelines.cluster.connection import Cluster
from pipelines.cluster.names import Identity
from pipelines.jobs import following, loglines, monitor, owners
from pipelines.jobs.base import JobSpec, Outcome
from pipelines.jobs.following import ClusterBackend, ClusterJob
from pipelines.jobs.launcher import Launcher
from pipelines.jobs.shapes.pytorchjob import PyTorchJobs
from pipelines.profile.settings import JobSettings, Patience
from tests.pipelines.data import commit
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.operator import JOBS, Operator, eventually
from trainer.storage.retries import Backoff

RECIPE = "a" * 64


@dataclasses.dataclass
class Launch:
    """One launcher that waits for the stage."""

    job: ClusterJob
    lines: list[str]
    reader: threading.Thread

    def outcome(self) -> Outcome:
        """Wait for the end."""
        found = eventually(self.job.watch)
        self.reader.join(60)
        assert isinstance(found, Outcome)
        return found

    def text(self) -> str:
        """All lines so far."""
        return "\n".join(self.lines)


class Scene:
    """A stage, a cluster that could run it, and the launchers waiting for it."""

    def __init__(self, server: FakeApi, tmp_path: Path) -> None:
        self.api, self.folder = server, f"{tmp_path}/root/experiments/e/random-seed0/contrastive"
        self.identity = Identity(
            root=f"{tmp_path}/root", output=self.folder, experiment="e", cell="random-seed0", arm="random", seed=0, stage="contrastive"
        )
        self.name = self.identity.name
        self.operator = Operator(server)
        self.launches: list[Launch] = []

    def spec(self, **changes: Any) -> JobSpec:
        """The stage."""
        spec = JobSpec(
            name="contrastive random-seed0",
            arguments=("train", "contrastive", "--config", f"{self.folder}/config.yaml"),
            folder=self.folder,
            purpose="train",
            identity=self.identity,
            recipe_hash=RECIPE,
            final=f"{self.folder}/final",
        )
        return dataclasses.replace(spec, **changes)

    def launch(self, settings: JobSettings | None = None, **changes: Any) -> Launch:
        """Start a launcher with its own connection."""
        settings = settings or JobSettings(nodes=2)
        backend = ClusterBackend(Launcher(Cluster.connect(), PyTorchJobs(settings), settings))
        job, lines = backend.submit(self.spec(**changes)), []
        launch = Launch(job, lines, threading.Thread(target=job.logs, args=(lines.append,)))
        launch.reader.start()
        self.launches.append(launch)
        return launch

    def running(self, **options: Any) -> Launch:
        """A launcher whose job has its pods."""
        launch = self.launch(**options)
        eventually(lambda: self.api.find("pods", f"{self.name}-worker-1"))
        return launch

    def seal(self) -> None:
        """The trainer commits its final model."""
        commit(self.folder, RECIPE)

    def succeed(self) -> None:
        """The job succeeds."""
        self.seal()
        self.api.end_log(f"{self.name}-worker-0")
        self.operator.end(self.name, "Succeeded")

    def job(self) -> dict[str, Any] | None:
        """The job as it is."""
        return self.api.find(JOBS, self.name)

    def pod(self, index: int) -> str:
        """The name of a worker pod."""
        return f"{self.name}-worker-{index}"

    def clean(self) -> bool:
        """Whether nothing is left on the cluster."""
        return not [key for key in self.api.objects if key[0] in (JOBS, "pods")]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A scene with short waits, as seen from a shell."""
    monkeypatch.setattr(Backoff, "seconds", lambda self: 0.02)
    monkeypatch.setattr(watch, "MOST_SECONDS", 0.1)
    monkeypatch.setattr(ending, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(following, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(following, "LAST_LOG_SECONDS", 0.2)
    monkeypatch.setattr(monitor, "NEWS_SECONDS", 0.1)
    monkeypatch.setattr(loglines, "NEWS_SECONDS", 0.1)
    monkeypatch.delenv(owners.POD_VARIABLE, raising=False)
    monkeypatch.setenv(owners.HOLDER_VARIABLE, "ana")
    with FakeApi() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        made = Scene(server, tmp_path)
        yield made
        for launch in made.launches:
            launch.job._halt()
            launch.reader.join(60)
            assert not launch.reader.is_alive()


def annotations(scene: Scene) -> dict[str, str]:
    """The annotations of the job in its current state."""
    job = scene.job()
    assert job is not None
    found: dict[str, str] = job["metadata"]["annotations"]
    return found


def patience(**seconds: int) -> JobSettings:
    """Settings with some patience values changed; the rest as shipped."""
    return JobSettings(nodes=2, patience=Patience(**seconds))
