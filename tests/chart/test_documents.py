"""The values that the operators' pages give as examples render as they stand, under Helm 3 and 4."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.chart.conftest import CHART, HELMS, KINDS, Tool
from tests.docs.blocks import Block, all_blocks, is_chart_values

pytestmark = pytest.mark.slow
VALUES = [block for block in all_blocks() if block.how == "rendered" and is_chart_values(block)]
BUNDLED = {"bundled": {"existingSecret": "store"}}
EXTERNAL = {"bundled": {"enabled": False}, "external": {"enabled": True, "existingSecret": "store"}}


def around(block: Block) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `helm template`, which asks no cluster, has to be told before and after a block: Secrets to copy cannot be read."""
    values = yaml.safe_load(block.text)
    store = BUNDLED if "existingSecret" in values.get("objectStore", {}).get("bundled", {}) else EXTERNAL
    none = {"secret": {"create": False, "existingSecret": ""}}
    copying = {name: none for name, profile in values.get("profiles", {}).items() if "existingSecret" in profile.get("secret", {})}
    after = {"profiles": copying, **({"profileDefaults": none} if "secret" in values.get("profileDefaults", {}) else {})}
    return {"objectStore": store, "profileDefaults": {"namespaces": ["runs"], "secret": {"create": False}}}, after


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("block", VALUES, ids=lambda block: f"{block.page}-{block.line}")
def test_values_of_a_page_render(tool: Tool, tmp_path_factory: pytest.TempPathFactory, helm: str, block: Block):
    """What is said there alone, with what a rendering without a cluster must be told before it."""
    folder = tmp_path_factory.mktemp("values")
    before, after = around(block)
    for name, text in (("1.yaml", json.dumps(before)), ("2.yaml", block.text), ("3.yaml", json.dumps(after))):
        (folder / name).write_text(text)
    files = [word for number in (1, 2, 3) for word in ("--values", str(folder / f"{number}.yaml"))]
    kinds = [word for kind in KINDS for word in ("--api-versions", kind)]

    done = tool(helm, "template", "firstsight", str(CHART), "-n", "ml", "--kube-version", "1.34.0", *files, *kinds)

    assert done.returncode == 0, done.stderr
    _HOLDS[block_about(block)](list(filter(None, yaml.safe_load_all(done.stdout))))


def block_about(block: Block) -> str:
    """By which of its keys a block is known; `other` where nothing more is looked for."""
    return next((key for key in _HOLDS if key in block.text), "other")


def _has(kind: str, number: int) -> Callable[[list[dict[str, object]]], None]:
    def look(objects: list[dict[str, object]]) -> None:
        assert sum(one["kind"] == kind for one in objects) >= number

    return look


_HOLDS: dict[str, Callable[[list[dict[str, object]]], None]] = {
    "podMonitor": _has("PodMonitor", 1),
    "big:": _has("ConfigMap", 2),
    "workloadIdentity": _has("ServiceAccount", 2),
    "other": _has("ConfigMap", 1),
}
"""What the values are for is among the objects, by a word of the block."""
