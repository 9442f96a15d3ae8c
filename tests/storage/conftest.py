"""Fixtures of the tests of the stores."""

import pytest

from tests.fault_proxy import FaultProxy


@pytest.fixture
def proxy(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """A fault-injecting proxy on the way to the store, and a client that retries for 20 s, not for minutes."""
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "20")
    return proxy
