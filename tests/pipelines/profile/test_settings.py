"""How jobs look: a pod's size by its GPUs, and what is refused."""

from typing import Any

import pytest

from pipelines.profile.settings import CORES_PER_GPU, MEMORY_GIB_PER_GPU, SHARED_MEMORY_GIB_PER_GPU, JobSettings
from trainer.errors import InputError


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
