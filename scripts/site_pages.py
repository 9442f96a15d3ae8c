"""Write the pages of the site's reference that come from code: `python scripts/site_pages.py <folder>`.

- commands.md: every command with its options, from the parsers
- profile.md, python.md: which classes mkdocstrings documents there, from their docstrings
- metrics.md: every series of trainer and reaper, and every alert of the chart
- exit-codes.md: from the errors that carry them
- chart.md, changes.md: the chart's README and the change log, which lie outside of docs/
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import firstsight
import trainer.__main__ as trainer_commands
from firstsight.__main__ import _parser
from pipelines.operate.reaper_server import Metrics
from trainer import errors
from trainer.run import sinks

REPOSITORY = Path(__file__).parents[1]
RULES = REPOSITORY / "charts/firstsight/templates/monitoring/rules.yaml"


def commands() -> str:
    """Every command of `firstsight`, at every depth."""
    head = (
        "# Commands\n\nEach is a command of `firstsight` where the package is installed (`pip install .`). In a checkout\n"
        f"{_listed(trainer_commands)} belong to `python -m trainer`, the others to `python -m pipelines`; make's targets call them.\n"
    )
    return "\n".join([head, *_sections(_parser(), "firstsight")])


def _listed(engine: Any) -> str:
    """The names of an engine's own commands."""
    return ", ".join(
        f"`{name}`" for action in engine._parser()._actions if isinstance(action, argparse._SubParsersAction) for name in action.choices
    )


def _sections(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, below in action.choices.items():
                yield f"## {name} {word}\n\n{_sentence(told.get(word, ''))}\n"
                rows = [row for option in below._actions if (row := _row(option))]
                if rows:
                    yield "\n".join(["| argument | default | what it is |", "|---|---|---|", *rows, ""])
                yield from _sections(below, f"{name} {word}")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _row(option: argparse.Action) -> str:
    if isinstance(option, (argparse._HelpAction, argparse._SubParsersAction)) or option.help == argparse.SUPPRESS:
        return ""
    names = ", ".join(f"`{flag}`" for flag in option.option_strings) or f"`{option.metavar or option.dest}`"
    if option.option_strings and option.nargs != 0:
        shown = option.metavar or (" or ".join(map(str, option.choices)) if option.choices else option.dest.upper())
        names += f" *{shown if isinstance(shown, str) else ' '.join(shown)}*"
    default = "" if option.default in (None, "", False, [], argparse.SUPPRESS) else f"`{option.default}`"
    return f"| {_cell(names)} | {_cell(default)} | {_cell((option.help or '').replace('%%', '%'))} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def metrics() -> str:
    """Every series and every alert."""
    rows = [f"| `{sinks.PREFIX}_{name}` | gauge | {text} |" for name, text in sinks._GAUGES.items()]
    rows += [f"| `{sinks.PREFIX}_{name}_total` | counter | {text} |" for name, text in sinks._COUNTERS.items()]
    rows += [f"| `{sinks.PREFIX}_step_seconds` | histogram | Wall time of a step. |"]
    of_reaper = [
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} | {family.documentation} |"
        for family in Metrics().registry.collect()
    ]
    alerts = [
        f"| [`{name}`](../RUNBOOK.md#{name.lower()}) | {severity} |"
        for name, severity in re.findall(r'alert: (\w+).*?\(list \. "(\w+)" "\1"\)', RULES.read_text(encoding="utf-8"), re.DOTALL)
    ]
    head = ["| name | kind | what it says |", "|---|---|---|"]
    labels = ", ".join(f"`{name}`" for name in sinks._LABELS)
    return "\n".join(
        [
            "# Metrics and alerts\n",
            f"## Trainer\n\nServed at `/metrics` by the first process of each node. Labels: {labels}.\n",
            *head, *rows, "\n## Reaper\n", *head, *of_reaper,
            "\n## Alerts\n\nEach links to what to do about it.\n", "| alert | severity |", "|---|---|", *alerts, "",
        ]
    )  # fmt: skip


def exit_codes() -> str:
    """What each exit code means."""
    rows = {0: ("", "Done; a finished run that is run again says so and ends with 0.")}
    for kind in (errors.RunError, errors.InputError, errors.Stopped):
        rows[kind.exit_code] = (kind.__name__, " ".join(inspect.getdoc(kind).split()))  # type: ignore[union-attr]
    rows[130] = ("", "Ctrl-C in a terminal, or SIGTERM to a command that follows a run: the run is asked to save and to end.")
    lines = [f"| {code} | {f'`{name}`' if name else ''} | {text} |" for code, (name, text) in sorted(rows.items())]
    head = "# Exit codes\n\nOf every command, and of training processes. Make turns every failure into 2 ([CI](../CI.md)).\n"
    return "\n".join([head, "| code | raised as | what it means |", "|---|---|---|", *lines, ""])


def documented(title: str, intro: str, *names: str) -> str:
    """A page on which mkdocstrings puts what these names' docstrings say."""
    return "\n\n".join([f"# {title}", intro, *(f"::: {name}" for name in names), ""])


def elsewhere(path: str) -> str:
    """A page of the repository that lies outside of docs/; the hook rewrites its links."""
    return (REPOSITORY / path).read_text(encoding="utf-8")


PAGES = {
    "commands": commands,
    "metrics": metrics,
    "exit-codes": exit_codes,
    "profile": lambda: documented(
        "Run profile",
        "Where runs keep things and how their jobs look: a YAML file on a laptop, a ConfigMap of the chart on a cluster. Its keys are\n"
        "those of `Profile`; `JobSettings` has the keys below `jobs`.",
        "pipelines.profile.profile.Profile", "pipelines.profile.profile.Links",
        "pipelines.profile.settings.JobSettings", "pipelines.profile.settings.Patience",
    ),
    "python": lambda: documented(
        "Python package", "[Use as a library](../LIBRARY.md) is the walk through it.",
        *(f"{home}.{name}" for home, names in firstsight._HOMES.items() for name in names),
    ),
    "chart": lambda: elsewhere("charts/firstsight/README.md"),
    "changes": lambda: elsewhere("CHANGELOG.md"),
}  # fmt: skip


def main(folder: str) -> None:
    """Write every page below `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, text in PAGES.items():
        Path(folder, f"{name}.md").write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
