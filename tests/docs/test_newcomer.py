"""What a newcomer and a CI system do with a fresh clone, by the shell lines of tests/docs/newcomer.sh and docs/CI.md."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("newcomer.sh")
CI = (REPOSITORY / "docs" / "CI.md").read_text(encoding="utf-8")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def blocks(language: str) -> list[str]:
    """The fenced blocks of docs/CI.md in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", CI, re.DOTALL | re.MULTILINE)


def shell_lines() -> dict[str, str]:
    """The script of each example, as its CI system runs it."""
    github, gitlab = map(yaml.safe_load, blocks("yml"))
    (container,) = blocks("sh")
    steps = [(step["run"], "if" in step) for step in github["jobs"]["smoke"]["steps"] if "run" in step]
    job = gitlab["smoke"]
    return {
        "GitHub Actions": _in_order(steps),
        "GitLab CI": _in_order([*((line, False) for line in job["script"]), *((line, True) for line in job["after_script"])]),
        "container": container,
    }


def _in_order(steps: list[tuple[str, bool]]) -> str:
    """A script that stops at the first step that fails, except for those that always run, and ends with its exit code."""
    lines = ["code=0"]
    for run, always in steps:
        lines.append(f"({run}) || code=$?" if always else f'if [ "$code" = 0 ]; then ({run}) || code=$?; fi')
    return "\n".join([*lines, 'exit "$code"'])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the newcomer's hour has passed."""
    folder = tmp_path_factory.mktemp("newcomer") / "firstsight"
    done = subprocess.run(
        ["bash", str(REPOSITORY / "tests" / "docs" / "newcomer.sh"), str(REPOSITORY), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return folder


def run(lines: str, clone: Path, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    """These lines in the clone."""
    environment = {**os.environ, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    return subprocess.run(["bash", "-e", "-c", lines], cwd=clone, env=environment, capture_output=True, text=True, check=False)


def test_a_newcomer_gets_from_clone_to_site_with_an_arm_of_their_own(clone: Path) -> None:
    """The site is built, and the new arm's name is one that the command line gives."""
    assert (clone / "build/site/index.html").exists()
    assert "permuted-instance" in (clone / "build/site/reference/commands.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["GitHub Actions", "GitLab CI", "container"])
def test_an_example_for_ci_runs_and_leaves_the_page(name: str, clone: Path, tmp_path: Path) -> None:
    """Its own lines; the experiment is there already, so that it only finds it finished."""
    done = run(shell_lines()[name], clone, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (clone / "runs/experiments/smoke/report/index.html").exists()
    told = {"GitHub Actions": tmp_path / "summary.md", "container": clone / "artifacts" / "report.md"}
    tables = told[name].read_text(encoding="utf-8") if name in told else done.stdout
    assert "| " in tables
    assert "perceptual" in tables


@pytest.mark.parametrize("name", ["GitHub Actions", "GitLab CI", "container"])
def test_an_example_for_ci_ends_with_the_code_of_wrong_input(name: str, clone: Path, tmp_path: Path) -> None:
    """What runs afterwards does not hide it."""
    done = run(shell_lines()[name].replace("--recipe smoke", "--recipe nonsense"), clone, tmp_path)
    assert done.returncode == 2, done.stderr
    assert "nonsense" in done.stderr
