import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.jobs import lease, lock
from trainer.errors import InputError, RunError
from trainer.storage import join, open_store, read_bytes, write_bytes, write_json, writers
from trainer.storage.documents import encode_document
from trainer.storage.writers import boot_id

HOLD = """
import sys, time
from pipelines.jobs import lease, lock
lease.HEARTBEAT_SECONDS = 0.2
with lock.exclusive(sys.argv[1]) as held:
    print("held", flush=True)
    while not held.lost():
        time.sleep(0.05)
print(held.lost(), flush=True)
"""
HOLD_WITH_JOB = """
import os, subprocess, sys, time
from pipelines.jobs import lock
with lock.exclusive(sys.argv[1]) as held:
    os.environ[lock.JOBS_VARIABLE] = str(held.jobs)
    with lock.job_lock() as descriptors:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        job = subprocess.Popen(command, pass_fds=descriptors, stdout=subprocess.DEVNULL)
        print(f"held\\n{job.pid}", flush=True)
        time.sleep(600)
"""
TOLERANT_SECONDS = 60.0


def hold(root: str, code: str = HOLD, **options: Any) -> "subprocess.Popen[str]":
    """Another process that holds the experiment, until it loses it."""
    process = subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True, **options)
    assert process.stdout is not None
    if process.stdout.readline() != "held\n":
        end(process)
        raise AssertionError("not held")
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def wait_until_lost(held: lock.Held) -> str:
    deadline = time.monotonic() + TOLERANT_SECONDS
    while not held.lost() and time.monotonic() < deadline:
        time.sleep(0.02)
    return held.lost()


@pytest.fixture
def holder(root: str) -> "Iterator[subprocess.Popen[str]]":
    process = hold(root)
    yield process
    end(process)


@pytest.fixture
def short_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems without flock, except for the temporary folder."""
    flock = fcntl.flock

    def refuse(file: Any, kind: int) -> None:
        number = file if isinstance(file, int) else file.fileno()
        if lock._PREFIX not in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(errno.ENOLCK, "No locks available")
        flock(number, kind)

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_second_run_is_refused_naming_the_first_ones_process(root: str, holder: "subprocess.Popen[str]"):
    """On files and on S3."""
    with pytest.raises(InputError, match=f"being run by process {holder.pid} on .*, started 20"), lock.exclusive(root):
        pass


def test_a_run_killed_on_this_machine_leaves_the_experiment_free_at_once(root: str, holder: "subprocess.Popen[str]"):
    """On S3 too nobody waits for its heartbeat to expire."""
    holder.kill()
    holder.wait()

    with lock.exclusive(root) as held:
        assert not held.lost()


def test_nothing_is_left_after_the_run(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither in the store nor in the temporary folder."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    for _ in range(2):
        with lock.exclusive(root):
            pass
    with lock.exclusive(root), pytest.raises(InputError, match="is being run by"), lock.exclusive(root):
        pass

    assert not open_store(root).holds(root)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_run_waits_for_the_jobs_of_one_that_was_killed(root: str, monkeypatch: pytest.MonkeyPatch):
    """They may be saving a checkpoint."""
    monkeypatch.setattr(lock, "JOBS_WAIT_SECONDS", 0.5)
    process = hold(root, HOLD_WITH_JOB)
    assert process.stdout is not None
    job = int(process.stdout.readline())
    end(process)
    try:
        with pytest.raises(RunError, match="jobs of a run that was killed are still running"), lock.exclusive(root):
            pass
    finally:
        os.kill(job, 9)
    monkeypatch.setattr(lock, "JOBS_WAIT_SECONDS", TOLERANT_SECONDS)

    with lock.exclusive(root) as held:
        assert not held.lost()


def test_what_killed_runs_left_in_the_temporary_folder_is_swept(s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """But not what a living run uses."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, used, new = (tmp_path / f"{lock._PREFIX}{name}" for name in ("left", "used", "new"))
    for folder in (left, used, new):
        folder.mkdir()
        (folder / "run.lock").touch()
    for folder in (left, used):
        os.utime(folder, (0, 0))

    with (used / "run.lock").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with lock.exclusive(s3_root):
            pass

    assert sorted(tmp_path.iterdir()) == [new, used]


