"""The command and configuration blocks of the operators' pages, and how each is tested.

A block of YAML is rendered: by Helm where it holds the chart's values, else by the reader that its keys say. A block of shell is run,
with those of its page before it, unless a comment on the line before it says otherwise: `<!-- run: cluster -->`
(tests/cluster/test_documents.py) or `<!-- not run: <reason> -->`.
"""

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.docs import known

REPOSITORY = Path(__file__).parents[2]
PAGES = ("docs/OPERATIONS.md", "docs/KUBEFLOW.md", "manifests/README.md", "docs/RUNBOOK.md", "docs/DAY_TWO.md")
SHELLS, YAML, DATA = ("sh", "shell", "bash", "console"), ("yaml", "yml"), ("json",)
_MARK = r"(?:^[ \t]*<!-- (?P<mark>(?:not )?run: [^>]*?) -->\n)?"
_BLOCK = re.compile(
    _MARK + r"^(?P<indent>[ \t]*)```(?P<language>\w*)\n(?P<text>.*?)^[ \t]*```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: relative to the repository.
        line: of its first line.
        language: after the fence.
        text: its lines; a console's commands without what they print.
        mark: the comment before it: `run: cluster`, `not run: <reason>`, or empty.
    """

    page: str
    line: int
    language: str
    text: str
    mark: str = ""

    @property
    def how(self) -> str:
        """`rendered`, `run`, `cluster`, `excused`, empty for data, or `unknown`, which may be commands of another name or of none."""
        if self.language in YAML:
            return "rendered"
        if self.language not in SHELLS:
            return "" if self.language in DATA else "unknown"
        return {"": "run", "run: cluster": "cluster"}.get(self.mark, "excused" if self.mark.startswith("not run: ") else "unknown")


def read_blocks(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page, in order."""
    whole = (REPOSITORY / page).read_text(encoding="utf-8") if text is None else text
    found = []
    for match in _BLOCK.finditer(whole):
        lines = [line.removeprefix(match["indent"]) for line in match["text"].splitlines()]
        if match["language"] == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        line = whole.count("\n", 0, match.start("text")) + 1
        found.append(Block(page, line, match["language"], "\n".join(lines) + "\n", match["mark"] or ""))
    fences = re.findall(r"^[ \t]*(?:`{3,}|~{3,}).*$", whole, re.MULTILINE)
    assert len(fences) == 2 * len(found), f"{page}: a fence that is not read: {fences}"
    return found


def all_blocks() -> list[Block]:
    """Those of every operators' page."""
    return [block for page in PAGES for block in read_blocks(page)]


def count(blocks: Iterable[Block]) -> str:
    """How many are tested in which way, for people."""
    number = Counter(block.how for block in blocks)
    return f"{number['run']} run, {number['cluster']} run on a cluster, {number['rendered']} rendered, {number['excused']} excused"


def is_chart_values(block: Block) -> bool:
    """Whether a block of YAML holds values of the chart."""
    return bool(set(yaml.safe_load(block.text)) & set(known.chart_values()))


def checkout(folder: Path) -> Path:
    """A folder that looks like a checkout in which `make setup` was run: this one's files, and its Python in .venv."""
    folder.mkdir(parents=True)
    for path in REPOSITORY.iterdir():
        if path.name not in (".git", ".venv", "build", "runs"):
            (folder / path.name).symlink_to(path)
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    for name in ("ready", "tools", "steps"):
        (folder / ".venv" / name).touch()
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return folder


def run_script(text: str, folder: Path, environment: Mapping[str, str], *programs: Path) -> "subprocess.CompletedProcess[str]":
    """Run lines in one bash that stops at the first failure, also in a pipe; these folders' programs come first."""
    path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env={**os.environ, **environment, "PATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
