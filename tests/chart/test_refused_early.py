"""Whatever a run's first step refuses of its profile Helm refuses before: fields and values are the profile's own, so a new one is seen."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from pipelines.profile.confined import Limits
from pipelines.profile.profile import Links, Profile
from pipelines.profile.settings import JobSettings, Patience
from scripts import placement_schema
from tests.chart.conftest import CHART, COMMON, Tool
from trainer.config import Placement
from trainer.errors import InputError

WHERE: dict[type, tuple[str, ...]] = {
    Profile: ("profileDefaults",),
    Limits: ("profileDefaults", "limits"),
    Links: ("profileDefaults", "links"),
    Placement: ("profileDefaults", "placement"),
    JobSettings: ("jobs",),
    Patience: ("jobs", "patience"),
}
"""By the class of what is read the part of the values that it comes from."""
ELSEWHERE = {
    JobSettings: {
        "namespace", "image", "ranks_per_node", "private_sources", "store_secret", "service_account", "token_audience", "store_environment",
    },
    Profile: {"jobs", "placement", "links", "limits"},
}  # fmt: skip
"""Fields that no value of that part sets: the chart makes them, or they are a class of their own here."""
TRIED: dict[Any, tuple[Any, ...]] = {
    int: (-1, 0, 80, 10**7),
    float: (-1.5, 0),
    str: ("a\nb", "x x", "4Gi", "/etc/data", "s3://b/../c", "https://me:secret@host/x", "x?token=abc", "gs://b/c"),
    tuple[str, ...]: ((" ",), ("s3://b/../c",)),
}
"""By the type of a field what somebody might write."""


def _refused() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that the profile's code does not take, by its path among the values."""
    for read, where in WHERE.items():
        for item in placement_schema.fields() if read is Placement else dataclasses.fields(read):
            if item.name in ELSEWHERE.get(read, ()):
                continue
            name = item.name if read is Placement else re.sub(r"_(\w)", lambda found: found[1].upper(), item.name)
            hint = get_type_hints(read)[item.name]
            for kind in {hint, *(() if get_origin(hint) in (dict, tuple) else get_args(hint))} & set(TRIED):
                yield from (((*where, name), value) for value in TRIED[kind] if not _takes(read, item.name, value))


def _takes(read: type, name: str, value: Any) -> bool:
    bounded = {"reads": (), "root": "s3://b/c"} if read is Profile else {}
    with contextlib.suppress(InputError, TypeError):
        return bool(read(**{**bounded, name: value}))
    return False


def test_there_is_something_to_refuse() -> None:
    """Of each class; else the test below would look at nothing."""
    paths = [path for path, _ in _refused()]
    for where in WHERE.values():
        assert any(path[:-1] == where for path in paths), where
    assert len(paths) > 60


@pytest.mark.slow
def test_helm_refuses_what_the_first_step_would(tool: Tool) -> None:
    """By the name of the value. The schema names all that is wrong at once, a template the first."""

    def said(wrong: list[tuple[tuple[str, ...], Any]]) -> str:
        given: dict[str, Any] = {}
        for path, value in wrong:
            part = given
            for key in path[:-1]:
                part = part.setdefault(key, {})
            part[path[-1]] = value
        done = tool("helm", "template", "fs", str(CHART), "--values", str(COMMON), "--values", "-", text=json.dumps(given))
        return done.stderr if done.returncode else ""

    refused, left = list(_refused()), []
    while refused:
        once = list(dict(reversed(refused)).items())  # a value for each path
        refused = [one for one in refused if one not in once]
        answer = said(once).replace("/", ".")
        left += [one for one in once if ".".join(one[0]) not in answer]
    assert [(path, value) for path, value in left if path[-1] not in said([(path, value)])] == []
