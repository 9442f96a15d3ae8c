"""The cache's folder: one lock file for any number of files, and nothing left by the dead or taken from the living.

Two CacheFolders of this process are two owners to the kernel, as those of two processes are.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.data.datasets import pairs, write_dataset
from trainer.data import folder as folders
from trainer.data.folder import LOCK, CacheFolder, join_cache
from trainer.data.shards import ShardFile, find_damage
from trainer.errors import InputError, RunError
from trainer.storage.manifest import require_manifest


def never() -> bool:
    """Not stopped."""
    return False


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three shards to fetch from."""
    write_dataset(str(tmp_path / "source"), "pairs", pairs([4, 4, 4]))
    return tmp_path / "source"


def cached(source: Path, cache: Path, number: int = 0) -> ShardFile:
    """A shard as it is to lie in the cache."""
    shard = require_manifest(str(source)).shards[number]
    return ShardFile(shard=shard, path=str(cache / shard.name), index=str(cache / shard.index_name), uri=str(source / shard.name))


def copier(source: Path, file: ShardFile) -> Callable[[], None]:
    """Fetching: a copy."""

    def fetch() -> None:
        shutil.copy(source / file.shard.name, file.path)
        shutil.copy(source / file.shard.index_name, file.index)

    return fetch


def refuse() -> None:
    """What must not be fetched."""
    raise AssertionError("it was fetched")


def taken_twice(file: ShardFile, cache: Path, fetch: Callable[[], None], fetch_again: Callable[[], None]) -> Future[None]:
    """One process takes a file, whose outcome is returned, and while it fetches it another takes it too."""
    first, second = CacheFolder(cache), CacheFolder(cache)
    begun, go = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go.wait(60)
        fetch()

    def waits() -> bool:
        go.set()
        return False

    with ThreadPoolExecutor(2) as pool:
        fetching = pool.submit(first.take, file, None, slow, never)
        assert begun.wait(60)
        waiting = pool.submit(second.take, file, None, fetch_again, waits)
    waiting.result()
    return fetching


def test_two_processes_fetch_a_file_once(source: Path, tmp_path: Path) -> None:
    """Who comes second waits until the first has published it."""
    file = cached(source, tmp_path / "cache")
    taken_twice(file, tmp_path / "cache", copier(source, file), refuse).result()
    assert not find_damage(file, None)


def test_who_dies_in_fetching_is_succeeded(source: Path, tmp_path: Path) -> None:
    """A failure of one is not the failure of the other, who waited for the same file."""
    file = cached(source, tmp_path / "cache")

    def fail() -> None:
        raise RunError("the store went away")

    failed = taken_twice(file, tmp_path / "cache", fail, copier(source, file))
    with pytest.raises(RunError, match="went away"):
        failed.result()
    assert not find_damage(file, None)


def test_what_another_holds_is_not_removed(source: Path, tmp_path: Path) -> None:
    """Neither let go, nor swept; with the last holder it goes."""
    file = cached(source, tmp_path / "cache")
    first, second = CacheFolder(tmp_path / "cache"), CacheFolder(tmp_path / "cache")
    first.take(file, None, copier(source, file), never)
    second.sweep(lambda tar: False)
    second.take(file, None, refuse, never)
    first.let_go(file, remove=True)
    assert not find_damage(file, None)
    second.let_go(file, remove=True)
    assert os.listdir(tmp_path / "cache") == [LOCK]


def test_the_last_one_out_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """Whatever lies there: files of both, parts, garbage, folders; and the folder itself."""
    first, second = CacheFolder(tmp_path / "cache"), CacheFolder(tmp_path / "cache")
    for number, member in enumerate((first, second)):
        file = cached(source, tmp_path / "cache", number)
        member.take(file, None, copier(source, file), never)
    (tmp_path / "cache" / "shard-000-00002.tar.17.part").write_bytes(b"left by an older version")
    (tmp_path / "cache" / "a folder" / "in it").mkdir(parents=True)
    first.leave(lambda tar: False)
    assert not find_damage(cached(source, tmp_path / "cache", 1), None)
    second.leave(lambda tar: False)
    assert not (tmp_path / "cache").exists()


def test_a_named_folder_keeps_whole_shards_and_nothing_else(source: Path, tmp_path: Path) -> None:
    """Parts, rows of shards and the lock go."""
    member = CacheFolder(tmp_path / "cache")
    file = cached(source, tmp_path / "cache")
    member.take(file, None, copier(source, file), never)
    for name in ("shard-000-00001.tar.part", "shard-000-00001.tar@0-3", "shard-000-00001.index@0-3", "shard-000-00002.tar.lock"):
        (tmp_path / "cache" / name).write_bytes(b"x")
    member.leave(lambda tar: str(tar) == file.path)
    assert sorted(os.listdir(tmp_path / "cache")) == ["shard-000-00000.index", "shard-000-00000.tar"]


@pytest.mark.parametrize("what", ["garbage", "folder", "filled folder"])
def test_any_lock_file_will_do(source: Path, tmp_path: Path, what: str) -> None:
    """It is its locks that count; a folder in its place is removed."""
    lock = tmp_path / "cache" / LOCK
    (tmp_path / "cache").mkdir()
    lock.write_bytes(os.urandom(1000)) if what == "garbage" else (lock / "x" if what == "filled folder" else lock).mkdir(parents=True)
    file = cached(source, tmp_path / "cache")
    first, second = CacheFolder(tmp_path / "cache"), CacheFolder(tmp_path / "cache")
    first.take(file, None, copier(source, file), never)
    second.let_go(file, remove=True)
    assert not find_damage(file, None)
    second.leave(lambda tar: False)
    first.leave(lambda tar: False)
    assert not (tmp_path / "cache").exists()


