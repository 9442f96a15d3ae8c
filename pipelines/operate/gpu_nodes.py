"""Which GPU nodes can run the trainer image: by NVIDIA's labels (GPU feature discovery), as far as nodes have them."""

from collections.abc import Mapping
from typing import Any

DRIVER = 580
"""Least version of NVIDIA's driver for the CUDA 13 of the image's torch; the trainer itself asks its own torch (trainer/model/gpus.py)."""
CAPABILITY = (7, 5)
"""Oldest GPUs that this torch is built for: Turing."""


def count_of(node: Mapping[str, Any], resource: str) -> int:
    """How much of a resource, such as nvidia.com/gpu, pods may have of this node."""
    return int(node["status"].get("allocatable", {}).get(resource, 0))


def why_not(node: Mapping[str, Any]) -> str:
    """Why the image cannot run on this node's GPUs; empty: it can, or nothing is known."""
    metadata = node.get("metadata") or {}
    name, labels = metadata.get("name", "a node"), metadata.get("labels") or {}
    driver = _number(labels, "cuda.driver-version.major", "cuda.driver.major")
    if driver is not None and driver < DRIVER:
        return f"{name} has driver {driver}, but {DRIVER} or newer is needed"
    major, minor = _number(labels, "gpu.compute.major"), _number(labels, "gpu.compute.minor") or 0
    if major is not None and (major, minor) < CAPABILITY:
        return f"{name} has GPUs of compute capability {major}.{minor}, but {CAPABILITY[0]}.{CAPABILITY[1]} or newer is needed"
    return ""


def is_labelled(node: Mapping[str, Any]) -> bool:
    """Whether its driver is known."""
    labels = (node.get("metadata") or {}).get("labels") or {}
    return _number(labels, "cuda.driver-version.major", "cuda.driver.major") is not None


def _number(labels: Mapping[str, str], *names: str) -> int | None:
    found = (labels.get(f"nvidia.com/{name}", "") for name in names)
    return next((int(value) for value in found if value.isdigit()), None)
