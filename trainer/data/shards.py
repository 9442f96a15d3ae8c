"""Reading members of a shard that lies on this machine: one mapping of the tar, one index, every checksum compared."""

import mmap
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass

import google_crc32c

from trainer.errors import RunError
from trainer.storage.manifest import Shard
from trainer.storage.samples import read_index


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A shard, or the part of it that a run needs, on this machine.

    Attributes:
        shard: as the manifest has it.
        path: of the tar; a part has the tar's size, and holes where nothing was fetched.
        folder: where the index lies under the name that the manifest gives it.
        uri: of the shard in the store, for errors.
    """

    shard: Shard
    path: str
    folder: str
    uri: str


class ShardView:
    """One shard, mapped."""

    def __init__(self, file: ShardFile) -> None:
        """Map it. Raises RunError where the tar is shorter than the manifest says."""
        self.index = read_index(file.folder, file.shard)
        self._file = file
        size = os.stat(file.path).st_size
        if size != file.shard.size:  # a mapping that is shorter than its index would kill the process when read
            raise RunError(f"{file.uri}: {size} bytes at {file.path}, the manifest says {file.shard.size}: it was cut short or changed")
        with open(file.path, "rb") as stream:
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        # Plain lists: one sample's numbers are then looked up without NumPy's cost for each.
        self._offsets, self._sizes, self._sums = self.index.offsets.tolist(), self.index.sizes.tolist(), self.index.crc32c.tolist()
        self._columns = {name: column for column, name in enumerate(self.index.members)}

    def column(self, name: str) -> int:
        """Which member column `name` is. Raises RunError where the shard has none."""
        if name not in self._columns:
            raise RunError(f"{self._file.uri}: has no member {name!r}, only {', '.join(self._columns)}")
        return self._columns[name]

    def member(self, row: int, column: int) -> bytes:
        """The bytes of one member of one sample, as they were staged.

        Raises:
            RunError: naming shard and sample, where they are not.
        """
        start = self._offsets[row][column]
        data = self._bytes[start : start + self._sizes[row][column]]
        if google_crc32c.value(data) != self._sums[row][column]:
            name = self.index.members[column]
            raise RunError(
                f"{self.sample(row)}: checksum of {name} is wrong: the shard (read from {self._file.path}) was changed or is damaged"
            )
        return data

    def sample(self, row: int) -> str:
        """The sample in words, for errors."""
        return f"{self._file.uri}: sample {self.index.keys[row]!r}"


class Views:
    """The last used views of a process, at most `capacity` of them. Safe for threads."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._views: OrderedDict[str, ShardView] = OrderedDict()
        self._lock = threading.Lock()

    def view(self, file: ShardFile) -> ShardView:
        """The view of `file`, opened at its first use."""
        with self._lock:
            view = self._views.get(file.path)
            if view is None:
                view = self._views[file.path] = ShardView(file)
                while len(self._views) > self._capacity:
                    self._views.popitem(last=False)  # unmapped when its last user lets go
            self._views.move_to_end(file.path)
            return view
