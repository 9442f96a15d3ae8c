"""Job pods that the cloud knows by their account: in every kind of job, without a Secret and without a token for Kubernetes."""

import dataclasses
from typing import Any

import pytest

from pipelines.jobs.shapes import by_backend
from pipelines.jobs.shapes.base import Shape
from pipelines.jobs.shapes.indexed import IndexedJobs
from pipelines.jobs.shapes.pod import TOKEN
from pipelines.profile.settings import JobSettings
from tests.pipelines.jobs.test_trainjob import SPEC

KINDS: list[type[Shape]] = [*by_backend().values(), IndexedJobs]
SETTINGS = JobSettings(namespace="team-a", service_account="firstsight-jobs")


def _values(value: Any, key: str) -> list[Any]:
    """Every value of a key, wherever it stands."""
    if isinstance(value, dict):
        return [part for name, part in value.items() if name == key] + [found for part in value.values() for found in _values(part, key)]
    return [found for part in value for found in _values(part, key)] if isinstance(value, list) else []


@pytest.mark.parametrize("kind", KINDS)
def test_pods_run_as_the_account_and_bring_no_secret(kind: type[Shape]) -> None:
    """What the cloud's webhook puts into them is theirs alone. A TrainJob's other half is the chart's TrainingRuntime."""
    job = kind(SETTINGS).manifest(SPEC, 1)

    assert _values(job, "serviceAccountName") == ["firstsight-jobs"]
    assert _values(job, "envFrom") == _values(job, "secretKeyRef") == []
    assert True not in _values(job, "automountServiceAccountToken")


@pytest.mark.parametrize("kind", KINDS)
def test_pods_have_a_token_for_who_gives_credentials(kind: type[Shape]) -> None:
    """Where no webhook brings it; made out to nobody else, and still none for Kubernetes."""
    job = kind(dataclasses.replace(SETTINGS, token_audience="sts.example.org")).manifest(SPEC, 1)

    (token,) = _values(job, "serviceAccountToken")
    assert (token["audience"], token["path"]) == ("sts.example.org", "token")
    assert {"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": TOKEN} in [one for env in _values(job, "env") for one in env]
    mounts = [one for found in _values(job, "volumeMounts") for one in found if one["name"] == "identity"]
    assert [one["mountPath"] for one in mounts] == [TOKEN.rpartition("/")[0]]
    assert True not in _values(job, "automountServiceAccountToken")


@pytest.mark.parametrize("kind", KINDS)
def test_without_one_pods_have_the_namespaces_own_and_no_token(kind: type[Shape]) -> None:
    """As they always did: their keys come by the Secret."""
    job = kind(dataclasses.replace(SETTINGS, service_account="", store_secret="firstsight")).manifest(SPEC, 1)

    assert _values(job, "serviceAccountName") == _values(job, "serviceAccountToken") == []
    assert "firstsight" in [found["name"] for key in ("secretRef", "secretKeyRef") for found in _values(job, key)]
