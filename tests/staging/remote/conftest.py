"""The small webs of these tests are on loopback, which the fetcher asks only where a setting opens it."""

from collections.abc import Iterator

import pytest

from trainer.staging.remote.addresses import PRIVATE_VARIABLE


@pytest.fixture(scope="package", autouse=True)
def loopback_is_open() -> Iterator[None]:
    """As a laptop with a mirror of its own would have it; tests of the guard close it again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PRIVATE_VARIABLE, "127.0.0.0/8")
        yield
