"""The TrainJob's shape and how its status is read; against its CRD in tests/cluster/test_trainjob_crd.py."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.jobs.base import JobSpec
from pipelines.jobs.shapes.trainjob import TrainJobs
from pipelines.profile.settings import JobSettings
from tests.pipelines.jobs.test_pytorchjob import ARGUMENTS, IDENTITY, SETTINGS
from trainer.errors import InputError

GOLDEN = Path(__file__).parent / "golden" / "trainjob.yaml"
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


def rendered(settings: JobSettings = SETTINGS) -> dict[str, Any]:
    """The manifest of attempt 3."""
    return TrainJobs(settings).manifest(SPEC, 3)


def with_template(template: dict[str, Any]) -> JobSettings:
    """Settings with another pod template."""
    return dataclasses.replace(SETTINGS, pod_template=template)


def test_the_manifest_is_the_golden_one():
    """UPDATE_GOLDEN=1 rewrites it."""
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(yaml.safe_dump(rendered(), sort_keys=False))

    assert rendered() == yaml.safe_load(GOLDEN.read_text())


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


def test_the_clusters_template_goes_where_a_trainjob_takes_it():
    """Variables, image and resources to the trainer, volumes, mounts and placement to the overrides."""
    spec = rendered(with_template(TEMPLATE))["spec"]
    (override,) = spec["podSpecOverrides"]

    assert {"name": "NCCL_IB_HCA", "value": "mlx5"} in spec["trainer"]["env"]
    assert spec["trainer"]["resourcesPerNode"]["limits"]["rdma/hca"] == "1"
    assert override["targetJobs"] == [{"name": "node"}]
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
    with pytest.raises(InputError, match=rf"jobs\.pod_template: a TrainJob cannot set {named}: put it into the TrainingRuntime"):
        rendered(with_template(template))


def test_what_the_chart_writes_into_the_runtime_is_left_to_it():
    """From the same values: a scheduler, pull secrets, a priority."""
    template = {"spec": {"priorityClassName": "high", "imagePullSecrets": [{"name": "registry"}]}}
    spec = rendered(dataclasses.replace(with_template(template), scheduler_name="volcano"))["spec"]

    assert not {"schedulerName", "priorityClassName", "imagePullSecrets"} & spec["podSpecOverrides"][0].keys()


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
