"""Members of a tar that others wrote: every one of them, or a line that says what is wrong with the file.

Python's tarfile takes an archive for complete that ends in the middle of a header or between members, and does not look past the
end mark; here each of these is refused. A link to a member of the same tar stands for that member.
"""

import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from trainer.bounds import MAX_CAPTION_BYTES, MAX_TAR_READ_BYTES
from trainer.errors import InputError

_BLOCK = tarfile.BLOCKSIZE
_PIECE = 4 << 20
_MAX_LINKS = 16  # a link may lead to a link
_VOLUME = b"M"  # of several that GNU tar cuts an archive into: it begins with the rest of a member
_PACKED = (
    (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x04\x22\x4d\x18", "lz4"),
)  # fmt: skip
"""First bytes of what compressors write, with the command that unpacks it."""
_BROKEN = (tarfile.TarError, EOFError, ValueError, OverflowError, LookupError, RecursionError)
"""What tarfile raises on bytes that are no tar, by kind of damage."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar.

    Attributes:
        name: as it is there.
        offset: of its first byte.
        size: in bytes.
        data: its bytes, where they were asked for and are few.
        fault: why it cannot be read, where it is a link that leads nowhere; else empty.
    """

    name: str
    offset: int
    size: int
    data: bytes = b""
    fault: str = ""


def read_members(stream: BinaryIO, size: int, where: str, is_wanted: Callable[[str], bool]) -> list[Member]:
    """Every file of a tar, and every link to one, in order. Folders, devices and pipes are left out.

    Args:
        stream: the tar, not packed; it can seek.
        size: of the tar in bytes.
        where: names it in errors.
        is_wanted: whether the bytes of a member of this name are to be read; more than MAX_CAPTION_BYTES are not.

    Raises:
        InputError: not a tar, cut short, with data after its end mark, in several volumes, or with a sparse file in it.
    """
    found: list[Member] = []
    links: dict[int, str] = {}  # index in `found` -> the name that the link leads to
    _check_beginning(stream, where)
    try:
        with tarfile.open(fileobj=cast(BinaryIO, _Bounded(stream, where)), mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else each header is kept
                _check_member(info, size, where)
                if info.isreg():
                    data = _read(stream, info.offset_data, info.size) if is_wanted(info.name) else b""
                    found.append(Member(info.name, info.offset_data, info.size, data))
                elif info.islnk() or info.issym():
                    links[len(found)] = _target(info)
                    found.append(Member(info.name, 0, 0))
            _check_end(stream, tar.offset, size, where, _last(found))
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(f"{where}: not a whole tar file: {error}") from error
    by_name = {posixpath.normpath(member.name): index for index, member in enumerate(found)}
    for index in links:
        found[index] = _resolve(index, found, links, by_name, stream, is_wanted)
    return found


class _Bounded:
    """The stream as tarfile reads headers from it: an extended one may ask for any number of bytes, and be made of empty values."""

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self._stream, self._where = stream, where
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size > MAX_TAR_READ_BYTES:
            raise InputError(f"{self._where}: a header asks for {size:,} bytes at once, at most {MAX_TAR_READ_BYTES:,} are read")
        return self._stream.read(size)


def _check_beginning(stream: BinaryIO, where: str) -> None:
    """Refuse what is packed, whatever it is called."""
    beginning = stream.read(8)
    stream.seek(0)
    packer = next((name for magic, name in _PACKED if beginning.startswith(magic)), "")
    if packer:
        raise InputError(
            f"{where}: compressed with {packer}, judging by its first bytes: decompress it first ({packer} -dc < PACKED > PLAIN.tar)"
        )
    if beginning.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        raise InputError(f"{where}: a zip file, judging by its first bytes: unzip it first, and stage the folder")


def _last(found: list[Member]) -> str:
    """Words for the place after the last member."""
    return f"after {found[-1].name}" if found else "at its beginning"


def _check_member(info: tarfile.TarInfo, size: int, where: str) -> None:
    if info.issparse():
        raise InputError(f"{where}: {info.name} is a sparse file: a tar of samples must contain plain files (create it without --sparse)")
    if info.type == _VOLUME:
        raise InputError(
            f"{where}: is one volume of a multi-volume tar, starting with the rest of {info.name}: a tar of samples must be complete"
        )
    end = info.offset_data + info.size
    if not 0 <= info.size <= end or (info.isreg() and end > size):
        raise InputError(f"{where}: truncated: {info.name} should end at byte {end}, but the tar has only {size} bytes")


def _check_end(stream: BinaryIO, position: int, size: int, where: str, last: str) -> None:
    """Refuse what is not two blocks of zeros, and nothing but zeros after them, where tarfile found no further member."""
    stream.seek(position)
    block = stream.read(_BLOCK)
    if len(block) < _BLOCK:
        if any(block):
            raise InputError(f"{where}: cut short in the header {last}, at byte {position}")
        raise InputError(f"{where}: cut short {last}: a tar ends with blocks of zeros, and this one has none")
    if any(block):
        raise InputError(f"{where}: damaged: the data {last}, at byte {position}, is not a tar header")
    while position < size:
        stream.seek(position)
        piece = stream.read(min(_PIECE, size - position))
        if any(piece):
            start = position + len(piece) - len(piece.lstrip(b"\0"))
            raise InputError(
                f"{where}: has data after its end mark, from byte {start} on, which tar readers ignore: were tars joined "
                "with cat? Keep them as separate files, or join them with tar --concatenate"
            )
        if not piece:
            return
        position += len(piece)


def _target(info: tarfile.TarInfo) -> str:
    """The name that a link leads to: a hard link's as it is there, a symbolic one's from its own folder."""
    base = posixpath.dirname(info.name) if info.issym() else ""
    return posixpath.normpath(posixpath.join(base, info.linkname))


def _resolve(
    index: int, found: list[Member], links: dict[int, str], by_name: dict[str, int], stream: BinaryIO, is_wanted: Callable[[str], bool]
) -> Member:
    """The member that a link stands for, under the link's name."""
    name, at = found[index].name, index
    for _ in range(_MAX_LINKS):
        target = by_name.get(links[at])
        if target is None:
            return replace(found[index], fault=f"{name} is a link to {links[at]}, which is not a file in this tar")
        if target not in links:
            member = found[target]
            data = _read(stream, member.offset, member.size) if is_wanted(name) and not member.data else member.data
            return replace(member, name=name, data=data)
        at = target
    return replace(found[index], fault=f"{name} is a link to itself")


def _read(stream: BinaryIO, offset: int, size: int) -> bytes:
    if size > MAX_CAPTION_BYTES:
        return b""
    stream.seek(offset)
    return stream.read(size)


def by_sample(members: list[Member], where: str) -> Iterator[tuple[str, dict[str, Member]]]:
    """Each sample's key (its name up to the first dot) and its members by suffix in lower case, as webdataset groups them.

    Members whose name begins with a dot, has no suffix, or is a note of webdataset's (`__…__`) are ignored.

    Raises:
        InputError: two members of one name, or a sample whose members do not lie side by side.
    """
    seen: set[str] = set()
    current, sample = "", dict[str, Member]()
    for member in members:
        folder, slash, base = member.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not stem or not dot or _is_note(member.name):
            continue
        key = folder + slash + stem
        if key != current or not sample:
            if sample:
                yield current, sample
            current, sample = key, {}
            if key in seen:
                raise InputError(f"{where}: two samples are named {key!r}: a name must be unique in its tar, and its members adjacent")
            seen.add(key)
        if suffix.lower() in sample:
            raise InputError(f"{where}: {member.name!r} appears twice in it: names must be unique")
        sample[suffix.lower()] = member
    if sample:
        yield current, sample


def _is_note(name: str) -> bool:
    first = name.partition("/")[0]
    return len(first) > 4 and first.startswith("__") and first.endswith("__")
