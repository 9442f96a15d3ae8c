"""The shipped recipes (smoke, demo, paper, paper-3m) and how YAML becomes a configuration.

Defaults come from trainer/config.py, then the YAML, then dotted overrides; anything unknown is refused by name.
"""

import copy
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from trainer.config import Recipe, require
from trainer.errors import InputError

RECIPES = ("smoke", "demo", "paper", "paper-3m")
ConfigT = TypeVar("ConfigT")


def parse_config(kind: type[ConfigT], values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "configuration") -> ConfigT:
    """Build a configuration of `kind` from plain data and `dotted.key=value` overrides.

    Raises:
        InputError: an unknown key, a wrong type or a broken rule, in one line that names the source.
    """
    given = _overridden(values, overrides)
    _check_groups(kind, given, source)
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(kind, None, as_group=False)
    try:
        built = kind(**_as_dict(parser.instantiate(parser.parse_object(given))))
        _require_finite(built)
    except (ArgumentError, TypeError, KeyError, ValueError) as error:
        raise InputError(f"{source}: {_one_line(error)}") from error
    return built


def inline_recipe(recipe: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """A recipe that means the same everywhere: a shipped name, or the mapping in place of its file."""
    if isinstance(recipe, str) and recipe.endswith((".yaml", ".yml")):
        from trainer.storage import read_text

        values = load_yaml(read_text(recipe), f"recipe {recipe}")
        return {"name": recipe.rsplit("/", 1)[-1].rpartition(".")[0], **values}
    return recipe if isinstance(recipe, str) else dict(recipe)


def load_value(text: str, source: str) -> Any:
    """One YAML value, as an override has it."""
    return _load(text, source)


def load_recipe(name: "str | Mapping[str, Any]", overrides: Sequence[str] = (), text: str | None = None) -> Recipe:
    """A shipped recipe by name, or the YAML in `text` (the caller read it from a URI), with overrides."""
    if isinstance(name, Mapping):
        return parse_config(Recipe, name, overrides, f"recipe {name.get('name', '')}")
    if text is None:
        if name not in RECIPES:
            raise InputError(f"recipe {name!r} is not shipped: one of {', '.join(RECIPES)}, or a URI that ends in .yaml")
        text = resources.files("trainer.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    values = load_yaml(text, f"recipe {name}")
    values.setdefault("name", name.rsplit("/", 1)[-1].removesuffix(".yaml"))
    return parse_config(Recipe, values, overrides, f"recipe {name}")


def load_yaml(text: str, source: str) -> dict[str, Any]:
    """YAML whose top is a mapping; `3e-4` is a number (YAML 1.1 alone would say a string)."""
    values = _load(text, source)
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected a mapping of settings, got {type(values).__name__}")
    return values


def dump_yaml(config: Any) -> str:
    """A configuration as YAML, in the order of its fields."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


class _YamlLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's floats, which refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        repeated = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if repeated is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{repeated} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _overridden(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    result = copy.deepcopy(dict(values))
    for override in overrides:
        dotted, separator, text = override.partition("=")
        require("override", override, "of the form dotted.key=value", bool(separator and dotted))
        *groups, key = dotted.split(".")
        into = result
        for group in groups:
            into = into.setdefault(group, {})
            require("override", override, f"a key below a group, and {group} is a plain value", isinstance(into, dict))
        into[key] = _load(text, f"override {override!r}")
    return result


def _load(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_YamlLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a number with thousands of digits
        raise InputError(f"{source}: not YAML: {_one_line(error)}") from error
    except RecursionError as error:
        raise InputError(f"{source}: not settings: nested too deep") from error


def _check_groups(kind: type[Any], values: Mapping[str, Any], source: str, prefix: str = "") -> None:
    """A group of settings is a mapping. One that may be missing is read by itself first: of it the parser says every way that failed."""
    for name, hint in get_type_hints(kind).items():
        choices = [hint] if isinstance(hint, type) else [] if get_origin(hint) is tuple else list(get_args(hint))
        group = next((part for part in choices if isinstance(part, type) and dataclasses.is_dataclass(part)), None)
        optional = type(None) in choices
        if group is None or name not in values or (optional and values[name] is None):
            continue
        require(f"{source}: {prefix}{name}", values[name], "a mapping of settings", isinstance(values[name], Mapping))
        if optional:
            parse_config(group, values[name], (), f"{source}: {prefix}{name}")
        else:
            _check_groups(group, values[name], source, f"{prefix}{name}.")


def _require_finite(config: Any, prefix: str = "") -> None:
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            _require_finite(value, f"{prefix}{item.name}.")
        elif isinstance(value, float):
            require(f"{prefix}{item.name}", value, "a finite number", math.isfinite(value))


def _as_dict(namespace: Namespace | Mapping[str, Any]) -> dict[str, Any]:
    return dict(vars(namespace)) if isinstance(namespace, Namespace) else dict(namespace)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
