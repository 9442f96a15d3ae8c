"""What the fake API server (tests/pipelines/fake_api.py) knows of objects: selectors, merge patches, refusals."""

import copy
import json
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str, str]
"""Resource (pytorchjobs.kubeflow.org), namespace, name."""


class Status(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, reason: str, message: str, kind: str = "", plain: bool = False) -> None:
        super().__init__(message)
        self.code = code
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code}
        self.body = message.encode() if plain else json.dumps({**status, "details": {"kind": kind}}).encode()


def is_selected(key: Key, thing: Object, resource: str, namespace: str, query: dict[str, str]) -> bool:
    if key[0] != resource or (namespace and key[1] != namespace):
        return False
    labels = thing["metadata"].get("labels", {})
    for term in filter(None, query.get("labelSelector", "").split(",")):
        name, equals, value = term.partition("=")
        if (labels.get(name) != value) if equals else (name not in labels):
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = term.partition("=")
        found: Any = thing
        for part in path.split("."):
            found = (found or {}).get(part)
        if str(found) != value:
            return False
    return True


def merge_patch(base: Object, patch: Object) -> Object:
    """RFC 7386."""
    merged = copy.deepcopy(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = merge_patch(merged.get(key) or {}, value)
        else:
            merged[key] = value
    return merged
