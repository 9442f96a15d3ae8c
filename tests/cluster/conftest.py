"""The cluster of the e2e tests: the one that KUBECONFIG names, or one brought up on this machine and taken down again."""

import os
from collections.abc import Callable, Iterator

import pytest

from tests.cluster import addons, build, harness, node, settings, training, volumes
from tests.cluster.store import Store, deploy_store

Kubectl = Callable[..., str]


@pytest.fixture(scope="session")
def kubectl() -> Iterator[Kubectl]:
    """`kubectl(*arguments, text=stdin)` on the cluster; a failure is an AssertionError with what kubectl said."""
    ours, runs_already = harness.own_cluster(), any(node.status().values())
    if ours:
        build.require_machine()
        if not runs_already:
            build.build()
        try:
            node.up()
            volumes.prepare()
            addons.deploy()
            yield harness.kubectl
        finally:
            if not runs_already:
                node.down()
    else:
        build.fetch_kubectl_and_helm()
        yield harness.kubectl


@pytest.fixture(scope="session")
def monitoring(kubectl: Kubectl) -> str:
    """The URL of a Prometheus that takes up every PodMonitor and PrometheusRule of the cluster."""
    return addons.prometheus_address()


@pytest.fixture(scope="session")
def store(kubectl: Kubectl) -> Store:
    """One MinIO in the cluster for the whole session, for pods and for this machine."""
    return deploy_store("fs-store")


@pytest.fixture(scope="session")
def staged(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[training.Staged]:
    """The demo in the store, once for the session, and the weights that two ranks on this machine end with."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield training.stage(store, tmp_path_factory.mktemp("staged"))


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
