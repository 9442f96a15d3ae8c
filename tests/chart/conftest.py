"""The chart, rendered by the real Helm: programs are built or fetched at first use, so tests that need them are slow."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import programs

CHART = Path(__file__).parents[2] / "charts/firstsight"
HERE = Path(__file__).parent
COMMON = CHART / "tests/values.yaml"
"""What every rendering without a cluster needs to be told."""
HELMS = ("helm", "helm3")
"""Helm 4 and Helm 3."""
KINDS = ("monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule", "trainer.kubeflow.org/v1alpha1/TrainingRuntime")
PEM = "-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n"
EVERYTHING = {
    "networkPolicy": {"enabled": True},
    "reaper": {"replicas": 2},
    "rbac": {"readNodes": True},
    "trainingRuntime": {"enabled": True},
    "profiles": {"firstsight": {}, "v2": {"backend": "trainjob"}},
    "kubeflow": {"endpoint": "https://kfp.example.org", "multiUser": True, "namespace": "team", "caBundle": PEM, "existingSecret": "kfp"},
    "metrics": {
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True, "runbookUrl": "https://git.example.org/RUNBOOK.md#"},
        "dashboard": {"enabled": True},
    },
    "images": {"pullSecrets": ["registry"]},
}
"""Every switch on."""
GITOPS = {
    "objectStore": {"bundled": {"existingSecret": "store"}},
    "profileDefaults": {"secret": {"create": False}},
}
EXTERNAL = {
    "objectStore": {
        "bundled": {"enabled": False},
        "external": {
            "enabled": True,
            "endpoint": "https://s3.example.org",
            "existingSecret": "store",
            "caBundle": PEM,
            "addressing": "path",
        },
    },
    "profileDefaults": {
        "secret": {"create": False},
        "namespaces": ["team-a", "team-b"],
        "serviceAccount": {"create": False, "name": "default-editor"},
    },
}
IDENTITY = {
    **EXTERNAL,
    "profileDefaults": {"namespaces": ["team-a"], "workloadIdentity": {"enabled": True, "audience": "sts.example.org"}},
    "jobs": {"environment": {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/team-a"}},
}
"""No Secret anywhere: pods have credentials by their account."""
TENANTS = {
    "profileDefaults": {"inReleaseNamespace": False},
    "profiles": {
        "firstsight": None,
        "team-a": {
            "namespaces": ["a"],
            "reads": ["s3://firstsight/shared"],
            "limits": {"nodes": 4, "queues": ["gpus"], "images": ["reg/ml"]},
        },
        "team-b": {"namespaces": ["b", "b-2"], "secret": {"rotation": "2026-12"}},
    },
}
"""Two tenants beside each other, neither in the release's namespace."""
Objects = list[dict[str, Any]]
Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tool() -> Tool:
    """`tool(name, *arguments, text=stdin)`: run helm (4), helm3, helm-docs, helm-unittest or kubeconform."""

    def run(name: str, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([programs.program(name), *arguments], input=text, capture_output=True, text=True, cwd=CHART.parents[1])

    return run


@pytest.fixture(scope="session")
def render(tool: Tool) -> Callable[..., Objects]:
    """`render(values, helm="helm") -> objects` of release fs in namespace ml."""

    def run(values: dict[str, Any], helm: str = "helm") -> Objects:
        kinds = [part for kind in KINDS for part in ("--api-versions", kind)]
        done = tool(
            helm,
            "template",
            "fs",
            str(CHART),
            "--namespace",
            "ml",
            "--kube-version",
            "1.34.4",
            "--values",
            str(COMMON),
            "--values",
            "-",
            *kinds,
            text=json.dumps(values),
        )
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    return run
