"""Representational dissimilarity matrices supplied by users, such as those of fMRI regions, and matching their names to pictures.

Two forms:

- `.csv`: the first row is a corner and the names, each further row a name and its numbers;
- `.npy`: the square matrix alone, beside a `.txt` of the same name with the names, one per line.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.bounds import MAX_RDM_BYTES, MAX_RDM_NAMES, csv_rows
from trainer.errors import Corrupt, InputError
from trainer.storage.arrays import decode_array
from trainer.storage.base import MissingObject, open_store

MIN_NAMES = 4
TOLERANCE = 1e-6
"""Tolerance for symmetry and the diagonal, relative to the largest entry: the error of single-precision sums."""
_COUNTER = re.compile(r"\d{6}-")
"""Staging puts a counter before a picture's name."""


@dataclass(frozen=True, kw_only=True)
class Rdm:
    """A dissimilarity matrix.

    Attributes:
        name: the file's name without its suffix.
        names: of its N pictures.
        values: (N, N) float64, symmetric, finite, 0 on the diagonal.
        sha256: over all that was read.
    """

    name: str
    names: tuple[str, ...]
    values: NDArray[np.float64]
    sha256: str


def read_rdm(uri: str, sha256: str = "") -> Rdm:
    """The RDM at `uri`, checked.

    Args:
        uri: of the .csv or .npy file.
        sha256: that it must have, where an experiment was planned with it.

    Raises:
        InputError: there is none, it is not an RDM (not square, not symmetric, NaN or Inf, a diagonal that is not 0, no variation),
            it does not have one name for each row and column, or it is not the planned one.
    """
    stem, _, suffix = uri.rpartition(".")
    if suffix not in ("csv", "npy") or not stem.rpartition("/")[2]:
        raise InputError(f"RDM {uri}: must be a .csv file with names, or a .npy file with a .txt file of names next to it")
    data = _read(uri)
    if suffix == "csv":
        names, values = _from_csv(uri, data)
    else:
        listed = _read(f"{stem}.txt")
        names, values = _lines(f"{stem}.txt", listed), _from_npy(uri, data)
        data += listed
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256:
        raise InputError(
            f"RDM {uri}: not the RDM that the experiment was planned with (SHA-256 {found[:12]}, not {sha256[:12]}): plan the experiment "
            "again"
        )
    _check(uri, names, values)
    return Rdm(name=stem.rpartition("/")[2], names=tuple(names), values=values, sha256=found)


def _read(uri: str) -> bytes:
    store = open_store(uri)
    info = store.head(uri)
    if info is not None and info.size > MAX_RDM_BYTES:
        raise InputError(f"RDM {uri}: has {info.size:,} bytes, at most {MAX_RDM_BYTES:,} are read")
    try:
        return store.get(uri)
    except MissingObject as error:
        raise InputError(f"RDM {uri}: no such file{', which names the rows of the .npy file' if uri.endswith('.txt') else ''}") from error


def _lines(uri: str, data: bytes) -> list[str]:
    try:
        return [line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"RDM {uri}: not text in UTF-8") from error


def _from_npy(uri: str, data: bytes) -> NDArray[np.float64]:
    try:
        values = decode_array(data, uri)
    except Corrupt as error:
        raise InputError(f"RDM {error}") from error
    if values.dtype.kind not in "iuf" or values.ndim != 2:
        raise InputError(f"RDM {uri}: must be a square matrix of numbers, got {values.dtype} of shape {values.shape}")
    return values.astype(np.float64)


def _from_csv(uri: str, data: bytes) -> tuple[list[str], NDArray[np.float64]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"RDM {uri}: not CSV in UTF-8: {error}") from error
    rows: list[list[str]] = []
    for line, row in csv_rows(text, f"RDM {uri}", strict=True):
        if max(len(row), len(rows) + 1) > MAX_RDM_NAMES + 1:
            raise InputError(f"RDM {uri}: line {line}: must compare {MIN_NAMES} to {MAX_RDM_NAMES:,} pictures, and has more")
        rows.append(row)
    columns = [name.strip() for name in rows[0][1:]] if rows else []
    names = [row[0].strip() for row in rows[1:]]
    if columns != names:
        differing = next((pair for pair in zip(columns, names, strict=False) if pair[0] != pair[1]), None)
        how = f"column {differing[0]!r} meets row {differing[1]!r}" if differing else f"{len(columns)} columns and {len(names)} rows"
        raise InputError(f"RDM {uri}: its first row and its first column must name the same pictures in the same order: {how}")
    short = next((row for row in rows[1:] if len(row) != len(columns) + 1), None)
    if short is not None:
        raise InputError(f"RDM {uri}: row {short[0]!r} has {len(short) - 1} numbers, not {len(columns)}")
    try:
        return names, np.array([row[1:] for row in rows[1:]], np.float64).reshape(len(names), len(columns))
    except ValueError as error:
        raise InputError(f"RDM {uri}: {error}: the matrix may contain only numbers") from error


def _check(uri: str, names: Sequence[str], values: NDArray[np.float64]) -> None:
    count = len(values)
    if values.shape != (count, count):
        raise InputError(f"RDM {uri}: must be square, got {values.shape[0]} x {values.shape[1]}")
    if len(names) != count:
        raise InputError(f"RDM {uri}: {count} rows but {len(names)} names: each row needs the name of its picture")
    if not MIN_NAMES <= count <= MAX_RDM_NAMES:
        raise InputError(f"RDM {uri}: must compare {MIN_NAMES} to {MAX_RDM_NAMES:,} pictures, got {count}")
    twice = next((name for number, name in enumerate(sorted(names)) if number and sorted(names)[number - 1] == name), None)
    if twice is not None:
        raise InputError(f"RDM {uri}: names {twice!r} twice")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise InputError(
            f"RDM {uri}: {values[row, column]} between {names[row]!r} and {names[column]!r}: every entry must be a finite number"
        )
    most = float(np.abs(values).max())
    if (apart := np.abs(values - values.T)).max() > TOLERANCE * most:
        row, column = divmod(int(apart.argmax()), count)
        raise InputError(
            f"RDM {uri}: not symmetric: {values[row, column]:g} between {names[row]!r} and {names[column]!r}, "
            f"{values[column, row]:g} the other way"
        )
    if (diagonal := np.abs(values.diagonal())).max() > TOLERANCE * most:
        worst = int(diagonal.argmax())
        raise InputError(
            f"RDM {uri}: {names[worst]!r} differs from itself by {values[worst, worst]:g}: a dissimilarity is 0 there; is it a similarity?"
        )
    above = values[np.triu_indices(count, 1)]
    if above.min() == above.max():
        raise InputError(f"RDM {uri}: all dissimilarities are {above[0]:g}: there is nothing to correlate with")


def find_pictures(names: Sequence[str], keys: Sequence[str]) -> tuple[list[int], list[str]]:
    """Where the pictures of an RDM are in a set.

    A name is a picture's key, or its key without the counter that staging puts before a name, where that is one picture's alone.

    Args:
        names: of the RDM.
        keys: of the set's pictures.

    Returns:
        Places in `keys`, one a name that was found, and the names that were not.
    """
    places = {key: place for place, key in enumerate(keys)}
    short: dict[str, list[int]] = {}
    for key, place in places.items():
        if _COUNTER.match(key):
            short.setdefault(_COUNTER.sub("", key, count=1), []).append(place)
    found = [places.get(name, short[name][0] if len(short.get(name, ())) == 1 else -1) for name in names]
    return [place for place in found if place >= 0], [name for name, place in zip(names, found, strict=True) if place < 0]
