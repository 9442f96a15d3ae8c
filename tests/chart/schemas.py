"""JSON schemas for kubeconform, made from what the Go modules of the test cluster ship: Kubernetes' own and the CRDs'.

    python -m tests.chart.schemas FOLDER

Closed: a field that the API does not know is refused, as a strict server would. Nothing is fetched, nothing vendored.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import programs

Schema = dict[str, Any]

CRDS = {  # folder below tests/cluster/tools -> (module, files)
    "training-operator": ("github.com/kubeflow/training-operator", "manifests/base/crds/kubeflow.org_pytorchjobs.yaml"),
    "prometheus-operator": (
        "github.com/prometheus-operator/prometheus-operator",
        "example/prometheus-operator-crd/monitoring.coreos.com_p*.yaml",
    ),
    "trainer": ("github.com/kubeflow/trainer/v2", "manifests/base/crds/trainer.kubeflow.org_*.yaml"),
}
LOCATION = "{{.ResourceKind}}{{.KindSuffix}}.json"
"""Where kubeconform looks below the folder: kind, group's first word and version."""


def write_schemas(folder: Path) -> None:
    """One file a kind and version."""
    folder.mkdir(parents=True, exist_ok=True)
    for group, version, kind, schema in (*kubernetes(), *custom()):
        suffix = f"-{group.split('.')[0]}-{version}" if group else f"-{version}"
        (folder / f"{kind.lower()}{suffix}.json").write_text(json.dumps(schema))


def kubernetes() -> Iterator[tuple[str, str, str, Schema]]:
    """The kinds of Kubernetes itself, by the specification in its source."""
    file = programs.module_folder("kubernetes", "k8s.io/kubernetes") / "api/openapi-spec/swagger.json"
    definitions = {name: closed(schema) for name, schema in json.loads(file.read_text())["definitions"].items()}
    for name in ("io.k8s.apimachinery.pkg.api.resource.Quantity", "io.k8s.apimachinery.pkg.util.intstr.IntOrString"):
        definitions[name] = {"type": ["string", "number"]}
    for name, schema in definitions.items():
        for known in schema.get("x-kubernetes-group-version-kind", []):
            whole = {"$ref": f"#/definitions/{name}", "definitions": _reachable(definitions, name)}
            yield known["group"], known["version"], known["kind"], whole


def custom() -> Iterator[tuple[str, str, str, Schema]]:
    """The kinds of the operators, by their CRDs."""
    for tool, (module, pattern) in CRDS.items():
        for file in sorted(programs.module_folder(tool, module).glob(pattern)):
            definition = yaml.safe_load(file.read_text())["spec"]
            for version in definition["versions"]:
                yield definition["group"], version["name"], definition["names"]["kind"], closed(version["schema"]["openAPIV3Schema"])


def closed(schema: Any) -> Any:
    """The schema with every object that lists its keys refusing others."""
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["string", "integer"]}
    found = {key: closed(value) for key, value in schema.items()}
    listed = isinstance(schema.get("properties"), dict) and "type" in schema
    if listed and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


def _reachable(definitions: dict[str, Schema], name: str) -> dict[str, Schema]:
    found: dict[str, Schema] = {}
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found[one] = definitions[one]
            waiting += [part.split('"')[0] for part in json.dumps(definitions[one]).split("#/definitions/")[1:]]
    return found


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
