"""What a document may name: everything here is read from the code, nothing is listed by hand."""

import argparse
import dataclasses
import functools
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from prometheus_client import CollectorRegistry

import firstsight.__main__
import pipelines.__main__
import trainer.__main__
from pipelines.cluster.names import Identity
from pipelines.operate.reaper_server import Metrics
from pipelines.profile.profile import Profile
from trainer.config import EvaluateConfig, OptimizerConfig, Placement, Recipe, StageConfig
from trainer.run import sinks

REPOSITORY = Path(__file__).parents[2]
PRODUCT = ("firstsight", "pipelines", "trainer", "charts", "images", "manifests", "scripts", ".ci", "Makefile", "pyproject.toml")
PARSERS = {"firstsight": firstsight.__main__._parser(), "pipelines": pipelines.__main__._parser(), "trainer": trainer.__main__._parser()}
Tree = Mapping[str, Any]
ANY: Tree = {"*": {}}
"""Below it every key is right."""


@functools.cache
def files() -> frozenset[str]:
    """Every file of the repository, and every folder that holds one."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout.splitlines()
    present = [name for name in names if (REPOSITORY / name).exists()]
    return frozenset([*present, *(str(folder) for name in present for folder in Path(name).parents)])


@functools.cache
def sources(*rooms: str) -> Mapping[str, str]:
    """The text of every source file in these top folders, without documents and pictures."""
    found = {}
    for name in sorted(files()):
        path = REPOSITORY / name
        if (
            name.split("/")[0] in rooms
            and not name.startswith(("tests/docs/", "tests/data/kfp-recordings/"))
            and path.is_file()
            and path.suffix not in (".md", ".gotmpl", ".png", ".xz", ".npz", ".gz", ".sum")
        ):
            found[name] = path.read_text(encoding="utf-8")
    return found


@functools.cache
def words() -> frozenset[str]:
    """Every word of the product's source."""
    return frozenset(word for text in sources(*PRODUCT).values() for word in re.findall(r"\w+", text))


@functools.cache
def environment() -> frozenset[str]:
    """Words in capitals anywhere in source or tests: what is not there, no program reads or sets."""
    return frozenset(word for text in sources(*PRODUCT, "tests").values() for word in re.findall(r"\b[A-Z][A-Z0-9_]+\b", text))


# ------------------------------------------------------------------------------------------------------- commands


def makefiles() -> str:
    """The Makefile and what it includes."""
    return "\n".join((REPOSITORY / name).read_text(encoding="utf-8") for name in ("Makefile", "scripts/request.mk"))


@functools.cache
def make_recipes() -> Mapping[str, str]:
    """Every target with its recipe."""
    found: dict[str, str] = {}
    for targets, recipe in re.findall(r"^([a-z][a-z0-9 %:-]*?):(?!=)[^\n]*\n((?:\t[^\n]*\n)*)", makefiles(), re.MULTILINE):
        for target in targets.replace(":", " ").split():
            found[target] = found.get(target, "") + recipe
    return found


@functools.cache
def make_variables() -> frozenset[str]:
    """Every variable that make is given."""
    return frozenset(re.findall(r"^([A-Z][A-Z0-9_]*) *\??=", makefiles(), re.MULTILINE))


def subcommands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The commands of a command line, by name."""
    return next((action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)), {})


def reached(program: str, given: Iterable[str]) -> tuple[str, argparse.ArgumentParser]:
    """The command that these words name, as far as they name one."""
    name, parser = program if program == "firstsight" else f"python -m {program}", PARSERS[program]
    for word in given:
        if word not in subcommands(parser):
            break
        name, parser = f"{name} {word}", subcommands(parser)[word]
    return name, parser


def options(parser: argparse.ArgumentParser) -> frozenset[str]:
    """The long options of a command and of the commands below it."""
    own = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    return frozenset(own.union(*(options(below) for below in subcommands(parser).values())))


def module_options(module: str) -> frozenset[str]:
    """The long options in the source of a module that is run by `python -m`."""
    path = REPOSITORY / module.replace(".", "/")
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return frozenset(re.findall(r"[\"'](--[a-z][a-z-]*)", path.read_text(encoding="utf-8")) if path.exists() else [])


def target_options(target: str) -> frozenset[str]:
    """What ARGS of a target may hold: the options of the commands in its recipe."""
    found: set[str] = set()
    for module, rest in re.findall(r"-m ([\w.]+)([^\n]*)", make_recipes().get(target, "")):
        if module in PARSERS:
            named = [parser for name, parser in subcommands(PARSERS[module]).items() if re.search(rf"\b{name}\b", rest)]
            found = found.union(*(options(parser) for parser in named))
        else:
            found |= module_options(module)
    return frozenset(found)


# ----------------------------------------------------------------------------------------------------------- keys


def fields(kind: Any) -> Tree:
    """The keys of a dataclass at every depth."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        inner = next((part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None)
        found[name] = fields(inner) if inner else ANY if "dict" in str(hint) else {}
    return found