def test_who_waited_at_a_removed_lock_opens_the_new_one(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One joins just as the last one leaves: it must not hold locks on a file that nobody else will open."""
    first = CacheFolder(tmp_path / "cache")
    opened = os.open

    def open_then_leave(path: object, *arguments: int) -> int:
        descriptor = opened(path, *arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(folders.os, "open", opened)
        first.leave(lambda tar: False)
        return descriptor

    monkeypatch.setattr(folders.os, "open", open_then_leave)
    second = CacheFolder(tmp_path / "cache")
    third = CacheFolder(tmp_path / "cache")
    file = cached(source, tmp_path / "cache")
    second.take(file, None, copier(source, file), never)
    third.let_go(file, remove=True)
    assert not find_damage(file, None)


def test_who_leaves_late_does_not_empty_the_next_ones_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its last lock and its look whether it is alone, another one removed the folder, and a third made it anew."""
    first, second = CacheFolder(tmp_path / "cache"), CacheFolder(tmp_path / "cache")
    file = cached(source, tmp_path / "cache")
    locked = first._set
    later = []

    def meanwhile(kind: int, position: int) -> bool:
        done = locked(kind, position)
        if kind == folders.fcntl.F_UNLCK:
            second.leave(lambda tar: False)
            later.append(CacheFolder(tmp_path / "cache"))
            later[0].take(file, None, copier(source, file), never)
        return done

    monkeypatch.setattr(first, "_set", meanwhile)
    first.leave(lambda tar: False)
    assert not find_damage(file, None)
    later[0].leave(lambda tar: False)
    assert not (tmp_path / "cache").exists()


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    """While it lives its part stays; once killed, nothing tells its age, and it goes."""
    program = """
import sys, time
from pathlib import Path
from trainer.data.folder import join_cache
from trainer.data.shards import ShardFile
from trainer.storage.manifest import Shard
cache = Path(sys.argv[1])
folder = join_cache(cache, "0123456789abcdef", [], named=False)
shard = Shard(name="x.tar", split="train", num_samples=1, size=9, sha256="", crc32c=0, index_crc32c=0)
def fetch():
    (folder.path / "x.tar.part").write_bytes(b"half")
    print("fetching", flush=True)
    time.sleep(600)
file = ShardFile(shard=shard, path=str(folder.path / "x.tar"), index=str(folder.path / "x.index"), uri="x")
folder.take(file, None, fetch, lambda: False)
"""
    cache = tmp_path / "cache"
    cache.mkdir()
    with subprocess.Popen([sys.executable, "-c", program, str(cache)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "fetching\n"
        part = cache / "0123456789abcdef" / "x.tar.part"
        beside = CacheFolder(part.parent)
        beside.sweep(lambda tar: False)
        join_cache(cache, "another", [], named=False).leave(lambda tar: False)
        beside.leave(lambda tar: False)
        assert part.read_bytes() == b"half"
        child.send_signal(signal.SIGKILL)
    join_cache(cache, "another", [], named=False).leave(lambda tar: False)
    assert not cache.exists()


def test_only_caches_are_swept_beside_a_named_folder(tmp_path: Path) -> None:
    """A folder of the user's own that happens to have such a name stays; of another data set's cache the shards do."""
    own, other = tmp_path / "0123456789abcdef", tmp_path / "fedcba9876543210"
    own.mkdir()
    (own / "mine.txt").write_text("mine")
    other.mkdir()
    for name in (LOCK, "x.tar", "x.index", "y.tar.part", "y.tar@0-3"):
        (other / name).write_bytes(b"x")
    join_cache(tmp_path, "0000000000000000", [], named=True).leave(lambda tar: False)
    assert sorted(os.listdir(tmp_path)) == sorted([own.name, other.name])
    assert os.listdir(own) == ["mine.txt"]
    assert sorted(os.listdir(other)) == ["x.index", "x.tar"]


def test_a_default_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the system's temporary folder anybody may have made it first."""
    monkeypatch.setattr(folders.os, "getuid", lambda: 4242)
    with pytest.raises(InputError, match=r"belongs to another user: set placement\.cache_dir to a folder of your own"):
        join_cache(tmp_path / "cache", "0", [], named=False)


@pytest.mark.parametrize("place", ["a file", "below a file", "a file where the data set's folder must be", "read-only"])
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, place: str) -> None:
    """One line with the setting, exit 2."""
    (tmp_path / "file").write_text("x")
    base, name = {
        "a file": (tmp_path / "file", "0"),
        "below a file": (tmp_path / "file" / "cache", "0"),
        "a file where the data set's folder must be": (tmp_path, "file"),
        "read-only": (Path("/sys/firstsight"), "0"),
    }[place]
    with pytest.raises(InputError, match=r"placement\.cache_dir must be a writable folder"):
        join_cache(base, name, [], named=True)


def test_what_nobody_can_wait_for_ends(source: Path, tmp_path: Path) -> None:
    """A closed loader does not wait for another process's fetch."""
    file = cached(source, tmp_path / "cache")
    first, second = CacheFolder(tmp_path / "cache"), CacheFolder(tmp_path / "cache")
    assert first._set(folders.fcntl.F_WRLCK, first._position(file.path) | folders._WRITE)
    with pytest.raises(RunError, match="the loader was closed"):
        second.take(file, None, refuse, lambda: True)
    assert first._set(folders.fcntl.F_WRLCK, first._position(file.path)), "it is not held any more"
