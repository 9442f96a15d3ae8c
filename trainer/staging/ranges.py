"""A remote object as a seekable file, read by ranges, for code that needs a file, such as the standard library's zipfile."""

import io
from collections.abc import Callable
from typing import Any

from trainer.bounds import MAX_ARCHIVE_READ_BYTES
from trainer.errors import InputError


class RangeReader(io.RawIOBase):
    """An object of `size` bytes, read with `read_range(start, length)`. Buffer it: each read is a request."""

    def __init__(self, size: int, read_range: Callable[[int, int], bytes | memoryview]) -> None:
        self._size = size
        self._read_range = read_range
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte."""
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"byte {position} of a file")
        self._position = position
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read what fits, at most to the end."""
        length = min(len(buffer), max(0, self._size - self._position))
        if length:
            buffer[:length] = self._read_range(self._position, length)
            self._position += length
        return length


class BoundedReader(io.BufferedReader):
    """A buffered file that refuses reads larger than MAX_ARCHIVE_READ_BYTES: a header may ask for any number of bytes."""

    def __init__(self, raw: io.RawIOBase, buffer_bytes: int, source: str) -> None:
        super().__init__(raw, buffer_bytes)
        self._source = source

    def read(self, size: int | None = -1, /) -> bytes:
        """Read; InputError naming the source if its headers ask for too much at once."""
        to_the_end = size is None or size < 0
        wanted = MAX_ARCHIVE_READ_BYTES + 1 if size is None or to_the_end else size
        data = super().read(wanted) if to_the_end or wanted <= MAX_ARCHIVE_READ_BYTES else b""
        if wanted > MAX_ARCHIVE_READ_BYTES and (len(data) == wanted or not to_the_end):
            raise InputError(f"{self._source}: a header asks for {wanted:,} bytes at once, at most {MAX_ARCHIVE_READ_BYTES:,} are read")
        return data
