"""MATLAB files of version 5, read within limits: scipy's reader trusts whatever sizes they declare."""

import io
import itertools
import math
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.bounds import MAX_CELLS, MAX_COPY_FILE_BYTES, MAX_DEPTH
from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Copy

_Order = Literal["big", "little"]
_COMPRESSED, _MATRIX = 15, 14  # types of elements that hold others; the first one deflated
_HOLDERS = (1, 2, 3, 16, 17)  # classes of matrices that hold matrices: cells, structs, objects
_PIECE = 1 << 16  # holds at most 64 MiB
_BROKEN = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, EOFError, RuntimeError, MemoryError, AssertionError,
    zlib.error,
)  # fmt: skip
"""What scipy raises on invalid MATLAB files, by kind of damage; NotImplementedError (version 7.3) is a RuntimeError."""


def read_mat(copy: Copy, ending: str, *names: str, squeeze: bool = True) -> list[NDArray[Any]]:
    """Variables of a MATLAB file of the copy, each an array of at least one dimension.

    Raises:
        InputError: not such a file, a variable is missing, or it exceeds the limits once unpacked.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError, whosmat

    name = copy.require(ending)
    where, data = f"{copy.uri}/{name}", copy.read(name)
    try:
        _check_unpacked(data, where)
        declared = {variable: shape for variable, shape, _ in whosmat(io.BytesIO(data))}
        for variable in names:
            if variable not in declared:
                raise InputError(f"{where}: has no variable {variable!r} (it has {', '.join(map(str, declared)) or 'none'})")
            if not 0 <= int(np.prod([float(side) for side in declared[variable]])) <= MAX_COPY_FILE_BYTES:
                raise InputError(f"{where}: {variable!r} declares {declared[variable]} values, at most {MAX_COPY_FILE_BYTES:,} are read")
        found = loadmat(io.BytesIO(data), squeeze_me=squeeze, struct_as_record=False, variable_names=list(names))
        return [np.atleast_1d(found[variable]) for variable in names]
    except InputError:
        raise
    except (*_BROKEN, MatReadError) as error:
        raise InputError(f"{where}: not a MATLAB file of version 5: {' '.join(str(error).split())[:200]}") from error


def _check_unpacked(data: bytes, where: str) -> None:
    """Refuse a file whose elements exceed the limits once unpacked, or for which scipy would need too much memory or stack."""
    order: _Order = "big" if data[126:128] == b"MI" else "little"
    total = cells = 0
    for kind, start, end in _elements(data, 128, len(data), order):
        if kind == _COMPRESSED:
            unpacker, parts = zlib.decompressobj(), bytearray()
            for begin in range(start, end, _PIECE):
                parts += unpacker.decompress(data[begin : min(begin + _PIECE, end)])
                if total + len(parts) > MAX_COPY_FILE_BYTES:
                    raise InputError(f"{where}: more than {MAX_COPY_FILE_BYTES:,} bytes unpacked: a decompression bomb?")
            total += len(parts)
            cells += _count_cells(parts, 0, len(parts), order, where)
        elif kind == _MATRIX:
            cells += _count_cells(data, start - 8, end, order, where)
        if cells > MAX_CELLS:
            raise InputError(f"{where}: more than {MAX_CELLS:,} cells and fields: a decompression bomb?")


def _elements(data: bytes | bytearray, start: int, end: int, order: _Order) -> Iterator[tuple[int, int, int]]:
    """Type, start and end of each element between two positions."""
    while start + 8 <= end:
        kind, size = (int.from_bytes(data[place : place + 4], order) for place in (start, start + 4))
        small = kind >> 16  # size of an element of at most four bytes, stored in the tag itself
        begin, size = (start + 4, small) if small else (start + 8, size)
        yield kind & 0xFFFF, begin, min(begin + size, end)
        start = start + 8 if small else begin + size + (-size % 8 if kind != _COMPRESSED else 0)


def _count_cells(data: bytes | bytearray, start: int, end: int, order: _Order, where: str) -> int:
    """Matrices between two positions, nested ones included, plus those that they declare; InputError if nested too deep."""
    count, waiting = 0, [(start, end, 1)]
    while waiting:
        start, end, depth = waiting.pop()
        for kind, begin, stop in _elements(data, start, end, order):
            if count > MAX_CELLS:
                return count
            if kind == _MATRIX:
                count += 1 + _declared_cells(data, begin, stop, order)
                waiting.append((begin, stop, depth + 1))
        if depth > MAX_DEPTH and waiting:
            raise InputError(f"{where}: cells or fields more than {MAX_DEPTH} levels inside each other")
    return count


def _declared_cells(data: bytes | bytearray, start: int, end: int, order: _Order) -> int:
    """How many matrices a matrix declares to contain; 0 if it contains numbers or text."""
    parts = [(begin, stop) for _, begin, stop in itertools.islice(_elements(data, start, end, order), 2)]
    if len(parts) < 2 or int.from_bytes(data[parts[0][0] : parts[0][0] + 4], order) & 0xFF not in _HOLDERS:
        return 0
    begin, stop = parts[1]
    return math.prod(int.from_bytes(data[place : place + 4], order) for place in range(begin, min(stop, begin + 128), 4))
