"""docs/KUBEFLOW.md names what is there: every parameter in its order, every variable, every step."""

import re
from pathlib import Path

from pipelines.kubeflow.form import NAMES

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs/KUBEFLOW.md").read_text()


def section(title: str) -> str:
    """The text below a heading."""
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_every_parameter_is_explained_in_the_order_of_the_form():
    """The table is what a person reads before pressing Run."""
    named = re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in section("The form").splitlines() if line.startswith("| `")))

    assert named == sorted(NAMES.values())


def test_every_variable_of_the_client_is_explained():
    """Credentials have no flag, so this is where they are found."""
    read = set()
    for module in ("upload", "submit", "endpoint"):
        read |= set(re.findall(r'get\("(K\w+)"', (REPOSITORY / f"pipelines/kubeflow/{module}.py").read_text()))

    explained = set(re.findall(r"^\| `(\w+)` \|", section("From CI"), flags=re.MULTILINE))

    assert explained == read


def test_every_step_is_explained():
    """With what it shows."""
    named = re.findall(r"`([a-z-]+)`", " ".join(line.split("|")[1] for line in section("What a user sees").splitlines() if "|" in line))

    assert set(named) == {
        "links",
        "stage-triplets",
        "stage-pairs",
        "plan",
        "perceptual",
        "contrastive",
        "posthoc",
        "evaluate",
        "report",
        "finish",
    }
