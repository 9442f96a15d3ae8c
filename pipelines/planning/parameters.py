"""The kinds of parameters that a request has, and how each is read from text (a flag, a form) or from YAML."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from trainer.config import canonical_hash, require
from trainer.errors import InputError
from trainer.redaction import holds_credentials
from trainer.storage.base import absolute
from trainer.storage.declarations import is_listed, mapped

Check = Callable[[Any], bool]
Parameter = dataclasses.Field[Any]
ALWAYS = object()
"""Stands for a parameter that requests had from the beginning."""
DEEPEST = 8
"""Levels of a setting's key."""
_EXPANDED = re.compile(r"\{\{|\$\(")
"""What Argo and Kubernetes put values of their own in place of."""
SYSTEM_FOLDERS = ("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "sbin", "sys", "usr")


def text(default: str, help: str, *, otherwise: str = "", rule: str = "", ok: Check | None = None, form: str = "") -> Any:
    """A parameter that is one line of text. `otherwise` says in words what holds where it is not given.

    `form` is its name in Kubeflow's form, which lists names alphabetically and nothing else; empty: a request file alone says it.
    """
    return _parameter(default, "text", help, otherwise, rule, ok, form)


def number(
    default: float | None,
    help: str,
    *,
    otherwise: str = "",
    rule: str,
    ok: Check,
    form: str = "",
    introduced: object = ALWAYS,
) -> Any:
    """A number; None as default means that something else decides, which `otherwise` names.

    `introduced`, of a parameter that was added later, is the literal that stored requests without it mean (docs/FORMAT.md).
    """
    more = {} if introduced is ALWAYS else {"introduced": introduced}
    return _parameter(default, "number", help, otherwise, rule, ok, form, **more)


def items(default: tuple[str, ...], help: str, *, otherwise: str = "", form: str = "", introduced: list[str] | None = None) -> Any:
    """A list: comma-separated as text, a sequence in YAML. `introduced` as of `number`."""
    more = {} if introduced is None else {"introduced": introduced}
    return _parameter(default, "list", help, otherwise, "", None, form, **more)


def mapping(help: str, *, kind: str = "mapping") -> Any:
    """A mapping by names, YAML as text too; empty unless given, as it was before it was introduced.

    Of the kind `axes` its order counts, so it is stored as a list.
    """
    none: Any = [] if kind == "axes" else {}
    said: dict[str, Any] = {"kind": kind, "help": help, "otherwise": "none", "rule": "", "ok": None, "form": "", "introduced": none}
    return field(default_factory=dict, metadata=said)


def settings(of: type[Any], help: str, *, form: str = "", introduced: dict[str, Any] | None = None) -> Any:
    """Dotted keys of the dataclass `of` with values: `a.b=1 c=2` as text, a mapping in YAML. Empty unless given.

    `introduced` as of a number.
    """
    said = {"kind": "settings", "of": of, "help": help, "otherwise": "none", "rule": "", "ok": None, "form": form}
    return field(default_factory=dict, metadata=said if introduced is None else {**said, "introduced": introduced})


def recipe(default: str, help: str, *, form: str = "") -> Any:
    """A recipe: its name, the URI of its file, or in a request file the recipe itself."""
    return _parameter(default, "recipe", help, "", "", None, form)


def _parameter(default: Any, kind: str, help: str, otherwise: str, rule: str, ok: Check | None, form: str, **more: Any) -> Any:
    said = {"kind": kind, "help": help, "otherwise": otherwise, "rule": rule, "ok": ok, "form": form}
    return field(default=default, metadata=said | more)


def default_of(item: Parameter) -> Any:
    """The default of one parameter."""
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def default_in_words(item: Parameter) -> str:
    """The default as tables and help show it."""
    if item.metadata["otherwise"]:
        return str(item.metadata["otherwise"])
    value = default_of(item)
    return ",".join(value) if isinstance(value, tuple) else str(value)


def parse(item: Parameter, value: Any, where: str) -> Any:
    """One parameter from text or from YAML."""
    kind = item.metadata["kind"]
    if kind == "text":
        require(where, value, "text", isinstance(value, str))
        return one_line(where, value.strip())
    if kind == "recipe":
        require(where, value, "a recipe's name, the URI of a YAML file, or a mapping", isinstance(value, str | dict))
        return one_line(where, value.strip()) if isinstance(value, str) else value
    if kind == "number":
        return _number(where, value, whole=isinstance(default_of(item), int | None))
    if kind == "list":
        require(where, value, "a list, or text with commas", isinstance(value, str | int | list | tuple) and not isinstance(value, bool))
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        return tuple(_item(where, part) for part in parts)
    if kind == "axes" and is_listed(value):
        return mapped(value)
    if kind in ("axes", "mapping"):
        return _mapping(where, value)
    require(where, value, "a mapping, or text such as key=value key=value", isinstance(value, str | dict))
    if isinstance(value, dict):
        return _flat(where, value)
    from trainer.configs import parse_overrides  # here: a step that is done has no use for YAML

    line = one_line(where, value)
    with located(where):
        return parse_overrides(line, item.metadata["of"])


def _mapping(where: str, value: Any) -> dict[Any, Any]:
    """A mapping, whether it is given as such or as YAML: `{a: {b: [1, 2]}}`, or without the outer braces."""
    if isinstance(value, str):
        from trainer.configs import load_yaml  # here: slow to import

        value = load_yaml(value, where)
    require(where, value, "a mapping", isinstance(value, dict))
    canonical_hash(value)  # it can be stored
    return dict(value)


@contextlib.contextmanager
def located(source: str) -> Iterator[None]:
    """What is refused inside is refused with its source in front, unless it says it itself."""
    try:
        yield
    except InputError as error:
        if not source or str(error).startswith(source):
            raise
        raise InputError(f"{source}: {error}") from error


def _flat(where: str, value: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """A mapping with dotted keys, whether it was written nested or dotted."""
    found: dict[str, Any] = {}
    if prefix.count(".") > DEEPEST:  # of an alias of itself there is no end
        raise InputError(f"{where}: {prefix[:40]}… is nested too deep")
    for key, part in value.items():
        inner = _flat(where, part, f"{prefix}{key}.") if isinstance(part, dict) else {f"{prefix}{key}": part}
        twice = next((name for name in inner if name in found), None)
        if twice is not None:
            raise InputError(f"{where}: {twice} is given twice")
        found |= inner
    return found


def _item(where: str, value: Any) -> str:
    require(where, value, "a list of plain values", isinstance(value, str | int) and not isinstance(value, bool))
    return one_line(where, str(value).strip())


def _number(where: str, value: Any, *, whole: bool) -> float | int:
    rule = "a whole number" if whole else "a number"
    if isinstance(value, str):
        value = value.strip()
        require(where, value, rule, value.isascii() and "_" not in value)  # Python takes other scripts' digits, and 1_0 for ten
        try:
            return int(value) if whole else float(value)
        except ValueError as error:
            raise InputError(f"{where} must be {rule}, got {value[:40]!r}") from error
    require(where, value, rule, isinstance(value, int if whole else int | float) and not isinstance(value, bool))
    return value  # type: ignore[no-any-return]


def one_line(where: str, value: str) -> str:
    """Text that is safe in a label, a log and a template."""
    require(where, value, "one line without control characters, '{{' and '$('", value.isprintable() and not _EXPANDED.search(value))
    return value


def require_inert(where: str, value: Any) -> None:
    """Refuse text that something on its way would put something else in place of, or that carries a credential.

    What a run is told is stored, shown and repeated. Kubernetes puts a variable's value in place of `$(VARIABLE)`, which may be the
    store's key, and Argo its own in place of `{{…}}`.

    Args:
        where: the parameter.
        value: of it: text, or whatever holds texts.
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            require_inert(where, key)
            require_inert(f"{where}.{key}", part)
    elif isinstance(value, list | tuple):
        for part in value:
            require_inert(where, part)
    elif isinstance(value, str):
        require(where, value, "text without '{{' and '$('", not _EXPANDED.search(value))
        if holds_credentials(value):
            raise InputError(
                f"{where} must not contain credentials, which requests and jobs would expose to everyone who can read them, got {value}: "
                "copy the file to the store and name it there"
            )


def check_root(root: str) -> None:
    """Refuse a folder of the system's, and a path that cannot be one."""
    if root and "://" not in root:
        parts = Path(absolute(root)).parts
        system = len(parts) == 1 or (parts[1] in SYSTEM_FOLDERS and parts[1:3] != ("usr", "local"))
        require("root", root, "a folder for data, such as runs or /data/firstsight, not one of the system's", not system)
