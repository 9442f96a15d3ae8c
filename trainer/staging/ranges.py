"""What lies elsewhere as a file that can seek, read by ranges: for the standard library's readers of tars and zips."""

import io
from collections.abc import Callable
from typing import Any


class RangeReader(io.RawIOBase):
    """An object of `size` bytes, of which `read_range(start, length)` gives a part. Buffer it: each read is a request."""

    def __init__(self, size: int, read_range: Callable[[int, int], bytes]) -> None:
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
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read what fits, at most to the end."""
        length = min(len(buffer), max(0, self._size - self._position))
        if length:
            buffer[:length] = self._read_range(self._position, length)
            self._position += length
        return length
