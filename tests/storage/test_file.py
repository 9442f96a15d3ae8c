"""What is particular to files: writes that are whole or not there, and the file system's refusals in one line."""

import errno
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer.errors import InputError, RunError
from trainer.storage import exists, file, join, open_store, read_bytes, write_bytes, writers
from trainer.storage.base import absolute, local_path
from trainer.storage.file import FileStore


def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    """Its partial file and empty folders go; objects, and what a living process is writing, stay."""
    uri = str(tmp_path / "checkpoints" / "step-1" / "model")
    code = (
        "import sys, time; from trainer.storage import open_store\n"
        "class Slow:\n"
        "    def read(self, size):\n"
        "        print('writing', flush=True); time.sleep(60); return b''\n"
        f"open_store('/').put_stream({uri!r}, Slow())"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    write_bytes(str(tmp_path / "checkpoints" / "step-2" / "model"), b"x")
    (tmp_path / "checkpoints" / "step-0").mkdir()
    store = open_store("/")
    try:
        store.sweep(str(tmp_path / "checkpoints"))
        left = [path.suffix for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
        assert sorted(left) == ["", ".partial"]
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    store.sweep(str(tmp_path / "checkpoints"))
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "checkpoints", "checkpoints/step-2", "checkpoints/step-2/model",
    ]  # fmt: skip
    store.sweep(str(tmp_path / "nothing"))


def test_file_uri_and_path_are_the_same(tmp_path: Path) -> None:
    """`file:///x` and `/x` name one file; a relative path is made absolute for other processes."""
    write_bytes(f"file://{tmp_path}/a/x", b"x")
    assert read_bytes(str(tmp_path / "a" / "x")) == b"x"
    assert local_path(f"file://{tmp_path}") == tmp_path
    assert [info.uri for info in open_store("file:///").list(f"file://{tmp_path}")] == [f"file://{tmp_path}/a/x"]
    assert absolute("runs") == str(Path.cwd() / "runs")
    assert absolute("s3://b/x") == "s3://b/x"


@pytest.mark.parametrize("holds", [False, True])
def test_a_folder_in_the_place_of_an_object(tmp_path: Path, holds: bool) -> None:
    """An empty one counts as nothing, as on S3: it is written over. One that holds files is somebody's, and is named."""
    uri, store = str(tmp_path / "x"), FileStore()
    write_bytes(str(tmp_path / "y"), b"y")
    for write in (lambda: write_bytes(uri, b"new"), lambda: store.copy(str(tmp_path / "y"), uri), lambda: store.create(uri, b"new")):
        (tmp_path / "x").mkdir()
        if holds:
            (tmp_path / "x" / "inside").touch()
        store.delete(uri)
        assert not exists(uri)
        if holds:
            with pytest.raises(InputError, match=f"^{uri}: this is a folder, not a file: remove it"):
                write()
            (tmp_path / "x" / "inside").unlink()
            (tmp_path / "x").rmdir()
        else:
            write()
            assert read_bytes(uri) in (b"new", b"y")
            store.delete(uri)
        assert [path.name for path in tmp_path.iterdir()] == ["y"]


@pytest.mark.parametrize(
    "uri", ["file://x", "file://localhost/x", "file:/x", "s3:/bucket/x", "s3:", "S3:/x", "http:/x", "/a\0b", "/a\ud800"]
)
def test_a_path_that_cannot_be_meant_is_refused(uri: str) -> None:
    """A folder `s3:` or one below the working directory would be made, and nobody would find it."""
    with pytest.raises(InputError) as caught:
        write_bytes(uri, b"x")
    assert str(caught.value).isprintable()


def test_a_home_that_is_nobodys_is_refused() -> None:
    with pytest.raises(InputError, match="~nobody-of-that-name/x: there is no such user"):
        absolute("~nobody-of-that-name/x")


@pytest.mark.parametrize(
    ("number", "kind", "rule"),
    [
        (errno.ENOSPC, RunError, "the disk is full"),
        (errno.EDQUOT, RunError, "the disk is full"),
        (errno.EACCES, InputError, "permission denied"),
        (errno.EROFS, InputError, "read-only"),
        (errno.EIO, RunError, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], rule: str, call: str) -> None:
    """Whatever the file system says is one line with the URI; the old file stays and no partial one is left."""
    uri = str(tmp_path / "x")
    write_bytes(uri, b"old")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(kind, match=rule) as raised:
            write_bytes(uri, b"new")
    assert str(raised.value).startswith(f"{uri}: ")
    assert read_bytes(uri) == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_file_where_a_folder_must_be(tmp_path: Path) -> None:
    """Writing below a file names that file; reading below it finds nothing."""
    write_bytes(str(tmp_path / "x"), b"x")
    for uri in (tmp_path / "x" / "y", tmp_path / "x" / "y" / "z"):
        with pytest.raises(InputError, match="/x is a file where a folder must be"):
            write_bytes(str(uri), b"y")
        assert open_store(str(uri)).head(str(uri)) is None


def test_writing_over_a_folder(tmp_path: Path) -> None:
    """A folder that holds anything is never replaced by a file."""
    (tmp_path / "d" / "e").mkdir(parents=True)
    with pytest.raises(InputError, match="this is a folder"):
        write_bytes(str(tmp_path / "d"), b"x")


def test_what_a_killed_writer_left_is_not_listed(tmp_path: Path) -> None:
    """The partial file of a writer that was killed is no object."""

    class Killed(Exception):
        pass

    class Stream(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            left = [name for name in os.listdir(tmp_path) if name.endswith(".partial")]
            assert len(left) == 1
            os.link(tmp_path / left[0], tmp_path / ".x.999-dead.partial")
            raise Killed

    with pytest.raises(Killed):
        open_store(str(tmp_path)).put_stream(str(tmp_path / "x"), Stream())
    assert os.listdir(tmp_path) == [".x.999-dead.partial"]
    assert list(open_store(str(tmp_path)).list(str(tmp_path))) == []


def test_mode_follows_umask(tmp_path: Path) -> None:
    """Files are readable by those whom the umask lets, not by their writer alone."""
    old = os.umask(0o022)
    try:
        write_bytes(str(tmp_path / "x"), b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_join() -> None:
    """One slash between parts, none at the end."""
    assert join("s3://b/", "/x/", "y/") == "s3://b/x/y"
    assert join("runs", "x") == "runs/x"


class NoLocks:
    """Stands for the module `fcntl` on a file system that has no locks."""

    LOCK_EX, LOCK_NB = 2, 4

    @staticmethod
    def flock(*_: object) -> None:
        """Not here."""
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_writers_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no locks, objects are created once all the same, and nothing stays beside them."""
    monkeypatch.setattr(file, "fcntl", NoLocks)
    uri, wins, barrier = str(tmp_path / "d" / "x"), [], threading.Barrier(8)

    def create(number: int) -> None:
        barrier.wait(60)
        if FileStore().create(uri, str(number).encode()):
            wins.append(str(number).encode())

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [read_bytes(uri)] == wins
    assert os.listdir(tmp_path / "d") == ["x"]


def test_a_lock_by_existence_that_was_left_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that was killed with it, after a minute."""
    monkeypatch.setattr(file, "fcntl", NoLocks)
    left = tmp_path / ".x.lock-1.partial"
    left.write_bytes(b"")
    os.utime(left, (1, 1))
    assert FileStore().create(str(tmp_path / "x"), b"1")
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("locks", [True, False])
def test_living_writers_are_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool) -> None:
    """Neither this process's, nor with locks that hold nowhere another machine's that wrote a moment ago; the dead's are."""
    if not locks:
        monkeypatch.setattr(file, "fcntl", NoLocks)
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    own = writers.mark()
    boot, namespace, _, begun = own.split("-")
    child.wait()
    names = {
        f".x.write-{own}-0000.partial": False,
        f".x.write-{boot}-{namespace}-{child.pid}-{begun}-0000.partial": True,
        f".x.write-{boot}-{namespace}-{os.getpid()}-1-0000.partial": True,  # this number was another process's
        f".x.write-00000000-{namespace}-1-1-0000.partial": False,
        f".y.write-00000000-{namespace}-1-1-0000.partial": True,  # silent for an hour, see below
        f".x.write-{boot}-00000000-1-1-0000.partial": locks,  # another container of this machine: its lock is gone
        ".x.999-dead.partial": locks,  # of an older firstsight
    }
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        if name.startswith(".y"):
            os.utime(tmp_path / name, (time.time() - 2 * 3600,) * 2)
    FileStore().sweep(str(tmp_path))
    assert {name: not (tmp_path / name).exists() for name in names} == names


def test_a_swept_folder_is_made_again(tmp_path: Path) -> None:
    """Writers and sweepers of one folder at once: each write arrives."""
    root, ends = str(tmp_path / "a" / "b"), threading.Event()

    def sweep() -> None:
        while not ends.is_set():
            FileStore().sweep(str(tmp_path / "a"))

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(200):
            uri = join(root, str(number), "x")
            write_bytes(uri, b"x")
            assert FileStore().create(join(root, str(number), "y"), b"y")
            FileStore().delete(uri)
            FileStore().delete(join(root, str(number), "y"))
    finally:
        ends.set()
        sweeper.join()


def test_long_names(tmp_path: Path) -> None:
    """A name as long as the file system takes, in letters of several bytes, is written like any other."""
    uri = str(tmp_path / ("日" * 85))
    write_bytes(uri, b"x")
    assert not FileStore().create(uri, b"y")
    assert os.listdir(tmp_path) == ["日" * 85]


def test_copies_where_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links, or another one, gets the bytes."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    write_bytes(str(tmp_path / "x"), b"x")
    FileStore().copy(str(tmp_path / "x"), str(tmp_path / "d" / "y"))
    assert read_bytes(str(tmp_path / "d" / "y")) == b"x"
    assert os.listdir(tmp_path / "d") == ["y"]


def test_a_partial_file_swept_before_its_lock_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's sweep may come between a file's making and its lock; the write goes on with a new one."""
    swept: list[str] = []

    class Sweeping:
        LOCK_EX = 2

        @staticmethod
        def flock(*_: object) -> None:
            """Sweep, once."""
            if not swept:
                swept.extend(os.listdir(tmp_path))
                for name in swept:
                    os.unlink(tmp_path / name)

    monkeypatch.setattr(file, "fcntl", Sweeping)
    write_bytes(str(tmp_path / "x"), b"x")
    assert len(swept) == 1
    assert os.listdir(tmp_path) == ["x"]
