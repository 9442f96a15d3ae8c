"""Every pod of ours is selected by a network policy, both ways: the chart's, those that its hooks and tests make, steps and jobs."""

import copy
import dataclasses
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import yaml

from pipelines.cluster.names import Identity
from pipelines.jobs.base import JobSpec
from pipelines.jobs.shapes import by_backend
from pipelines.jobs.shapes.indexed import IndexedJobs
from pipelines.profile.profile import Profile
from pipelines.profile.settings import JobSettings
from tests.chart.conftest import CHART, EVERYTHING, EXTERNAL, Objects
from trainer.configs import load_yaml, parse_config
from trainer.staging.remote.addresses import _CREDENTIALS

pytestmark = pytest.mark.slow
Render = Callable[..., Objects]
REPOSITORY = CHART.parents[1]
ON: dict[str, Any] = {"networkPolicy": {"enabled": True}}
VARIANTS = {
    "defaults": ON,
    "everything": EVERYTHING,
    "external": {**EVERYTHING, **EXTERNAL},
    "unregister": {**ON, "kubeflow": {"endpoint": "http://ml-pipeline.kubeflow.svc:8888", "unregister": True}},
    "apart": {**ON, "profiles": {"a": {"namespaces": ["team-a"]}, "b": {"namespaces": ["team-b"]}}},
    "labelled": {**ON, "pods": {"labels": {"team": "theirs"}}},
}
STAGES = {
    "train": ("perceptual", "contrastive", "posthoc"),
    "evaluate": ("evaluate",),
    "stage": ("stage", "stage-plan", "stage-fetch", "stage-seal"),
}
"""By the purpose of a job, the stages that steps give it (pipelines/jobs/specs.py, pipelines/steps/staging.py)."""
Pod = tuple[str, str, Mapping[str, str]]
"""Where it is made, its namespace, its labels."""


@pytest.mark.parametrize("name", VARIANTS)
def test_every_pod_is_selected(render: Render, name: str) -> None:
    """In both directions; a pod that no policy selects is open to everybody, or under a default denial shut off."""
    objects = render(VARIANTS[name])
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    pods = [*_rendered(objects), *_of_jobs(objects), *_of_steps(objects)]

    assert len({where for where, _, _ in pods}) >= 18
    open_pods = {
        f"{where} in {namespace}: {direction}"
        for where, namespace, labels in pods
        for direction in ("Ingress", "Egress")
        if not any(direction in policy["spec"]["policyTypes"] for policy in _selecting(policies, namespace, labels))
    }
    assert open_pods == set()


def test_a_stranger_is_not_selected(render: Render) -> None:
    """Pods that are not ours keep what they have: being selected would cut them off."""
    policies = [one for one in render(EVERYTHING) if one["kind"] == "NetworkPolicy"]
    for labels in ({}, {"app": "notebook"}, {"app.kubernetes.io/name": "minio", "app.kubernetes.io/component": "trainer"}):
        assert not list(_selecting(policies, "ml", labels))
    drivers = [one for one in render({"networkPolicy": {"enabled": True, "kubeflowDrivers": True}}) if one["kind"] == "NetworkPolicy"]
    assert [one["metadata"]["name"] for one in _selecting(drivers, "ml", {"pipelines.kubeflow.org/v2_component": "true"})] == [
        "fs-firstsight-drivers"
    ]


def test_samples_are_selected() -> None:
    """The jobs of manifests/samples carry the labels of the jobs that they stand for."""
    for path in sorted((REPOSITORY / "manifests/samples").glob("*job.yaml")):
        for job in yaml.safe_load_all(path.read_text()):
            stage = job["metadata"]["labels"]["firstsight.dev/stage"]
            assert stage in {stage for stages in STAGES.values() for stage in stages}, path


def test_staging_alone_is_let_out(render: Render) -> None:
    """Of the jobs only those that fetch have the Internet, and nothing of it is a cloud's metadata or a private network."""
    policies = [one for one in render(ON) if one["kind"] == "NetworkPolicy"]
    for stages in STAGES.values():
        for stage in stages:
            labels = {**_identity(stage).labels()}
            names = {one["metadata"]["name"] for one in _selecting(policies, "ml", labels)}
            fetches = {"fs-firstsight-staging"} if stage in ("stage-plan", "stage-fetch") else set()
            assert names == {"fs-firstsight-jobs"} | fetches, stage


