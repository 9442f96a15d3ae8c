"""Messages of a step to the user, in addition to the progress of its job."""

import re

from trainer.progress import tell

FAILED = "failed: "
"""Prefix of the message with which a step reports the cause of its failure."""


def note(step: str, text: str, *, detail: bool = False) -> None:
    """Print a message about a step; a detail is shown only with -v."""
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
