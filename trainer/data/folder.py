"""The local cache folder of one data set's shards: tracks which process uses or writes which file, and removes leftovers.

Every process opens the folder's lock file and locks bytes of it: one byte for its presence, and two for each cached file,
one for its users (shared; exclusive to remove the file) and one for its writer. The kernel drops a process's locks when it ends,
however it ends. So a file without locks is unused, whatever its age, and any number of files needs only one descriptor.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.data.shards import ShardFile, find_damage, looks_whole
from trainer.errors import InputError, RunError

LOCK = "firstsight.lock"
PART = ".part"
"""Suffix of a file that is being written."""

_MEMBER = 1 << 62
_WRITE = 1 << 61
_OTHER = 1 << 60  # files that have no number lie beyond it, by a hash of their name
_POLL_SECONDS = 0.01

_log = logging.getLogger(__name__)


class CacheFolder:
    """One process's part in a cache folder. Safe for threads, each file being in the hands of one at a time."""

    def __init__(self, path: Path, names: Sequence[str] = (), *, named: bool = True) -> None:
        """Join the folder, which is made if there is none.

        Args:
            path: of the folder.
            names: of the files that are likely to be held in great number; the same for all who use the folder.
            named: the user chose the folder above it, which then stays.

        Raises:
            InputError: the folder cannot be made or written.
        """
        self.path, self._named = path, named
        self._numbers = {name: number for number, name in enumerate(names)}
        with explained(path):
            while not self._join():
                pass

    def take(self, file: ShardFile, rows: range | None, fetch: Callable[[], object], stopped: Callable[[], bool]) -> None:
        """Hold a file, so that nobody removes it; if it is incomplete, one process fetches it for all.

        Args:
            file: to hold; find_damage looks at it unless somebody who holds it has done so.
            rows: of it that are needed; None: all.
            fetch: publishes tar and index.
            stopped: whether to give up waiting.

        Raises:
            RunError: given up, or what `fetch` raises; the file is not held then.
        """
        use = self._position(file.path)
        with explained(Path(file.path)):
            try:
                while not self._set(fcntl.F_WRLCK, use):
                    if self._set(fcntl.F_RDLCK, use):
                        break
                    _wait(file, stopped)  # somebody looks at it, or is just removing it
                else:  # nobody else holds it: what lies there is from an earlier run
                    self._remove_if_damaged(file, rows)
                    self._set(fcntl.F_RDLCK, use)
                while not looks_whole(file):
                    self._write(file, lambda: looks_whole(file) or fetch(), stopped)
            except BaseException:
                self._set(fcntl.F_UNLCK, use)
                raise

    def heal(self, file: ShardFile, rows: range | None, fetch: Callable[[], object], stopped: Callable[[], bool]) -> None:
        """Fetch a held file again if its bytes are wrong. Those who have mapped the old one keep it."""

        def check() -> None:
            damage = find_damage(file, rows)
            if damage:
                _log.warning("%s: %s: it is fetched again", file.path, damage)
                fetch()

        with explained(Path(file.path)):
            while not self._write(file, check, stopped):
                pass

    def let_go(self, file: ShardFile, *, remove: bool) -> None:
        """Release a file; with `remove`, remove it unless another process holds it."""
        use = self._position(file.path)
        with explained(Path(file.path)):
            if remove and self._set(fcntl.F_WRLCK, use):
                _remove(Path(file.path), Path(file.index))
            self._set(fcntl.F_UNLCK, use)

    def sweep(self, keep: Callable[[Path], bool]) -> None:
        """Remove files that nobody uses or writes, except tars that `keep` accepts. Only before any file was taken."""
        with explained(self.path):
            for name in os.listdir(self.path):
                if name == LOCK or _wanted(self.path / name, keep):
                    continue
                lock = self._position(_tar_name(name)) | (_WRITE if name.endswith(PART) else 0)
                if self._set(fcntl.F_WRLCK, lock):
                    _remove(self.path / name)
                    self._set(fcntl.F_UNLCK, lock)

    def leave(self, keep: Callable[[Path], bool]) -> None:
        """Release everything. The last user removes all but the tars that `keep` accepts, and the folder if none is left."""
        self._set(fcntl.F_UNLCK, _MEMBER)
        try:
            with explained(self.path):
                if self._set(fcntl.F_WRLCK, _MEMBER) and self._is_current():  # who comes now waits, and then finds another lock file
                    _remove(*(self.path / name for name in os.listdir(self.path) if name != LOCK and not _wanted(self.path / name, keep)))
                    _remove(self.path / LOCK)
                    with suppress(OSError):
                        self.path.rmdir()
                        if not self._named:
                            self.path.parent.rmdir()
        finally:
            os.close(self._lock)

    def _join(self) -> bool:
        """Open the lock file and say that this process is here; False if its last user was just removing it."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / LOCK
        if lock.is_dir():
            _remove(lock)
        try:
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            return False
        try:
            while not self._set(fcntl.F_RDLCK, _MEMBER):
                time.sleep(_POLL_SECONDS)
            if self._is_current():
                return True
        except BaseException:
            os.close(self._lock)
            raise
        os.close(self._lock)
        return False

    def _is_current(self) -> bool:
        """Whether the lock file that this process holds is the one that newcomers open."""
        try:
            return os.path.samestat(os.fstat(self._lock), os.stat(self.path / LOCK))
        except OSError:
            return False

    def _write(self, file: ShardFile, write: Callable[[], object], stopped: Callable[[], bool]) -> bool:
        """Call `write` while no other process writes the file; False, after a pause, if one does."""
        lock = self._position(file.path) | _WRITE
        if not self._set(fcntl.F_WRLCK, lock):
            _wait(file, stopped)
            return False
        try:
            write()
        finally:
            self._set(fcntl.F_UNLCK, lock)
        return True

    def _remove_if_damaged(self, file: ShardFile, rows: range | None) -> None:
        if not os.path.lexists(file.path):
            return
        damage = find_damage(file, rows)
        if damage:
            _log.warning("%s, left by an earlier run: %s: it is fetched again", file.path, damage)
            _remove(Path(file.path), Path(file.index))

    def _position(self, path: str) -> int:
        """Which byte stands for a file. Neighbours that one process holds take the kernel one entry."""
        name = Path(path).name
        number = self._numbers.get(name)
        return _OTHER | int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest()) if number is None else number

    def _set(self, kind: int, position: int) -> bool:
        """Lock or unlock one byte, or turn a lock into another, at once; False if someone else's lock is in the way."""
        request = struct.pack("hhqqi0q", kind, os.SEEK_SET, position, 1, 0)
        try:
            fcntl.fcntl(self._lock, fcntl.F_OFD_SETLK, request)  # unlike POSIX locks, two loaders of a process are two owners
        except BlockingIOError:
            return False
        return True


