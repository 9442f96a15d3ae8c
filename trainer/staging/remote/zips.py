"""Members of remote zips, each read with its own range request, so that a zip of 58 GB need not be downloaded.

When planning, `read_directory` lists a zip's members. A row then names each of its pictures as a `Member` in text form, and
fetching requests only those bytes. Neither names, sizes nor checksums of a zip are trusted.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode

from trainer.errors import InputError, RunError
from trainer.staging.ranges import BoundedReader, RangeReader
from trainer.staging.remote.download import BROKEN_ZIP, files_of
from trainer.staging.remote.http import FetchError, PoliteClient, is_web
from trainer.storage import open_store

_HEADER = struct.Struct("<4s5H3I2H")  # a member's local header, up to the lengths of its name and extra field
_EXTRA_BYTES = 1024  # more than the extra field of any local header found in practice
_TAIL_BYTES = 1 << 16  # read in one request from a zip's end, where its directory is


@dataclass(frozen=True, kw_only=True)
class Member:
    """The place of a member in its zip, as stored in a row.

    Attributes:
        archive: path of the zip below the plan's image base.
        name: name of the member in NIGHTS' layout.
        start: first byte of its local header.
        length: bytes of the range that contains header and data.
        packed: compressed size of the data in bytes.
        crc32: CRC-32 of the member.
    """

    archive: str
    name: str
    start: int
    length: int
    packed: int
    crc32: int

    def __str__(self) -> str:
        """The text form used among the images of a row."""
        facts = {"member": self.name, "start": self.start, "length": self.length, "packed": self.packed, "crc32": self.crc32}
        return f"{self.archive}#{urlencode(facts)}"

    @classmethod
    def parse(cls, text: str) -> "Member":
        """The member whose text form this is; FetchError if it is not a valid text form."""
        archive, _, fragment = text.rpartition("#")
        try:
            facts = {name: values[0] for name, values in parse_qs(fragment, max_num_fields=10).items()}
            numbers = {name: int(facts[name]) for name in ("start", "length", "packed", "crc32")}
            if min(numbers.values()) < 0 or max(numbers.values()) >= 1 << 63:
                raise ValueError("a number out of range")
            return cls(archive=archive, name=facts["member"], **numbers)
        except (LookupError, ValueError) as error:
            raise FetchError("bad URL", f"{text[:200]!r} does not name a member of a zip") from error


def read_range(client: PoliteClient, uri: str, start: int, length: int) -> bytes:
    """Bytes of a file at a URL or in a store; FetchError if a server fails."""
    return client.get_range(uri, start, length).data if is_web(uri) else open_store(uri).get_range(uri, start, length)


def read_directory(client: PoliteClient, uri: str, archive: str, place: str) -> Iterator[Member]:
    """The files in a zip.

    Args:
        client: client for a zip on the web.
        uri: URI of the zip.
        archive: its path below the image base.
        place: `ref` or `distort`, in case its members' names do not contain it.

    Raises:
        InputError: there is no such file, or it is not a zip, is truncated, or exceeds the limits on zips.
        RunError: a name leads out of the folder, or the server failed.
    """
    try:
        size = _size(client, uri)
        tail_start = max(size - _TAIL_BYTES, 0)
        tail = _read_unsealed(client, uri, tail_start, size - tail_start) if size else b""

        def read(start: int, length: int) -> bytes:
            inside = start - tail_start
            return tail[inside : inside + length] if inside >= 0 else _read_unsealed(client, uri, start, length)

        with zipfile.ZipFile(BoundedReader(RangeReader(size, read), 1 << 20, uri)) as file:
            for info, name in files_of(file, uri, size, place):
                length = _HEADER.size + len(info.filename.encode("utf-8", "surrogateescape")) + _EXTRA_BYTES + info.compress_size
                if not 0 <= info.header_offset < size:
                    raise zipfile.BadZipFile(f"{info.filename!r} begins at byte {info.header_offset} of {size}")
                yield Member(
                    archive=archive, name=str(name), start=info.header_offset, length=min(length, size - info.header_offset),
                    packed=info.compress_size, crc32=info.CRC,
                )  # fmt: skip
    except FetchError as error:
        raise error.as_failure(uri) from error
    except (InputError, RunError):
        raise
    except BROKEN_ZIP as error:
        raise InputError(f"{uri}: not a whole zip: {error}") from error


def _read_unsealed(client: PoliteClient, uri: str, start: int, length: int) -> bytes:
    """As `read_range`, for the directory, which has no checksum."""
    return read_range(client, uri, start, length) if is_web(uri) else open_store(uri).get_unsealed(uri, start, length)


def _size(client: PoliteClient, uri: str) -> int:
    if not is_web(uri):
        info = open_store(uri).head(uri)
        if info is None:
            raise InputError(f"{uri}: no such file")
        return info.size
    return client.get_range(uri, 0, 1).total


def unpack_member(member: Member, data: bytes, most: int) -> bytes:
    """A member's bytes, from the range that contains it.

    Raises:
        FetchError: the range contains something other than the directory says, or more than `most` bytes.
    """
    try:
        signature, _, _, method, *_, name_bytes, extra_bytes = _HEADER.unpack_from(data)
        start = _HEADER.size + name_bytes + extra_bytes
        packed = data[start : start + member.packed]
        if signature != b"PK\x03\x04" or len(packed) != member.packed or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("no stored or deflated member begins there")
        content = packed if method == zipfile.ZIP_STORED else zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, most + 1)
    except (struct.error, zlib.error, ValueError) as error:
        raise FetchError("damaged zip", f"{member.archive}: {member.name}: {error}") from error
    if len(content) > most:
        raise FetchError("too many bytes", f"{member.archive}: {member.name}: at most {most}")
    if zlib.crc32(content) != member.crc32:
        raise FetchError("damaged zip", f"{member.archive}: {member.name}: its checksum does not match the zip directory")
    return content
