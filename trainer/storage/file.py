"""Objects as files: `file:///path` or a plain path."""

import errno
import fcntl
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from trainer.errors import InputError, RunError, reason_of
from trainer.storage.protocol import PIECE_BYTES, MissingObject, ObjectInfo, local_path
from trainer.storage.writers import NO_LOCKS, PARTIAL, beside, beside_all, has_mark, is_gone, same_kernel

_TRIES = 100  # in case another process sweeps an empty folder away
_LOCK_SECONDS = 60.0  # after which a lock by existence belongs to a process that was killed
_SILENT_SECONDS = 600.0  # for which another machine's writer has not written


class FileStore:
    """Files below a folder, written whole or not at all: a partial file in the same folder, fsync, rename."""

    def get(self, uri: str) -> bytes:
        """The whole file. Raises MissingObject if there is none."""
        with _errors(uri), open(_path(uri), "rb") as file:
            return file.read()

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; fewer in the file is a RunError."""
        return b"".join(self.stream(uri, start, length))

    def stream(self, uri: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The file, or `length` bytes of it from `start`, in pieces; fewer in it is a RunError."""
        with _errors(uri), open(_path(uri), "rb") as file:
            file.seek(start)
            left = length
            while left is None or left > 0:
                piece = file.read(PIECE_BYTES if left is None else min(PIECE_BYTES, left))
                if not piece:
                    break
                left = None if left is None else left - len(piece)
                yield piece
            if left:
                raise RunError(
                    f"{uri}: {length} bytes from {start} were requested, but the file ends {left} bytes earlier: it was truncated"
                )

    get_unsealed, stream_unsealed = get_range, stream  # no network that could damage them

    def put_stream(self, uri: str, stream: BinaryIO, size: int | None = None) -> ObjectInfo:
        """Write all of `stream`; a `size` that it does not have is a RunError, and the old file stays."""
        path = _path(uri)
        with _errors(uri):
            partial, file = _open_partial(path, uri)
            try:
                with file:
                    while piece := stream.read(PIECE_BYTES):
                        file.write(piece)
                    written = file.tell()
                    if size is not None and written != size:
                        raise RunError(f"{uri}: the stream had {written} bytes, but {size} were announced; nothing was written")
                    file.flush()
                    os.fsync(file.fileno())
                    _move(partial, path, uri)
                    status = os.fstat(file.fileno())  # after the rename, which is a change of its own
            except BaseException:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)
        return _info(uri, status)

    def create(self, uri: str, data: bytes) -> bool:
        """Write `data` unless the file exists: of many concurrent callers, one gets True."""
        with self._alone(uri):
            if self.head(uri) is not None:
                return False
            self.put_stream(uri, io.BytesIO(data), len(data))
            return True

    def replace(self, uri: str, data: bytes, stamp: str) -> bool:
        """Write `data` over the version of the file that has this stamp; False if it has another by now."""
        with self._alone(uri):
            info = self.head(uri)
            if info is None or info.stamp != stamp:
                return False
            self.put_stream(uri, io.BytesIO(data), len(data))
            return True

    def copy(self, source_uri: str, target_uri: str) -> ObjectInfo:
        """Make `target_uri` a hard link to the source, or a copy where the file system has none; whole or not at all."""
        source, target = _path(source_uri), _path(target_uri)
        if source.is_dir():
            raise MissingObject(f"{source_uri}: this is a folder, not a file")
        partial = Path(beside(str(target), "write"))
        with _errors(target_uri):
            _make_folder(target.parent, target_uri)
        try:
            with _errors(source_uri):
                os.link(source, partial)
        except (InputError, RunError) as error:
            if isinstance(error, MissingObject):
                raise
            with _errors(source_uri), open(source, "rb") as file:
                return self.put_stream(target_uri, file, os.fstat(file.fileno()).st_size)
        with _errors(target_uri):
            try:
                with open(partial, "rb") as file:
                    os.fsync(file.fileno())
                _move(partial, target, target_uri)
            finally:
                partial.unlink(missing_ok=True)  # still there also where both names are links to one file already
            _sync_folder(target.parent)
            return _info(target_uri, target.stat())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every file below the folder `prefix`, in the order of their URIs; none if there is no such folder."""
        root = _path(prefix)
        found = []
        with _errors(prefix):
            for folder, _, names in os.walk(root, onerror=_raise_unless_missing):
                below = Path(folder).relative_to(root)
                found += [(below / name).as_posix() for name in names if not name.endswith(PARTIAL)]
        for name in sorted(found):
            uri = f"{prefix.rstrip('/')}/{name}"
            info = self.head(uri)
            if info is not None:  # deleted since it was listed
                yield info

    def holds(self, prefix: str) -> bool:
        """Whether any file lies below the folder `prefix`."""
        with _errors(prefix):
            walked = os.walk(_path(prefix), onerror=_raise_unless_missing)
            return any(not name.endswith(PARTIAL) for _, _, names in walked for name in names)

    def delete(self, uri: str) -> None:
        """Remove the file; a missing one is not an error."""
        with _errors(uri), suppress(IsADirectoryError):
            _path(uri).unlink(missing_ok=True)

    def sweep(self, prefix: str) -> None:
        """Remove partial files below the folder `prefix` whose writer is gone, and folders that hold nothing."""
        with _errors(prefix):
            for folder, _, names in os.walk(_path(prefix), topdown=False):
                for name in names:
                    if name.endswith(PARTIAL):
                        _remove_unless_written(Path(folder) / name)
                with suppress(OSError):
                    os.rmdir(folder)

    @contextmanager
    def _alone(self, uri: str) -> Iterator[None]:
        """While nobody else creates or replaces the file."""
        with _errors(uri), _locked(_path(uri), uri):
            yield

    def head(self, uri: str) -> ObjectInfo | None:
        """Its size and time, or None if there is no such file."""
        path = _path(uri)
        with _errors(uri):
            try:
                status = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return None if path.is_dir() else _info(uri, status)


def _info(uri: str, status: os.stat_result) -> ObjectInfo:
    stamp = f"{status.st_ino}-{status.st_size}-{status.st_ctime_ns}"
    return ObjectInfo(uri=uri, size=status.st_size, modified=status.st_mtime, stamp=stamp)


def _open_partial(path: Path, uri: str) -> tuple[Path, BinaryIO]:
    """A new partial file beside `path`, locked so that nobody sweeps it away."""
    for _ in range(_TRIES):
        _make_folder(path.parent, uri)
        partial = Path(beside(str(path), "write"))
        try:
            file = open(partial, "xb")
        except FileNotFoundError:  # the new folder was swept away, being empty
            continue
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)  # released by the kernel, whatever ends this process; see `sweep`
        if os.fstat(file.fileno()).st_nlink:
            return partial, file
        file.close()  # swept away before it was locked
    raise RunError(f"{uri}: its folder keeps being removed by another process")


def _move(partial: Path, path: Path, uri: str) -> None:
    try:
        try:
            os.replace(partial, path)
        except IsADirectoryError:
            with suppress(OSError):
                path.rmdir()  # an empty folder is nothing, here as on S3; one that holds anything is an error
            os.replace(partial, path)
    except FileNotFoundError as error:
        raise RunError(f"{uri}: another process removed it while it was being written; run the same command again") from error


@contextmanager
def _locked(path: Path, uri: str) -> Iterator[None]:
    """Alone among all who lock this path: by the kernel, or by a file's existence where the file system has no locks."""
    lock = Path(f"{beside_all(str(path), 'lock')}0{PARTIAL}")
    descriptor = _lock_by_kernel(lock, uri)
    if descriptor is None:
        lock = lock.with_name(lock.name.replace("lock-0", "lock-1"))
        _lock_by_existence(lock, uri)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is released: whoever waits for it sees that it is gone, and makes another
        if descriptor is not None:
            os.close(descriptor)


