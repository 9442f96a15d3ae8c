"""Plain data becomes a configuration: every key known, every value of its type; what is wrong is said in one line.

A person's file gets today's default where it says nothing. A stored file (config.yaml, plan.json) says everything that its
version knew: a recipe field that it lacks came later, and has the value that it was introduced with.
"""

import copy
import dataclasses
import difflib
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trainer.config import require
from trainer.errors import InputError

ConfigT = TypeVar("ConfigT")
_MISSING: Any = object()
_HINTS: dict[type[Any], dict[str, Any]] = {}
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def build(kind: type[ConfigT], values: Mapping[str, Any], *, stored: bool = False) -> ConfigT:
    """A configuration of `kind` from plain data.

    Args:
        kind: a dataclass; its nested groups may stand for themselves or be optional.
        values: plain data, nested.
        stored: the data was written by firstsight itself, perhaps by another version.

    Raises:
        InputError: an unknown key, a wrong type or a broken rule, in one line that names the dotted key.
    """
    built: ConfigT = _Builder(kind, stored).group(kind, values, "")
    return built


def laid_over(values: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """Both mappings in one; where both have a mapping, the same of these, else `over` wins."""
    result = copy.deepcopy(dict(values))
    for key, value in over.items():
        known = result.get(key)
        result[key] = laid_over(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return result


def nested(kind: type[Any], values: Mapping[Any, Any], path: str = "") -> dict[Any, Any]:
    """The mapping with every `group.key: value` put into its group. InputError if a key is given in both spellings."""
    result: dict[Any, Any] = {}
    for key, value in values.items():
        head, dot, rest = str(key).partition(".")
        group = group_in(_hints(kind).get(head if dot else key, Any))
        name: Any = head if dot and group else key
        if group and (dot or isinstance(value, Mapping)):
            value = nested(group, {rest: value} if dot else value, f"{path}{name}.")
        if name in result:
            known = result[name]
            if not (isinstance(known, Mapping) and isinstance(value, Mapping)):
                raise InputError(f"{path}{name} is given twice")
            if twice := known.keys() & value.keys():
                raise InputError(f"{path}{name}.{min(twice)} is given twice")
            value = {**known, **value}
        result[name] = value
    return result


def hint_of(kind: type[Any], key: str) -> Any:
    """The type of a dotted key. InputError if there is no such key; it names the nearest one."""
    hint: Any = kind
    for part in key.split("."):
        group = group_in(hint)
        if group is None:
            if _origin(hint) is dict:
                return Any
            raise _unknown(kind, key)
        hint = _hints(group).get(part, _MISSING)
        if hint is _MISSING:
            raise _unknown(kind, key)
    return hint


def group_in(hint: Any) -> type[Any] | None:
    """The dataclass that a type is, or that it is unless it is None."""
    choices = [hint] if isinstance(hint, type) else get_args(hint) if _origin(hint) is Union else []
    return next((part for part in choices if isinstance(part, type) and dataclasses.is_dataclass(part)), None)


class _Builder:
    """Builds one configuration; knows its root for the nearest valid key."""

    def __init__(self, root: type[Any], stored: bool) -> None:
        self._root, self._stored = root, stored

    def group(self, kind: type[Any], values: Any, path: str, default: Any = None) -> Any:
        """A dataclass from a mapping laid over `default`, or over the defaults of its class."""
        require(path or "it", values, "a mapping of settings", isinstance(values, Mapping))
        hints = _hints(kind)
        for name in values:
            if name not in hints:
                raise self._unknown(_join(path, str(name)))
        given: dict[str, Any] = {}
        for item in dataclasses.fields(kind):
            name = item.name
            value = values.get(name, _MISSING)
            if self._stored:
                value = _with_what_was(item, hints[name], value)
            if value is not _MISSING:
                inherited = item.default if default is None else getattr(default, name)
                given[name] = self._value(hints[name], value, _join(path, name), inherited)
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING and default is None:
                raise InputError(f"{_join(path, name)} must be set")
        try:
            return kind(**given) if default is None else dataclasses.replace(default, **given)
        except InputError as error:
            raise InputError(_located(str(error), path)) from error

    def _value(self, hint: Any, value: Any, path: str, default: Any) -> Any:
        origin, parts = _origin(hint), get_args(hint)
        group = group_in(hint)
        if group is not None:
            if value is None and type(None) in parts:
                return None
            return self.group(group, value, path, default if isinstance(default, group) else None)
        if origin is Union:
            for part in parts:
                try:
                    return self._value(part, value, path, None)
                except InputError:
                    continue
            require(path, value, _rule(hint), False)
        if origin in (tuple, list):
            require(path, value, "a list", isinstance(value, list | tuple))
            return origin(self._value(parts[0], part, f"{path}[{number}]", None) for number, part in enumerate(value))
        if origin is dict:
            require(path, value, "a mapping with text as keys", isinstance(value, Mapping) and all(isinstance(key, str) for key in value))
            return {key: self._value(parts[1], part, _join(path, key), None) for key, part in value.items()}
        return _scalar(hint, value, path)

    def _unknown(self, key: str) -> InputError:
        if self._stored:
            return InputError(f"{key} is not a setting that this version of firstsight knows: a newer version wrote this file")
        return _unknown(self._root, key)


def _with_what_was(item: "dataclasses.Field[Any]", hint: Any, value: Any) -> Any:
    """A stored value; where the file lacks it, or a part of it, what the field was introduced with."""
    was = item.metadata.get("introduced", {} if group_in(hint) is hint else _MISSING)
    if value is _MISSING:
        return was
    return laid_over(was, value) if isinstance(was, Mapping) and isinstance(value, Mapping) else value


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:
        return value
    if _origin(hint) is Literal:
        choices = get_args(hint)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        found = [choice for choice in choices if choice == value or (number and choice == str(value))]  # YAML reads 100 as a number
        require(path, value, _rule(hint), bool(found))
        return found[0]
    if isinstance(value, int) and not isinstance(value, bool) and hint in (int, float):
        require(path, value, f"{_rule(hint)} of at most 64 bits", abs(value) < 2**63)  # of more, estimates and torch overflow
        value = hint(value)
    require(path, value, _rule(hint), type(value) is hint)
    require(path, value, "a finite number", hint is not float or math.isfinite(value))
    return value


def _rule(hint: Any) -> str:
    if _origin(hint) is Union:
        return " or ".join(_rule(part) for part in get_args(hint))
    if _origin(hint) is Literal:
        choices = [str(choice) for choice in get_args(hint)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    return _WORDS.get(hint, str(hint))


def _located(message: str, path: str) -> str:
    """A rule's line, with the whole dotted key: `optimizer.eps must …` of contrastive.optimizer is contrastive.optimizer.eps."""
    parts = path.split(".") if path else []
    for start in range(len(parts)):
        if message.startswith(".".join(parts[start:]) + "."):
            return ".".join([*parts[:start], message])
    return f"{path}: {message}" if path else message


def _unknown(kind: type[Any], key: str) -> InputError:
    """The line that names what was probably meant: the same name in another group, else what is spelled most alike."""
    known = list(_keys(kind))
    alike = [other for other in known if other.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    group = key.rpartition(".")[0]
    beside = [other for other in known if other.rpartition(".")[0] == group]
    alike = alike or difflib.get_close_matches(key, beside, 1, 0.6) or difflib.get_close_matches(key, known, 1, 0.6)
    meant = f"did you mean {' or '.join(alike[:3])}?" if alike else f"known are {', '.join(beside or known)}"
    return InputError(f"{key} is not a setting: {meant}")


def _keys(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key, groups included."""
    for name, hint in _hints(kind).items():
        yield prefix + name
        group = group_in(hint)
        if group is not None:
            yield from _keys(group, f"{prefix}{name}.")


def _hints(kind: type[Any]) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


def _origin(hint: Any) -> Any:
    origin = get_origin(hint)
    return Union if origin is types.UnionType else origin


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else str(name)
