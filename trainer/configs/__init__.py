"""The shipped recipes (smoke, demo, paper, paper-3m, paper-as-coded) and how YAML becomes a configuration.

Defaults come from trainer/config.py, then a recipe's `base:`, then what it says itself, then dotted overrides; anything
unknown is refused, naming it.
"""

import copy
import dataclasses
import difflib
import functools
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, TypeVar

import yaml

from trainer.bounds import MAX_DEPTH, MAX_NUMBER_CHARS, MAX_YAML_BYTES, MAX_YAML_NODES
from trainer.config import Recipe, differing_keys, recipe_fields, require
from trainer.configs.building import build, group_in, hint_of, laid_over, nested
from trainer.errors import InputError

RECIPES = ("smoke", "demo", "paper", "paper-3m", "paper-as-coded")
_ENDINGS = (".yaml", ".yml")
_MAX_BASES = 16  # recipes under each other
ConfigT = TypeVar("ConfigT")
Overrides = Sequence[str] | Mapping[str, Any]
"""`dotted.key=value` each, or dotted keys with their values."""
Read = Callable[[str], str]


def parse_config(kind: type[ConfigT], values: Mapping[str, Any], overrides: Overrides = (), source: str = "configuration") -> ConfigT:
    """A configuration of `kind` from what a person wrote; what it leaves out gets today's default.

    Args:
        kind: a dataclass of configuration.
        values: plain data; `group.key: value` stands for a key of a group.
        overrides: values that override `values`; a group that one names keeps its other values.
        source: file or what else said it, to begin an error with.

    Raises:
        InputError: an unknown key (the nearest one is named), a wrong type or a broken rule, in one line.
    """
    return _parsed(kind, values, overrides, source, stored=False)


def read_stored(kind: type[ConfigT], values: Mapping[str, Any], source: str, overrides: Overrides = ()) -> ConfigT:
    """A configuration of `kind` from what firstsight wrote into a store, perhaps at another version.

    A recipe field that came later has the value it was introduced with (trainer/fields.py), not today's default.

    Raises:
        InputError: in one line; a key that this version does not know says that a newer one wrote the file.
    """
    return _parsed(kind, values, overrides, source, stored=True)


def load_recipe(recipe: str | Mapping[str, Any], overrides: Overrides = (), *, read: Read | None = None, source: str = "recipe") -> Recipe:
    """A recipe, its `base:` recipes and overrides laid over each other.

    Args:
        recipe: a shipped name, a URI that ends in .yaml, the YAML itself, or what the YAML would hold.
        overrides: values that override it.
        read: gives the text at a URI; `trainer.storage.recipes.read_recipe` brings it.
        source: which file holds the recipe where it is given by itself, to begin an error with.

    Raises:
        InputError: no such recipe, a `base:` that comes back to itself, or what `parse_config` refuses.
    """
    place, values = _written(recipe, read, source)
    return parse_config(Recipe, _with_base(place, values, read, (place,)), overrides, place)


def inline_recipe(recipe: str | Mapping[str, Any], *, read: Read | None = None) -> str | dict[str, Any]:
    """A recipe that needs no file: a shipped name as it is, else its values, those of files under `base:` laid under them.

    A base that is shipped stays a name, so that what differs from it can still be told.
    """
    if isinstance(recipe, str) and recipe in RECIPES:
        return recipe
    place, values = _written(recipe, read)
    return _with_base(place, values, read, (place,), keep_shipped=True)


def load_base(recipe: str | Mapping[str, Any], *, read: Read | None = None) -> Recipe:
    """What a recipe is to be compared with: itself as shipped where it is a name, else its `base:`, else `paper`."""
    if isinstance(recipe, str) and recipe in RECIPES:
        return load_recipe(recipe)
    return load_recipe(_written(recipe, read)[1].get("base", "paper"), read=read)


def recipe_differences(recipe: Recipe, base: Recipe) -> list[str]:
    """Each field in which a recipe differs from its base, as `key: base -> value`."""
    return list(differing_keys(recipe_fields(base, complete=True), recipe_fields(recipe, complete=True)))


def parse_overrides(text: str, kind: type[Any] = Recipe) -> dict[str, Any]:
    """Overrides in one string, `a.b=1 c.d=2`: dotted keys with their values. A value with blanks is in quotes.

    Raises:
        InputError: no `=`, a key twice, or an unknown key, in one line that names the nearest one.
    """
    try:
        return _overrides(kind, shlex.split(text))
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"overrides {text!r}: {error}") from error


def check_keys(kind: type[Any], values: Mapping[str, Any], source: str) -> None:
    """Refuse a dotted key that a configuration of `kind` does not have, naming the nearest one."""
    for key in values:
        try:
            hint_of(kind, key)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error


