"""The values that the operators' pages give as examples render as they stand, under Helm 3 and 4."""

from collections.abc import Callable

import pytest
import yaml

from tests.chart.conftest import CHART, HELMS, KINDS, Tool
from tests.docs.blocks import Block, all_blocks, is_chart_values

pytestmark = pytest.mark.slow
VALUES = [block for block in all_blocks() if block.how == "rendered" and is_chart_values(block)]
NAMESPACES = "profileDefaults:\n  namespaces: [runs]\n"
"""What `helm template` has to be told, as docs/OPERATIONS.md says; a block of its own wins."""


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("block", VALUES, ids=lambda block: f"{block.page}-{block.line}")
def test_values_of_a_page_render(tool: Tool, tmp_path_factory: pytest.TempPathFactory, helm: str, block: Block):
    """What is said there alone, with what a rendering without a cluster must be told before it."""
    before, values = (tmp_path_factory.mktemp("values") / name for name in ("before.yaml", "values.yaml"))
    before.write_text(NAMESPACES)
    values.write_text(block.text)
    kinds = [word for kind in KINDS for word in ("--api-versions", kind)]

    done = tool(helm, "template", "firstsight", str(CHART), "-n", "ml", "-f", str(before), "-f", str(values), *kinds)

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
    "podMonitor": _has("PodMonitor", 1), "big:": _has("ConfigMap", 2), "workloadIdentity": _has("ServiceAccount", 2), "other": _has("ConfigMap", 1),
}  # fmt: skip
