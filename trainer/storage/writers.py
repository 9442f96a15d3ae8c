"""Who is writing: names for the temporary files of a write, and whether the writer is still alive.

A writer's mark names its kernel's boot, its process namespace, its process and that process's start time, so that it is globally
unique. On the same machine it is known for certain whether the writer is alive; for writers on other machines it is not.
"""

import errno
import functools
import hashlib
import os
import re
import secrets
from contextlib import suppress

PARTIAL = ".partial"
"""Objects being written, and markers of a write, have names with this suffix; they are never listed."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors that flock raises on a file system without locks."""

_MARK = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-(\d+)-(\d+)")
_MAX_NAME_BYTES = 160  # limit for the object's name, so that the full name stays within the 255 bytes that file systems allow


def beside(key: str, kind: str) -> str:
    """A new name, in the folder of `key`, for a temporary file of a write to it."""
    return f"{beside_all(key, kind)}{mark()}-{secrets.token_hex(4)}{PARTIAL}"


def beside_all(key: str, kind: str) -> str:
    """The common prefix of all names that `beside` gives for this key and kind."""
    folder, slash, name = key.rpartition("/")
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) > _MAX_NAME_BYTES:
        encoded = encoded[: _MAX_NAME_BYTES - 17] + b"~" + hashlib.sha256(encoded).hexdigest()[:16].encode()
        name = encoded.decode(errors="ignore")
    return f"{folder}{slash}.{name}.{kind}-"


def is_partial(key: str) -> bool:
    """Whether this is the name of something that is being written."""
    return key.endswith(PARTIAL) and key.rpartition("/")[2].startswith(".")


def kind_of(key: str) -> str:
    """The kind in a name that `beside` gave; empty for any other name."""
    found = re.search(rf"\.([a-z]+)-{_MARK.pattern}-[0-9a-f]+{re.escape(PARTIAL)}$", key)
    return found[1] if found else ""


@functools.cache
def _own_mark(process: int) -> str:
    return f"{_boot()}-{_namespace()}-{process}-{_begin(process) or 0}"


def mark() -> str:
    """The mark of this process."""
    return _own_mark(os.getpid())


def is_gone(key: str) -> bool | None:
    """Whether the writer whose mark is in this name has ended; None if this machine cannot know."""
    found = _MARK.search(key)
    if not found or found[1] != _boot() or found[2] != _namespace():
        return None
    process, begun = int(found[3]), int(found[4])
    if process == os.getpid():
        return _begin(process) not in (None, begun)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    now = _begin(process)
    return now == 0 or (now is not None and now != begun)


def has_mark(key: str) -> bool:
    """Whether this name contains a writer's mark."""
    return bool(_MARK.search(key))


def same_kernel(key: str) -> bool:
    """Whether the writer whose mark is in this name runs, or ran, on the kernel of this machine since it booted."""
    found = _MARK.search(key)
    return bool(found) and found[1] == _boot()  # type: ignore[index]


def boot_id() -> str:
    """Boot ID of the running kernel: the same in all its containers and on no other machine; empty if unknown."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


@functools.cache
def _boot() -> str:
    known = boot_id()
    # if unknown, use a random ID that no machine has, so that no writer's state can be known
    return hashlib.sha256(f"{known}\n".encode()).hexdigest()[:8] if known else secrets.token_hex(4)


@functools.cache
def _namespace() -> str:
    with suppress(OSError):
        return hashlib.sha256(os.readlink("/proc/self/ns/pid").encode()).hexdigest()[:8]
    return secrets.token_hex(4)


def _begin(process: int) -> int | None:
    """When the process began, in ticks since boot; 0 if it has exited and is a zombie, None if unknown."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
