"""Write the files that are generated from `Request`: `python scripts/request_files.py`.

- scripts/request.mk: make's variables and the flags that pass them on
- pipelines/kubeflow/links_component.py: the first step, which takes every parameter
- the tables of parameters in docs/, between two markers
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.kubeflow.form import IN_FORM, NAMES, described
from pipelines.planning.parameters import default_in_words
from pipelines.planning.request import FIELDS
from scripts.marked import rewrite
from trainer.config import Placement

REPOSITORY = Path(__file__).parents[1]
BEGIN, END = "<!-- written by scripts/request_files.py: {name} -->\n", "<!-- end -->\n"
PASSED = [name for name in IN_FORM if name != "profile"]
"""Parameters of the first step beside the profile, which is mounted into every pod."""

COMPONENT = '''"""The pipeline's first step. Written by scripts/request_files.py from pipelines/planning/request.py: do not edit."""

from kfp import dsl

from pipelines.kubeflow.components import component


@component
def links(
    run: str,
    profile: str,
    request: str,
{signature}
    page: dsl.Output[dsl.Markdown],
) -> str:
    """Checks the request before anything is created, stores it, and links to the places where the run can be watched."""
    from pipelines.steps import artifacts, links

    stored, markdown = links.accept(
        run=run,
        profile=profile,
        request=request,
{passed}
    )
    artifacts.write(page.path, markdown)
    return stored
'''


def make_variables() -> str:
    """A Makefile: each parameter as a variable, and REQUEST_FLAGS, the command line with those that are given."""
    lines = ["# Written by scripts/request_files.py from pipelines/planning/request.py: do not edit.", ""]
    for name, item in FIELDS.items():
        lines.append(f"{name.upper()} ?=## {item.metadata['help']} (default: {default_in_words(item)})")
    names = " ".join(name.upper() for name in FIELDS)
    lines += ["", "# Passed on literally: otherwise make would run $(shell ...) in them, and lose $x."]
    lines += [f"export REQUEST {names}", "$(foreach name,REQUEST " + names + ",$(eval override $(name) := $$(value $(name))))"]
    lines += ['REQUEST_FLAGS = $(if $(strip $(REQUEST)),--request="$$REQUEST")']
    lines += [f'REQUEST_FLAGS += $(if $(strip $({name.upper()})),--{name.replace("_", "-")}="$${name.upper()}")' for name in FIELDS]
    return "\n".join([*lines, ""])


def component() -> str:
    """The source of the first step."""
    return COMPONENT.format(
        signature="\n".join(f"    {name}: str," for name in PASSED),
        passed="\n".join(f"        {name}={name}," for name in PASSED),
    )


def request_table() -> str:
    """Every parameter with its names, its default and what it is."""
    rows = ["| key | flag | make | default | what it is |", "|---|---|---|---|---|"]
    for name, item in FIELDS.items():
        rows.append(f"| `{name}` | `--{name.replace('_', '-')}` | `{name.upper()}=` | {default_in_words(item)} | {item.metadata['help']} |")
    return "\n".join([*rows, ""])


def kubeflow_table() -> str:
    """Every parameter of the Kubeflow pipeline as its form lists them, with its key in a request."""
    rows = ["| parameter | in a request | what it is |", "|---|---|---|"]
    keys = {form: name for name, form in NAMES.items() if name in FIELDS}
    rows += [f"| `{name}` | {f'`{keys[name]}`' if name in keys else ''} | {text} |" for name, text in described().items()]
    return "\n".join([*rows, ""])


def placement_table() -> str:
    """Every key of `placement`."""
    rows = ["| key | default | what it does |", "|---|---|---|"]
    for item in dataclasses.fields(Placement):
        shown = "(empty)" if item.default == "" else str(item.default).lower() if isinstance(item.default, bool) else item.default
        rows.append(f"| `{item.name}` | {shown} | {item.metadata['why'].replace('|', ', ')} |")
    return "\n".join([*rows, ""])


TABLES = {"request": request_table, "kubeflow": kubeflow_table, "placement": placement_table}
PAGES = ("docs/REQUEST.md", "docs/KUBEFLOW.md")


def page(text: str) -> str:
    """A page with its tables rewritten."""
    for name, table in TABLES.items():
        begin = BEGIN.format(name=name)
        if begin in text:
            text = rewrite(text, begin, END, table())
    return text


def files() -> dict[Path, str]:
    """Every file that is written, with its content."""
    written = {
        REPOSITORY / "scripts/request.mk": make_variables(),
        REPOSITORY / "pipelines/kubeflow/links_component.py": component(),
    }
    pages = (REPOSITORY / name for name in PAGES)
    return written | {path: page(path.read_text(encoding="utf-8")) for path in pages if path.exists()}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")
