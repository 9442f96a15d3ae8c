"""values.yaml and its schema: closed, complete, and refusing with the key's name. No Helm is needed for that."""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import yaml

from scripts import placement_schema
from tests.chart.conftest import CHART, HELMS, Tool

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def test_schema_is_closed() -> None:
    """Every object in it lists its keys and takes no other, except for maps that are meant to be free."""
    for path, schema in _objects(SCHEMA, "values"):
        if "properties" in schema:
            assert schema["additionalProperties"] is False, path


def test_schema_knows_every_value() -> None:
    """Schema and values.yaml have the same keys, all the way down, apart from what a parent chart may give."""
    for path, keys, known in _pairs(VALUES, SCHEMA, ""):
        assert set(keys) == set(known) - ({"claims"} if path else {"global", "enabled"}), path


def test_every_value_is_described() -> None:
    """helm-docs drops, without a word, a description in which `--` stands after a space."""
    assert re.findall(r"^\| (\S+) \|.*\|  \|$", (CHART / "README.md").read_text(), re.MULTILINE) == []


def test_every_value_has_a_description() -> None:
    """In the README's table; helm-docs drops a comment that contains a second ` --`, such as a flag's."""
    rows = [line for line in (CHART / "README.md").read_text().splitlines() if line.startswith("| ")]

    assert [row for row in rows if row.endswith("|  |")] == []


def test_placement_is_the_trainers_own() -> None:
    """Its part of the schema is what `make generate` writes."""
    text = (CHART / "values.schema.json").read_text()

    assert placement_schema.written(text) == text


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (bool, {"type": "boolean"}),
        (Literal["auto", "cpu"], {"enum": ["auto", "cpu"]}),
        (int | Literal["auto"], {"anyOf": [{"type": "integer"}, {"enum": ["auto"]}]}),
        (bool | Literal["auto"], {"anyOf": [{"type": "boolean"}, {"enum": ["auto"]}]}),
    ],
)
def test_a_type_has_a_schema(hint: Any, schema: dict[str, Any]) -> None:
    assert placement_schema.type_schema(hint) == schema


def test_a_type_that_values_cannot_say_is_refused() -> None:
    with pytest.raises(TypeError, match="no JSON schema for <class 'bytes'>"):
        placement_schema.type_schema(bytes | int)


