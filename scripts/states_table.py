"""Write the table of docs/RELIABILITY.md from the enumeration of stored objects: `python scripts/states_table.py`.

The enumeration is trainer/storage/states.py, which the test of damages walks. Between two markers stands what this script writes; the
rest of the page is prose. A test compares the two.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.marked import rewrite
from trainer.storage.states import KINDS, StoredKind

PAGE = Path(__file__).parents[1] / "docs" / "RELIABILITY.md"
BEGIN, END = "<!-- written by scripts/states_table.py -->\n", "<!-- end of what is written -->\n"
DAMAGES = ("missing", "truncated", "flipped", "older")
WORDS = {
    "dataset": "datasets/<name>/<plan id>",
    "experiment": "experiments/<experiment>",
    "stage": "<stage>",
    "job": "<job>",
    "name": "*",
    "number": "<n>",
    "rest": "**",
    "anywhere": "**/",
}


def table() -> str:
    """One row a kind of object: its place, who writes it, and what happens for each damage."""
    lines = ["| object | place | written by | what happens if it is damaged |", "|---|---|---|---|"]
    lines += [f"| {kind.name} | `{place(kind)}` | `{kind.writer}` | {'<br>'.join(outcomes(kind))} |" for kind in KINDS]
    return "\n".join([*lines, ""])


def place(kind: StoredKind) -> str:
    """The pattern as people write it."""
    text = kind.pattern
    for word, shown in WORDS.items():
        text = text.replace(f"{{{word}}}", shown)
    return text


def outcomes(kind: StoredKind) -> Iterator[str]:
    """`damage, damage: what happens`, damages with one outcome together."""
    found: dict[str, list[str]] = {}
    for damage in DAMAGES:
        found.setdefault(getattr(kind, damage), []).append(damage)
    for outcome, damages in found.items():
        word, _, how = outcome.partition(": ")
        which = "" if len(damages) == len(DAMAGES) else f"{', '.join(damages)}: "
        yield f"{which}**{word}**{f': {how}' if how else ''}"


def page(current: str) -> str:
    """The page with its table rewritten."""
    return rewrite(current, BEGIN, END, table())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
