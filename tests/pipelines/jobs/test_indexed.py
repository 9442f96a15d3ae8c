"""The Indexed Job's shape and how its status is read."""

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pipelines.cluster.names import Identity
from pipelines.jobs.base import JobSpec
from pipelines.jobs.shapes.indexed import IndexedJobs
from tests.pipelines.jobs.test_pytorchjob import SETTINGS

GOLDEN = Path(__file__).parent / "golden" / "indexed.yaml"
SPEC = JobSpec(
    name="stage pairs",
    arguments=("stage", "fetch", "--plan", "s3://bucket/root/datasets/yfcc/abc", "--slice", "index/4"),
    folder="s3://bucket/root/experiments/demo/staging/pairs",
    purpose="stage",
    identity=Identity(
        root="s3://bucket/root",
        output="s3://bucket/root/experiments/demo/staging/pairs",
        experiment="demo",
        arm="pairs",
        seed=0,
        stage="fetch",
    ),
    slices=4,
)
SHAPE = IndexedJobs(SETTINGS)


def rendered(**changes: Any) -> dict[str, Any]:
    """The manifest, with parts of the spec changed."""
    return SHAPE.manifest(dataclasses.replace(SPEC, **changes), 0)


def container(job: dict[str, Any]) -> dict[str, Any]:
    """Its only container."""
    (one,) = job["spec"]["template"]["spec"]["containers"]
    return dict(one)


def job(**status: Any) -> dict[str, Any]:
    """The job as the API server shows it."""
    return {**rendered(), "status": status}


def condition(kind: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": "True", "message": message}


def test_the_manifest_is_the_golden_one():
    """UPDATE_GOLDEN=1 rewrites it."""
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(yaml.safe_dump(rendered(), sort_keys=False))

    assert rendered() == yaml.safe_load(GOLDEN.read_text())


def test_every_slice_has_its_pod_and_its_own_retries():
    """Only the one that fails is recreated; the others' work is kept."""
    spec = rendered()["spec"]

    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 4
    assert spec["backoffLimitPerIndex"] == 3
    assert "backoffLimit" not in spec
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # what the API server asks of a podFailurePolicy


@pytest.mark.parametrize(("slices", "most"), [(1, 1), (9, 1), (50, 5)])
def test_many_failed_slices_end_the_job(slices: int, most: int):
    """Then something is wrong with all of them."""
    assert rendered(slices=slices)["spec"]["maxFailedIndexes"] == most


def test_wrong_input_fails_the_job_at_once_and_a_lost_node_costs_no_retry():
    first, second = rendered()["spec"]["podFailurePolicy"]["rules"]

    assert (first["action"], first["onExitCodes"]["values"], first["onExitCodes"]["containerName"]) == ("FailJob", [2], "trainer")
    assert (second["action"], second["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")


def test_staging_takes_no_gpu_and_a_size_of_its_own():
    """Of a node with eight GPUs and 128Gi nothing is blocked by a download."""
    resources = container(rendered())["resources"]

    assert resources == {
        "requests": {"cpu": "1", "memory": "4Gi"},
        "limits": {"memory": "4Gi"},
    }


def test_evaluation_takes_one_gpu_at_most():
    assert container(rendered(purpose="evaluate"))["resources"]["limits"]["nvidia.com/gpu"] == "1"
    none = IndexedJobs(dataclasses.replace(SETTINGS, gpus_per_node=0)).manifest(dataclasses.replace(SPEC, purpose="evaluate"), 0)
    assert "nvidia.com/gpu" not in container(none)["resources"]["limits"]


@pytest.mark.parametrize("purpose", ["stage", "evaluate"])
def test_ranks_of_training_do_not_count_for_one_process(purpose: str):
    """Eight ranks on eight GPUs train; staging and evaluation of the same profile are rendered as without `ranks_per_node`."""
    settings = dataclasses.replace(SETTINGS, gpus_per_node=8)
    with_ranks = dataclasses.replace(settings, ranks_per_node=8)
    spec = dataclasses.replace(SPEC, purpose=purpose)
    assert IndexedJobs(with_ranks).manifest(spec, 0) == IndexedJobs(settings).manifest(spec, 0)


def test_an_evaluation_is_as_large_as_its_one_gpu_needs():
    """On a node of eight, unless the profile gives a size."""
    settings = dataclasses.replace(SETTINGS, cpu="", memory="")
    one = IndexedJobs(settings).manifest(dataclasses.replace(SPEC, purpose="evaluate"), 0)
    of_one_gpu = dataclasses.replace(settings, gpus_per_node=1)

    assert container(one)["resources"]["requests"] == {
        "cpu": of_one_gpu.cpu_of_pod,
        "memory": of_one_gpu.memory_of_pod,
    }


def test_the_pod_is_the_trainers_under_restricted_pod_security_and_is_not_scraped():
    """It serves no metrics, and a scrape of nothing would be an alert."""
    one, spec = container(rendered()), rendered()["spec"]["template"]["spec"]

    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["automountServiceAccountToken"] is False
    assert one["securityContext"]["readOnlyRootFilesystem"]
    assert one["envFrom"] == [{"secretRef": {"name": "firstsight-store"}}]
    assert "ports" not in one


def test_the_clusters_template_means_this_container_by_pytorch():
    """One profile serves all kinds of job."""
    template = {"spec": {"containers": [{"name": "pytorch", "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]}]}}
    one = container(IndexedJobs(dataclasses.replace(SETTINGS, pod_template=template)).manifest(SPEC, 0))

    assert one["name"] == "trainer"
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in one["env"]


def test_kubernetes_models_take_every_field():
    """Read into the client's models and written back, nothing is lost."""
    from kubernetes.client import ApiClient

    client = ApiClient()
    model = client.deserialize(SimpleNamespace(data=json.dumps(rendered())), "V1Job")

    assert client.sanitize_for_serialization(model) == rendered()


@pytest.mark.parametrize(
    ("seen", "phase"),
    [
        (job(), "active"),
        (job(active=4), "active"),
        (job(conditions=[condition("SuccessCriteriaMet")]), "active"),  # its pods are still ending
        (job(conditions=[condition("Complete")]), "succeeded"),
        (job(conditions=[condition("FailureTarget")]), "active"),
        (job(conditions=[condition("Failed")]), "failed"),
        ({**job(), "spec": {**rendered()["spec"], "suspend": True}}, "suspended"),
    ],
)
def test_its_conditions_say_where_it_stands(seen: dict[str, Any], phase: str):
    assert SHAPE.phase(seen).name == phase


def test_a_failure_names_the_slices():
    """As the controller counts them, followed by its words."""
    seen = job(conditions=[condition("Failed", "Job has failed indexes")], failedIndexes="1,3-5")

    assert SHAPE.phase(seen).message == "slices 1, 3-5 failed: Job has failed indexes"


def test_a_job_of_one_pod_has_no_slices_to_name():
    seen = {**job(conditions=[condition("Failed", "Job has failed indexes")], failedIndexes="0")}
    seen["spec"]["completions"] = 1

    assert SHAPE.phase(seen).message == "Job has failed indexes"


def test_slices_that_are_done_need_no_pod():
    assert SHAPE.pods_wanted(job(succeeded=3)) == 1


def test_the_first_slice_speaks():
    assert SHAPE.is_leader({"metadata": {"labels": {"batch.kubernetes.io/job-completion-index": "0"}}})
    assert not SHAPE.is_leader({"metadata": {"labels": {"batch.kubernetes.io/job-completion-index": "1"}}})
    assert not SHAPE.is_leader({"metadata": {}})
