"""Write the tables of docs/RECIPES.md from the configuration itself: `python scripts/recipe_table.py`.

This script writes the text between two markers; the rest of the page is prose. A test compares the two.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.marked import rewrite
from trainer.config import Recipe
from trainer.configs import RECIPES, load_recipe

PAGE = Path(__file__).parents[1] / "docs" / "RECIPES.md"
BEGIN, END = "<!-- written by scripts/recipe_table.py -->\n", "<!-- end of what is written -->\n"
SECTIONS = ("model", "perceptual", "contrastive", "posthoc", "staging", "evaluation")
SENTENCES = {"known": "As published.", "as coded": "As in the follow-on code.", "unknown": "Not known.", "ours": "Chosen by firstsight."}


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str, str]]:
    """Every field at every depth except the recipe's name: dotted key, value, tag (none if it is in no hash), sentence."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.metadata.get("kind") != "recipe":
            if not isinstance(config, Recipe):
                yield f"{prefix}{item.name}", value, "–", f"{item.metadata['why']} Not part of any hash: it does not affect training."
            continue
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{item.name}.")
        else:
            tag, since = item.metadata["tag"], item.metadata.get("since")
            why = item.metadata["why"] or SENTENCES[tag]
            yield f"{prefix}{item.name}", value, tag, f"{why} Since {since}." if since else why


def tables() -> str:
    """The paper's recipe section by section, then what the other recipes change."""
    paper = load_recipe("paper")
    lines: list[str] = []
    for section in SECTIONS:
        lines += [f"### `{section}`", "", "| field | `paper` | tag | why |", "|---|---|---|---|"]
        lines += [f"| `{key}` | {_cell(value)} | {tag} | {why} |" for key, value, tag, why in fields(getattr(paper, section))]
        lines.append("")
    lines += ["### What the other recipes change", "", "| field | `paper` | " + " | ".join(f"`{name}`" for name in _others()) + " |"]
    lines.append("|---" * (2 + len(_others())) + "|")
    for key, value in _values(paper).items():
        other = [_values(load_recipe(name))[key] for name in _others()]
        if any(x != value for x in other):
            lines.append(f"| `{key}` | {_cell(value)} | " + " | ".join("" if x == value else _cell(x) for x in other) + " |")
    return "\n".join([*lines, ""])


def page(current: str) -> str:
    """The page with its tables rewritten."""
    return rewrite(current, BEGIN, END, tables())


def _others() -> list[str]:
    return [name for name in reversed(RECIPES) if name != "paper"]


def _values(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value, _, _ in fields(recipe)}


def _cell(value: Any) -> str:
    return "(empty)" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
