"""Descriptors: two ranks hold as many shards as YFCC15M has, at the limit that many systems begin with."""

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.buckets import Bucket, cached_files, prefetcher
from tests.data.datasets import pairs, write_dataset
from trainer.data import fetch
from trainer.data.shards import Views
from trainer.storage.index import encode_index, index_checksum
from trainer.storage.manifest import Manifest, require_manifest, write_manifest
from trainer.storage.samples import read_index

RANK = """
import os, sys, resource
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[4]), int(sys.argv[4])))
from tests.data.buckets import Bucket, prefetcher
from trainer.data import fetch
from trainer.data.shards import Views
bucket = Bucket(Path(sys.argv[1]))
fetch.open_store = lambda uri: bucket
rank = prefetcher(bucket, Path(sys.argv[2]), rank=int(sys.argv[3]), world_size=2, processes=2, shards=10**6)
shards = len(rank._shards)
views = Views(shards)
for number in range(shards):
    view = views.view(rank.file(0, 0, number, 0))
    assert view.member(0, 0)
print(len(bucket.streamed), len(os.listdir("/proc/self/fd")), flush=True)
sys.stdin.read()
rank.close()
"""


def test_held_shards_take_no_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks that hold two hundred shards have opened two lock files."""
    many_shards(tmp_path / "bucket", 200)
    bucket = Bucket(tmp_path / "bucket")
    monkeypatch.setattr(fetch, "open_store", lambda uri: bucket)
    before = opened_below(tmp_path)
    ranks = [prefetcher(bucket, tmp_path / "cache", rank=rank, world_size=2, processes=2, shards=10**6) for rank in (0, 1)]
    views = Views(200)
    for shard in range(200):
        views.view(ranks[1].file(0, 0, shard, 0))
        ranks[0].file(0, 0, shard, 0)
    assert (len(before), len(opened_below(tmp_path))) == (0, 2)
    for rank in ranks:
        rank.close()
    assert len(bucket.streamed) == 200


def opened_below(folder: Path) -> list[str]:
    """Files below `folder` that this process has open, one for each descriptor."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # another thread's, or the listing's own
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [name for name in found if name.startswith(f"{folder}/")]


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "limit"), [(14_504, 1024)])
def test_two_ranks_hold_every_shard_of_yfcc15m(tmp_path: Path, shards: int, limit: int) -> None:
    """At the limit that many systems begin with, mapped and all; each shard was fetched once for both."""
    many_shards(tmp_path / "bucket", shards)
    command = [sys.executable, "-c", RANK, str(tmp_path / "bucket"), str(tmp_path / "cache")]
    ranks = [
        subprocess.Popen([*command, str(rank), str(limit)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    said = [rank.stdout.readline().split() for rank in ranks if rank.stdout]
    for rank in ranks:
        rank.communicate("")
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert sum(int(streamed) for streamed, _ in said) == shards
    assert max(int(descriptors) for _, descriptors in said) < limit / 2
    assert len(cached_files(tmp_path / "cache")) == 2 * shards


def many_shards(folder: Path, count: int) -> None:
    """As many shards as asked for, of one sample each."""
    write_dataset(str(folder), "pairs", pairs([1], side=4))
    first = require_manifest(str(folder)).shards[0]
    tar, index = (folder / first.name).read_bytes(), read_index(str(folder), first)
    written = []
    for number in range(count):
        name = f"shard-000-{number:05d}.tar"
        encoded = encode_index(replace(index, shard=name))
        written.append(replace(first, name=name, index_crc32c=index_checksum(encoded)))
        (folder / name).write_bytes(tar)
        (folder / written[-1].index_name).write_bytes(encoded)
    rows = {"read": count, "written": count, "lost": {}}
    write_manifest(str(folder), Manifest(kind="pairs", name="many", plan_id="0" * 64, source={}, options={}, rows=rows, shards=written))
