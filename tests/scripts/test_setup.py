"""scripts/setup.sh around a Python and a uv that only take notes."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup.sh"


def setup(folder: Path, mark: str, fails: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run it on an environment whose uv writes down how it was called."""
    (folder / "bin").mkdir(exist_ok=True)
    note = f'echo "$@" >> {folder}/calls'
    scripts = {"python": '[ "$1" != -V ] || echo Python 3.11.7', "uv": f"{note}; echo 'no such package' >&2; exit 1" if fails else note}
    for name, script in scripts.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    environment = {**os.environ, "PYTHON": str(folder / "bin" / "python"), "UV_VERSION": "1"}
    command = ["bash", str(SCRIPT), str(folder), f"requirements/{mark}.txt", mark]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)


def test_it_prints_one_line_and_leaves_its_mark(tmp_path: Path) -> None:
    """What it installs for, with which Python, and how long it took: a screen of packages helps nobody."""
    done = setup(tmp_path, "ready")
    assert done.returncode == 0
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"setup: {tmp_path} with Python 3.11.7, once: what runs need")
    assert line.endswith(" s")
    assert (tmp_path / "ready").exists()
    assert not (tmp_path / "tools").exists()
    assert (tmp_path / "calls").read_text() == "pip sync --quiet --require-hashes requirements/ready.txt\n"


def test_a_run_takes_no_tool_of_tests_away(tmp_path: Path) -> None:
    """Where pytest is, only what is missing is added; the tests' own file is exact."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pytest").touch(mode=0o755)
    setup(tmp_path, "ready")
    setup(tmp_path, "tools")
    assert [call.split()[1] for call in (tmp_path / "calls").read_text().splitlines()] == ["install", "sync"]


@pytest.mark.parametrize("mark", ["ready", "tools"])
def test_a_failure_is_said_and_leaves_no_mark(tmp_path: Path, mark: str) -> None:
    done = setup(tmp_path, mark, fails=True)
    assert done.returncode == 1
    assert done.stdout.endswith("... failed\n")
    assert "no such package" in done.stderr
    assert not (tmp_path / mark).exists()