def _objects(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for key, value in schema.items():
            yield from _objects(value, f"{path}.{key}")


def _pairs(values: Any, schema: dict[str, Any], path: str) -> Iterator[tuple[str, list[str], list[str]]]:
    schema = SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    if isinstance(values, dict) and values and "properties" in schema:
        yield path, list(values), list(schema["properties"])
        for key, value in values.items():
            yield from _pairs(value, schema["properties"][key], f"{path}.{key}")


TYPOS = {
    "top level": ({"profile": {}}, "profile"),
    "image": ({"images": {"trainer": {"tags": "x"}}}, "/images/trainer"),
    "latest by digest": ({"images": {"trainer": {"digest": "abc"}}}, "/images/trainer/digest"),
    "store": ({"objectStore": {"external": {"endpoint": "s3.example.org"}}}, "/objectStore/external/endpoint"),
    "profile": ({"profiles": {"a": {"namespace": "x"}}}, "/profiles/a"),
    "profile's name": ({"profiles": {"A_b": {}}}, "A_b"),
    "backend": ({"profileDefaults": {"backend": "pytorch"}}, "/profileDefaults/backend"),
    "cells at once": ({"profileDefaults": {"parallelCells": -1}}, "/profileDefaults/parallelCells"),
    "a profile's cells at once": ({"profiles": {"a": {"parallelCells": "3"}}}, "/profiles/a/parallelCells"),
    "jobs": ({"jobs": {"gpus": 8}}, "/jobs"),
    "quantity": ({"jobs": {"memory": "4 GB"}}, "/jobs/memory"),
    "shared place": ({"profileDefaults": {"reads": ["data/public"]}}, "/profileDefaults/reads/0"),
    "root that leads out": ({"profiles": {"a": {"root": "s3://data/a/../b"}}}, "/profiles/a"),
    "root that is a pattern": ({"profileDefaults": {"root": "s3://data/*"}}, "/profileDefaults/root"),
    "shared place that leads out": ({"profiles": {"a": {"reads": ["s3://data/public/../x"]}}}, "/profiles/a"),
    "limit": ({"profileDefaults": {"limits": {"node": 1}}}, "/profileDefaults/limits"),
    "limit without a sense": ({"profileDefaults": {"limits": {"gpusPerNode": 65}}}, "/profileDefaults/limits/gpusPerNode"),
    "identity": ({"profileDefaults": {"workloadIdentity": {"role": "x"}}}, "/profileDefaults/workloadIdentity"),
    "a profile's Secret": ({"profileDefaults": {"secret": {"existingSecret": "A B"}}}, "/profileDefaults/secret/existingSecret"),
    "placement": ({"profileDefaults": {"placement": {"loaderWorkers": 4}}}, "/profileDefaults/placement"),
    "a profile's placement": ({"profiles": {"a": {"placement": {"workers": 4}}}}, "/profiles/a"),
    "placement that is the launcher's": ({"profileDefaults": {"placement": {"attempt": 3}}}, "/profileDefaults/placement"),
    "placement's type": ({"profileDefaults": {"placement": {"keep_last": "two"}}}, "/profileDefaults/placement/keep_last"),
    "placement's choice": ({"profileDefaults": {"placement": {"device": "gpu"}}}, "/profileDefaults/placement/device"),
    "GPU's memory": ({"jobs": {"gpuMemory": "80 GB"}}, "/jobs/gpuMemory"),
    "queue of two lines": ({"jobs": {"queue": "a\nb: c"}}, "/jobs/queue"),
    "queue's label": ({"jobs": {"queueLabel": "a\nimage: b"}}, "/jobs/queueLabel"),
    "image of two lines": ({"images": {"trainer": {"repository": "a\nb: c"}}}, "/images/trainer/repository"),
    "pod template": ({"jobs": {"podTemplate": {"containers": []}}}, "/jobs/podTemplate"),
    "a training pod template": ({"jobs": {"trainingPodTemplate": {"tolerations": []}}}, "/jobs/trainingPodTemplate"),
    "a profile's staging pod template": ({"profiles": {"a": {"jobs": {"stagingPodTemplate": 1}}}}, "/profiles/a/jobs/stagingPodTemplate"),
    "GPU resource": ({"jobs": {"gpuResource": "gpu"}}, "/jobs/gpuResource"),
    "ephemeral storage": ({"jobs": {"ephemeralStorage": "much"}}, "/jobs/ephemeralStorage"),
    "root user of jobs": ({"jobs": {"runAsUser": 0}}, "/jobs/runAsUser"),
    "deadline of hooks": ({"pods": {"hookDeadlineSeconds": 0}}, "/pods/hookDeadlineSeconds"),
    "threshold": ({"metrics": {"prometheusRule": {"dataWaitFraction": 20}}}, "/metrics/prometheusRule/dataWaitFraction"),
    "keep": ({"uninstall": {"keep": ["pvc"]}}, "/uninstall/keep"),
    "range": ({"networkPolicy": {"stagingCidrs": ["300.1.1.1/8"]}}, "/networkPolicy/stagingCidrs/0"),
    "range without a length": ({"networkPolicy": {"dnsCidrs": ["10.0.0.1"]}}, "/networkPolicy/dnsCidrs/0"),
    "exception": ({"networkPolicy": {"storeCidrs": [{"cidr": "10.0.0.0/8", "exept": []}]}}, "/networkPolicy/storeCidrs/0"),
    "rule of egress": ({"networkPolicy": {"egress": [{"too": []}]}}, "/networkPolicy/egress/0"),  # which would allow everything
    "peer of egress": ({"networkPolicy": {"jobEgress": [{"to": [{"ipblock": {}}]}]}}, "/networkPolicy/jobEgress/0/to/0"),
    "everyone as a peer": ({"networkPolicy": {"egress": [{"to": [{}]}]}}, "/networkPolicy/egress/0/to/0"),
    "port of egress": ({"networkPolicy": {"egress": [{"ports": [{"prot": 443}]}]}}, "/networkPolicy/egress/0/ports/0"),
    "port of a URL": ({"metrics": {"prometheusUrl": "http://prometheus.example.org:0"}}, "/metrics/prometheusUrl"),
    "named port of a URL": ({"kubeflow": {"endpoint": "http://kfp.example.org:web"}}, "/kubeflow/endpoint"),
    "token in a URL": ({"kubeflow": {"endpoint": "https://kfp.example.org/?token=x"}}, "/kubeflow/endpoint"),
    "resource of a quota": ({"jobs": {"gpuResource": "requests.nvidia.com/gpu"}}, "/jobs/gpuResource"),
    "resource of Kubernetes": ({"jobs": {"gpuResource": "x.kubernetes.io/gpu"}}, "/jobs/gpuResource"),
    "private source": ({"network": {"privateSources": ["mirror.example.org"]}}, "/network/privateSources/0"),
    "root user": ({"pods": {"runAsUser": 0}}, "/pods/runAsUser"),
}


@pytest.mark.slow
@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("name", TYPOS)
def test_schema_refuses(tool: Tool, helm: str, name: str) -> None:
    """Helm refuses before it renders, and names the place."""
    values, place = TYPOS[name]
    done = tool(helm, "template", "fs", str(CHART), "--values", "-", text=json.dumps(values))
    assert done.returncode != 0
    assert place.strip("/").replace("/", ".") in done.stderr.replace("/", ".")
