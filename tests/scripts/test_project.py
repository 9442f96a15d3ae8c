"""What surrounds the code: workflows that run what people run, notices and versions that are true."""

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from scripts import notice
from tests.cluster.programs import program

REPOSITORY = Path(__file__).parents[2]
WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
MAKEFILE = (REPOSITORY / "Makefile").read_text()


def commands(path: Path) -> str:
    """Every shell line of a workflow."""
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    return "\n".join(step["run"] for job in jobs for step in job["steps"] if "run" in step)


def test_workflows_call_targets_that_exist() -> None:
    """Of the Makefile, or scripts of the repository; together they run check and test, and what .ci/run runs."""
    text = "\n".join(map(commands, WORKFLOWS))
    targets = set(re.findall(r"\bmake (?:--silent )?([a-z][a-z0-9-]*)", text.replace("git make python3-venv", "")))
    assert {"check", "test", "images", "version"} <= targets
    assert [target for target in targets if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)] == []
    for script in re.findall(r"(?<![\w/])\.ci/\w+", text):
        assert (REPOSITORY / script).exists()
    assert ".ci/run" in text


@pytest.mark.slow
def test_workflows_pass_actionlint() -> None:
    """All that can be shown without GitHub; expressions, contexts, shells and permissions are checked."""
    assert len(WORKFLOWS) >= 2
    done = subprocess.run([program("actionlint"), *WORKFLOWS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
def test_actionlint_sees_a_context_that_does_not_exist(tmp_path: Path) -> None:
    """The check above can fail."""
    (tmp_path / "bad.yml").write_text(WORKFLOWS[0].read_text().replace("github.ref", "github.reff"))
    assert subprocess.run([program("actionlint"), tmp_path / "bad.yml"], capture_output=True, check=False).returncode == 1


def test_notice_names_every_package_of_the_images() -> None:
    """`make generate` would change nothing."""
    assert (REPOSITORY / "NOTICE").read_text() == notice.text()
    assert "  torch 2." in notice.text()


def test_notice_gives_each_licence_in_words() -> None:
    """Whole, and none as what happens to stand in the first line of a text."""
    said = dict(re.findall(r"^  (\S+) \S+: (.*)$", (REPOSITORY / "NOTICE").read_text(), re.MULTILINE))
    assert set(said) >= set(notice.pinned())
    assert {name: words for name, words in said.items() if not re.fullmatch(r"[A-Za-z0-9][\w .,'()&+-]*[\w)]", words)} == {}
    assert said["torch"].endswith(" AND Zlib")


def test_the_cuda_libraries_bring_their_licences() -> None:
    """As NOTICE says: each in a folder of its own."""
    for name in (name for name in notice.pinned() if name.startswith("nvidia-")):
        assert [file for file in metadata.files(name) or () if "licen" in str(file).lower()], name


def test_one_version_everywhere() -> None:
    """pyproject.toml's, in the chart, the citation and the changelog."""
    (version,) = re.findall(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    chart = yaml.safe_load((REPOSITORY / "charts/firstsight/Chart.yaml").read_text())
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {chart["version"], chart["appVersion"], citation["version"]} == {version}
    assert f"\n## {version}\n" in (REPOSITORY / "CHANGELOG.md").read_text()
    told = subprocess.run(["make", "-s", "version"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(rf"{re.escape(version)}(-[0-9a-f]{{12}})?(-[0-9a-f]{{8}})?\n", told)


def test_dependabot_watches_folders_that_exist() -> None:
    """A folder that moved would never be updated again, without a word."""
    for update in yaml.safe_load((REPOSITORY / ".github/dependabot.yml").read_text())["updates"]:
        for folder in update.get("directories", [update.get("directory")]):
            assert list(REPOSITORY.glob(folder.lstrip("/") or "*")), folder
