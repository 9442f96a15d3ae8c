"""Write the chart's templates/_values.tpl: every key that its values must have, and how credentials look: `python scripts/values_tree.py`.

`helm upgrade --reuse-values` brings the values of the earlier chart alone, without what a newer one added. The chart finds what is
missing by this list, instead of breaking off where a template first uses it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.planning.parameters import SYSTEM_FOLDERS
from trainer import redaction

CHART = Path(__file__).parents[1] / "charts/firstsight"
TARGET = CHART / "templates/_values.tpl"


def tree(values: dict[str, Any], schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The keys that the schema lists, each with those below it; without those that may be null, which Helm leaves out."""
    found = {}
    for key, item in schema["properties"].items():
        item = definitions[item["$ref"].rsplit("/", 1)[1]] if "$ref" in item else item
        if key in values and "null" not in item.get("type", ()):
            found[key] = tree(values[key], item, definitions) if "properties" in item and values[key] else {}
    return found


def template() -> str:
    """The file."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    defined = {
        "valuesTree": json.dumps(tree(values, schema, schema["definitions"]), indent=1, sort_keys=True),
        "systemFolder": f"^/({'|'.join(SYSTEM_FOLDERS)})(/|$)",
        "secretName": f"(?i){redaction.SECRET_NAME.pattern}",
        "secretInUrl": f"(?i)://[^\\s/?#@]*@|{redaction.SECRET_IN_URL.pattern}",
    }
    parts = [f'{{{{- define "firstsight.{name}" -}}}}\n{text}\n{{{{- end -}}}}' for name, text in defined.items()]
    return "\n".join(["{{- /* Written by scripts/values_tree.py: do not edit. */ -}}", *parts, ""])


if __name__ == "__main__":
    TARGET.write_text(template(), encoding="utf-8")