def join_cache(base: Path, name: str, names: Sequence[str], *, named: bool) -> CacheFolder:
    """The folder `name` below `base`; what dead runs left in folders beside it is swept.

    Args:
        base: folder of all caches, made if there is none.
        name: of this data set's.
        names: see CacheFolder.
        named: the user chose `base`: whole shards stay there, and only folders that certainly are caches are touched.

    Raises:
        InputError: the folder cannot be made, written, or trusted.
    """
    with explained(base):
        base.mkdir(mode=0o777 if named else 0o700, parents=True, exist_ok=True)
        if not named and base.stat().st_uid != os.getuid():
            raise InputError(f"{base}: belongs to another user: set placement.cache_dir to a folder of your own")
    folder = CacheFolder(base / name, names, named=named)
    with suppress(OSError):
        for other in base.iterdir():
            if other.name != name and re.fullmatch("[0-9a-f]{16}", other.name) and (not named or (other / LOCK).exists()):
                with suppress(OSError, InputError, RunError):  # another user's: theirs to sweep
                    CacheFolder(other).leave(lambda tar: named and tar.suffix == ".tar")
    return folder


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """One line that names the file or folder and the setting for whatever the file system says."""
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"{path}: the disk is full: lower placement.cache_bytes, or name another placement.cache_dir") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
            raise InputError(f"{path}: {said}: placement.cache_dir must be a writable folder") from error
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise InputError(f"{path}: {said}: this file system has no locks: name another placement.cache_dir") from error
        raise RunError(f"{path}: {said}") from error


def _wait(file: ShardFile, stopped: Callable[[], bool]) -> None:
    """Pause while another process uses or writes a file."""
    if stopped():
        raise RunError(f"{file.uri}: the loader was closed")
    time.sleep(_POLL_SECONDS)


def _tar_name(name: str) -> str:
    """The cached tar that a file in the folder is, or belongs to: `x.index@0-9.part` to `x.tar@0-9`."""
    return re.sub(r"\.index(?=@|$)", ".tar", name.removesuffix(PART))


def _wanted(path: Path, keep: Callable[[Path], bool]) -> bool:
    tar = path.with_name(_tar_name(path.name))
    return not path.name.endswith(PART) and keep(tar)


def _remove(*paths: Path) -> None:
    """Remove files, and folders that lie where files should."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
