"""The sidecar index of a shard: where each member lies, its checksum, and the caption's tokens (docs/FORMAT.md).

Reading a sample by the index costs one slice of a buffer, where parsing the tar costs its headers.
"""

import itertools
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from trainer.bounds import parse_json
from trainer.errors import Corrupt, InputError

MAGIC = b"FSINDEX\0"
FORMAT_VERSION = 1
_MAX_OFFSET = (1 << 63) - 1
_PREFIX = struct.Struct("<8sII")  # magic, format version, header bytes


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The index of one shard of N samples with M members each.

    Attributes:
        shard: the tar's name.
        shard_size: bytes of the tar.
        shard_crc32c: CRC32C of the whole tar: an index that belongs to another tar is refused.
        members: M suffixes with their dot, in the order of the columns below.
        keys: N sample keys.
        offsets: (N, M) uint64, first byte of each member's data in the tar.
        sizes: (N, M) uint32, bytes of each member.
        crc32c: (N, M) uint32, of each member's data.
        caption_ends: (N,) uint32; sample i has captions caption_ends[i-1] to caption_ends[i].
        token_ends: (captions,) uint32; caption j has tokens token_ends[j-1] to token_ends[j].
        tokens: (total,) uint16, CLIP's ids with start and end, unpadded.
    """

    shard: str
    shard_size: int
    shard_crc32c: int
    members: tuple[str, ...]
    keys: tuple[str, ...]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint32]
    crc32c: NDArray[np.uint32]
    caption_ends: NDArray[np.uint32]
    token_ends: NDArray[np.uint32]
    tokens: NDArray[np.uint16]

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.keys)

    def captions(self, sample: int) -> list[NDArray[np.uint16]]:
        """The token ids of each caption of one sample."""
        first = int(self.caption_ends[sample - 1]) if sample else 0
        ends = [int(self.token_ends[first - 1]) if first else 0, *map(int, self.token_ends[first : int(self.caption_ends[sample])])]
        return [self.tokens[start:end] for start, end in itertools.pairwise(ends)]


_ARRAYS = (
    ("offsets", np.dtype("<u8")), ("sizes", np.dtype("<u4")), ("crc32c", np.dtype("<u4")),
    ("caption_ends", np.dtype("<u4")), ("token_ends", np.dtype("<u4")), ("tokens", np.dtype("<u2")),
)  # fmt: skip


def encode_index(index: ShardIndex) -> bytes:
    """The index as bytes: prefix, JSON header, arrays (each from a multiple of 8), CRC32C of all before it."""
    assert not any("\n" in key for key in index.keys), "keys are kept one per line"
    keys = "\n".join(index.keys).encode()
    header = json.dumps(
        {
            "shard": index.shard,
            "shard_size": index.shard_size,
            "shard_crc32c": index.shard_crc32c,
            "members": list(index.members),
            "num_samples": index.num_samples,
            "num_captions": len(index.token_ends),
            "num_tokens": len(index.tokens),
            "key_bytes": len(keys),
        },
        sort_keys=True,
    ).encode()
    parts = [_PREFIX.pack(MAGIC, FORMAT_VERSION, len(header)), header, keys]
    for name, dtype in _ARRAYS:
        parts.append(b"\0" * (-sum(map(len, parts)) % 8))
        parts.append(np.ascontiguousarray(getattr(index, name), dtype).tobytes())
    body = b"".join(parts)
    return body + struct.pack("<I", google_crc32c.value(body))


def index_checksum(data: bytes) -> int:
    """What a manifest records of an encoded index: the CRC32C at its end.

    A CRC32C over the whole file would be one constant for every index, since the file ends with its own.
    """
    return int(struct.unpack("<I", data[-4:])[0]) if len(data) >= 4 else 0


def decode_index(data: bytes, source: str) -> ShardIndex:
    """Read what `encode_index` wrote; `source` names it in errors.

    Raises:
        InputError: a newer format.
        Corrupt: not an index, cut short, a flipped byte, or a header that does not describe what follows it.
    """
    if len(data) < _PREFIX.size + 4 or data[:8] != MAGIC:
        raise Corrupt(f"{source}: not a shard index (wrong magic)")
    version = _PREFIX.unpack_from(data)[1]
    if version > FORMAT_VERSION:
        raise InputError(f"{source}: index format {version} is newer than this firstsight can read ({FORMAT_VERSION})")
    if google_crc32c.value(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise Corrupt(f"{source}: checksum of the index is wrong: it was truncated or changed")
    try:
        index = _decode_body(data)
    except ValueError as error:  # its checksum is right, so it was written so
        raise Corrupt(f"{source}: not an index as described in docs/FORMAT.md: {error}") from error
    ends = (index.caption_ends, len(index.token_ends)), (index.token_ends, len(index.tokens))
    if any((len(part) and int(part[-1])) != total or (np.diff(part.astype(np.int64)) < 0).any() for part, total in ends):
        raise Corrupt(f"{source}: its caption counts are inconsistent")
    if (index.offsets > index.shard_size).any() or (index.sizes > index.shard_size - index.offsets).any():
        raise Corrupt(f"{source}: a member extends past the end of {index.shard} ({index.shard_size} bytes)")
    return index


def _decode_header(data: bytes) -> dict[str, Any]:
    """The header, where every value is of its type and no count is larger than the file. ValueError says which is not."""
    header = parse_json(data, "its header", ValueError)
    if not isinstance(header, dict):
        raise ValueError(f"its header must be an object, but is {type(header).__name__}")
    bounds = {
        "shard_size": _MAX_OFFSET, "shard_crc32c": (1 << 32) - 1,
        **dict.fromkeys(("num_samples", "num_captions", "num_tokens", "key_bytes"), _MAX_OFFSET),
    }  # fmt: skip
    for name, most in bounds.items():
        if type(header.get(name)) is not int or not 0 <= header[name] <= most:  # True is an int too
            raise ValueError(f"its {name} must be a whole number from 0 to {most}")
    members = header.get("members")
    if not isinstance(header.get("shard"), str) or not isinstance(members, list) or not all(isinstance(name, str) for name in members):
        raise ValueError("its shard must be a name, and its members a list of names")
    if len(set(members)) != len(members):
        raise ValueError("two of its members have the same name")
    return header


def _decode_body(data: bytes) -> ShardIndex:
    header_bytes = _PREFIX.unpack_from(data)[2]
    header = _decode_header(data[_PREFIX.size : _PREFIX.size + header_bytes])
    num_samples, num_members = header["num_samples"], len(header["members"])
    position = _PREFIX.size + header_bytes
    keys = data[position : position + header["key_bytes"]].decode().split("\n") if num_samples else []
    position += header["key_bytes"]
    if len(keys) != num_samples:
        raise ValueError(f"{len(keys)} keys for {num_samples} samples")
    shapes = {
        "offsets": (num_samples, num_members), "sizes": (num_samples, num_members), "crc32c": (num_samples, num_members),
        "caption_ends": (num_samples,), "token_ends": (header["num_captions"],), "tokens": (header["num_tokens"],),
    }  # fmt: skip
    places = {}
    for name, dtype in _ARRAYS:
        position += -position % 8
        places[name] = position
        position += math.prod(shapes[name]) * dtype.itemsize
    if position != len(data) - 4:  # in Python's numbers, which do not overflow, before anything is made of the data
        raise ValueError(f"its parts end at byte {position} of {len(data) - 4}")
    arrays = {name: np.frombuffer(data, dtype, math.prod(shapes[name]), places[name]).reshape(shapes[name]) for name, dtype in _ARRAYS}
    return ShardIndex(
        shard=header["shard"],
        shard_size=header["shard_size"],
        shard_crc32c=header["shard_crc32c"],
        members=tuple(header["members"]),
        keys=tuple(keys),
        **arrays,
    )
