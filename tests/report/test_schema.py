"""results.json against results.schema.json, by the few keywords of JSON schema that ours uses."""

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import Written
from tests.report.fabricate import Fabrication, fabricate
from trainer.report.write import write_report
from trainer.storage import read_json

SCHEMA: dict[str, Any] = json.loads(resources.files("trainer.report").joinpath("results.schema.json").read_text(encoding="utf-8"))
TYPES: dict[str, Any] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}
KEYWORDS = {
    "type",
    "const",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "required",
    "properties",
    "additionalProperties",
    "items",
    "anyOf",
    "$ref",
}
WORDS = {"description", "title", "$schema", "$defs"}


def faults(value: Any, schema: Any, place: str = "") -> Iterator[str]:
    """Where a value breaks its schema."""
    if schema is False:
        yield f"{place}: not in the schema"
        return
    if "$ref" in schema:
        _, group, name = schema["$ref"].split("/")
        schema = SCHEMA[group][name]
    assert set(schema) <= KEYWORDS | WORDS, f"{place}: {set(schema) - KEYWORDS - WORDS} is not understood here"
    types = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", list(TYPES))
    if not any(isinstance(value, TYPES[name]) and not (isinstance(value, bool) and name in ("number", "integer")) for name in types):
        yield f"{place}: {value!r} is not {types}"
        return
    if value != schema.get("const", value) or value not in schema.get("enum", [value]):
        yield f"{place}: {value!r} is not allowed"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{place}: {value!r} does not match {schema['pattern']}"
    if isinstance(value, (int, float)) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{place}: {value!r} is out of range"
    if "anyOf" in schema and all(list(faults(value, part, place)) for part in schema["anyOf"]):
        yield f"{place}: {value!r} is none of the allowed kinds"
    if isinstance(value, dict):
        yield from (f"{place}: {name} is missing" for name in schema.get("required", []) if name not in value)
        for name, part in value.items():
            yield from faults(part, schema.get("properties", {}).get(name, schema.get("additionalProperties", {})), f"{place}/{name}")
    if isinstance(value, list):
        for number, part in enumerate(value):
            yield from faults(part, schema.get("items", {}), f"{place}/{number}")


def test_one_seed_fits_the_schema(small: Written) -> None:
    """The demo's results, and no key that the schema does not describe."""
    assert not list(faults(small[1], SCHEMA))


def test_all_sections_fit_the_schema(tmp_path: Path) -> None:
    """Seeds, controls, checkpoints, a comparison, a missing cell, a failure and an exclusion: every section has rows."""
    what = {"arms": ("random", "perceptual", "posthoc"), "seeds": (0, 1), "items": 20, "checkpoints": (50,)}
    what |= {"set_names": ("imagenet-1k", "dtd"), "fractions": (0.25, 1), "tests": {"dose": {"axis": "triplets"}}}
    here, there = (fabricate(tmp_path, Fabrication(**what, name=name)) for name in ("here", "there"))  # type: ignore[arg-type]
    stage = tmp_path / "experiments" / "here" / "perceptual-seed1" / "contrastive"
    (stage / "final" / "COMMITTED.json").unlink()
    (stage / "failure.json").write_text('{"time": "2026-11-24", "stage": "contrastive", "exit_code": 1, "line": "out of memory"}')
    results = read_json(write_report(here, [there])["results"])
    assert not [name for name, rows in results.items() if rows == []]
    assert not list(faults(results, SCHEMA))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 3}, "not allowed"),
        ({"surprise": 1}, "not in the schema"),
        ({"limits": "none"}, "is not"),
        ({"scores": [{}]}, "missing"),
    ],
)
def test_the_schema_refuses(small: Written, change: dict[str, Any], words: str) -> None:
    """A newer format, an unknown key, a wrong type, a row without its keys."""
    assert any(words in fault for fault in faults({**small[1], **change}, SCHEMA))
