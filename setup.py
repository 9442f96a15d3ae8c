"""Gives the wheel its dependencies: those of the group `run` in pyproject.toml, so that each is named once."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setuptools import setup


def requirements(groups: dict[str, list[Any]], name: str) -> Iterator[str]:
    """What a dependency group of pyproject.toml asks for, and the groups that it includes."""
    for entry in groups[name]:
        if isinstance(entry, str):
            yield entry
        else:
            yield from requirements(groups, entry["include-group"])


groups = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
setup(install_requires=sorted(set(requirements(groups, "run"))))
