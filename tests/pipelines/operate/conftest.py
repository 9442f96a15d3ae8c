"""Fixtures of what asks a cluster."""

import pytest

from pipelines.cluster.api import Api
from tests.pipelines.operate.stub_api import StubApi


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubApi:
    api = StubApi()
    monkeypatch.setattr(Api, "connect", lambda namespace="": api)
    return api
