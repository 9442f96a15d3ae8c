"""The cluster of the e2e tests: the one that KUBECONFIG names, or one brought up on this machine and taken down again."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster import addons, build, node, settings

Kubectl = Callable[..., str]


@pytest.fixture(scope="session")
def kubectl() -> Iterator[Kubectl]:
    """`kubectl(*arguments, text=stdin)` on the cluster; a failure is an AssertionError with what kubectl said."""
    given = "KUBECONFIG" in os.environ
    environment = dict(os.environ) if given else settings.environment()
    if not given:
        build.build()
        node.up()
        addons.deploy_training_operator()

    def run(*arguments: str, text: str | None = None) -> str:
        done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr.strip()}"
        return done.stdout

    try:
        yield run
    finally:
        if not given:
            node.down()


@pytest.fixture
def restricted_namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace that enforces restricted Pod Security."""
    name = "fs-restricted"
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}
    manifest: dict[str, Any] = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    kubectl("apply", "-f", "-", text=json.dumps(manifest))
    try:
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=true")
