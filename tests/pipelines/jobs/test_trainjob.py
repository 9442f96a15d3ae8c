"""The TrainJob's shape in each version of Trainer, against its schemas, and how its status is read. Real controllers: tests/cluster."""

import copy
import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cluster.api import Api
from pipelines.cluster.merge import strategic_merge
from pipelines.jobs.base import JobSpec
from pipelines.jobs.shapes.trainjob import NEWEST, TrainJobs, form_of
from pipelines.profile.settings import JobSettings
from tests.cluster import programs, trainer_v2
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.jobs import trainer_crds
from tests.pipelines.jobs.test_pytorchjob import ARGUMENTS, IDENTITY, SETTINGS
from trainer.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
FORMS = {version: form_of(trainer_crds.schemas(version)["TrainJob"], "https://server") for version in trainer_crds.VERSIONS}
FOLDER = "s3://bucket/root/experiments/demo/perceptual-seed0/contrastive"
SPEC = JobSpec(
    name="contrastive perceptual-seed0",
    arguments=tuple(ARGUMENTS),
    folder=FOLDER,
    purpose="train",
    identity=IDENTITY,
    recipe_hash="a" * 64,
    final=f"{FOLDER}/final",
)

TEMPLATE = {
    "spec": {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "volumes": [{"name": "cache", "emptyDir": {}}],
        "containers": [
            {
                "name": "pytorch",
                "env": [{"name": "NCCL_IB_HCA", "value": "mlx5"}],
                "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
                "resources": {"limits": {"rdma/hca": "1"}},
            }
        ],
    }
}
"""All that a TrainJob can say of a pod."""


def rendered(settings: JobSettings = SETTINGS, version: str = "v2.0.0") -> dict[str, Any]:
    """The manifest of attempt 3."""
    return TrainJobs(settings, FORMS[version]).manifest(SPEC, 3)


