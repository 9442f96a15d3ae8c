"""The pods of jobs by what they do: their templates, GPUs, user, init and what they may write, in every kind of job."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.jobs.base import JobSpec
from pipelines.jobs.shapes.indexed import IndexedJobs
from pipelines.jobs.shapes.pod import DIGEST_VARIABLE
from pipelines.jobs.shapes.pytorchjob import PyTorchJobs
from pipelines.jobs.shapes.trainjob import TrainJobs
from pipelines.profile.settings import JobSettings
from tests.docs.reading import Document
from tests.pipelines.jobs import test_indexed, test_pytorchjob
from tests.pipelines.jobs.test_trainjob import SPEC, of_pods
from trainer import lineage
from trainer.config import Placement
from trainer.errors import InputError

SETTINGS = dataclasses.replace(test_pytorchjob.SETTINGS, pod_template={}, labels={})
STAGE, EVALUATE = test_indexed.SPEC, dataclasses.replace(test_indexed.SPEC, purpose="evaluate", slices=1)
GPU_NODE = {"spec": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}}


def pods(settings: JobSettings, train: JobSpec = SPEC) -> dict[str, dict[str, Any]]:
    """The pod's spec, with the trainer's container as `container`, of each purpose and, where it trains, kind of job."""
    found = {
        "train": test_pytorchjob.pod(PyTorchJobs(settings).manifest(train, 0))["spec"],
        "stage": IndexedJobs(settings).manifest(STAGE, 0)["spec"]["template"]["spec"],
        "evaluate": IndexedJobs(settings).manifest(EVALUATE, 0)["spec"]["template"]["spec"],
    }
    whole = {purpose: {**spec, "container": spec["containers"][0]} for purpose, spec in found.items()}
    job = TrainJobs(settings).manifest(train, 0)
    trainer = {"resources": job["spec"]["trainer"]["resourcesPerNode"], **job["spec"]["trainer"]}
    return {**whole, "trainjob": {**of_pods(job)["spec"], "container": trainer}}


def documented_templates() -> dict[str, Any]:
    """The pod templates of the example in docs/OPERATIONS.md, as a profile has them."""
    page = Document("", (Path(__file__).parents[3] / "docs/OPERATIONS.md").read_text())
    (text,) = [block for _, block in page.blocks("yaml") if "trainingPodTemplate" in block]
    jobs = yaml.safe_load(text)["jobs"]
    names = {
        "podTemplate": "pod_template",
        **{f"{name}PodTemplate": f"{name}_pod_template" for name in ("training", "staging", "evaluation")},
    }
    return {name: jobs[value] for value, name in names.items() if value in jobs}


def with_keys(settings: JobSettings, *keys: str) -> dict[str, Any]:
    """What is below these keys, by purpose; those without it are left out."""
    found: dict[str, Any] = pods(settings)
    for key in keys:
        found = {purpose: part[key] for purpose, part in found.items() if key in part}
    return found


def test_the_common_template_is_laid_over_every_pod():
    """As before there were others."""
    assert with_keys(dataclasses.replace(SETTINGS, pod_template=GPU_NODE), "tolerations").keys() == pods(SETTINGS).keys()


@pytest.mark.parametrize(
    ("name", "purposes"),
    [("training", {"train", "trainjob"}), ("staging", {"stage"}), ("evaluation", {"evaluate"})],
)
def test_a_template_of_a_purpose_is_laid_over_its_pods_alone(name: str, purposes: set[str]):
    settings = dataclasses.replace(SETTINGS, **{f"{name}_pod_template": GPU_NODE})

    assert with_keys(settings, "tolerations") == dict.fromkeys(purposes, GPU_NODE["spec"]["tolerations"])


def test_the_template_of_a_purpose_is_laid_over_the_common_one_and_wins():
    """Lists merge by name where Kubernetes merges them; null takes away what the common one set."""
    common = {"spec": {"nodeSelector": {"zone": "a", "pool": "any"}, "volumes": [{"name": "cache", "emptyDir": {}}]}}
    own = {"spec": {"nodeSelector": {"pool": None, "gpu": "h100"}, "volumes": [{"name": "rdma", "emptyDir": {}}]}}
    found = pods(dataclasses.replace(SETTINGS, pod_template=common, training_pod_template=own))

    assert found["train"]["nodeSelector"] == found["trainjob"]["nodeSelector"] == {"zone": "a", "gpu": "h100"}
    assert found["stage"]["nodeSelector"] == common["spec"]["nodeSelector"]
    assert [volume["name"] for volume in found["train"]["volumes"]] == ["shared-memory", "scratch", "cache", "rdma"]


def test_the_documented_example_keeps_rdma_and_gpu_nodes_from_pods_that_stage():
    """docs/OPERATIONS.md, as a profile would have it."""
    settings = dataclasses.replace(SETTINGS, **documented_templates())
    rdma = {purpose for purpose, limits in with_keys(settings, "container", "resources", "limits").items() if "rdma/hca" in limits}

    assert rdma == {"train", "trainjob"}
    assert with_keys(settings, "tolerations").keys() == {"train", "trainjob", "evaluate"}


@pytest.mark.parametrize("name", ["training_pod_template", "staging_pod_template", "evaluation_pod_template"])
def test_a_mistake_in_a_template_is_said_under_its_name(name: str):
    with pytest.raises(InputError, match=rf"jobs\.{name}\.spec must be a mapping"):
        JobSettings(**{name: {"spec": ["containers"]}})
    for spec in ({"volumes": [{"emptyDir": {}}]}, {"containers": [{"name": "pytorch", "$patch": "delete"}]}):
        with pytest.raises(InputError, match=rf"jobs\.{name}.* must "):
            pods(dataclasses.replace(SETTINGS, **{name: {"spec": spec}}))


@pytest.mark.parametrize(("resource", "gpus"), [("nvidia.com/mig-1g.10gb", 1), ("amd.com/gpu", 8), ("nvidia.com/gpu.shared", 8)])
def test_gpus_are_asked_for_by_the_name_that_nodes_offer_them_under(resource: str, gpus: int):
    """In every kind of job; a pod that stages asks for none."""
    settings = dataclasses.replace(SETTINGS, gpu_resource=resource, gpus_per_node=gpus)
    limits = with_keys(settings, "container", "resources", "limits")

    assert {purpose: found.get(resource) for purpose, found in limits.items()} == {
        "train": str(gpus),
        "trainjob": str(gpus),
        "stage": None,
        "evaluate": "1",
    }
    assert not [found for found in limits.values() if "nvidia.com/gpu" in found]


@pytest.mark.parametrize(
    "resource",
    [
        "gpu",
        "",
        "nvidia.com/",
        "NVIDIA.com/gpu",
        "nvidia.com/gpu x",
        "a/b/c",
        "requests.a.io/gpu",
        "kubernetes.io/gpu",
        "x.kubernetes.io/gpu",
    ],
)
def test_a_name_that_no_resource_has_is_refused(resource: str):
    with pytest.raises(InputError, match=r"jobs\.gpu_resource must be the name of a node's resource"):
        JobSettings(gpu_resource=resource)


def test_a_process_sees_one_mig_slice():
    with pytest.raises(InputError, match=r"jobs\.gpus_per_node must be 0 or 1 if jobs\.gpu_resource is nvidia\.com/mig-1g\.10gb"):
        JobSettings(gpu_resource="nvidia.com/mig-1g.10gb", gpus_per_node=2)


def test_the_user_is_the_images_unless_another_is_named():
    fixed = {"runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
    for user, expected in ((10001, fixed), (1000680000, dict.fromkeys(fixed, 1000680000)), (None, {})):
        contexts = with_keys(dataclasses.replace(SETTINGS, run_as_user=user), "securityContext")

        assert contexts.keys() == pods(SETTINGS).keys()
        for context in contexts.values():
            assert context == {"runAsNonRoot": True, **expected, "seccompProfile": {"type": "RuntimeDefault"}}


@pytest.mark.parametrize("user", [0, -1, 2**31])
def test_root_and_users_that_cannot_be_are_refused(user: int):
    with pytest.raises(InputError, match=r"jobs\.run_as_user must be between 1 and 2147483647, or null"):
        JobSettings(run_as_user=user)


@pytest.mark.parametrize(
    ("image", "patch", "digest"),
    [
        ("r/trainer:1", {}, ""),
        (f"r/trainer@sha256:{'ab' * 32}", {}, f"sha256:{'ab' * 32}"),
        (f"r/trainer:1@sha256:{'ab' * 32}", {}, f"sha256:{'ab' * 32}"),
        (f"r/trainer@sha256:{'ab' * 32}", {"image": f"r/mine@sha256:{'cd' * 32}"}, f"sha256:{'cd' * 32}"),
        (f"r/trainer@sha256:{'ab' * 32}", {"image": "r/mine:2"}, ""),
    ],
)
def test_a_run_records_the_digest_of_its_image(monkeypatch: pytest.MonkeyPatch, image: str, patch: dict[str, str], digest: str):
    """Where the image is given by one, in every kind of job; a template's own image is the one that counts."""
    template = {"spec": {"containers": [{"name": "pytorch", **patch}]}}
    settings = dataclasses.replace(SETTINGS, image=image, pod_template=template)
    for purpose, variables in with_keys(settings, "container", "env").items():
        told = {one["name"]: one["value"] for one in variables if "value" in one}
        monkeypatch.setenv(DIGEST_VARIABLE, told.get(DIGEST_VARIABLE, ""))
        assert lineage.image_digest() == digest, purpose


