"""Read numpy's .npy and .npz files within limits: bytes from a store may be damaged or malicious.

numpy's own reader trusts a header: it evaluates it, and allocates what the shape says. Here a header is accepted only if
it is literally what numpy writes for numbers and text, and only if it describes exactly the bytes that follow.
"""

import hashlib
import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import Corrupt, words_of
from trainer.storage.base import open_store
from trainer.storage.protocol import PIECE_BYTES

MAX_PACKED_BYTES = 64 << 20
"""Size of an archive: outcomes of a million items fit."""
MAX_BYTES = 128 << 20
"""Total size of the arrays read from an archive at once."""
_MAX_MEMBERS = 256
_SHAPE = rb"\((|[0-9]{1,15},|[0-9]{1,15}(?:, [0-9]{1,15}){1,63})\)"  # NumPy's arrays have up to 64 sides
_HEADER = re.compile(rb"\{'descr': '([<>|=][biufSU][0-9]{1,9})', 'fortran_order': (False|True), 'shape': " + _SHAPE + rb", \} *\n")
_DIRECTORY_END = struct.Struct("<4s4H2LH")
_DIRECTORY_ENTRY_BYTES = 46
_NAME_BYTES = 128
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, LookupError, ArithmeticError, RuntimeError,
)  # fmt: skip
"""What zipfile raises on invalid archives, by kind of damage; NotImplementedError is a RuntimeError."""


def read_arrays(uri: str, names: Collection[str] | None = None, sealed: Mapping[str, Any] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of the .npz object at `uri` by name.

    Args:
        uri: of the object.
        names: those that are wanted, as far as there are; None: all.
        sealed: {"size": bytes, "sha256": hex} that it must have, where that is recorded.

    Raises:
        MissingObject: there is no such object.
        Corrupt: its bytes are not those recorded, not arrays of numbers and text, or beyond the limits of this module.
    """
    store = open_store(uri)
    info = store.head(uri)
    if info is not None and info.size > MAX_PACKED_BYTES:
        raise Corrupt(f"{uri}: {info.size:,} bytes is too large for a firstsight array file (at most {MAX_PACKED_BYTES:,})")
    data = store.get(uri)
    if sealed is not None and (len(data), hashlib.sha256(data).hexdigest()) != (sealed["size"], sealed["sha256"]):
        raise Corrupt(f"{uri}: its bytes differ from those recorded: it was damaged, truncated or replaced")
    return decode_arrays(data, uri, names)


def decode_array(data: bytes | bytearray, uri: str) -> NDArray[Any]:
    """The array of an .npy file: bool, numbers or text, never objects. It shares the memory of `data`.

    Args:
        data: the file.
        uri: where it lies, for errors.

    Raises:
        Corrupt: not such a file, or its header does not describe what follows it.
    """
    magic, version = bytes(data[:6]), bytes(data[6:8])
    length = struct.Struct("<H" if version == b"\1\0" else "<I")
    if magic != b"\x93NUMPY" or version not in (b"\1\0", b"\2\0", b"\3\0") or len(data) < 8 + length.size:
        raise Corrupt(f"{uri}: not a NumPy array")
    start = 8 + length.size
    end = start + length.unpack_from(data, 8)[0]
    header = _HEADER.fullmatch(data, start, end) if end <= len(data) else None
    if header is None:
        raise Corrupt(f"{uri}: the header of the array is not one of numbers or text")
    shape = tuple(int(side) for side in header[3].split(b",") if side.strip())
    try:
        dtype = np.dtype(header[1].decode())
        if dtype.itemsize == 0 or dtype.itemsize * math.prod(shape) != len(data) - end:
            raise Corrupt(f"{uri}: the header says {dtype} of shape {shape}, but {len(data) - end} bytes follow it")
        return np.ndarray(shape, dtype, buffer=data, offset=end, order="F" if header[2] == b"True" else "C")
    except (TypeError, ValueError, OverflowError) as error:
        raise Corrupt(f"{uri}: not a NumPy array: {error}") from error


def decode_arrays(data: bytes, uri: str, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name.

    Args:
        data: the file.
        uri: where it lies, for errors.
        names: those that are wanted, as far as there are; None: all.

    Raises:
        Corrupt: it is not an archive of arrays of numbers and text, its bytes are not those that were packed, or what is wanted of it
            takes more than `MAX_BYTES`.
    """
    try:
        _check_directory(data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise zipfile.BadZipFile("two members have the same name")
            wanted = {name: info for name, info in members.items() if names is None or name in names}
            total = sum(info.file_size for info in wanted.values())
            if total > MAX_BYTES:
                raise zipfile.BadZipFile(f"they take {total:,} bytes, at most {MAX_BYTES:,} are read")
            unpacked = {name: _unpack(archive, info) for name, info in wanted.items()}
    except _BROKEN as error:
        raise Corrupt(f"{uri}: not NumPy arrays, or damaged: {words_of(error)}") from error
    return {name: decode_array(raw, f"{uri}: {name}") for name, raw in unpacked.items()}


def _check_directory(data: bytes) -> None:
    """Refuse a zip directory larger than numpy's: zipfile makes an object for each entry."""
    if len(data) < _DIRECTORY_END.size:
        raise zipfile.BadZipFile("too short")
    magic, *_, count, size, start, comment = _DIRECTORY_END.unpack_from(data, len(data) - _DIRECTORY_END.size)
    if magic != b"PK\5\6" or comment or start + size + _DIRECTORY_END.size != len(data):
        raise zipfile.BadZipFile("no end of the directory where numpy puts it")
    if count > _MAX_MEMBERS or size > count * (_DIRECTORY_ENTRY_BYTES + _NAME_BYTES):
        raise zipfile.BadZipFile(f"a directory of {count} members in {size} bytes")


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytearray:
    """A member's bytes, never more than its entry says, compared with its CRC-32."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{info.filename} is packed by method {info.compress_type}")  # the others unpack without a bound
    raw = bytearray()
    with archive.open(info) as stream:
        while piece := stream.read(PIECE_BYTES):
            raw += piece
    if len(raw) != info.file_size:
        raise zipfile.BadZipFile(f"{info.filename} has {len(raw)} of {info.file_size} bytes")
    return raw
