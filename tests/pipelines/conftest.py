"""An API server on loopback, and a connection to it; an experiment by its steps."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cluster import api, ending, watch
from pipelines.cluster.connection import Cluster
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.whole import Whole, pretend
from trainer.storage.retries import Backoff


@pytest.fixture
def api_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    """A fake API server that runs; what takes its clients seconds on a cluster takes hundredths here."""
    monkeypatch.setattr(api, "FIRST_CONTACT_SECONDS", 0.2)
    monkeypatch.setattr(Backoff, "seconds", lambda self: 0.02)
    monkeypatch.setattr(watch, "MOST_SECONDS", 0.1)
    monkeypatch.setattr(ending, "POLL_SECONDS", 0.05)
    with FakeApi() as fake:
        yield fake


@pytest.fixture
def api_cluster(api_server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A connection to it by kubeconfig, in namespace team."""
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig(tmp_path / "kubeconfig")))
    return Cluster.connect()


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Whole:
    """An experiment of which nothing is there yet; its steps run a trainer that only pretends."""
    made = Whole(tmp_path / "root")
    pretend(made, monkeypatch)
    return made
