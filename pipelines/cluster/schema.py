"""The schema by which an API server checks objects of a kind, from its OpenAPI documents; every account may read those."""

from typing import Any

from pipelines.cluster.api import Api, Refused
from pipelines.cluster.connection import Kind, missing_kind
from trainer.errors import InputError

Schema = dict[str, Any]


def served_schema(api: Api, kind: Kind) -> Schema:
    """The schema of a kind as this server serves it.

    Raises:
        MissingKind: the cluster does not have this kind in this version.
        InputError: the schema cannot be read.
    """
    group, _, version = kind.api_version.rpartition("/")
    path = f"/openapi/v3/apis/{kind.api_version}" if group else f"/openapi/v3/api/{version}"
    try:
        document = api.call("GET", path)
    except Refused as refused:
        if refused.refusal.status == 404:
            raise missing_kind(api, kind) from refused
        raise InputError(f"{api.server}: the schema of {kind.resource} cannot be read ({path}): {refused.refusal.message}") from refused
    for schema in document["components"]["schemas"].values():
        if {"group": group, "version": version, "kind": kind.kind} in schema.get("x-kubernetes-group-version-kind", ()):
            return dict(schema)
    raise missing_kind(api, kind)


def below(schema: Schema, *keys: str) -> Schema:
    """The schema below these keys; for a list, that of its entries. Empty if the schema has no such key."""
    for key in keys:
        schema = schema.get("items", schema).get("properties", {}).get(key, {})
    return dict(schema.get("items", schema))
