"""The addresses a process may use: those below its tenant's root and those its profile lists, however an address is spelled.

A run profile sets the bounds (pipelines/profile/confined.py); they go to jobs in the environment, and `s3.py` asks before each request.
The store's own access rules come first; these bounds also apply if a key gives access to more than its tenant's root.
"""

import os
import posixpath
import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote

from trainer.errors import InputError

VARIABLE = "FIRSTSIGHT_STORE_WITHIN"
"""Space-separated URIs below which this process may use a store; unset: no restriction."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)
_PLAIN = re.compile(r"(s3:/)?(/[^/\s%\\*?$]*[^/\s%\\*?$.][^/\s%\\*?$]*)+/?")
_DECODINGS = 8
"""How often an address is decoded; one that is still encoded after that is refused."""


def is_below(address: str, places: Iterable[str]) -> bool:
    """Whether an address is one of the places or lies below one, both as it is written and as any server or library might read it.

    `s3://b/team-a-evil` does not lie below `s3://b/team-a`, nor do `s3://b/team-a/../team-b`, `s3://b/team-a/%2e%2e/team-b` or
    `s3://b//team-a`. Local paths are compared as they are written and with their links resolved.
    """
    places = tuple(places)
    return all(any(_is_in(form, place) for place in places) for form in _forms(address))


def is_local(address: str) -> bool:
    """Whether an address is a local path, in any spelling."""
    found = _SCHEME.match(address)
    return found is None or found[0].lower() == "file:/"


def is_plain(address: str) -> bool:
    """Whether an address can be one of the places: `s3://bucket/prefix` or an absolute path, with nothing to decode or to resolve.

    Nor with what a store's access policy would take for a pattern or a variable.
    """
    return bool(_PLAIN.fullmatch(address))


def check(uri: str) -> None:
    """Refuse a URI that this process may not use.

    Raises:
        InputError: it lies outside what the environment allows.
    """
    places = os.environ.get(VARIABLE)
    if places is not None and not _allowed(uri, places):
        raise InputError(refusal(uri, places.split()))


LISTED = "copy it under the root, or have it listed in `reads` of the profile (the chart's value profiles.<name>.reads)"


def refusal(address: str, places: Iterable[str], remedy: str = LISTED) -> str:
    """Why an address may not be used, and how to fix it."""
    return f"{address} is outside the locations that runs of this profile may use ({', '.join(places)}): {remedy}"


@lru_cache(maxsize=1024)
def _allowed(uri: str, places: str) -> bool:
    return is_below(uri, places.split())


def _is_in(form: str, place: str) -> bool:
    places = {place} if "://" in place else {place, os.path.realpath(place)}
    return any(form == one or form.startswith(f"{one.rstrip('/')}/") for one in places)


def _forms(address: str) -> list[str]:
    """How an address may be read: as it stands, and decoded with `.`, `..` and empty parts resolved; of a local path the target too."""
    decoded, seen = address, 0
    while (further := unquote(decoded).replace("\\", "/")) != decoded:
        decoded, seen = further, seen + 1
        if seen > _DECODINGS:
            return [""]
    forms = []
    for one in dict.fromkeys((address, decoded)):
        found = _SCHEME.match(one)
        scheme = one[: found.end()].lower() if found else ""
        path = one[len(scheme) :]
        if scheme in ("", "file:/"):
            path = f"/{path.lstrip('/')}" if scheme else os.path.expanduser(path)
            forms += [os.path.normpath(path), os.path.realpath(path)]
        else:
            forms += [f"{scheme}{path.rstrip('/')}", f"{scheme}/{posixpath.normpath(path).lstrip('/')}"]
    return forms