@pytest.mark.parametrize("killed", ["while it holds the lock", "before it has it"])
def test_the_next_run_leaves_nothing_of_one_that_was_killed(s3_root: str, killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One that held the lock is remembered until somebody has taken it over, since only its folder tells that it has ended."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process = hold(s3_root, env={**os.environ, "TMPDIR": str(tmp_path)})
    (folder,) = tmp_path.iterdir()
    if killed == "before it has it":
        (folder / lock._TAKEN).rename(folder / f"{writers._boot()}-{writers._namespace()}-{process.pid}-1")
    end(process)
    with lock.exclusive(join(s3_root, "another")):
        assert folder.exists() == (killed == "while it holds the lock")
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.05)
    with lock.exclusive(s3_root):
        pass

    assert list(tmp_path.iterdir()) == []


def elsewhere(**facts: Any) -> dict[str, Any]:
    """A holder on another machine."""
    return {"format_version": 2, "id": "1" * 32, "beats": 1, "pid": 7, "host": "elsewhere", "boot": "another", **facts}


@pytest.mark.parametrize("skew", [-180.0, 180.0])
def test_a_clock_three_minutes_off_changes_nothing(s3_root: str, skew: float, monkeypatch: pytest.MonkeyPatch):
    """The same hostname does not either."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + skew)
    write_bytes(join(s3_root, "run.lock"), encode_document(elsewhere(host=os.uname().nodename, time=real())))

    with pytest.raises(InputError, match=r"process 7 on .* if it was killed, try again in 1\d\d s"), lock.exclusive(s3_root):
        pass
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.05)

    with lock.exclusive(s3_root) as held:
        assert not held.lost()


def test_a_lock_of_an_older_firstsight_counts(s3_root: str):
    """It names host and process, and its age decides."""
    write_json(join(s3_root, "run.lock"), {"pid": 1, "host": "elsewhere", "started": "2026-01-01 00:00:00", "time": time.time() - 1000})
    with pytest.raises(InputError, match="process 1 on elsewhere"), lock.exclusive(s3_root):
        pass


@pytest.mark.parametrize("facts", [{"file": [1, 2]}, {"file": None}, {"folder": "/"}, {"folder": "\0"}, {"folder": 3}, {"boot": ""}])
def test_another_containers_holder_is_not_taken_for_dead(s3_root: str, tmp_path: Path, facts: dict[str, Any]):
    """Its temporary folder has the same name and is another."""
    (tmp_path / "run.lock").touch()
    status = (tmp_path / "run.lock").stat()
    here = {"boot": boot_id(), "folder": str(tmp_path), "file": [status.st_dev, status.st_ino]}
    write_bytes(join(s3_root, "run.lock"), encode_document(elsewhere(**here | facts)))
    with pytest.raises(InputError, match="process 7 on elsewhere"), lock.exclusive(s3_root):
        pass

    write_bytes(join(s3_root, "run.lock"), encode_document(elsewhere(**here)))

    with lock.exclusive(s3_root) as held:
        assert not held.lost()


HOSTILE = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "a list": b"[1]",
    "deep": b"[" * 50_000,
    "long": b'{"pid": "' + b"x" * 100_000 + b'"}',
    "many digits": b'{"pid": ' + b"9" * 10_000 + b"}",
    "lines": json.dumps({"pid": "1\nfirstsight: all is well", "host": [], "started": {}}).encode(),
    "a changed byte": encode_document(elsewhere()).replace(b"elsewhere", b"elsewherf"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_lock_is_refused_in_one_line_while_it_is_fresh(s3_root: str, name: str, monkeypatch: pytest.MonkeyPatch):
    """And does not keep the experiment for ever."""
    write_bytes(join(s3_root, "run.lock"), HOSTILE[name])
    with pytest.raises(InputError, match="is being run by") as refused, lock.exclusive(s3_root):
        pass
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.05)

    with lock.exclusive(s3_root) as held:
        assert not held.lost()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_lock_file_is_no_lock(tmp_path: Path, name: str):
    """The flock is; where it is held, the refusal is one line."""
    (tmp_path / "run.lock").write_bytes(HOSTILE[name])
    with (tmp_path / "run.lock").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is being run by") as refused, lock.exclusive(str(tmp_path)):
            pass
    assert "\n" not in str(refused.value)

    with lock.exclusive(str(tmp_path)):
        assert set(json.loads((tmp_path / "run.lock").read_text())) == {"pid", "host", "user", "started"}


def test_a_lock_file_deleted_while_it_is_held_is_made_again(tmp_path: Path, short_beats: None):
    """`rm -rf` of the folder too."""
    with lock.exclusive(str(tmp_path / "x")) as held:
        for path in ((tmp_path / "x/run.lock"), (tmp_path / "x")):
            path.unlink() if path.is_file() else path.rmdir()
            deadline = time.monotonic() + TOLERANT_SECONDS
            while not (tmp_path / "x/run.lock").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            with pytest.raises(InputError, match=f"process {os.getpid()}"), lock.exclusive(str(tmp_path / "x")):
                pass
            (tmp_path / "x/run.lock").unlink(missing_ok=True)
        assert not held.lost()


def test_a_run_whose_lock_another_one_has_by_now_is_told(root: str, monkeypatch: pytest.MonkeyPatch):
    """Somebody deleted the lock, and another run began: the end of the first one must not free the second one's lock."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.3)
    with contextlib.ExitStack() as stack:
        first = contextlib.ExitStack()
        held = stack.enter_context(first).enter_context(lock.exclusive(root))
        second = _take_after_deletion(root, stack)
        assert f"being run by process {os.getpid()}" in wait_until_lost(held)
        first.close()

        assert not second.lost()
        with pytest.raises(InputError, match=f"process {os.getpid()}"), lock.exclusive(root):
            pass


