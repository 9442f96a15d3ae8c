"""Write what follows from the registries of arms, triplet labels and kinds of job: `python scripts/registry_files.py`.

The chart gets the rights to every kind and the values that `backend` takes, the docs get a table of each registry. Of pages and
values files only what stands between markers, or on one line, is written; a test compares.
"""

import ast
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.jobs.shapes import LOCAL, backends, by_backend, registered
from pipelines.operate.probes import QUEUE_RIGHTS, REAPER_RIGHTS, RUN_RIGHTS, UNINSTALL_RIGHTS, Rights
from scripts.marked import rewrite
from trainer import arms, labels

REPOSITORY = Path(__file__).parents[1]
CHART = REPOSITORY / "charts/firstsight"
RECIPES, ARCHITECTURE = REPOSITORY / "docs/RECIPES.md", REPOSITORY / "docs/ARCHITECTURE.md"
BEGIN, END = "<!-- written by scripts/registry_files.py: {name} -->\n", "<!-- end -->\n"
RULES = {"runRules": RUN_RIGHTS, "queueRules": QUEUE_RIGHTS, "reaperRules": REAPER_RIGHTS, "uninstallRules": UNINSTALL_RIGHTS}
STARTS = {"random": "random weights", "tower": "its tower", "permuted": "its tower, permuted", "model": "a whole model"}
_BACKEND_LINES = re.compile(r"^  # -- Where training runs: .*$", re.MULTILINE)


def chart_template() -> str:
    """Named templates: the rules of each Role, and what a backend needs a cluster to serve."""
    parts = [f'{{{{- define "firstsight.{name}" -}}}}\n{_rules(rights)}\n{{{{- end -}}}}' for name, rights in RULES.items()]
    kinds = {
        name: {"api": f"{shape.kind.api_version}/{shape.kind.kind}", "source": shape.kind.source} for name, shape in by_backend().items()
    }
    parts.append(f'{{{{- define "firstsight.backendKinds" -}}}}\n{json.dumps(kinds, indent=2)}\n{{{{- end -}}}}')
    return "\n".join(["{{- /* Written by scripts/registry_files.py: do not edit. */ -}}", *parts, ""])


def values_schema(current: str) -> str:
    """The schema with every backend in the enumeration."""
    schema = json.loads(current)
    schema["definitions"]["profile"]["properties"]["backend"]["enum"] = list(backends())
    return json.dumps(schema, indent=2) + "\n"


def values(current: str) -> str:
    """values.yaml with every backend in the sentence above the key."""
    kinds = [f"`{name}` ({shape.about})" for name, shape in by_backend().items()]
    line = f"  # -- Where training runs: {', '.join(kinds)} or `{LOCAL}` (the step's own pod)."
    text, count = _BACKEND_LINES.subn(line, current)
    assert count == 1, "values.yaml must have one comment that begins 'Where training runs:'"
    return text


def arm_table() -> str:
    """Every arm."""
    rows = [
        (f"`{arm.name}`", STARTS[arm.start], f"`{arm.labels}`" if arm.labels else "", arm.meaning, arm.control)
        for arm in arms.registered().values()
    ]
    rows.append(("`from:<uri>`", "the tower at that URI", "", "a finished stage's `final/`, or a .safetensors file", ""))
    return _table(("arm", "starts from", "learns from", "what it is", "control: what it shares with `perceptual`"), rows)


def label_table() -> str:
    """Every kind of triplet labels."""
    rows = [(f"`{kind.name}`", f"trained on {kind.says}", f"`{kind.tower}`") for kind in labels.registered().values()]
    return _table(("labels", "the resulting tower", "its name"), rows)


def job_table() -> str:
    """Every kind of job."""
    rows = []
    for shape in registered():
        path = Path(*shape.__module__.split(".")).with_suffix(".py")
        docstring = ast.get_docstring(ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))) or ""
        rows.append((f"`{path.name}`", f"`{shape.backend}`" if shape.backend else "", shape.kind.kind, docstring.splitlines()[0]))
    return _table(("file", "`backend`", "object", "what it is"), rows)


PAGES = {RECIPES: {"arms": arm_table, "labels": label_table}, ARCHITECTURE: {"jobs": job_table}}


def files() -> dict[Path, str]:
    """Every file that is written, with its content."""
    written = {CHART / "templates/_kinds.tpl": chart_template()}
    for path, change in ((CHART / "values.schema.json", values_schema), (CHART / "values.yaml", values)):
        written[path] = change(path.read_text(encoding="utf-8"))
    for path, tables in PAGES.items():
        text = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            begin = BEGIN.format(name=name)
            text = rewrite(text, begin, END, table())
        written[path] = text
    return written


def _rules(rights: Rights) -> str:
    lines = []
    for resource, verbs in rights.items():
        name, _, group = resource.partition(".")
        lines += [f"- apiGroups: [{json.dumps(group) if not group else group}]", f"  resources: [{name}]", f"  verbs: [{', '.join(verbs)}]"]
    return "\n".join(lines)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")
