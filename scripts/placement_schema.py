"""Write the chart's schema of `placement` from the trainer's own settings: `python scripts/placement_schema.py`.

Types, choices, ranges and help are those of trainer.config.Placement, without what the launcher alone sets; the rest of values.schema.json
is written by hand. A test compares the two.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.planning.request import LAUNCHERS_OWN
from trainer.config import Placement
from trainer.errors import InputError

SCHEMA = Path(__file__).parents[1] / "charts" / "firstsight" / "values.schema.json"
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def type_schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of a field's type: a plain one, a Literal, or a union of such.

    Raises:
        TypeError: a type that values cannot say.
    """
    if hint in TYPES:
        return {"type": TYPES[hint]}
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if not get_args(hint):
        raise TypeError(f"no JSON schema for {hint}")
    return {"anyOf": [type_schema(part) for part in get_args(hint)]}


def ranges(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the range that Placement itself takes, found by asking it."""
    if "anyOf" in schema:
        return {"anyOf": [ranges(name, part) for part in schema["anyOf"]]}
    if schema.get("type") == "string" and not _takes(name, "x"):  # profile_steps alone
        return {**schema, "pattern": "^([0-9]+:[0-9]+)?$"}
    if schema.get("type") not in ("integer", "number"):
        return schema
    low = next(value for value in (-1, 0, 1) if _takes(name, value))
    found = {**schema}
    if low >= 0:
        found |= {"exclusiveMinimum": 0} if low and schema["type"] == "number" else {"minimum": low}
    if not _takes(name, 1 << 40):
        known, refused = low, 1 << 40
        while refused - known > 1:
            middle = (known + refused) // 2
            known, refused = (middle, refused) if _takes(name, middle) else (known, middle)
        found["maximum"] = known
    return found


def _takes(name: str, value: Any) -> bool:
    try:
        return bool(Placement(**{name: value}))
    except InputError:
        return False


def fields() -> list["dataclasses.Field[Any]"]:
    """The settings that a profile may set."""
    return [item for item in dataclasses.fields(Placement) if item.name not in LAUNCHERS_OWN]


def placement_schema() -> dict[str, Any]:
    """The definition `placement`: those settings and no other key."""
    hints = get_type_hints(Placement)
    properties = {item.name: {**ranges(item.name, type_schema(hints[item.name])), "description": item.metadata["why"]} for item in fields()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def written(current: str) -> str:
    """The whole schema with its part about placement rewritten."""
    schema = json.loads(current)
    schema["definitions"]["placement"] = placement_schema()
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(written(SCHEMA.read_text(encoding="utf-8")), encoding="utf-8")