def _take_after_deletion(root: str, stack: contextlib.ExitStack) -> lock.Held:
    for _ in range(50):
        open_store(root).delete(join(root, "run.lock"))
        with contextlib.suppress(InputError):  # the first one's heartbeat was faster
            return stack.enter_context(lock.exclusive(root))
    raise AssertionError("never taken")


@pytest.mark.parametrize("error", [InputError("403"), RunError("503"), OSError("eio"), KeyError("a bug")])
def test_no_error_of_a_heartbeat_ends_the_heartbeats(s3_root: str, error: Exception, short_beats: None, monkeypatch: pytest.MonkeyPatch):
    """The thread goes on, and so does the run."""
    beat, errors = lease.Lease.beat, [error]

    def fail_once(self: lease.Lease) -> None:
        if errors:
            raise errors.pop()
        beat(self)

    monkeypatch.setattr(lease.Lease, "beat", fail_once)
    with lock.exclusive(s3_root) as held:
        deadline = time.monotonic() + TOLERANT_SECONDS
        while json.loads(read_bytes(join(s3_root, "run.lock")))["beats"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not held.lost()


def test_a_run_that_was_stopped_for_long_is_told_when_it_goes_on(s3_root: str, monkeypatch: pytest.MonkeyPatch):
    """A laptop that slept, a paused machine: another run took over meanwhile."""
    process = hold(s3_root)
    process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.2)

    with lock.exclusive(s3_root):
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert f"is being run by process {os.getpid()} " in process.stdout.readline()
    end(process)


def test_without_flock_the_store_keeps_the_lock(tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch):
    """As on S3: some network file systems have none."""
    root = str(tmp_path / "root")
    with lock.exclusive(root) as held:
        with pytest.raises(InputError, match=f"being run by process {os.getpid()}"), lock.exclusive(root):
            pass
        assert json.loads(read_bytes(join(root, "run.lock")))["id"]
        monkeypatch.setenv(lock.JOBS_VARIABLE, str(held.jobs))
        with lock.job_lock() as descriptors:
            assert len(descriptors) == 1
    assert not open_store(root).holds(root)


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.EACCES, InputError, "permission denied"),
        (errno.EROFS, InputError, "read-only: a run needs a root that it can write to"),
        (errno.ENOSPC, RunError, "No space left on device"),
    ],
)
def test_a_root_in_which_no_lock_can_be_made_is_refused_in_one_line(
    tmp_path: Path, number: int, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
):
    opened = os.open

    def refuse(path: Any, flags: int, *mode: int, **options: Any) -> int:
        if flags & os.O_CREAT and Path(path).name == "run.lock":
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(kind, match=rf"^{tmp_path}/e/run\.lock: .*{said}"), lock.exclusive(str(tmp_path / "e")):
        pass


def test_what_lies_in_the_place_of_a_lock_is_named(tmp_path: Path):
    (tmp_path / "e" / "run.lock").mkdir(parents=True)
    refusal = r"e/run\.lock: this is a folder, but a file is needed: remove it"
    with pytest.raises(InputError, match=refusal), lock.exclusive(str(tmp_path / "e")):
        pass
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match=r"f: cannot create a folder or file here"), lock.exclusive(str(tmp_path / "f")):
        pass
