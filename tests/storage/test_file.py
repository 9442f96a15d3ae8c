"""What is particular to files: writes that are whole or not there, and the file system's refusals in one line."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.errors import InputError, RunError
from trainer.storage import join, open_store, read_bytes, write_bytes
from trainer.storage.base import absolute, local_path


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
    """A folder is never replaced by a file."""
    (tmp_path / "d" / "e").mkdir(parents=True)
    with pytest.raises(InputError, match="a folder lies here"):
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