def of_pods(job: dict[str, Any]) -> dict[str, Any]:
    """What a job of any version sets of its pods: `spec`, and from 2.1 on `metadata`."""
    (patch,) = next(job["spec"][field] for field in ("podSpecOverrides", "podTemplateOverrides", "runtimePatches") if field in job["spec"])
    if "trainingRuntimeSpec" in patch:
        (patch,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        return dict(patch["template"]["spec"]["template"])
    return dict(patch if "spec" in patch else {"spec": patch})


def with_template(template: dict[str, Any]) -> JobSettings:
    """Settings with another pod template."""
    return dataclasses.replace(SETTINGS, pod_template=template)


@pytest.mark.parametrize("version", trainer_crds.VERSIONS)
def test_the_manifest_is_the_golden_one(version: str):
    """UPDATE_GOLDEN=1 rewrites it. Versions of one form have one file."""
    golden = GOLDEN / f"trainjob-{FORMS[version].field}.yaml"
    job = rendered(version=version)
    if version == "v2.2.1":  # the same, but that 2.3 can set the grace too
        job["spec"]["runtimePatches"] = rendered(version="v2.3.0")["spec"]["runtimePatches"]
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(yaml.safe_dump(job, sort_keys=False))

    assert job == yaml.safe_load(golden.read_text())


@pytest.mark.parametrize("version", trainer_crds.VERSIONS)
@pytest.mark.parametrize("template", [{}, TEMPLATE], ids=["plain", "full"])
def test_the_schema_of_each_version_has_nothing_against_the_manifest(version: str, template: dict[str, Any]):
    """Under `fieldValidation=Strict`: what a version does not know it must not be told."""
    job = rendered(with_template(template), version)

    assert list(trainer_crds.faults(trainer_crds.schemas(version)["TrainJob"], job)) == []


@pytest.mark.parametrize("version", trainer_crds.VERSIONS)
def test_the_schemas_are_strict(version: str):
    """The check itself finds a field that no version has, at every depth."""
    schema = trainer_crds.schemas(version)["TrainJob"]
    for place in ("spec", "trainer", "pod"):
        job = copy.deepcopy(rendered(version=version))
        {"spec": job["spec"], "trainer": job["spec"]["trainer"], "pod": of_pods(job)["spec"]}[place]["misspelled"] = 1

        assert [fault for fault in trainer_crds.faults(schema, job) if fault.endswith("misspelled: unknown field")], place


def test_a_manifest_of_another_version_would_be_refused():
    """Else the server's own check would not be needed, nor this one."""
    for version, other in (("v2.0.0", "v2.1.0"), ("v2.1.0", "v2.2.1"), ("v2.3.0", "v2.2.1"), ("v2.2.1", "v2.0.0")):
        assert list(trainer_crds.faults(trainer_crds.schemas(other)["TrainJob"], rendered(version=version))), (version, other)


def test_the_releases_that_run_in_the_test_cluster_are_those_that_are_built():
    """Their go.mod decides; the oldest and the newest of those whose schemas are kept."""
    tools = Path(trainer_v2.__file__).parent / "tools"
    for release in trainer_v2.RELEASES.values():
        for part, module in ((release.trainer, trainer_crds.MODULE), (release.jobset, "sigs.k8s.io/jobset")):
            assert re.findall(rf"{module} (v\S+)", (tools / part.tool / "go.mod").read_text()) == [part.version], part.tool
            assert programs.PACKAGES[part.program][0] == part.tool

    assert [release.trainer.version for release in trainer_v2.RELEASES.values()] == [trainer_crds.VERSIONS[0], trainer_crds.VERSIONS[-1]]


def test_the_newest_form_is_what_its_schema_says():
    assert FORMS["v2.3.0"] == NEWEST


@pytest.mark.parametrize("version", trainer_crds.VERSIONS)
def test_the_form_follows_the_schema_that_the_server_serves(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with FakeApi() as server:
        server.schemas["TrainJob"] = trainer_crds.schemas(version)["TrainJob"]
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        shape = TrainJobs(SETTINGS).served_by(Api.connect())

    assert shape.manifest(SPEC, 3) == rendered(version=version)


def test_a_version_that_is_not_known_is_refused_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before anything is made: a job without its volumes would run, and fail later."""
    schema = trainer_crds.schemas("v2.3.0")["TrainJob"]
    schema["properties"]["spec"]["properties"]["templatePatches"] = schema["properties"]["spec"]["properties"].pop("runtimePatches")
    with FakeApi() as server:
        server.schemas["TrainJob"] = schema
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        with pytest.raises(
            InputError,
            match=r"unsupported version of Kubeflow Trainer: their spec has .*templatePatches.*2\.0 to 2\.3.*choose the backend pytorchjob",
        ):
            TrainJobs(SETTINGS).served_by(Api.connect())

    assert server.objects == {}


def test_a_cluster_without_trainer_is_refused_as_one_without_the_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with FakeApi() as server:
        server.served -= {path for path in server.served if "trainer.kubeflow.org" in path}
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        with pytest.raises(InputError, match=r"has no trainjobs\.trainer\.kubeflow\.org .*install Kubeflow Trainer v2"):
            TrainJobs(SETTINGS).served_by(Api.connect())


def test_the_agents_meet_at_node_0_and_no_variable_is_trainers_own():
    """Its webhook refuses PET_NNODES and the like in a TrainJob: those it sets itself."""
    env = {entry["name"]: entry.get("value") for entry in rendered()["spec"]["trainer"]["env"]}
    name = IDENTITY.name

    assert env["PET_RDZV_ENDPOINT"] == f"{name}-node-0-0.{name}:29400"
    assert env["PET_RDZV_BACKEND"] == "c10d"
    assert not env.keys() & {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}


def test_the_pods_of_its_jobset_have_valid_names_up_to_a_hundred_nodes():
    """JobSet's webhook refuses longer ones."""
    longest = dataclasses.replace(IDENTITY, arm="instance" * 7).name

    assert len(f"{longest}-node-0-99-abcde") <= 63


def test_processes_are_a_number():
    """Trainer 2.0.0's webhook reads it without looking whether it is there."""
    assert rendered()["spec"]["trainer"]["numProcPerNode"] == 8
    assert rendered(dataclasses.replace(SETTINGS, gpus_per_node=0))["spec"]["trainer"]["numProcPerNode"] == 1


def test_credentials_come_by_reference_alone():
    """Key by key, since a TrainJob cannot take a Secret whole; a session's token may be missing."""
    secret = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in rendered()["spec"]["trainer"]["env"] if "valueFrom" in entry}

    assert secret["AWS_SECRET_ACCESS_KEY"] == {"name": "firstsight-store", "key": "AWS_SECRET_ACCESS_KEY"}
    assert secret["AWS_SESSION_TOKEN"]["optional"] is True
    assert not [e for e in rendered(dataclasses.replace(SETTINGS, store_secret=""))["spec"]["trainer"]["env"] if "valueFrom" in e]


@pytest.mark.parametrize("version", trainer_crds.VERSIONS)
def test_the_clusters_template_goes_where_a_trainjob_takes_it(version: str):
    """Variables, image and resources to the trainer, volumes, mounts and placement to the overrides."""
    job = rendered(with_template(TEMPLATE), version)
    spec, override = job["spec"], of_pods(job)["spec"]

    assert {"name": "NCCL_IB_HCA", "value": "mlx5"} in spec["trainer"]["env"]
    assert spec["trainer"]["resourcesPerNode"]["limits"]["rdma/hca"] == "1"
    assert override["nodeSelector"] == {"pool": "gpu"}
    assert [volume["name"] for volume in override["volumes"]] == ["shared-memory", "scratch", "cache"]
    assert {"name": "cache", "mountPath": "/cache"} in override["containers"][0]["volumeMounts"]
    assert "env" not in override["containers"][0]  # the webhook refuses it there


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ({"spec": {"hostNetwork": True}}, "spec.hostNetwork"),
        ({"metadata": {"labels": {"team": "a"}}}, "metadata.labels"),
        ({"spec": {"containers": [{"name": "pytorch", "livenessProbe": {}}]}}, "spec.containers.livenessProbe"),
        ({"spec": {"containers": [{"name": "sidecar", "image": "x"}]}}, "spec.containers 'sidecar'"),
    ],
)
def test_what_a_trainjob_cannot_say_is_refused_and_not_dropped(template: dict[str, Any], named: str):
    with pytest.raises(InputError, match=rf"jobs\.pod_template: a TrainJob cannot set {named}: set it in the TrainingRuntime"):
        rendered(with_template(template))


