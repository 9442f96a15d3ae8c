"""One run per experiment: a second run of the same experiment is rejected, naming the first one's process.

On a file root the lock is a flock in the experiment's folder, which disappears with its process however that ends. On S3, and on file
systems without flock, it is a lease (pipelines/jobs/lease.py); flocks in this machine's temporary folder then show at once if its
holder was killed on this machine. A second flock is held by every job, so that a run which follows a killed one begins when the killed
one's jobs are gone. A thread keeps the lock; a run that has lost it is told, and must end.
"""

import contextlib
import errno
import fcntl
import getpass
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pipelines.jobs import lease
from pipelines.jobs.lease import NAME, Holder, Lease, Lost, Taken, parse_holder, refusal
from trainer import logs
from trainer.errors import InputError, RunError
from trainer.storage.base import local_path
from trainer.storage.writers import NO_LOCKS, boot_id, is_gone, mark

JOBS_VARIABLE = "FIRSTSIGHT_JOBS_LOCK"
JOBS_WAIT_SECONDS = 60.0
_JOBS, _PREFIX = "jobs.lock", "firstsight-lock-"
_TAKEN = "taken"
"""File in the folder of a process that took the lock: if it is killed, whoever takes over learns from this folder that it has ended."""
_UNUSED_SECONDS = 3600.0


class Held:
    """The lock of an experiment, held by this process.

    Attributes:
        jobs: path of the flock that this run's jobs share.
    """

    def __init__(self, jobs: Path) -> None:
        self.jobs = jobs
        self._why = ""

    def lost(self) -> str:
        """Why the lock was lost; empty while it is held. A run that has lost it must write nothing more."""
        return self._why


class _Lock(Protocol):
    def beat(self) -> None: ...


@contextlib.contextmanager
def exclusive(experiment_uri: str) -> Iterator[Held]:
    """Hold the experiment for this process.

    Raises:
        InputError: another run holds it, or may hold it.
        RunError: jobs of a killed run do not end, or the store failed.
    """
    folder = local_path(experiment_uri)
    with contextlib.ExitStack() as stack:
        taken: tuple[Held, _Lock] | None = None
        if folder is not None:
            with contextlib.suppress(_NoFlock):
                taken = stack.enter_context(_flocked(folder, experiment_uri))
        held, lock = taken or stack.enter_context(_leased(experiment_uri))
        stack.enter_context(_beating(held, lock))
        yield held


@contextlib.contextmanager
def job_lock() -> Iterator[tuple[int, ...]]:
    """Hold a shared flock on the file named by FIRSTSIGHT_JOBS_LOCK; yields the descriptors that a job must inherit."""
    path = os.environ.get(JOBS_VARIABLE)
    if not path:
        yield ()
        return
    with _open(Path(path)) as stream:
        with contextlib.suppress(_NoFlock):
            _flock(stream, fcntl.LOCK_SH)
        yield (stream.fileno(),)


