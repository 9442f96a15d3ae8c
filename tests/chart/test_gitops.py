"""Rendered without a cluster, twice, and from values that lack what a newer chart added."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from scripts import values_tree
from tests.chart.conftest import CHART, COMMON, EVERYTHING, EXTERNAL, GITOPS, IDENTITY, TENANTS, Objects, Tool

STABLE = {"gitops": GITOPS, "everything": {**EVERYTHING, **GITOPS}, "external": {**EVERYTHING, **EXTERNAL}, "identity": IDENTITY}
UNSTABLE = ("Secret/fs-firstsight-minio", "Secret/firstsight", "Secret/team-a", "Secret/team-b", "Deployment/fs-firstsight-minio")
"""What holds the root password, a key that derives from it, or its checksum."""


def test_the_tree_of_values_is_generated() -> None:
    """templates/_values.tpl is what `make generate` writes."""
    assert values_tree.template() == values_tree.TARGET.read_text()


def test_the_tree_has_every_key_but_those_that_may_be_null() -> None:
    """So whatever a chart adds is missed in the values of an earlier one."""
    paths = set(_paths(_tree()))
    assert {"commonLabels", "jobs.patience.queued", "profileDefaults.limits.queues", "images.minio.digest"} <= paths
    assert not {"pods.runAsUser", "jobs.runAsUser", "profiles.firstsight"} & paths


@pytest.mark.slow
@pytest.mark.parametrize("name", STABLE)
def test_two_renderings_are_one(render: Any, name: str) -> None:
    """Nothing is drawn, and nothing depends on when or where it is rendered."""
    assert render(STABLE[name]) == render(STABLE[name])


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, TENANTS], ids=["defaults", "tenants"])
def test_only_credentials_are_unstable(render: Any, values: dict[str, Any]) -> None:
    """Where they are allowed to be: no other object differs between two renderings."""
    first, second = (_named(render(values)) for _ in range(2))
    assert set(first) == set(second)
    assert {name for name in first if first[name] != second[name]} <= {*UNSTABLE}


@pytest.mark.slow
def test_no_values_that_lack_a_key_end_in_a_template(tool: Tool) -> None:
    """Each key, left out as --reuse-values does: refused by its path in one sentence, before a template stumbles over it."""
    wrong = {}
    for path in [*_paths(_tree(), depth=2)][::4]:  # some thirty of them, of every part
        values: Any = None
        for key in reversed(path.split(".")):
            values = {key: values}
        done = tool("helm", "template", "fs", str(CHART), "--values", str(COMMON), "--values", "-", text=json.dumps(values))
        if done.returncode == 0 or f"): {path} is missing: " not in done.stderr:
            wrong[path] = done.stderr
    assert wrong == {}


def _tree() -> dict[str, Any]:
    schema, values = (yaml.safe_load((CHART / name).read_text()) for name in ("values.schema.json", "values.yaml"))
    return values_tree.tree(values, schema, schema["definitions"])


def _paths(tree: dict[str, Any], before: str = "", depth: int = 9) -> Iterator[str]:
    for key, below in tree.items():
        yield before + key
        if below and depth > 1:
            yield from _paths(below, f"{before}{key}.", depth - 1)


def _named(objects: Objects) -> dict[str, Any]:
    return {f"{one['kind']}/{one['metadata']['name']}/{one['metadata'].get('namespace')}".rsplit("/", 1)[0]: one for one in objects}