REACHED = ("93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "64:ff9b::808:808")
NOT_REACHED = (
    "169.254.169.254", "169.254.170.23", "168.63.129.16", "100.100.100.200", "192.0.0.192", "10.1.2.3", "172.31.0.1", "192.168.1.1",
    "127.0.0.1", "240.0.0.1", "fd00:ec2::254", "fd20:ce::254", "fd12::1", "fe80::1", "64:ff9b::a9fe:a9fe", "64:ff9b::a01:203",
)  # fmt: skip
"""Metadata of seven clouds, private networks, both behind NAT64."""


def test_staging_reaches_the_public_internet(render: Render) -> None:
    """Address by address; what a private source opens is open, and no cloud's metadata with it."""
    blocks = _staging_blocks(render({**ON}))
    assert {address: _open(blocks, address) for address in (*REACHED, *NOT_REACHED)} == {
        **dict.fromkeys(REACHED, True),
        **dict.fromkeys(NOT_REACHED, False),
    }
    opened = ("10.1.2.3", "fd12::1", "64:ff9b::a01:203")
    sources = ["10.1.0.0/16", "fc00::/7", "100.64.0.0/10", "192.0.0.0/16", "168.63.0.0/16", "64:ff9b::/96"]
    blocks = _staging_blocks(render({**ON, "network": {"privateSources": sources}}))
    closed = [address for address in NOT_REACHED if address not in opened]
    assert {address: _open(blocks, address) for address in (*opened, *closed)} == {
        **dict.fromkeys(opened, True),
        **dict.fromkeys(closed, False),
    }


def test_no_default_opens_what_hands_out_credentials(render: Render) -> None:
    """To anyone, at a store or a Kubeflow that plain HTTP reaches outside the cluster; the API server's own ports are no metadata's."""
    values: dict[str, Any] = copy.deepcopy({**EVERYTHING, **EXTERNAL, "kubeflow": {"endpoint": "http://kfp.example.org"}})
    values["objectStore"]["external"]["endpoint"] = "http://s3.example.org"
    seen = set()
    for policy in (one for one in render(values) if one["kind"] == "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            blocks = [peer["ipBlock"] for peer in rule.get("to", []) if "ipBlock" in peer]
            if blocks and 80 in [port["port"] for port in rule["ports"]]:
                seen.add(policy["metadata"]["name"].removeprefix("fs-firstsight-"))
                assert not [address for address in map(str, _CREDENTIALS) if _open(blocks, address)], policy["metadata"]["name"]
                assert _open(blocks, "8.8.8.8")
    assert seen >= {"jobs", "steps", "staging", "chart"}


def test_exceptions_are_parts_of_their_ranges(render: Render) -> None:
    """The API server takes no other."""
    for policy in (one for one in render(EVERYTHING) if one["kind"] == "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            for block in (peer["ipBlock"] for peer in rule.get("to", []) if "ipBlock" in peer):
                whole = ipaddress.ip_network(block["cidr"])
                for part in map(ipaddress.ip_network, block.get("except", [])):
                    assert part.version == whole.version
                    assert part != whole
                    assert part.subnet_of(whole)  # type: ignore[arg-type]


def _staging_blocks(objects: Objects) -> list[dict[str, Any]]:
    (policy,) = (one for one in objects if one["metadata"]["name"] == "fs-firstsight-staging")
    return [peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule["to"]]


def _open(blocks: list[dict[str, Any]], address: str) -> bool:
    one = ipaddress.ip_address(address)
    return any(
        one in ipaddress.ip_network(block["cidr"]) and not any(one in ipaddress.ip_network(part) for part in block.get("except", []))
        for block in blocks
    )


def _selecting(policies: Objects, namespace: str, labels: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for policy in policies:
        if policy["metadata"]["namespace"] == namespace and _matches(policy["spec"]["podSelector"], labels):
            yield policy


def _matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """As Kubernetes reads a label selector."""
    operators: dict[str, Callable[[str | None, list[str]], bool]] = {
        "In": lambda value, values: value in values,
        "NotIn": lambda value, values: value not in values,
        "Exists": lambda value, values: value is not None,
        "DoesNotExist": lambda value, values: value is None,
    }
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        operators[part["operator"]](labels.get(part["key"]), part.get("values", [])) for part in selector.get("matchExpressions", [])
    )


def _rendered(objects: Objects) -> Iterator[Pod]:
    """Of everything that holds a pod's template, however deep: Deployments, Jobs, tests, runtimes, kinds that do not exist yet."""
    for one in objects:
        where, namespace = f"{one['kind']} {one['metadata']['name']}", one["metadata"].get("namespace", "")
        for labels in _templates(one):
            yield where, namespace, labels


def _templates(value: Any) -> Iterator[Mapping[str, str]]:
    if isinstance(value, list):
        for part in value:
            yield from _templates(part)
    elif isinstance(value, dict):
        if isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
            yield value.get("metadata", {}).get("labels", {})
        for part in value.values():
            yield from _templates(part)


def _of_jobs(objects: Objects) -> Iterator[Pod]:
    """Of every job that a launcher makes by each profile, on each backend."""
    for one in objects:
        if "profile.yaml" not in one.get("data", {}):
            continue
        profile = parse_config(Profile, load_yaml(one["data"]["profile.yaml"], "profile"), source="profile")
        settings = dataclasses.replace(profile.jobs, namespace=one["metadata"]["namespace"])
        for purpose, stages in STAGES.items():
            for stage in stages:
                for backend, labels in _job_pods(settings, purpose, stage):
                    yield f"{one['metadata']['name']}'s {backend} {stage}", settings.namespace, labels


def _job_pods(settings: JobSettings, purpose: str, stage: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    shapes = by_backend() if purpose == "train" else {"indexed": IndexedJobs}
    spec = JobSpec(
        name=stage, arguments=(), folder="s3://b/f", purpose=purpose, identity=_identity(stage), recipe_hash="0" * 64, placement={}
    )  # type: ignore[arg-type]
    for backend, shape in shapes.items():
        if backend == "trainjob":
            continue  # its pods are the TrainingRuntime's, which is rendered
        for labels in _templates(shape(settings).manifest(spec, 0)):
            yield backend, labels


def _identity(stage: str) -> Identity:
    return Identity(root="s3://b", output=f"s3://b/{stage}", experiment="e", cell="random-seed0", arm="random", seed=0, stage=stage)


def _of_steps(objects: Objects) -> Iterator[Pod]:
    """Of the pipeline's steps, as compiled; they run in the profiles' namespaces."""
    pipeline, platform = yaml.safe_load_all((REPOSITORY / "pipelines/kubeflow/compiled/firstsight.yaml").read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(pipeline["deploymentSpec"]["executors"])
    for namespace in {one["metadata"]["namespace"] for one in objects if "profile.yaml" in one.get("data", {})}:
        for name, executor in executors.items():
            yield name, namespace, executor["podMetadata"]["labels"]
