"""Reads single samples of a staged data set by byte range: for pictures in a report, and for whoever inspects one shard.

Training does not read this way: its prefetcher takes whole shards (trainer/data).
"""

import hashlib

import google_crc32c

from trainer.errors import Corrupt, InputError
from trainer.storage.base import join, open_store, read_bytes
from trainer.storage.index import ShardIndex, decode_index, index_checksum
from trainer.storage.manifest import Shard


def read_index(folder: str, shard: Shard) -> ShardIndex:
    """The index of one shard of the data set in `folder`, checked to be the one that the manifest names.

    Raises:
        MissingObject: there is no such object.
        InputError: a newer format.
        Corrupt: changed, cut short, or of another tar.
    """
    uri = join(folder, shard.index_name)
    return check_index(read_bytes(uri), uri, shard)


def is_index_of(data: bytes, shard: Shard) -> bool:
    """Whether these are the bytes of the index that the manifest names: a flipped bit is noticed without decoding anything."""
    if shard.index_sha256:
        return hashlib.sha256(data).hexdigest() == shard.index_sha256
    return len(data) > 4 and index_checksum(data) == shard.index_crc32c == google_crc32c.value(data[:-4])


def check_index(data: bytes, uri: str, shard: Shard) -> ShardIndex:
    """The index of `shard` from its bytes, compared with the manifest before any of them are trusted; `uri` names it in errors.

    Raises:
        InputError: a newer format.
        Corrupt: changed, cut short, or of another tar.
    """
    if shard.index_sha256 and not is_index_of(data, shard):
        raise Corrupt(f"{uri}: not the index that the manifest names: its checksum differs; it was truncated or changed")
    try:
        index = decode_index(data, uri)
    except InputError as error:
        if is_index_of(data, shard):
            raise
        raise Corrupt(f"{uri}: not the index that the manifest names: it was changed or is damaged") from error
    if (index.shard, index.shard_size, index.shard_crc32c) != (shard.name, shard.size, shard.crc32c):
        raise Corrupt(f"{uri}: belongs to another tar ({index.shard}, {index.shard_size} bytes), not to {shard.name} of the manifest")
    if index_checksum(data) != shard.index_crc32c or index.num_samples != shard.num_samples:
        raise Corrupt(f"{uri}: not the index that the manifest names: its checksum differs")
    return index


def read_members(folder: str, index: ShardIndex, sample: int) -> dict[str, bytes]:
    """The members of one sample (its row in the index): column name -> bytes, read with one range request, checksums verified.

    Raises:
        Corrupt: the bytes are not those that were staged; the message names shard and sample.
    """
    offsets, sizes = index.offsets[sample].tolist(), index.sizes[sample].tolist()
    spans = list(zip(offsets, sizes, strict=True))
    begin, end = min(offsets), max(offset + size for offset, size in spans)
    uri = join(folder, index.shard)
    data = open_store(uri).get_range(uri, begin, end - begin)
    members = {}
    for name, (offset, size), checksum in zip(index.members, spans, index.crc32c[sample].tolist(), strict=True):
        member = data[offset - begin : offset - begin + size]
        if google_crc32c.value(member) != checksum:
            raise Corrupt(f"{uri}: sample {index.keys[sample]!r}: checksum of {name} is wrong: the shard was changed or is damaged")
        members[name] = member
    return members
