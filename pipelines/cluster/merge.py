"""Kubernetes' strategic merge on plain data, as far as a pod template needs it.

Mappings merge key by key; null removes a key; lists with a merge key merge by it; other lists are replaced.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.errors import InputError

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""patchMergeKey of the lists in a PodTemplateSpec (k8s.io/api/core/v1/types.go)."""


def strategic_merge(base: Mapping[str, Any], patch: Mapping[str, Any], source: str = "jobs.pod_template") -> dict[str, Any]:
    """`base` with `patch` merged into it; neither is changed.

    Args:
        base: the original.
        patch: what to merge into it.
        source: origin of the patch, for error messages.

    Raises:
        InputError: a list entry lacks its merge key.
    """
    merged = dict(base)
    for key, value in patch.items():
        below = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and not (key in MERGE_KEYS and isinstance(below, list)):
            merged[key] = strategic_merge(below if isinstance(below, Mapping) else {}, value, source)
        elif key in MERGE_KEYS and isinstance(below, Sequence) and not isinstance(below, str):
            if not (isinstance(value, list) and all(isinstance(entry, Mapping) and MERGE_KEYS[key] in entry for entry in value)):
                raise InputError(f"{source}: {key} must be a list of mappings, each with {MERGE_KEYS[key]}, got {value!r}")
            merged[key] = _merge_lists(below, value, MERGE_KEYS[key], source)
        else:
            merged[key] = value
    return merged


def _merge_lists(base: Sequence[Mapping[str, Any]], patch: Sequence[Mapping[str, Any]], key: str, source: str) -> list[dict[str, Any]]:
    merged = {entry[key]: dict(entry) for entry in base}
    for entry in patch:
        name = entry[key]
        if entry.get("$patch") == "delete":
            merged.pop(name, None)
        else:
            merged[name] = strategic_merge(merged.get(name, {}), entry, source)
    return list(merged.values())
