"""What requirements/*.txt pin can be installed by plain pip: uv passes over the upper end of a package's Requires-Python, pip does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.reference import reference_python

REFUSED = """
import json, sys
from importlib import metadata
found = {d.metadata["Name"]: [d.version, d.metadata["Requires-Python"]] for d in metadata.distributions() if d.metadata["Requires-Python"]}
print(json.dumps(found))
"""


def refused(python: Path) -> list[str]:
    """The packages of an environment that are not for its Python, which is this one's."""
    done = subprocess.run([python, "-c", REFUSED], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert len(found) > 50
    return [f"{name} {version}: {asked}" for name, (version, asked) in found.items() if not SpecifierSet(asked).contains(here())]


def here() -> str:
    """This Python's version."""
    return ".".join(map(str, sys.version_info[:3]))


def test_every_package_of_this_environment_is_for_this_python() -> None:
    """requirements/dev.txt, of which run, trainer and pipelines are parts."""
    assert refused(Path(sys.executable)) == []


@pytest.mark.slow
def test_every_package_of_the_reference_environment_is_for_this_python() -> None:
    """requirements/reference.txt: dataclasses 0.8, which img2dataset takes, is for Python 3.6 alone."""
    assert refused(reference_python()) == []