def settings_of(kind: type[Any], key: str) -> list[str]:
    """The settings of the group that a dotted key names; none where it names a setting. InputError if there is no such key."""
    group = group_in(hint_of(kind, key))
    return [item.name for item in dataclasses.fields(group)] if group else []


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
    """SafeLoader with YAML 1.2's floats, within bounds; it refuses a key that stands twice in one mapping, and an alias of itself."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth, self._nodes = 0, 0
        self._sizes: dict[int, int] = {}  # of a node that has been read, aliases in it written out

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark, before = self.peek_event().start_mark, self._nodes  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        alias = id(node) in self._sizes
        self._nodes += self._sizes[id(node)] if alias else 1
        self._sizes.setdefault(id(node), self._nodes - before)
        if self._nodes > MAX_YAML_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_YAML_NODES} values, aliases written out", problem_mark=mark)
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        return self.construct_object(node, deep=True)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        is_text = node.tag == "tag:yaml.org,2002:str" or not isinstance(node, yaml.ScalarNode)
        if not is_text and len(node.value) > MAX_NUMBER_CHARS and not node.tag.endswith(":binary"):
            problem = f"a number of {len(node.value)} characters, at most {MAX_NUMBER_CHARS} are read"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:  # of a tag that the value does not fit
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(problem=f"not of type {kind}: {error}", problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} appears twice", node.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _load(text: str, source: str) -> Any:
    if len(text) > MAX_YAML_BYTES:
        raise InputError(f"{source}: {len(text):,} characters of YAML, but at most {MAX_YAML_BYTES:,} are read")
    try:
        return copy.deepcopy(_values_of(text))  # who asks may change them
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {' '.join(str(error).split())}") from error


@functools.lru_cache(maxsize=64)
def _values_of(text: str) -> Any:
    """Kept, since a step reads the same few recipes and configurations again and again, and PyYAML takes tens of milliseconds for each."""
    return yaml.load(text, Loader=_YamlLoader)


def _parsed(kind: type[ConfigT], values: Mapping[str, Any], overrides: Overrides, source: str, *, stored: bool) -> ConfigT:
    try:
        over = overrides if isinstance(overrides, Mapping) else _overrides(kind, overrides)
        return build(kind, laid_over(nested(kind, values), nested(kind, over)), stored=stored)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _overrides(kind: type[Any], overrides: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        require("override", override, "of the form dotted.key=value", bool(separator and key))
        if key in result:
            raise InputError(f"override {override!r}: {key} is given twice")
        try:
            wanted = hint_of(kind, key)
        except InputError as error:
            raise InputError(f"override {override!r}: {error}") from error
        value = _load(text, f"override {override!r}")
        result[key] = text if wanted is str and not isinstance(value, str) else value  # 10:20, 007 and no are text there
    return result


def _written(recipe: str | Mapping[str, Any], read: Read | None, source: str = "recipe") -> tuple[str, dict[str, Any]]:
    """Where a recipe stands, to begin an error with, and what it says there; its base is not looked at."""
    if isinstance(recipe, Mapping):
        return source, dict(recipe)
    if "\n" in recipe or ": " in recipe:
        return source, load_yaml(recipe, source)
    if recipe in RECIPES:
        text = resources.files("trainer.configs").joinpath(f"{recipe}.yaml").read_text(encoding="utf-8")
    elif read is not None and recipe.endswith(_ENDINGS):
        text = read(recipe)
    else:
        near = difflib.get_close_matches(recipe, RECIPES, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(f"recipe {recipe!r} is not a built-in recipe: use one of {', '.join(RECIPES)}, or a URI that ends in .yaml{meant}")
    values = load_yaml(text, f"recipe {recipe}")
    values.setdefault("name", recipe.rsplit("/", 1)[-1].removesuffix(".yaml").removesuffix(".yml"))
    return f"recipe {recipe}", values


def _with_base(
    place: str, values: Mapping[str, Any], read: Read | None, above: tuple[str, ...], *, keep_shipped: bool = False
) -> dict[str, Any]:
    """The values with those of their base, and of its base, laid under them."""
    own = dict(values)
    base = own.pop("base", None)
    try:
        own = nested(Recipe, own)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    if base is None:
        return own
    rule = f"one of {', '.join(RECIPES)}, or an absolute path or URI that ends in .yaml"
    absolute = isinstance(base, str) and (base.startswith("/") or "://" in base) and base.endswith(_ENDINGS)
    require(f"{place}: base", base, rule, absolute or base in RECIPES)
    if keep_shipped and base in RECIPES:
        return {"base": base, **own}
    if f"recipe {base}" in above:
        circle = [name.removeprefix("recipe ") for name in (*above[above.index(f"recipe {base}") :], base)]
        raise InputError(f"{place}: base refers back to itself: {' -> '.join(circle)}")
    require(f"{place}: base", base, f"under at most {_MAX_BASES} others", len(above) <= _MAX_BASES)
    under_place, under = _written(base, read, place)
    return laid_over(_with_base(under_place, under, read, (*above, under_place), keep_shipped=keep_shipped), own)
