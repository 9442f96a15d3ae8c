"""Untrusted values, read field by field: a wrong type, size or sign is always an InputError that names file and field.

Readers of lists, tables and annotations get every number, text and array from here, so that none of them has to know what
Python raises on invalid input.
"""

import codecs
import io
import math
import tokenize
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from trainer.bounds import MAX_CAPTION_BYTES, check_size
from trainer.errors import InputError, words_of

T = TypeVar("T")
MAX_WHOLE = 2**53
"""Largest integer that every reader represents exactly; no count, label or position in a list is larger."""
_HEADER_FAULTS = (
    ValueError, TypeError, SyntaxError, LookupError, AttributeError, OverflowError, MemoryError, RecursionError, EOFError,
    tokenize.TokenError,
)  # fmt: skip
"""What numpy's header parser raises on text that is not a header."""


def shown(value: object, most: int = 80) -> str:
    """A value for an error message; long ones are truncated, and numbers too long to print are described."""
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        return f"a whole number of {value.bit_length()} bits"
    try:
        text = repr(value[: most + 1] if isinstance(value, str | bytes | list) else value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists nested too deep
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= most else f"{text[:most]}…"


def whole(value: object, where: str, low: int = 0, high: int = MAX_WHOLE) -> int:
    """A whole number from `low` to `high` (inclusive), given as text or as JSON and MATLAB represent it.

    Raises:
        InputError: naming `where`, the rule and what was found.
    """
    found: int | None = None
    if isinstance(value, str):
        text = value.strip()
        found = int(text) if len(text) <= 20 and text.removeprefix("-").isdecimal() else None
    elif isinstance(value, int | np.integer) and not isinstance(value, bool):
        found = int(value)
    elif isinstance(value, float | np.floating) and math.isfinite(value) and value == int(value):
        found = int(value)
    if found is None or not low <= found <= high:
        raise InputError(f"{where}: must be a whole number from {low} to {high}, got {shown(value)}")
    return found


def number(value: object, where: str, low: float = -1e300, high: float = 1e300) -> float:
    """A finite number from `low` to `high` (inclusive); raises as `whole` does."""
    try:
        found = float(value) if isinstance(value, str | int | float | np.number) and not isinstance(value, np.complexfloating) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not low <= found <= high:
        raise InputError(f"{where}: must be a number from {low:g} to {high:g}, got {shown(value)}")
    return found


def entry(value: object, key: str, kind: type[T], where: str) -> T:
    """The value of a mapping's key, checked to be of this type.

    Raises:
        InputError: `value` is not a mapping, lacks the key, or has another type there.
    """
    if not isinstance(value, dict) or key not in value:
        raise InputError(f"{where}: has no {key!r}, got {shown(value)}")
    found = value[key]
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise InputError(f"{where}: {key!r} must be of type {kind.__name__}, got {shown(found)}")
    return found


def text_of(data: bytes, where: str) -> str:
    """UTF-8 text, with or without a byte order mark; InputError names the invalid byte or the likely encoding."""
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise InputError(f"{where}: must be UTF-8, but its first bytes look like UTF-16: convert it with iconv -f UTF-16 -t UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + (3 if data.startswith(codecs.BOM_UTF8) else 0)
        why = "perhaps Latin-1: convert it with iconv -f WINDOWS-1252 -t UTF-8"
        raise InputError(f"{where}: must be UTF-8, but has byte {data[start]:#04x} at {start}, {why}") from error


def lines_of(text: str) -> list[str]:
    """The lines of a text, split only at the line ends used in files, not at Unicode's others."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines


def without_surrogates(text: str) -> str:
    """Text that can be written as UTF-8: JSON may hold half a character, which becomes `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def parse_xml(data: bytes, source: str) -> ElementTree.Element:
    """An annotation in XML; InputError if it is too large, not XML, or declares entities (an annotation has none)."""
    check_size(len(data), MAX_CAPTION_BYTES, source)
    if b"<!" in data.replace(b"<!--", b""):
        raise InputError(f"{source}: has a document type or entities, which an annotation does not need")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise InputError(f"{source}: not XML: {error}") from error


def read_npy(data: bytes, source: str) -> NDArray[Any]:
    """The array of a .npy file of numbers; InputError if its header does not describe exactly the bytes that follow."""
    dtype, shape, fortran, start = npy_header(io.BytesIO(data), len(data), source)
    return np.ndarray(shape, dtype, buffer=data, offset=start, order="F" if fortran else "C")


def npy_header(stream: BinaryIO, size: int, source: str) -> tuple["np.dtype[Any]", tuple[int, ...], bool, int]:
    """Type, shape, whether in Fortran order, and offset of the array in a .npy file of `size` bytes.

    Raises:
        InputError: not such a file, not numbers, or a header that declares more or fewer bytes than follow.
    """
    with _naming(source):
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        declared = dtype.itemsize * math.prod(shape)
    if dtype.kind not in "biuf" or not all(isinstance(side, int) and 0 <= side <= MAX_WHOLE for side in shape) or len(shape) > 8:
        raise InputError(f"{source}: not a .npy file of numbers: it holds {shown(str(dtype))} of shape {shown(shape)}")
    if declared != size - stream.tell():
        there = size - stream.tell()
        raise InputError(f"{source}: its header says {dtype} of shape {shown(shape)}, {declared:,} bytes, but {there:,} follow it")
    return dtype, tuple(shape), fortran, stream.tell()


@contextmanager
def _naming(source: str) -> Iterator[None]:
    try:
        yield
    except _HEADER_FAULTS as error:
        raise InputError(f"{source}: not a .npy file of numbers: {words_of(error)[:200]}") from error
