"""The manifests that `pipelines plan --manifests` prints, before a real API server and the real training operator."""

import json
import time
from typing import Any

import pytest
import yaml

from pipelines.cluster.names import Identity
from pipelines.jobs.shapes import pytorchjob
from pipelines.profile.settings import JobSettings
from tests.cluster import harness
from tests.cluster.conftest import Kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ARGUMENTS = ["train", "contrastive", "--config", "s3://bucket/experiments/e/random-seed0/contrastive/config.yaml"]


def job(namespace: str, arm: str = "random") -> dict[str, Any]:
    """A two-node job whose image is not available, so that its pods stay as the operator made them."""
    settings = JobSettings(namespace=namespace, nodes=2, cpu="100m", memory="128Mi", image="firstsight.invalid/trainer:none")
    output = f"s3://bucket/experiments/e/{arm}-seed0/contrastive"
    identity = Identity(root="s3://bucket", output=output, experiment="e", cell=f"{arm}-seed0", arm=arm, seed=0, stage="contrastive")
    return pytorchjob.manifest(identity, settings, ARGUMENTS, "a" * 64)


def wait_for_pods(kubectl: Kubectl, namespace: str, count: int) -> list[dict[str, Any]]:
    """The pods of the namespace, once there are `count`."""
    for _ in range(120):
        pods: list[dict[str, Any]] = json.loads(kubectl("-n", namespace, "get", "pods", "-o", "json"))["items"]
        if len(pods) == count:
            return pods
        time.sleep(0.5)
    raise AssertionError(f"{len(pods)} pods in {namespace}, not {count}: " + kubectl("-n", namespace, "get", "events"))


def test_the_operators_webhook_and_schema_accept_the_job(kubectl: Kubectl, restricted_namespace: str) -> None:
    """Strict field validation: a field that CRD 1.8.1 does not know would be refused."""
    said = kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", text=yaml.safe_dump(job(restricted_namespace)))

    assert "created (server dry run)" in said


def test_its_pods_are_admitted_under_restricted_pod_security_with_rendezvous_and_no_token(
    kubectl: Kubectl, restricted_namespace: str
) -> None:
    """Pods exist only if admission let them; what the operator injects is what the elastic agent reads."""
    kubectl("apply", "-f", "-", text=yaml.safe_dump(job(restricted_namespace)))

    pods = wait_for_pods(kubectl, restricted_namespace, 2)

    for pod in pods:
        environment = {entry["name"]: entry.get("value") for entry in pod["spec"]["containers"][0]["env"]}
        assert environment["PET_NNODES"] == "2:2"
        assert environment["PET_RDZV_BACKEND"] == "c10d"
        assert environment["PET_MAX_RESTARTS"] == "10"
        assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert "initContainers" not in pod["spec"]


def test_the_longest_name_still_gets_its_services(kubectl: Kubectl, restricted_namespace: str) -> None:
    """At 55 characters operator 1.8.1 makes no Services, and nobody says so; ours stop before."""
    manifest = job(restricted_namespace, arm="instance" * 7)
    kubectl("apply", "-f", "-", text=yaml.safe_dump(manifest))
    wait_for_pods(kubectl, restricted_namespace, 2)

    assert len(manifest["metadata"]["name"]) <= 54
    harness.wait_until("a Service for each of two pods", lambda: len(harness.listed("services", restricted_namespace)) == 2, 60)