def test_an_init_is_process_1_of_every_pod():
    assert set(map(tuple, with_keys(SETTINGS, "container", "command").values())) == {
        ("/usr/bin/catatonit", "--", "python", "-m", "trainer")
    }


def storage(settings: JobSettings, train: JobSpec = SPEC) -> dict[str, tuple[str | None, str | None]]:
    """Request and limit of ephemeral storage, by purpose."""
    parts = {purpose: pod["container"]["resources"] for purpose, pod in pods(settings, train).items()}
    return {purpose: tuple(part[kind].get("ephemeral-storage") for kind in ("requests", "limits")) for purpose, part in parts.items()}


def test_what_a_pod_may_write_is_bounded_by_its_cache():
    """With room beside it; a larger cache has a larger bound."""
    assert Placement().cache_bytes == 32 << 30
    expected = dict.fromkeys(pods(SETTINGS), ("1Gi", "48Gi")) | {"stage": ("1Gi", "100Gi")}
    assert storage(SETTINGS) == expected

    larger = storage(SETTINGS, dataclasses.replace(SPEC, placement={"cache_bytes": 200_000_000_000}))
    assert larger["train"] == larger["trainjob"] == ("1Gi", "203Gi")


def test_what_a_pod_may_write_is_as_the_settings_say():
    found = storage(dataclasses.replace(SETTINGS, ephemeral_storage="300Gi", staging_ephemeral_storage="7Gi"))

    assert found == dict.fromkeys(pods(SETTINGS), ("300Gi", "300Gi")) | {"stage": ("7Gi", "7Gi")}


