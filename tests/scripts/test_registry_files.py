"""What `make generate` writes of the registries is what lies in the tree."""

from pathlib import Path

import pytest

from pipelines.cluster.names import MAX_NAME
from pipelines.jobs.shapes import registered
from pipelines.jobs.shapes.base import Shape
from scripts import registry_files

FILES = registry_files.files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path):
    """`python scripts/registry_files.py` would change nothing."""
    assert path.read_text(encoding="utf-8") == FILES[path]


@pytest.mark.parametrize("shape", registered(), ids=lambda shape: shape.kind.kind)
def test_every_kind_of_job_takes_the_names_of_ours(shape: type[Shape]):
    """A job's name is at most MAX_NAME characters, whatever kind runs it, so that one name serves all."""
    assert shape.longest_name >= MAX_NAME
    assert shape.kind.pod_label
    assert shape.about if shape.backend else shape.kind.kind == "Job"
