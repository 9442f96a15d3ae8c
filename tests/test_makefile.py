"""Each target of the Makefile stands alone, on a machine where no other one has run."""

import re
from collections import defaultdict
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "Makefile").read_text()


def rules() -> dict[str, tuple[set[str], str]]:
    """Prerequisites and recipe of each target."""
    found: dict[str, tuple[set[str], str]] = defaultdict(lambda: (set(), ""))
    for targets, line, recipe in re.findall(r"^([a-z$][^:=\n]*):(?!=)([^\n]*)\n((?:\t[^\n]*\n)*)", TEXT, re.MULTILINE):
        for target in targets.split():
            prerequisites, before = found[target]
            found[target] = (prerequisites | {*line.partition("##")[0].split()}, before + recipe)
    return found


def test_what_runs_in_the_environment_makes_it_first():
    """`make e2e-tests` as much as `make test`."""
    using = {target for target, (_, recipe) in rules().items() if "$(BIN)" in recipe}

    assert {"test", "generate", "e2e-tests", "cluster-up"} <= using
    assert {target for target in using if "$(VENV)/ready" not in rules()[target][0]} == set()


def test_every_file_that_it_names_is_there():
    """A target that writes to where a file once lay makes a second one."""
    names = set(re.findall(r"(?<![\w/$])(?:scripts|images|manifests|pipelines|docs|charts|tests|requirements)/[\w./-]*\w", TEXT))

    assert {"scripts/setup.sh", "images/build.sh", "pipelines/kubeflow/compiled/firstsight.yaml"} <= names
    assert {name for name in names if not (REPOSITORY / name).exists()} == set()
