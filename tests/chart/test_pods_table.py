"""docs/SECURITY.md's tables of pods and rights are what the chart renders to, each with a reason."""

import copy

import pytest

from scripts import chart_scan, pods_table
from tests.chart.conftest import Objects
from tests.cluster import programs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def objects() -> Objects:
    return pods_table.rendered(programs.program("helm"))


def test_the_page_has_the_tables(objects: Objects) -> None:
    """As `make generate` writes them."""
    page = pods_table.PAGE.read_text()
    assert pods_table.page(page, objects) == page


def test_every_reason_is_one_of_something(objects: Objects) -> None:
    """No pod and no right is in the source table that the chart does not make."""
    assert {pod.kind for pod in pods_table.pods(objects)} == set(pods_table.WHY)
    given = {(role, resource) for (_, _, role), verbs in pods_table.rights(objects).items() for resource in verbs}
    assert given == set(pods_table.WHY_RIGHT)


def test_a_pod_without_a_reason_is_refused(objects: Objects) -> None:
    job = copy.deepcopy(next(one for one in objects if one["kind"] == "Job"))
    job["spec"]["template"]["spec"]["containers"][0]["name"] = "new"
    with pytest.raises(ValueError, match="Job new"):
        pods_table.tables([*objects, job])


def test_a_right_without_a_reason_is_refused(objects: Objects) -> None:
    changed = copy.deepcopy(objects)
    role = next(one for one in changed if one["kind"] == "Role" and one["metadata"]["name"].endswith("-reaper"))
    role["rules"].append({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]})
    with pytest.raises(KeyError, match="secrets"):
        pods_table.tables(changed)


def test_what_is_missing_of_a_context_is_said(objects: Objects) -> None:
    """Each part of restricted Pod Security, a read-only root, and what the host has."""
    (pod,) = (pod for pod in pods_table.pods(objects) if pod.kind == "Deployment reaper")
    assert pods_table.facts(pod.spec)["restricted"] == "yes"
    spec = copy.deepcopy(dict(pod.spec))
    spec["containers"][0]["securityContext"] = {"privileged": True}
    spec["hostNetwork"] = True
    assert pods_table.facts(spec)["restricted"] == (
        "without no escalation, without no capabilities, without read-only root, hostNetwork, privileged"
    )


def test_a_live_pods_token_is_the_one_that_is_mounted(objects: Objects) -> None:
    """On a node the kubelet's mount counts, not what was asked for."""
    (pod,) = (pod for pod in pods_table.pods(objects) if pod.kind == "Deployment reaper")
    live = copy.deepcopy({**pod.spec, "nodeName": "n"})
    assert pods_table.facts(live)["token"] == "none"
    path = "/var/run/secrets/kubernetes.io/serviceaccount"
    live["volumes"].append({"name": "kube-api-access-x", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}})
    live["containers"][0]["volumeMounts"].append({"name": "kube-api-access-x", "mountPath": path})
    assert pods_table.facts(live) == pods_table.facts(pod.spec)


def test_the_page_has_the_reasons_of_findings() -> None:
    """As `make generate` writes them."""
    page = pods_table.PAGE.read_text()
    assert chart_scan.page(page) == page


def test_a_finding_without_a_reason_fails_the_scan_and_so_does_a_reason_without_a_finding() -> None:
    """By its rule and object."""
    found = {rule: set(where) for rule, (where, _) in chart_scan.EXPLAINED.items()}
    assert chart_scan.unexplained(found) == []
    assert chart_scan.unexplained({**found, "checkov CKV_K8S_16": {"Job new"}}) == [
        "checkov CKV_K8S_16: Job new has no reason in scripts/chart_scan.py"
    ]
    found.pop("kube-score deployment-strategy")
    assert chart_scan.unexplained(found) == [
        "kube-score deployment-strategy: not found any more at Deployment minio; take it out of scripts/chart_scan.py"
    ]


def test_every_kind_of_job_is_scanned(objects: Objects) -> None:
    """Beside what Helm makes."""
    names = {f"Pod {one['metadata']['name']}" for one in chart_scan.scanned(objects)}
    assert set(chart_scan.JOBS) <= names
