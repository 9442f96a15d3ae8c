"""manifests/ before the real API server: what is local there, strictly validated; remote bases cannot be had here."""

from pathlib import Path

import pytest

from tests.cluster.conftest import Kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

MANIFESTS = Path(__file__).parents[2] / "manifests"


def test_the_samples_are_accepted_as_they_stand(kubectl: Kubectl, restricted_namespace: str):
    """By schemas and the operator's webhook, in a namespace that enforces restricted Pod Security."""
    said = kubectl("-n", restricted_namespace, "apply", "--dry-run=server", "--validate=strict", "-k", str(MANIFESTS / "samples"))

    assert said.count("created (server dry run)") == 2
    assert "violate PodSecurity" not in said


def test_what_kind_gets_beside_the_operators_is_accepted(kubectl: Kubectl, monitoring: str):
    """A namespace, and a Prometheus that takes up every monitor."""
    files = [part for name in ("namespace.yaml", "prometheus.yaml") for part in ("-f", str(MANIFESTS / "overlays/kind" / name))]

    # The namespaces are not there in a dry run, so each object is looked at alone.
    rendered = kubectl("create", "--dry-run=client", "--validate=strict", "-o", "name", *files)

    assert "prometheus.monitoring.coreos.com/all" in rendered
    assert "namespace/firstsight" in rendered
