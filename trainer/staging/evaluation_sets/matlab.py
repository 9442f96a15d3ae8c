"""MATLAB files of version 5, within bounds: scipy's reader takes what they declare at its word."""

import io
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.bounds import MAX_COPY_FILE_BYTES
from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Copy

_COMPRESSED = 15  # type of an element that holds others, deflated
_PIECE = 1 << 16  # holds at most 64 MiB
_BROKEN = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, EOFError, RuntimeError, MemoryError, AssertionError,
    zlib.error,
)  # fmt: skip
"""What scipy raises on bytes that are no MATLAB file, by kind of damage; NotImplementedError (version 7.3) is a RuntimeError."""


def read_mat(copy: Copy, ending: str, *names: str, squeeze: bool = True) -> list[NDArray[Any]]:
    """Variables of a MATLAB file of the copy, each an array of at least one dimension.

    Raises:
        InputError: not such a file, without one of the variables, or larger than the bounds once unpacked.
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
    """Refuse a file whose deflated elements hold more than is read."""
    order = "big" if data[126:128] == b"MI" else "little"
    position, total = 128, 0
    while position + 8 <= len(data):
        kind, size = (int.from_bytes(data[start : start + 4], order) for start in (position, position + 4))  # type: ignore[arg-type]
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            for start in range(position + 8, min(position + 8 + size, len(data)), _PIECE):
                total += len(unpacker.decompress(data[start : min(start + _PIECE, position + 8 + size)]))
                if total > MAX_COPY_FILE_BYTES:
                    raise InputError(f"{where}: more than {MAX_COPY_FILE_BYTES:,} bytes unpacked: a decompression bomb?")
        position += 8 + size
