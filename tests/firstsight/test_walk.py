"""docs/LIBRARY.md, block by block."""

import re
import shlex
from pathlib import Path

import pytest

import firstsight
from firstsight.__main__ import _parser

PAGE = (Path(__file__).parents[2] / "docs" / "LIBRARY.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The page's blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_walk_runs(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each block of Python after the other, in the folder where the root lies, as in a notebook."""
    monkeypatch.chdir(root.parent)
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks("python"), 1):
        exec(compile(block, f"docs/LIBRARY.md, block {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "contains pairs, but triplets are needed" in printed
    assert "perceptual 0 " in printed


def test_its_commands_are_commands() -> None:
    """The lines of shell parse."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    parsed = [_parser().parse_args(shlex.split(line)[1:]).command for line in lines if line.startswith("firstsight ")]
    assert parsed == ["run"]


def test_its_table_names_all_that_is_public() -> None:
    """And nothing else."""
    table = PAGE[PAGE.index("## Summary") :]
    named = set(re.findall(r"`([A-Za-z_]+)", table))
    assert named - {"kind"} == set(firstsight.__all__)
