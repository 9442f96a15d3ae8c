"""Registries whose entries are files: a package is searched for modules that define one agreed name."""

import importlib
import pkgutil
from typing import TypeVar

EntryT = TypeVar("EntryT")


def discover(package: str, attribute: str, kind: type[EntryT]) -> list[EntryT]:
    """`attribute` of every module of `package` that has one, by file name. Modules without it are helpers.

    Raises:
        TypeError: one of them is something else than a `kind`.
    """
    found = []
    folder = importlib.import_module(package).__path__
    for name in sorted(module.name for module in pkgutil.iter_modules(folder)):
        entry = getattr(importlib.import_module(f"{package}.{name}"), attribute, None)
        if entry is None:
            continue
        if not isinstance(entry, kind):
            raise TypeError(f"{package}.{name}.{attribute} must be a {kind.__name__}, got {entry!r}")
        found.append(entry)
    return found