def test_what_the_chart_writes_into_the_runtime_is_left_to_it():
    """From the same values: a scheduler, pull secrets, a priority."""
    template = {"spec": {"priorityClassName": "high", "imagePullSecrets": [{"name": "registry"}]}}
    spec = rendered(dataclasses.replace(with_template(template), scheduler_name="volcano"))["spec"]

    assert not {"schedulerName", "priorityClassName", "imagePullSecrets"} & spec["podSpecOverrides"][0].keys()


@pytest.mark.parametrize(
    ("template", "since"),
    [
        ({"spec": {"affinity": {"nodeAffinity": {}}}}, "v2.1.0"),
        ({"metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}}}, "v2.1.0"),
        ({"spec": {"securityContext": {"fsGroup": 7}}}, "v2.2.1"),
        ({"spec": {"containers": [{"name": "pytorch", "securityContext": {"runAsUser": 7}}]}}, "v2.2.1"),
        ({"spec": {"terminationGracePeriodSeconds": 60}}, "v2.3.0"),
    ],
)
def test_what_a_later_version_can_say_is_said_there_and_refused_before(template: dict[str, Any], since: str):
    for version in trainer_crds.VERSIONS:
        if version < since:
            with pytest.raises(InputError, match=r"jobs\.pod_template: a TrainJob cannot set"):
                rendered(with_template(template), version)
        else:
            pods = of_pods(rendered(with_template(template), version))
            assert strategic_merge(pods, renamed(template)) == pods
            assert pods["metadata"]["labels"]["firstsight.dev/cell"] == "perceptual-seed0"


def renamed(template: dict[str, Any]) -> dict[str, Any]:
    """The template with the trainer's container under the name that TrainJobs give it."""
    spec = template.get("spec", {})
    containers = [{**one, "name": "node"} for one in spec.get("containers", [])]
    return {**template, "spec": {**spec, **({"containers": containers} if containers else {})}}


@pytest.mark.parametrize(
    ("conditions", "suspend", "phase"),
    [
        ([], False, "active"),
        ([("Suspended", "True")], True, "suspended"),
        ([("Suspended", "False")], False, "active"),
        ([("Complete", "True")], False, "succeeded"),
        ([("Failed", "True")], False, "failed"),
    ],
)
def test_its_conditions_say_where_it_stands(conditions: list[tuple[str, str]], suspend: bool, phase: str):
    job = rendered()
    job["spec"]["suspend"] = suspend
    job["status"] = {"conditions": [{"type": kind, "status": status} for kind, status in conditions]}

    assert TrainJobs(SETTINGS).phase(job).name == phase
    assert TrainJobs(SETTINGS).pods_wanted(job) == 2
