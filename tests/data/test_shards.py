"""Views of shards: no descriptor each, no removed file kept, and their errors travel."""

import os
import pickle
from pathlib import Path

import pytest

from tests.data.buckets import SIZES, Bucket
from trainer.data import cache as caches
from trainer.data.shards import DamagedFile, ShardView, Views
from trainer.storage.manifest import require_manifest


def test_a_removed_shard_is_unmapped_soon(bucket: Bucket) -> None:
    """A mapping keeps a removed file's bytes on the disk, beyond what placement.cache_bytes allows."""
    in_place = caches.InPlace(str(bucket.folder), require_manifest(str(bucket.folder)).shards)
    views = Views(100)
    for number in range(3):
        views.view(in_place.file(0, 0, number, 0))
        (bucket.folder / f"shard-000-{number:05d}.tar").unlink()
    assert len(views._views) == 1


def test_a_view_takes_no_descriptor(bucket: Bucket) -> None:
    """A run holds thousands."""
    in_place = caches.InPlace(str(bucket.folder), require_manifest(str(bucket.folder)).shards)
    before = len(os.listdir("/proc/self/fd"))
    views = [ShardView(in_place.file(0, 0, number, 0)) for number in range(len(SIZES))]
    assert len(os.listdir("/proc/self/fd")) == before
    assert views[5].member(0, 0)


def test_a_damaged_file_comes_back_from_a_worker_process(bucket: Bucket) -> None:
    """An exception crosses as pickle; the file must come with it."""
    prefetched = caches.InPlace(str(bucket.folder), require_manifest(str(bucket.folder)).shards).file(0, 0, 3, 0)
    error = pickle.loads(pickle.dumps(DamagedFile("a line", prefetched)))
    assert (str(error), error.file) == ("a line", prefetched)


def test_a_file_removed_while_it_is_mapped_is_read_all_the_same(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may do so at any moment; a name that is gone must not end a run."""
    file = caches.InPlace(str(bucket.folder), require_manifest(str(bucket.folder)).shards).file(0, 0, 0, 0)
    asked = os.fstat

    def remove_then_ask(descriptor: int) -> os.stat_result:
        Path(file.path).unlink(missing_ok=True)
        return asked(descriptor)

    monkeypatch.setattr("trainer.data.shards.os.fstat", remove_then_ask)
    assert ShardView(file).member(0, 0)
