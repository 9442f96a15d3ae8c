"""The cache of shards: damage is healed from the store, the end is clean, and what is fetched is fetched once, for all ranks."""

import logging
import os
import shutil
import threading
from itertools import islice
from pathlib import Path

import pytest

from tests.data.buckets import DAMAGE, REMOTE, SIZES, Bucket, assert_same, cached_files, loader, prefetcher, take
from tests.data.datasets import triplets, write_dataset
from tests.data.loaders import triplets_loader
from trainer.config import DataConfig, Placement
from trainer.data.cache import Prefetcher
from trainer.data.folder import CacheFolder
from trainer.data.loader import PairBatch
from trainer.data.shards import find_damage
from trainer.errors import Corrupt, InputError

# ------------------------------------------------------------------------------------------- damage in the cache


@pytest.mark.parametrize("suffix", [".tar", ".index"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_a_named_cache_is_fetched_again(
    bucket: Bucket, batches: list[PairBatch], tmp_path: Path, damage: str, suffix: str
) -> None:
    """The next run takes it as if it were not there, and leaves whole files only."""
    cache = tmp_path / "cache"
    take(loader(REMOTE, cache))
    left = cached_files(cache)
    assert [path.suffix for path in left] == [".index", ".tar"] * len(SIZES)
    for path in left:
        if path.suffix == suffix:
            DAMAGE[damage](path)
    assert_same(take(loader(REMOTE, cache)), batches)
    assert cached_files(cache) == left
    assert all(path.read_bytes() == (bucket.folder / path.name).read_bytes() for path in left)


@pytest.mark.parametrize("damage", ["flipped all over", "truncated", "zeros", "missing"])
@pytest.mark.parametrize("suffix", ["tar", "index"])
def test_what_a_killed_run_left_damaged_is_fetched_again(
    bucket: Bucket, batches: list[PairBatch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, suffix: str
) -> None:
    """Of a bounded cache, rows of shards among it."""
    cache = tmp_path / "cache"
    with monkeypatch.context() as killed:
        killed.setattr(CacheFolder, "let_go", lambda self, file, remove: None)
        killed.setattr(CacheFolder, "leave", lambda self, keep: os.close(self._lock))
        take(loader(REMOTE, cache, cache_shards=6))
    files = [path for path in cached_files(cache) if path.name.startswith("shard") and path.suffix.startswith(f".{suffix}")]
    assert any("@" in path.name for path in files)
    for path in files:
        DAMAGE[damage](path)
    assert_same(take(loader(REMOTE, cache, cache_shards=6)), batches)
    assert not cached_files(cache)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["flipped all over", "missing"])
def test_damage_under_a_running_loader_is_healed(
    bucket: Bucket, batches: list[PairBatch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    damage: str, workers: int,
) -> None:  # fmt: skip
    """Members are compared whenever they are read, in threads and in worker processes, and the shard is fetched again."""
    monkeypatch.setattr("trainer.data.loader.memory_for_pictures", lambda processes: 0)
    ours = loader(REMOTE, tmp_path / "cache", loader_workers=workers)
    coming = ours.batches(0)
    loaded = list(islice(coming, 4))
    for path in cached_files(tmp_path / "cache"):
        if path.suffix in (".tar", ".index"):
            DAMAGE[damage](path)
    with caplog.at_level(logging.WARNING):
        loaded += islice(coming, 9)
    ours.close()
    assert_same(loaded, batches)
    assert "it is fetched again" in caplog.text


def test_triplets_are_healed_too(bucket: Bucket, tmp_path: Path) -> None:
    """Their pictures, and the json that holds the judgement."""
    shutil.rmtree(bucket.folder)
    write_dataset(str(bucket.folder), "triplets", triplets([6, 6]))

    def keys_and_targets(uri: str) -> list[tuple[list[str], list[float]]]:
        made = triplets_loader(DataConfig(uri=uri), global_batch_size=4, placement=Placement(cache_dir=str(tmp_path / "cache")))
        found = [(batch.keys, batch.target.tolist()) for batch in islice(made.batches(0), 6)]
        made.close()
        return found

    expected = keys_and_targets(str(bucket.folder))
    keys_and_targets(REMOTE)
    for path in cached_files(tmp_path / "cache"):
        DAMAGE["flipped all over"](path)
    assert keys_and_targets(REMOTE) == expected


# --------------------------------------------------------------------------------------------------- clean ends


@pytest.fixture
def default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where caches go that were not told where."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.mark.parametrize("cache_shards", [99, 6])
@pytest.mark.parametrize("steps", [0, 1, 13])
def test_the_default_folder_is_empty_after_the_end(bucket: Bucket, default_folder: Path, cache_shards: int, steps: int) -> None:
    """However long the run, and whether or not all fits."""
    take(loader(REMOTE, None, cache_shards=cache_shards), steps)
    assert not list(default_folder.iterdir())


def test_the_default_folder_is_empty_after_a_failure(bucket: Bucket, default_folder: Path) -> None:
    """A shard that is missing in the store ends the run, and the cache."""
    (bucket.folder / "shard-000-00007.tar").unlink()
    with pytest.raises(Corrupt):
        take(loader(REMOTE, None))
    assert not list(default_folder.iterdir())


def test_a_run_on_another_data_set_sweeps_the_default_folder(bucket: Bucket, default_folder: Path) -> None:
    """A killed run's data set may never be trained on again."""
    left = default_folder / f"firstsight-cache-{os.getuid()}" / "0123456789abcdef"
    left.mkdir(parents=True, mode=0o700)
    for name in ("shard-000-00000.tar", "shard-000-00000.index", "shard-000-00000.tar.lock", "shard-000-00001.tar.9.part"):
        (left / name).write_bytes(b"x")
    take(loader(REMOTE, None), 1)
    assert not list(default_folder.iterdir())


def test_a_cache_dir_that_is_a_file_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    """Wrong input, before anything is fetched."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"placement\.cache_dir must be a writable folder"):
        take(loader(REMOTE, tmp_path / "file"))


# ------------------------------------------------------------------------------------------- fetched once, held once


def read_epoch(rank: Prefetcher) -> list[str]:
    """Wait for every shard; what is wrong with each."""
    return [find_damage(rank.file(0, 0, shard, 0), None) for shard in range(len(SIZES))]


def test_two_ranks_of_a_node_fetch_each_shard_once(bucket: Bucket, tmp_path: Path) -> None:
    """Both want all of them at the same time."""
    ranks = [prefetcher(bucket, tmp_path / "cache", rank=rank, world_size=2, processes=2) for rank in (0, 1)]
    assert [read_epoch(rank) for rank in ranks] == [[""] * len(SIZES)] * 2
    ranks[0].close()
    assert read_epoch(ranks[1]) == [""] * len(SIZES)
    ranks[1].close()
    assert sorted(name for name, _, _ in bucket.streamed) == [f"shard-000-{number:05d}.tar" for number in range(len(SIZES))]


def test_a_split_that_fits_is_held_once(bucket: Bucket, tmp_path: Path) -> None:
    """Runs end inside other shards each epoch: whole ones serve them all, where rows would be fetched and kept epoch after epoch."""
    ours = loader(REMOTE, tmp_path / "cache", runs=4, block_shards=1)
    batches = ours.batches(0)
    list(islice(batches, 60))
    assert {path.suffix for path in cached_files(tmp_path / "cache")} == {".tar", ".index", ".lock"}
    ours.close()
    assert len(bucket.streamed) == len(SIZES)


def test_connections_follow_what_the_consumer_waits_for(bucket: Bucket, tmp_path: Path) -> None:
    """Four to begin with; one more whenever a shard is late while others queue; sixteen at most."""
    go = threading.Event()
    bucket.gate = go.wait
    ours = prefetcher(bucket, tmp_path / "cache")
    counts = []
    waiting = [threading.Thread(target=ours.file, args=(0, 0, shard, 0)) for shard in range(len(SIZES))]
    for thread in waiting:
        counts.append(len(ours._fetchers))
        thread.start()
    go.set()
    for thread in waiting:
        thread.join()
    assert counts[0] == 4
    assert 4 < len(ours._fetchers) <= 16
    many = len(ours._fetchers)
    read_epoch(ours)
    assert len(ours._fetchers) == many, "nothing was late"
    ours.close()
