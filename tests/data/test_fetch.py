"""What the store damaged is named; what the network damaged is read again; nothing unverified comes into the cache."""

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.data.buckets import DAMAGE, REMOTE, Bucket, assert_same, cached_files, flip, loader, take
from trainer.data import fetch as fetching
from trainer.data.loader import PairBatch
from trainer.errors import Corrupt, RunError


@pytest.mark.parametrize("cache_shards", [99, 6])
def test_a_damaged_shard_in_the_store_is_corrupt(bucket: Bucket, tmp_path: Path, cache_shards: int) -> None:
    """Whole or by rows: the line names shard and sample, and nothing of it stays in the cache."""
    for path in bucket.folder.glob("*.tar"):
        flip(path, 600)
    with pytest.raises(Corrupt, match=r"shard-000-000\d\d\.tar: sample '0000\d\d': checksum of image is wrong: the store's copy"):
        take(loader(REMOTE, tmp_path / "cache", cache_shards=cache_shards))
    assert not cached_files(tmp_path / "cache")


@pytest.mark.parametrize(
    "damage", ["flipped magic or tar header", "flipped version or tar header", "flipped middle", "truncated", "missing"]
)
@pytest.mark.parametrize("suffix", [".tar", ".index"])
def test_any_damage_in_the_store_ends_in_one_line(bucket: Bucket, tmp_path: Path, damage: str, suffix: str) -> None:
    """It names the object; an older index, or one of another version, is no wrong input."""
    for path in bucket.folder.glob(f"*{suffix}"):
        DAMAGE[damage](path)
    with pytest.raises(RunError, match=rf"shard-000-000\d\d\{suffix}: ") as raised:
        take(loader(REMOTE, tmp_path / "cache"))
    assert "\n" not in str(raised.value)
    assert not cached_files(tmp_path / "cache")


@pytest.mark.parametrize(
    "damage", ["flipped version or tar header", "flipped middle", "flipped last byte", "truncated", "empty", "missing"]
)
@pytest.mark.parametrize("suffix", [".tar", ".index"])
def test_damage_of_a_local_root_ends_in_one_line(bucket: Bucket, damage: str, suffix: str) -> None:
    """There is nothing to heal it from. A byte of a tar that no sample lies in is nobody's loss."""
    for path in bucket.folder.glob(f"*{suffix}"):
        DAMAGE[damage](path)
    if suffix == ".tar" and damage in ("flipped version or tar header", "flipped last byte"):
        take(loader(str(bucket.folder), None))
        return
    with pytest.raises(Corrupt, match=rf"shard-000-000\d\d\{suffix}: ") as raised:
        take(loader(str(bucket.folder), None))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("cache_shards", [99, 6])
def test_a_byte_flipped_on_the_way_is_read_again(bucket: Bucket, batches: list[PairBatch], tmp_path: Path, cache_shards: int) -> None:
    """The store has it right: the same request again, and no failure."""
    bucket.flips = 2
    assert_same(take(loader(REMOTE, tmp_path / "cache", cache_shards=cache_shards)), batches)


def test_a_full_disk_is_one_line_and_leaves_no_part(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a shard."""
    opened = open

    class Full:
        """A file on a full disk."""

        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            self.file.write(data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetching, "open", lambda path, mode: Full(opened(path, mode)), raising=False)
    with pytest.raises(RunError, match=r"shard-000-000\d\d\.tar: the disk is full: lower placement\.cache_bytes"):
        take(loader(REMOTE, tmp_path / "cache"))
    assert not cached_files(tmp_path / "cache")
