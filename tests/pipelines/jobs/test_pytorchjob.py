"""The PyTorchJob's shape: each trap of training-operator v1 that the design names has its test."""

import dataclasses
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pipelines.cluster.names import Identity
from pipelines.jobs.shapes import pytorchjob
from pipelines.jobs.shapes.trainjob import RENDEZVOUS_PORT
from pipelines.profile.settings import JobSettings
from trainer.errors import InputError

GOLDEN = Path(__file__).parent / "golden" / "pytorchjob.yaml"
OUTPUT = "s3://bucket/root/experiments/demo/perceptual-seed0/contrastive"
IDENTITY = Identity(
    root="s3://bucket/root", output=OUTPUT, experiment="demo", cell="perceptual-seed0", arm="perceptual", seed=0, stage="contrastive"
)
SETTINGS = JobSettings(
    namespace="team",
    image="registry.example/firstsight/trainer@sha256:" + "0" * 64,
    nodes=2,
    gpus_per_node=8,
    cpu="16",
    memory="128Gi",
    store_secret="firstsight-store",
    store_environment={"AWS_ENDPOINT_URL_S3": "http://minio:9000"},
    labels={"kueue.x-k8s.io/queue-name": "research"},
    pod_template={"spec": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}},
)
ARGUMENTS = ["train", "contrastive", "--config", "s3://bucket/root/experiments/demo/perceptual-seed0/contrastive/config.yaml"]


def rendered(**changes: Any) -> dict[str, Any]:
    """The manifest, with some settings changed."""
    return pytorchjob.manifest(IDENTITY, dataclasses.replace(SETTINGS, **changes), ARGUMENTS, "a" * 64)


def pod(job: dict[str, Any]) -> dict[str, Any]:
    """Its worker's pod template."""
    template: dict[str, Any] = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    return template


def test_the_manifest_is_the_golden_one():
    """UPDATE_GOLDEN=1 rewrites it."""
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(yaml.safe_dump(rendered(), sort_keys=False))

    assert rendered() == yaml.safe_load(GOLDEN.read_text())


