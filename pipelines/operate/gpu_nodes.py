"""Determine which GPU nodes can run the trainer image, from NVIDIA's labels (GPU feature discovery), if nodes have them."""

import re
from collections.abc import Mapping
from typing import Any

from trainer.configs.sizes import MINIMUM_DRIVERS
from trainer.errors import InputError

CUDA = 13
"""Major version of the pinned torch's CUDA; the trainer itself asks its own torch (trainer/model/gpus.py)."""
CAPABILITY = (7, 5)
"""Oldest GPUs that the pinned torch is built for: Turing."""


def major_of(cuda: str) -> int:
    """The major version of an image's CUDA, given as `12.6`, `12` or `cu126`; empty: the pinned torch's. InputError for another."""
    found = re.fullmatch(r"(?:cu)?(\d\d)(?:\.\d+|\d)?", cuda)
    major = int(found[1]) if found else 0 if cuda else CUDA
    if major not in MINIMUM_DRIVERS:
        known = " or ".join(map(str, MINIMUM_DRIVERS))
        raise InputError(f"--cuda must be the trainer image's CUDA, {known}, such as 12.6, got {cuda!r}")
    return major


def count_of(node: Mapping[str, Any], resource: str) -> int:
    """The node's allocatable amount of a resource, such as nvidia.com/gpu."""
    return int(node["status"].get("allocatable", {}).get(resource, 0))


def labels_of(node: Mapping[str, Any]) -> dict[str, str]:
    """The labels of a node."""
    return dict((node.get("metadata") or {}).get("labels") or {})


def why_not(node: Mapping[str, Any], cuda: int) -> str:
    """Why an image with this CUDA cannot run on the node's GPUs; empty: it can, or nothing is known."""
    name, labels = (node.get("metadata") or {}).get("name", "a node"), labels_of(node)
    driver = _number(labels, "cuda.driver-version.major", "cuda.driver.major")
    if driver is not None and driver < MINIMUM_DRIVERS[cuda]:
        return f"{name} has driver {driver}, but {MINIMUM_DRIVERS[cuda]} or newer is needed"
    major, minor = _number(labels, "gpu.compute.major"), _number(labels, "gpu.compute.minor") or 0
    if cuda == CUDA and major is not None and (major, minor) < CAPABILITY:  # what another torch is built for is not known here
        return f"{name} has GPUs of compute capability {major}.{minor}, but {CAPABILITY[0]}.{CAPABILITY[1]} or newer is needed"
    return ""


def is_labelled(node: Mapping[str, Any]) -> bool:
    """Whether its driver is known."""
    return _number(labels_of(node), "cuda.driver-version.major", "cuda.driver.major") is not None


def _number(labels: Mapping[str, str], *names: str) -> int | None:
    found = (labels.get(f"nvidia.com/{name}", "") for name in names)
    return next((int(value) for value in found if value.isdigit()), None)