def test_a_job_in_a_queue_asks_for_no_storage_that_the_queue_may_not_know():
    """Kueue admits nothing that asks for a resource which its quotas do not name; where the settings say how much, they name it."""
    queued = dataclasses.replace(SETTINGS, labels={SETTINGS.queue_label: "gpus"})
    assert set(storage(queued).values()) == {(None, None)}
    assert storage(dataclasses.replace(queued, ephemeral_storage="9Gi"))["train"] == ("9Gi", "9Gi")


def test_a_template_says_what_its_pods_may_write():
    """Its own figure wins; with an emptyDir of its own there is none unless it is said, as nobody knows what is meant to go there."""
    own = {"spec": {"containers": [{"name": "pytorch", "resources": {"limits": {"ephemeral-storage": "9Gi"}}}]}}
    shards = {"spec": {"volumes": [{"name": "shards", "emptyDir": {}}]}}
    memory = {"spec": {"volumes": [{"name": "fast", "emptyDir": {"medium": "Memory"}}]}}

    assert storage(dataclasses.replace(SETTINGS, training_pod_template=own))["train"] == (None, "9Gi")
    assert storage(dataclasses.replace(SETTINGS, training_pod_template=shards))["train"] == (None, None)
    assert storage(dataclasses.replace(SETTINGS, training_pod_template=shards))["evaluate"] == ("1Gi", "48Gi")
    assert storage(dataclasses.replace(SETTINGS, training_pod_template=shards, ephemeral_storage="1Ti"))["train"] == ("1Ti", "1Ti")
    assert storage(dataclasses.replace(SETTINGS, training_pod_template=memory))["train"] == ("1Gi", "48Gi")