def test_the_job_is_worker_only_and_elastic_with_a_fixed_size():
    """A Master would pull an image of its own; elastic without Worker crashes operator 1.8.1."""
    spec = rendered()["spec"]

    assert list(spec["pytorchReplicaSpecs"]) == ["Worker"]
    assert spec["elasticPolicy"]["minReplicas"] == spec["elasticPolicy"]["maxReplicas"] == 2
    assert spec["elasticPolicy"]["rdzvBackend"] == "c10d"
    assert spec["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "OnFailure"


def test_finished_and_failing_jobs_give_their_nodes_back():
    """Running pods go when the job ends, the job goes after its TTL, and a crash loop has a fuse for all pods."""
    policy = rendered(nodes=3)["spec"]["runPolicy"]

    assert policy == {"cleanPodPolicy": "Running", "ttlSecondsAfterFinished": 86400, "backoffLimit": 30}


def test_fields_that_differ_between_operators_are_not_used():
    """ManagedBy is of 1.9 alone, activeDeadlineSeconds is not kept on time, suspend belongs to the queue."""
    text = json.dumps(rendered())

    assert not re.search("managedBy|activeDeadlineSeconds|suspend|nProcPerNode|schedulingPolicy", text)


def test_a_cpu_node_runs_one_process():
    """The operator's default would start one a core."""
    job = rendered(gpus_per_node=0)

    assert job["spec"]["nprocPerNode"] == "1"
    assert pod(job)["spec"]["containers"][0]["resources"]["limits"] == {"memory": "128Gi"}


def test_a_gpu_node_is_as_large_as_its_gpus_need():
    """Unless the profile says otherwise."""
    job = rendered(cpu="", memory="", shared_memory="")
    size = dataclasses.replace(SETTINGS, cpu="", memory="", shared_memory="")
    (container,), (shared_memory, _) = pod(job)["spec"]["containers"], pod(job)["spec"]["volumes"]

    assert container["resources"]["requests"] == {"cpu": size.cpu_of_pod, "memory": size.memory_of_pod}
    assert container["resources"]["limits"] == {"memory": size.memory_of_pod, "nvidia.com/gpu": "8"}
    assert shared_memory["emptyDir"]["sizeLimit"] == size.shared_memory_of_pod


def test_what_compiles_writes_into_a_volume():
    """The root is read-only: the compilers' caches, home and temporary files lie below a mounted folder."""
    (container,) = pod(rendered())["spec"]["containers"]
    written = {entry["name"]: entry.get("value") for entry in container["env"]}
    mounted = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}

    for name in ("HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert any(Path(str(written[name])).is_relative_to(folder) for folder in mounted), name


def test_a_mesh_keeps_its_sidecar_to_itself():
    """By label and by annotation: which one counts differs between versions of Istio."""
    metadata = pod(rendered())["metadata"]

    assert metadata["labels"]["sidecar.istio.io/inject"] == metadata["annotations"]["sidecar.istio.io/inject"] == "false"


def test_the_pod_is_good_under_restricted_pod_security():
    """Non-root, no privileges, a profile, a read-only root, and no token of the API server."""
    spec = pod(rendered())["spec"]
    (container,) = spec["containers"]

    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False


def test_credentials_come_by_reference_alone():
    """A Secret's name is in the manifest, its keys are not."""
    (container,) = pod(rendered())["spec"]["containers"]

    assert container["envFrom"] == [{"secretRef": {"name": "firstsight-store"}}]
    assert not any("SECRET" in variable["name"] or "ACCESS_KEY" in variable["name"] for variable in container["env"])


def test_a_replaced_pod_does_not_stall_the_group():
    """Torchrun's shared rendezvous store would, for a minute."""
    (container,) = pod(rendered())["spec"]["containers"]

    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in container["env"]


def test_the_trainer_gets_its_configuration_and_its_placement():
    """The recipe is in the configuration; where it runs is in the arguments."""
    (container,) = pod(rendered())["spec"]["containers"]

    assert container["args"][: len(ARGUMENTS)] == ARGUMENTS
    assert {"placement.nodes=2", "placement.processes_per_node=8"} <= set(container["args"])


def test_the_clusters_template_is_laid_over_the_pod():
    """And cannot take away the container that the operator's webhook wants."""
    assert pod(rendered())["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    with pytest.raises(InputError, match="must keep the container 'pytorch'"):
        rendered(pod_template={"spec": {"containers": [{"name": "pytorch", "$patch": "delete"}]}})


def test_the_hash_of_the_rendered_spec_changes_with_placement_and_that_of_the_recipe_does_not():
    """By the first a launcher sees that a job runs with other settings, by the second that it is another stage."""
    two, four = rendered()["metadata"]["annotations"], rendered(nodes=4)["metadata"]["annotations"]

    assert two["firstsight.dev/recipe-hash"] == four["firstsight.dev/recipe-hash"]
    assert two["firstsight.dev/spec-hash"] != four["firstsight.dev/spec-hash"]


def test_kubeflow_trainings_models_take_every_field():
    """Read into the SDK's models and written back, nothing is lost."""
    from kubeflow.training.api_client import ApiClient

    client, job = ApiClient(), rendered()
    model = client.deserialize(SimpleNamespace(data=json.dumps(job)), "KubeflowOrgV1PyTorchJob")

    assert client.sanitize_for_serialization(model) == job


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nodes", 0),
        ("gpus_per_node", -1),
        ("memory", "lots"),
        ("image", " "),
        ("metrics_port", 80),
        *(("metrics_port", port) for port in (23456, RENDEZVOUS_PORT)),
    ],
)
def test_settings_that_cannot_be_are_refused(key: str, value: object):
    """Before a cluster is asked."""
    with pytest.raises(InputError, match=rf"jobs\.{key} must be"):
        dataclasses.replace(SETTINGS, **{key: value})