@contextlib.contextmanager
def _beating(held: Held, lock: _Lock) -> Iterator[None]:
    """Keep the lock with heartbeats from a thread that only the loss of the lock stops."""
    ended = threading.Event()

    def keep() -> None:
        pause = lease.HEARTBEAT_SECONDS
        while not ended.wait(pause):
            pause = lease.HEARTBEAT_SECONDS
            try:
                lock.beat()
            except Lost as error:
                held._why = str(error)
                return
            except Exception:  # the store is down or rejects the write: the steps report that where it matters
                pause /= 4

    thread = threading.Thread(target=keep, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# ------------------------------------------------------------------------------------------------ in the store


@contextlib.contextmanager
def _leased(experiment_uri: str) -> Iterator[tuple[Held, Lease]]:
    with _liveness() as (folder, facts):
        kept = Lease(experiment_uri, facts, ended=_has_ended, say=logs.say)
        kept.take()
        held = Held(folder / _JOBS)
        try:
            (folder / mark()).rename(folder / _TAKEN)  # which a full disk does not prevent
            for holder in kept.replaced:
                _forget(holder)
            _sweep()  # not before: a process that lost the answer to its request, or was killed then, may hold this very lock
            kept.impatient()
            yield held, kept
        finally:
            # If jobs keep running or the store is down, the lock stays, and the folder tells this machine that the run has ended.
            with contextlib.suppress(InputError, RunError):
                _wait_for_jobs(folder / _JOBS)
                if not held.lost():
                    kept.release()
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _liveness() -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder whose flocks show others on this machine that this process and its jobs are alive; yields it and the lock's facts."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    folder.chmod(0o755)  # other users need to read it
    _open(folder / mark()).close()
    facts = _facts()
    with _open(folder / NAME) as stream:
        _open(folder / _JOBS).close()
        status = os.fstat(stream.fileno())
        with contextlib.suppress(_NoFlock):
            _flock(stream, fcntl.LOCK_EX)
            facts |= {"boot": boot_id(), "folder": str(folder), "file": [status.st_dev, status.st_ino]}
        try:
            yield folder, facts
        except Taken:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _has_ended(holder: Holder) -> bool:
    """Whether the holder ran on this machine and has ended, and its jobs too (waits for them). False if that is not known.

    Raises:
        RunError: its process has ended, but its jobs keep running.
    """
    boot, folder = boot_id(), holder.get("folder")
    if not boot or holder.get("boot") != boot or not isinstance(folder, str):
        return False
    try:
        with open(os.open(Path(folder) / NAME, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            status = os.fstat(stream.fileno())
            if [status.st_dev, status.st_ino] != holder.get("file") or not _flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB):
                return False  # a different file with this name (a container's own folder), or the holder is alive
    except (OSError, ValueError, _NoFlock):
        return False
    _wait_for_jobs(Path(folder) / _JOBS)
    return True


def _sweep() -> None:
    """Remove what killed runs of this user left in the temporary folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            names = os.listdir(folder)
            is_unknown = _TAKEN not in names and any(map(is_gone, names))  # killed before it had the lock
            if is_unknown or time.time() - folder.lstat().st_mtime > _UNUSED_SECONDS:
                _remove(folder)


def _forget(holder: Holder) -> None:
    """Remove the folder of a process whose lock was taken over, if it ran on this machine and has ended."""
    folder = Path(str(holder.get("folder", "")))
    if holder.get("boot") == boot_id() and folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith(_PREFIX):
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove such a folder if it is this user's, and neither a process nor a job of its holder is left."""
    with contextlib.suppress(OSError, InputError, _NoFlock):
        if folder.lstat().st_uid == os.getuid() and all(_is_free(folder / name) for name in (NAME, _JOBS)):
            shutil.rmtree(folder, ignore_errors=True)


# --------------------------------------------------------------------------------------------------- on files


class _NoFlock(Exception):
    """The file system has no flock."""


@contextlib.contextmanager
def _flocked(folder: Path, experiment_uri: str) -> Iterator[tuple[Held, "_FileLock"]]:
    with contextlib.ExitStack() as stack:
        lock = _FileLock(folder, experiment_uri, stack)
        lock.take()
        _wait_for_jobs(folder / _JOBS)
        try:
            yield Held(folder / _JOBS), lock
        finally:
            lock.clear()


class _FileLock:
    """The flock on run.lock in an experiment's folder. Its beat finds out whether that file was deleted or replaced."""

    def __init__(self, folder: Path, experiment_uri: str, stack: contextlib.ExitStack) -> None:
        self._folder, self._uri, self._stack = folder, experiment_uri, stack
        self._stream: BinaryIO | None = None

    def take(self) -> None:
        """Take the flock on the file that is there now."""
        path = self._folder / NAME
        while self._stream is None or not _is_same(self._stream, path):
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except PermissionError as error:
                raise InputError(f"{self._uri}: permission denied ({error.filename}): check who owns the folder") from error
            except OSError as error:
                raise _refused(self._folder, error) from error
            with contextlib.ExitStack() as opened:
                stream = opened.enter_context(_open(path))
                try:
                    taken = _flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except _NoFlock:
                    if _is_same(stream, path) and not path.stat().st_size:
                        path.unlink()  # just created; a lease would have content
                    raise
                if not taken:
                    raise Taken(refusal(self._uri, parse_holder(stream.read(1 << 16))))
                if not stream.writable():
                    raise InputError(f"{path}: permission denied: it belongs to another user; remove it, or let this user write it")
                self._stream = stream
                self._stack.push(opened.pop_all())
        try:
            self._stream.seek(0)
            self._stream.truncate()
            self._stream.write(json.dumps(_facts()).encode())
            self._stream.flush()
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}; fix that and run the same command again") from error

    def beat(self) -> None:
        """Take it again if the file was deleted; raises Lost if another process was faster."""
        try:
            if self._stream is None or not _is_same(self._stream, self._folder / NAME):
                self.take()
        except Taken as error:
            raise Lost(str(error)) from error

    def clear(self) -> None:
        """Remove the files, which nobody else holds: whoever opened them meanwhile sees that they are gone."""
        with contextlib.suppress(OSError, _NoFlock):
            if self._stream is not None and _is_same(self._stream, self._folder / NAME) and _is_free(self._folder / _JOBS):
                (self._folder / _JOBS).unlink(missing_ok=True)
                (self._folder / NAME).unlink()


def _open(path: Path) -> BinaryIO:
    """The file, created if missing, opened for reading and writing, or only for reading if another user's file allows no more."""
    for _ in range(3):
        try:
            return open(os.open(path, os.O_RDWR | os.O_CLOEXEC), "r+b")
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # another process has created it in the meantime
                return _make(path)
        except PermissionError:
            break
        except OSError as error:
            raise _refused(path, error) from error
    try:
        return open(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb")
    except PermissionError as error:
        raise InputError(f"{path}: permission denied: it belongs to another user; remove it, or let this user write it") from error


def _make(path: Path) -> BinaryIO:
    try:
        stream = open(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o666), "r+b")
        os.fchmod(stream.fileno(), 0o666)  # where several users share a folder
    except FileExistsError:
        raise
    except OSError as error:
        raise _refused(path, error) from error
    return stream


def _refused(path: Path, error: OSError) -> InputError | RunError:
    """A one-line error that names the path, for whatever the file system reports."""
    if error.errno == errno.EROFS:
        return InputError(f"{path}: the file system is read-only: a run needs a root that it can write to")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"{path}: permission denied: check who owns the folder")
    if error.errno == errno.EISDIR:
        return InputError(f"{path}: this is a folder, but a file is needed: remove it")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
        return InputError(f"{path}: cannot create a folder or file here: {error.filename or path} is neither: {error.strerror}")
    return RunError(f"{path}: cannot be created: {error.strerror}; fix that and run the same command again")


def _flock(stream: BinaryIO, kind: int) -> bool:
    """Take the flock; False if another process has it. Raises _NoFlock."""
    try:
        fcntl.flock(stream, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise _NoFlock from error
        raise
    return True


def _is_same(stream: BinaryIO, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    return False


def _is_free(path: Path) -> bool:
    """Whether nobody holds the flock, or there is no such file."""
    if not path.exists():
        return True
    with _open(path) as stream:
        return _flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _wait_for_jobs(path: Path) -> None:
    """Wait until no job of an earlier run holds the flock."""
    end = time.monotonic() + JOBS_WAIT_SECONDS
    with contextlib.suppress(_NoFlock):
        while not _is_free(path):
            if time.monotonic() > end:
                raise RunError(f"{path}: jobs of a run that was killed are still running after {JOBS_WAIT_SECONDS:.0f} s: stop them first")
            time.sleep(0.2)


def _facts() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user ID has no name
        user = str(os.getuid())
    return {"pid": os.getpid(), "host": socket.gethostname(), "user": user, "started": time.strftime("%Y-%m-%d %H:%M:%S")}
