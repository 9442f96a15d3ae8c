"""The schemas of Kubeflow Trainer's CRDs, version by version, and a check of objects that is as strict as an API server asked to be.

`python -m tests.pipelines.jobs.trainer_crds` rewrites the schemas, without their descriptions, from the Go modules.
"""

import json
import lzma
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]
FOLDER = Path(__file__).parent / "trainer"
MODULE = "github.com/kubeflow/trainer/v2"
VERSIONS = ("v2.0.0", "v2.1.0", "v2.2.1", "v2.3.0")
KINDS = {"TrainJob": "trainjobs", "TrainingRuntime": "trainingruntimes"}
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


def schemas(version: str) -> dict[str, Schema]:
    """The schema of each kind in this version of Trainer."""
    found: dict[str, Schema] = json.loads(lzma.decompress((FOLDER / f"{version}.json.xz").read_bytes()))
    return found


def faults(schema: Schema, value: Any, where: str = "") -> Iterator[str]:
    """What a server asked for `fieldValidation=Strict` has against a value, each with its place. CEL rules are not looked at."""
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, int | str):
            yield f"{where}: must be an integer or a string"
        return
    wanted = schema.get("type", "")
    if wanted and (not isinstance(value, TYPES[wanted]) or (isinstance(value, bool) and wanted != "boolean")):
        yield f"{where}: must be of type {wanted}"
    elif isinstance(value, dict):
        yield from _faults_of_object(schema, value, where)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from faults(schema["items"], entry, f"{where}[{index}]")
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{where}: must be one of {schema['enum']}"
    elif isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{where}: must match {schema['pattern']}"


def _faults_of_object(schema: Schema, value: dict[str, Any], where: str) -> Iterator[str]:
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{where}.{key}: required"
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    free = schema.get("x-kubernetes-preserve-unknown-fields") or where == ".metadata"  # of which a CRD says nothing
    for key, below in value.items():
        if key in known:
            yield from faults(known[key], below, f"{where}.{key}")
        elif isinstance(others, dict):
            yield from faults(others, below, f"{where}.{key}")
        elif not free:
            yield f"{where}.{key}: unknown field"


def _written(version: str) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["go", "mod", "init", "scratch"], cwd=scratch, check=True, capture_output=True)
        said = subprocess.run(
            ["go", "mod", "download", "-json", f"{MODULE}@{version}"], cwd=scratch, check=True, capture_output=True
        ).stdout
    crds = Path(json.loads(said)["Dir"]) / "manifests/base/crds"
    found = {}
    for kind, plural in KINDS.items():
        (served,) = yaml.safe_load((crds / f"trainer.kubeflow.org_{plural}.yaml").read_text())["spec"]["versions"]
        found[kind] = _silent(served["schema"]["openAPIV3Schema"])
    return lzma.compress(json.dumps(found, sort_keys=True, separators=(",", ":")).encode())


def _silent(schema: Any, names: bool = False) -> Any:
    """The schema without descriptions; `names`: its keys are those of objects, one of which may be called so."""
    if isinstance(schema, list):
        return [_silent(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    dropped = () if names else ("description", "x-kubernetes-validations")
    return {key: _silent(value, not names and key == "properties") for key, value in schema.items() if key not in dropped}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for one in VERSIONS:
        (FOLDER / f"{one}.json.xz").write_bytes(_written(one))
