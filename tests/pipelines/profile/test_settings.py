"""How jobs look: a pod's size by its GPUs, and what is refused."""

from typing import Any

import pytest

from pipelines.profile.settings import CORES_PER_GPU, MEMORY_GIB_PER_GPU, PRIVATE_VARIABLE, SHARED_MEMORY_GIB_PER_GPU, JobSettings
from trainer.errors import InputError
from trainer.staging.remote import addresses


def sizes(**settings: Any) -> tuple[str, str, str]:
    """CPU, memory and /dev/shm of a pod."""
    found = JobSettings(**settings)
    return found.cpu_of_pod, found.memory_of_pod, found.shared_memory_of_pod


def test_a_pod_without_gpus_is_small():
    assert sizes() == ("1", "4Gi", "1Gi")


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_pod_grows_with_its_gpus(gpus: int):
    expected = (str(CORES_PER_GPU * gpus), f"{MEMORY_GIB_PER_GPU * gpus}Gi", f"{SHARED_MEMORY_GIB_PER_GPU * gpus}Gi")

    assert sizes(gpus_per_node=gpus) == expected


@pytest.mark.parametrize("gpus", [0, 8])
def test_what_is_given_wins(gpus: int):
    """Each by itself."""
    derived = sizes(gpus_per_node=gpus)

    assert sizes(gpus_per_node=gpus, cpu="3") == ("3", *derived[1:])
    assert sizes(gpus_per_node=gpus, memory="5Gi") == (derived[0], "5Gi", derived[2])
    assert sizes(gpus_per_node=gpus, shared_memory="64Mi") == (*derived[:2], "64Mi")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", 0), ("80Gi", 80 << 30), ("80G", 80 * 10**9), ("79.6Gi", int(79.6 * 2**30)), ("81559Mi", 81559 << 20), ("85899345920", 80 << 30)],
)
def test_the_memory_of_a_gpu_is_a_number_of_bytes(given: str, expected: int):
    assert JobSettings(gpu_memory=given).gpu_memory_bytes == expected


@pytest.mark.parametrize(
    "name",
    "cpu memory shared_memory gpu_memory ephemeral_storage staging_cpu staging_memory staging_ephemeral_storage".split(),
)
def test_a_size_that_is_none_is_refused(name: str):
    with pytest.raises(InputError, match=rf"jobs\.{name} must be a Kubernetes quantity such as 4 or 16Gi.*, got '80 GB'"):
        JobSettings(**{name: "80 GB"})


@pytest.mark.parametrize("name", ["staging_cpu", "staging_memory"])
def test_a_staging_pod_has_no_gpus_to_be_sized_by(name: str):
    with pytest.raises(InputError, match=rf"jobs\.{name} must be a Kubernetes quantity"):
        JobSettings(**{name: ""})


@pytest.mark.parametrize(
    "variable", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "WANDB_API_KEY", "DB_PASSWORD", "x_token"]
)
def test_a_profile_holds_no_credential(variable: str):
    """By its name, in the store's environment and in the pod template; what names a file that holds one may be there."""
    with pytest.raises(InputError, match=f"jobs.store_environment: {variable} must not contain a credential") as raised:
        JobSettings(store_environment={variable: "c4n4ry"})
    assert "c4n4ry" not in str(raised.value)
    with pytest.raises(InputError, match=f"env {variable} must not contain a credential"):
        JobSettings(pod_template={"spec": {"containers": [{"name": "pytorch", "env": [{"name": variable, "value": "c4n4ry"}]}]}})
    JobSettings(store_environment={f"{variable}_FILE": "/run/secrets/x"})
    taken = {"name": variable, "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}}
    JobSettings(pod_template={"spec": {"containers": [{"name": "pytorch", "env": [taken]}]}})


@pytest.mark.parametrize("value", ["http://user:c4n4ry@proxy:3128", "https://h/?X-Amz-Signature=c4n4ry"])
def test_a_profile_holds_no_credential_in_an_address(value: str):
    with pytest.raises(InputError, match="HTTPS_PROXY must not contain a credential") as raised:
        JobSettings(store_environment={"HTTPS_PROXY": value})
    assert "c4n4ry" not in str(raised.value)


def test_private_sources_are_ranges():
    assert JobSettings(private_sources=("10.0.0.0/8", "fd00::/8")).staging_environment == {PRIVATE_VARIABLE: "10.0.0.0/8,fd00::/8"}
    assert JobSettings().staging_environment == {}
    assert PRIVATE_VARIABLE == addresses.PRIVATE_VARIABLE
    for block in ("10.0.0.0/33", "10.0.0.1/8", "mirror.example", ""):
        with pytest.raises(InputError, match=r"jobs\.private_sources must be CIDR blocks such as 10\.0\.0\.0/8, got"):
            JobSettings(private_sources=(block,))
