"""The cluster of the e2e tests: the one that KUBECONFIG names, or this machine's, which `make e2e` brings up."""

import os
from collections.abc import Callable, Iterator

import pytest

from tests.cluster import addons, harness, node, settings, training, volumes
from tests.cluster.store import Store, deploy_store
from tests.locking import one_at_a_time

Kubectl = Callable[..., str]


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """`kubectl(*arguments, text=stdin)` on the cluster; a failure is an AssertionError with what kubectl said."""
    if harness.own_cluster():
        assert node.is_up(), "no cluster is up: make e2e brings one up, make cluster-up one that stays"
        with one_at_a_time(settings.TESTS_LOCK):
            volumes.prepare()
    return harness.kubectl


@pytest.fixture(scope="session")
def monitoring(kubectl: Kubectl) -> str:
    """The URL of a Prometheus that takes up every PodMonitor and PrometheusRule of the cluster."""
    return addons.prometheus_address()


@pytest.fixture(scope="session")
def store(kubectl: Kubectl) -> Store:
    """One MinIO in the cluster for all tests, for pods and for this machine."""
    with one_at_a_time(settings.TESTS_LOCK):
        return deploy_store("fs-store")


@pytest.fixture(scope="session")
def staged(store: Store) -> Iterator[training.Staged]:
    """The demo in the store, and the weights that two ranks on this machine end with; made by whichever process asks first."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        with one_at_a_time(settings.STAGED_LOCK):
            found = training.staged(store)
        yield found


@pytest.fixture
def restricted_namespace(kubectl: Kubectl) -> Iterator[str]:
    """A new namespace that enforces restricted Pod Security and has the claims through which pods see Python."""
    name = harness.make_namespace()
    try:
        yield name
    finally:
        harness.remove_namespace(name)


@pytest.fixture
def own_node(kubectl: Kubectl) -> None:
    """For tests that break the node itself, which they may do to their own only."""
    if not harness.own_cluster():
        pytest.skip(f"stops processes of the node: only on the cluster that node.py brings up, not on {os.environ['KUBECONFIG']}")
    assert settings.STATE.exists()