def mapping(value: Any) -> Tree:
    """The keys of a YAML file at every depth; an empty mapping takes any."""
    return {key: mapping(below) for key, below in value.items()} or ANY if isinstance(value, dict) else {}


@functools.cache
def schema() -> Mapping[str, Any]:
    """Of the chart's values."""
    found: Mapping[str, Any] = json.loads((REPOSITORY / "charts/firstsight/values.schema.json").read_text(encoding="utf-8"))
    return found


@functools.cache
def chart_values() -> Tree:
    """The keys of the chart's values, those of a profile's jobs and placement included."""
    found = dict(mapping(yaml.safe_load((REPOSITORY / "charts/firstsight/values.yaml").read_text(encoding="utf-8"))))
    found["profileDefaults"] = {**found["profileDefaults"], "jobs": found["jobs"], "placement": fields(Placement)}
    return found


@functools.cache
def key_trees() -> tuple[Tree, ...]:
    """Every tree that a dotted key may lie in."""
    profile = {**fields(Profile), "placement": fields(Placement)}
    configurations = (fields(Recipe), fields(StageConfig), fields(EvaluateConfig), {"optimizer": fields(OptimizerConfig)})
    return (*configurations, profile, {"profile": profile}, chart_values(), {"definitions": mapping(schema()["definitions"])})


def is_key(name: str) -> bool:
    """Whether a dotted name is a key of one of the trees."""
    return any(_holds(tree, name.replace("[]", "").split(".")) for tree in key_trees())


def _holds(tree: Tree, parts: list[str]) -> bool:
    return tree is ANY or not parts or (parts[0] in tree and _holds(tree[parts[0]], parts[1:]))


def unknown_values(value: Any, rule: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The keys of a values file that its schema does not know."""
    while "$ref" in rule:
        rule = schema()["definitions"][rule["$ref"].rpartition("/")[2]]
    properties, others = rule.get("properties", {}), rule.get("additionalProperties", True)
    for key, below in value.items() if isinstance(value, dict) else []:
        if key in properties:
            yield from unknown_values(below, properties[key], f"{path}{key}.")
        elif others is False:
            if not any(re.search(pattern, key) for pattern in rule.get("patternProperties", ())):
                yield f"{path}{key}"
        elif isinstance(others, dict):
            yield from unknown_values(below, others, f"{path}{key}.")


# ---------------------------------------------------------------------------------------------- metrics and labels


@functools.cache
def metrics() -> frozenset[str]:
    """Every series of trainer and reaper, with the endings that Prometheus gives it."""
    parts = ("", "_total", "_created", "_bucket", "_sum", "_count", "_info")
    names = {f"{sinks.PREFIX}{end}" for end in ("", "_step_seconds", *(f"_{name}" for name in (*sinks._GAUGES, *sinks._COUNTERS)))}
    registry: CollectorRegistry = Metrics().registry
    names |= {family.name for family in registry.collect()}
    return frozenset(f"{name}{part}" for name in names for part in parts)


@functools.cache
def alerts() -> frozenset[str]:
    """Of the chart's rules."""
    return frozenset(re.findall(r"alert: (\w+)", (REPOSITORY / "charts/firstsight/templates/monitoring/rules.yaml").read_text()))


@functools.cache
def labels() -> frozenset[str]:
    """Labels and annotations of our domain."""
    everything = {"root": "r", "output": "o", "experiment": "e", "cell": "c", "arm": "a", "point": "p", "stage": "s"}
    written = {
        f"firstsight.dev/{name}"
        for text in sources(*PRODUCT).values()
        for name in re.findall(r"(?:\{DOMAIN\}|firstsight\.dev)/([a-z][\w-]*)", text)
    }
    return frozenset(written | set(Identity(seed=0, **everything).labels()))
