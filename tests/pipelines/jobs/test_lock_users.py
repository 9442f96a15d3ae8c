"""The lock of an experiment between users of one machine."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.jobs import lock
from tests.pipelines.jobs.test_lock import end, hold
from trainer.errors import InputError
from trainer.storage import exists


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Not below pytest's own folder: each session that starts takes that from all other users."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="takes another user's id")
@pytest.mark.parametrize("mask", [0o022, 0o000])
def test_another_user_is_told_who_holds_the_experiment(root: str, mask: int, tmp_path: Path):
    """A folder that several users share, and S3 from one machine."""
    _let_in_everybody(tmp_path)
    if authority := os.environ.get("FIRSTSIGHT_S3_CA") or os.environ.get("AWS_CA_BUNDLE"):
        _let_in_everybody(Path(authority).parent)
    before = os.umask(mask)
    process = hold(root)
    try:
        assert _as_nobody(root) == f"{process.pid}"
        process.kill()
        process.wait()
        assert _as_nobody(root) == ""
    finally:
        os.umask(before)
        end(process)
    with lock.exclusive(root):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="takes another user's id")
def test_a_lock_file_that_this_user_may_not_write_is_refused_by_name(tmp_path: Path):
    """As an older firstsight left it; whoever holds it is named all the same."""
    _let_in_everybody(tmp_path)
    (tmp_path / "run.lock").write_text('{"pid": 7}')
    (tmp_path / "run.lock").chmod(0o644)
    with (tmp_path / "run.lock").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert _as_nobody(str(tmp_path)) == "7"

    refused = "permission denied: it belongs to another user; remove it, or let this user write it"
    assert _as_nobody(str(tmp_path)) == f"{tmp_path}/run.lock: {refused}"
    (tmp_path / "run.lock").chmod(0o600)
    assert _as_nobody(str(tmp_path)) == f"{tmp_path}/run.lock: {refused}"


def _let_in_everybody(folder: Path) -> None:
    """Open a test's folder, and those above it up to the temporary one, to every user."""
    for part in (folder, *folder.parents):
        if part == Path(tempfile.gettempdir()) or part.parent == part:
            return
        part.chmod(0o777)


def _as_nobody(root: str) -> str:
    """Which process holds it, as user 65534 is told; empty if that user may run it."""
    import _strptime  # noqa: F401 - as below

    exists(f"{root}/nothing")  # imports all that the store needs: that user may not be able to read the interpreter's folder
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            with lock.exclusive(root):
                os._exit(0)
        except InputError as error:
            os.write(writer, (str(error).partition("process ")[2].partition(" ")[0] or str(error)).encode())
        except Exception as error:  # what is said of it is what the test shows
            os.write(writer, repr(error).encode())
        finally:
            os._exit(1)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader) as stream:
        return stream.read()
