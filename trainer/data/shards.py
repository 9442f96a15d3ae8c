"""Read members of a shard on this machine: one mmap of the tar, one index, every checksum verified."""

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import google_crc32c
import torch

from trainer.errors import Corrupt, RunError
from trainer.storage.base import read_bytes
from trainer.storage.index import ShardIndex
from trainer.storage.manifest import Shard
from trainer.storage.protocol import PIECE_BYTES, MissingObject
from trainer.storage.samples import check_index, is_index_of


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A shard, or the part of it that a run needs, on this machine.

    Attributes:
        shard: the manifest's entry for it.
        path: path of the tar; a partial tar is a sparse file of the full size.
        index: path of its index.
        uri: URI of the shard in the store, for error messages.
    """

    shard: Shard
    path: str
    index: str
    uri: str

    def read_index(self) -> ShardIndex:
        """Its index, compared with the manifest. Raises Corrupt, or MissingObject if there is none."""
        return check_index(read_bytes(self.index), self.index, self.shard)


class DamagedFile(Corrupt):
    """Bytes of a shard on this machine are not those that were staged; a cache can fetch them again.

    Attributes:
        file: the shard.
    """

    def __init__(self, line: str, file: ShardFile) -> None:
        super().__init__(line)
        self.file = file

    def __reduce__(self) -> tuple[type["DamagedFile"], tuple[str, ShardFile]]:
        """Make it picklable, so that it can be returned from worker processes."""
        return DamagedFile, (str(self), self.file)


class ShardView:
    """One shard, mapped.

    Attributes:
        index: index of the shard.
        damaged: a member's checksum was wrong; the file may have been replaced since.
    """

    def __init__(self, file: ShardFile) -> None:
        """Map it. Raises DamagedFile where it is missing, is shorter than the manifest says, or has another index."""
        self.damaged, self._file = False, file
        try:
            self.index = file.read_index()
            self._bytes = _mapped(file)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise DamagedFile(f"{file.uri}: missing at {file.path}, though the manifest names it", file) from error
        except (Corrupt, MissingObject) as error:
            raise DamagedFile(str(error), file) from error
        # As memoryviews, one sample's numbers are looked up without NumPy's per-access overhead, and without a second copy as lists.
        self._offsets, self._sizes, self._sums = self.index.offsets.data, self.index.sizes.data, self.index.crc32c.data
        self._columns = {name: column for column, name in enumerate(self.index.members)}

    def column(self, name: str) -> int:
        """The column index of member `name`. Raises RunError if the shard has none."""
        if name not in self._columns:
            raise RunError(f"{self._file.uri}: has no member {name!r}, only {', '.join(self._columns)}")
        return self._columns[name]

    def member(self, row: int, column: int) -> bytes:
        """The bytes of one member of one sample, as they were staged.

        Raises:
            DamagedFile: the bytes differ from those staged; names the shard and sample.
        """
        start = self._offsets[row, column]
        data = bytes(self._bytes[start : start + self._sizes[row, column]])
        if google_crc32c.value(data) != self._sums[row, column]:
            self.damaged = True
            name = self.index.members[column]
            line = f"{self.sample(row)}: checksum of {name} is wrong: the shard (read from {self._file.path}) was changed or is damaged"
            raise DamagedFile(line, self._file)
        return data

    def sample(self, row: int) -> str:
        """The sample's description, for error messages."""
        return f"{self._file.uri}: sample {self.index.keys[row]!r}"


def _mapped(file: ShardFile) -> memoryview:
    """All bytes of a shard's tar. Raises Corrupt if it has another size than the manifest says."""
    with open(file.path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != file.shard.size:  # a mapping that is shorter than its index would kill the process when read
            raise Corrupt(f"{file.uri}: {size} bytes at {file.path}, but the manifest says {file.shard.size}: it was truncated or changed")
        # Python's own mmap keeps a descriptor for as long as it lives: a thousand shards would exhaust the process's descriptor limit. The
        # descriptor is mapped, not the path, since another process may remove or replace the file at this very moment.
        mapped = torch.from_file(f"/proc/self/fd/{stream.fileno()}", shared=False, size=size, dtype=torch.uint8)
    return mapped.numpy().data


class Views:
    """The most recently used views of a process, at most `capacity` of them. Thread-safe."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._views: OrderedDict[str, ShardView] = OrderedDict()
        self._lock = threading.Lock()

    def view(self, file: ShardFile) -> ShardView:
        """The view of `file`, opened on first use, and reopened if it was found damaged."""
        with self._lock:
            view = self._views.get(file.path)
            if view is None or view.damaged:
                self._views.pop(file.path, None)
                while self._views and (len(self._views) >= self._capacity or not os.path.exists(next(iter(self._views)))):
                    self._views.popitem(
                        last=False
                    )  # unmapped when its last user releases it; a removed file occupies disk space until then
                view = self._views[file.path] = ShardView(file)
            self._views.move_to_end(file.path)
            return view


def looks_whole(file: ShardFile) -> bool:
    """Whether the tar's size and the index are right: all that can be checked without reading the tar, whose members are verified later."""
    try:
        with open(file.index, "rb") as stream:
            whole = os.path.isfile(file.path) and os.stat(file.path).st_size == file.shard.size
            return whole and is_index_of(stream.read(), file.shard)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False


def find_damage(file: ShardFile, rows: range | None) -> str:
    """What is wrong with a tar (or the given rows) and its index, reading all bytes; empty if nothing is."""
    if not looks_whole(file):
        return "missing, truncated, or has the wrong index"
    if rows is None and _file_checksum(file.path) == file.shard.crc32c:
        return ""
    where = _damaged_member(file, range(file.shard.num_samples) if rows is None else rows)
    if where or rows is not None:
        return where
    return "the checksum does not match the manifest, although every sample's checksum is right"  # a tar header


def _damaged_member(file: ShardFile, rows: Iterable[int]) -> str:
    """A description of the first member of `rows` that does not match the index; empty if all match."""
    index = file.read_index()
    offsets, sizes, sums = index.offsets.tolist(), index.sizes.tolist(), index.crc32c.tolist()
    with open(file.path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for row in rows:
            for name, start, size, checksum in zip(index.members, offsets[row], sizes[row], sums[row], strict=True):
                if google_crc32c.value(data[start : start + size]) != checksum:
                    return f"sample {index.keys[row]!r}: checksum of {name} is wrong"
    return ""


def _file_checksum(path: str) -> int:
    checksum = 0
    with open(path, "rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            checksum = google_crc32c.extend(checksum, piece)
    return checksum