def _lock_by_kernel(lock: Path, uri: str) -> int | None:
    """The descriptor that holds the lock; None if the file system has no locks."""
    for _ in range(_TRIES):
        _make_folder(lock.parent, uri)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the new folder was swept away, being empty
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno not in NO_LOCKS:
                raise
            lock.unlink(missing_ok=True)
            return None
        os.close(descriptor)  # whoever had it before has removed it
    raise RunError(f"{uri}: {lock} is removed again and again by another process")


def _lock_by_existence(lock: Path, uri: str) -> None:
    until = time.monotonic() + 2 * _LOCK_SECONDS
    while True:
        try:
            os.close(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
            return
        except FileExistsError:
            if _age(lock) > _LOCK_SECONDS:
                lock.unlink(missing_ok=True)
            elif time.monotonic() > until:
                raise RunError(f"{uri}: others have held {lock} for a minute: remove it if nobody is writing here") from None
            else:
                time.sleep(0.05)


def _age(file: Path) -> float:
    """Seconds since the file changed, by the clock of its file system; 0 if it is gone or nothing may be written there."""
    probe = Path(beside(str(file), "clock"))
    try:
        with open(probe, "xb") as fresh:
            return os.fstat(fresh.fileno()).st_mtime - file.stat().st_mtime
    except OSError:
        return 0.0
    finally:
        with suppress(OSError):
            probe.unlink()


def _path(uri: str) -> Path:
    path = local_path(uri)
    if path is None:
        raise InputError(f"{uri}: not a file URI or a path")
    return path


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """One line that names the URI for whatever the file system says."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingObject(f"{uri}: no such file") from error
    except IsADirectoryError as error:
        raise MissingObject(f"{uri}: this is a folder, not a file: remove it") from error
    except PermissionError as error:
        raise InputError(f"{uri}: permission denied ({error.strerror}): check who owns the folder") from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise InputError(f"{uri}: the file system is read-only") from error
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{uri}: the name is too long for this file system") from error
        raise RunError(f"{uri}: {reason_of(error)}") from error


def _remove_unless_written(partial: Path) -> None:
    """Remove a partial file whose writer is gone: dead on this machine, or without its lock, or silent for very long."""
    gone = is_gone(partial.name)
    if gone is False:
        return
    with suppress(OSError), open(partial, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            silence = 0.0 if gone or same_kernel(partial.name) or not has_mark(partial.name) else _SILENT_SECONDS  # locks may be local
        except BlockingIOError:
            return
        except OSError:
            silence = 0.0 if gone else 6 * _SILENT_SECONDS
        if not silence or _age(partial) > silence:
            partial.unlink()


def _make_folder(folder: Path, uri: str) -> None:
    obstacle = str(folder)
    for _ in range(_TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return
        except FileNotFoundError:  # a parent was swept away, being empty
            continue
        except (FileExistsError, NotADirectoryError) as error:
            obstacle = str(error.filename)
            if file := next((str(part) for part in (folder, *folder.parents) if part.is_file()), ""):
                raise InputError(f"{uri}: cannot be written: {file} is a file where a folder must be") from error
    raise InputError(f"{uri}: cannot be written: no folder can be created at {obstacle}")


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, so that COMMITTED.json never outlives the files it seals."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not sync folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
