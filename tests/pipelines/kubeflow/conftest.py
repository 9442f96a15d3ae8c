"""The small Kubeflow server, as a command finds it."""

from collections.abc import Iterator

import pytest

from pipelines.kubeflow import follow
from tests.pipelines.kubeflow_server import KubeflowServer, kubeflow_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeflowServer]:
    """A server that the environment names, looked at without pauses; nothing of the caller's own environment."""
    for name in ("KFP_NAMESPACE", "KFP_CA", "KFP_UI", "KFP_TOKEN", "KFP_COOKIE", "KF_PIPELINES_SA_TOKEN_PATH", "FIRSTSIGHT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    with kubeflow_server() as running:
        monkeypatch.setenv("KFP_ENDPOINT", running.url)
        yield running
