"""Single samples by range: checked against the manifest, errors that name shard and sample."""

import dataclasses
import hashlib

import google_crc32c
import numpy as np
import pytest

from trainer.errors import Corrupt, RunError
from trainer.storage import join, read_bytes, write_bytes
from trainer.storage.base import MissingObject
from trainer.storage.index import ShardIndex, encode_index, index_checksum
from trainer.storage.manifest import Shard
from trainer.storage.samples import read_index, read_members


def write_shard(root: str, salt: bytes = b"") -> Shard:
    """A shard of two samples of two members (the tar's own headers do not matter to a reader by index)."""
    members = [[b"picture 0" + salt, b"caption 0"], [b"", b"caption 1, longer"]]
    tar, offsets = b"", []
    for row in members:
        for member in row:
            tar += b"h" * 512
            offsets.append(len(tar))
            tar += member.ljust(512, b"\0")
    crc = google_crc32c.value(tar)
    index = ShardIndex(
        shard="shard-0-0.tar", shard_size=len(tar), shard_crc32c=crc, members=("image", "txt"), keys=("k0", "k1"),
        offsets=np.array(offsets, np.uint64).reshape(2, 2),
        sizes=np.array([[len(member) for member in row] for row in members], np.uint32),
        crc32c=np.array([[google_crc32c.value(member) for member in row] for row in members], np.uint32),
        caption_ends=np.array([1, 2], np.uint32), token_ends=np.array([1, 3], np.uint32), tokens=np.array([1, 2, 3], np.uint16),
    )  # fmt: skip
    data = encode_index(index)
    shard = Shard(
        name="shard-0-0.tar", split="train", num_samples=2, size=len(tar), crc32c=crc,
        sha256=hashlib.sha256(tar).hexdigest(), index_crc32c=index_checksum(data),
    )  # fmt: skip
    write_bytes(join(root, "shard-0-0.tar"), tar)
    write_bytes(join(root, shard.index_name), data)
    return shard


def test_members_of_a_sample(root: str) -> None:
    """A sample comes back member by member, empty ones included."""
    index = read_index(root, write_shard(root))
    assert read_members(root, index, 0) == {"image": b"picture 0", "txt": b"caption 0"}
    assert read_members(root, index, 1) == {"image": b"", "txt": b"caption 1, longer"}


def test_damaged_sample_is_named(tmp_path: object) -> None:
    """A changed byte is refused with the shard's and the sample's names."""
    root = str(tmp_path)
    shard = write_shard(root)
    index = read_index(root, shard)
    tar = read_bytes(join(root, shard.name))
    write_bytes(join(root, shard.name), tar.replace(b"caption 1", b"caption 7"))
    assert read_members(root, index, 0)["txt"] == b"caption 0"
    with pytest.raises(RunError, match=r"shard-0-0\.tar: sample 'k1': checksum of txt"):
        read_members(root, index, 1)


def test_tar_cut_short(tmp_path: object) -> None:
    """A tar that lost its end is refused with its name."""
    root = str(tmp_path)
    shard = write_shard(root)
    index = read_index(root, shard)
    write_bytes(join(root, shard.name), read_bytes(join(root, shard.name))[:1600])
    with pytest.raises(RunError, match=r"shard-0-0\.tar: .*truncated"):
        read_members(root, index, 1)


def test_index_of_another_tar(tmp_path: object) -> None:
    """An index that belongs to another tar, or was written again, is refused."""
    root = str(tmp_path)
    shard = write_shard(root)
    write_bytes(join(root, "shard-0-1.index"), read_bytes(join(root, shard.index_name)))
    with pytest.raises(RunError, match=r"shard-0-1\.index: belongs to another tar"):
        read_index(root, dataclasses.replace(shard, name="shard-0-1.tar"))
    write_shard(root, salt=b"!")
    with pytest.raises(RunError, match="belongs to another tar"):
        read_index(root, shard)
    write_shard(root)
    index = read_index(root, shard)
    write_bytes(join(root, shard.index_name), encode_index(dataclasses.replace(index, tokens=index.tokens[::-1])))
    with pytest.raises(RunError, match="not the index that the manifest names"):
        read_index(root, shard)


@pytest.mark.parametrize("position", [0, 8, 12, 40, -30, -1])
def test_a_flipped_byte_of_an_index_is_corrupt(tmp_path: object, position: int) -> None:
    """Wherever it lies: a flipped version is no newer format, and no wrong input."""
    root = str(tmp_path)
    shard = write_shard(root)
    uri = join(root, shard.index_name)
    data = bytearray(read_bytes(uri))
    data[position] ^= 4
    write_bytes(uri, bytes(data))
    with pytest.raises(Corrupt, match=r"shard-0-0\.index: "):
        read_index(root, shard)


def test_missing_index(tmp_path: object) -> None:
    """A missing index is reported, by its URI."""
    shard = write_shard(str(tmp_path))
    with pytest.raises(MissingObject, match=r"nowhere.*shard-0-0\.index"):
        read_index(join(str(tmp_path), "nowhere"), shard)
