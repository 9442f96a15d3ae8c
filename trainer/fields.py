"""Fields of configurations: recipe or placement, how new ones are added, and the hash over them.

Stored hashes must never change, so a recipe field added after commit ad127be declares the version that added it and the
value that stands for its absence:

    ema: float = recipe(0.0, "ours", "Decay of the averaged weights; 0: none.", since="0.2.0", introduced=0.0)

While the field has that value, it is left out of the hash, whatever its current default; a stored file without the field is
read with that value. `introduced` is plain data (a dict for a group, a list for a tuple), never an expression that could change.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, Literal

from trainer.errors import InputError

Tag = Literal["known", "as coded", "unknown", "ours"]
_MISSING: Any = object()
MOST_SHOWN = 200
"""Number of characters of a wrong value shown in an error."""


def recipe(default: Any, tag: Tag, why: str, *, since: str = "", introduced: Any = _MISSING) -> Any:
    """A field that changes the numbers; `tag` and `why` say where its value comes from.

    Args:
        default: value in new recipes.
        tag: how certain the value is.
        why: a sentence that explains it.
        since: version in which the field was added (required for all fields added after ad127be).
        introduced: plain data for "not there yet": the value that was in effect in runs before that version.
    """
    metadata = {"kind": "recipe", "tag": tag, "why": why}
    if bool(since) != (introduced is not _MISSING):
        raise TypeError(f"recipe field {why!r}: since= and introduced= go together")
    if since:
        if not re.fullmatch(r"\d+\.\d+\.\d+", since):
            raise TypeError(f"recipe field {why!r}: since= must be a version such as 0.2.0, got {since!r}")
        metadata |= {"since": since, "introduced": _literal(introduced, why)}
    return field(default=default, metadata=metadata)


def placement(default: Any, why: str) -> Any:
    """A field that says where and how to run; it is never part of the recipe hash."""
    return field(default=default, metadata={"kind": "placement", "why": why})


def _literal(value: Any, why: str) -> Any:
    """Plain data after a round trip through JSON, so that it compares equal to stored data."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise TypeError(f"recipe field {why!r}: introduced= must be plain data, got {value!r}") from error


def require(key: str, value: object, rule: str, ok: bool) -> None:
    """Raise InputError naming the dotted key, the rule and the value, unless ok."""
    if not ok:
        raise InputError(f"{key} must be {rule}, got {_abridged(value)}")


def at_least(bound: int, section: str, config: object, *names: str) -> None:
    """Raise InputError for the first of these fields of a configuration that is less than `bound`."""
    for name in names:
        require(f"{section}.{name}", getattr(config, name), f">= {bound}", getattr(config, name) >= bound)


def _abridged(value: object) -> str:
    """A value for one line of an error."""
    try:
        shown = repr(value)
    except ValueError:  # Python does not convert numbers of more than 4,300 digits
        return "a number of thousands of digits"
    return shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}…"


def recipe_fields(config: Any, *, complete: bool = False) -> dict[str, Any]:
    """The recipe fields of a configuration as plain data, placement left out at every depth.

    Args:
        config: a configuration dataclass.
        complete: also return fields that the hash leaves out; for naming differences, never for a hash.
    """
    result: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        if item.metadata.get("kind") != "recipe":
            continue
        value = getattr(config, item.name)
        if complete or not _as_introduced(item, value):
            result[item.name] = _plain(value, complete)
    return result


def added_fields(config: Any) -> dict[str, Any]:
    """Fields that were added after ad127be and differ from their `introduced` value, by which an older hash must be extended."""
    found = recipe_fields(config)
    return {item.name: found[item.name] for item in dataclasses.fields(config) if "since" in item.metadata and item.name in found}


def _as_introduced(item: "dataclasses.Field[Any]", value: Any) -> bool:
    return "since" in item.metadata and bool(_plain(value, False) == item.metadata["introduced"])


def _plain(value: Any, complete: bool) -> Any:
    if isinstance(value, tuple):
        return [_plain(part, complete) for part in value]
    return recipe_fields(value, complete=complete) if dataclasses.is_dataclass(value) else value


def canonical_hash(value: object) -> str:
    """SHA-256 (hex) over canonical JSON: sorted keys, no spaces, shortest round-trip floats."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys whose values differ, as `key: old -> new`; empty exactly if the canonical hashes are equal."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, _MISSING), new.get(key, _MISSING)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differing_keys(before, after, f"{prefix}{key}.")
        elif before is _MISSING or after is _MISSING or _canonical(before) != _canonical(after):
            yield f"{prefix}{key}: {_shown(before)} -> {_shown(after)}"


def _shown(value: Any) -> str:
    return "not there" if value is _MISSING else repr(value)
