"""What a step says to the person who waits, beside the progress of its job."""

import re

from trainer.progress import tell

FAILED = "failed: "
"""Begins what a step says when it fails; why follows."""


def note(step: str, text: str, *, detail: bool = False) -> None:
    """Say one thing about a step; a detail is shown with -v only."""
    print(f"{step}: {text}", flush=True)
    tell(step, text, detail=detail)


def as_text(line: str) -> str:
    """A line in Markdown and its tables, without HTML, links and columns of its own."""
    return re.sub(r"([\\<\[|])", r"\\\1", line)


def as_code(text: str) -> str:
    """A text as code in Markdown, whatever backticks it has."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}"
