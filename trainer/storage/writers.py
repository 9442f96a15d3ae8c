"""Who is writing: names for what a write leaves beside its object until it ends, and whether the writer still lives.

A writer's mark names the boot of its kernel, its process namespace, its process and when that began, so that nobody else ever
has the same one. On the same machine it is known for certain whether the writer lives; of another machine's it is not.
"""

import errno
import functools
import hashlib
import os
import re
import secrets
from contextlib import suppress

PARTIAL = ".partial"
"""What is being written, or says so, has a name that ends like this; it is never listed."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What flock says on a file system that has none."""

_MARK = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-(\d+)-(\d+)")
_MAX_NAME_BYTES = 160  # of the object's name: with all the rest no longer than the 255 that file systems take


def beside(key: str, kind: str) -> str:
    """A new name, in the folder of `key`, for what belongs to a write of it and is no object itself."""
    return f"{beside_all(key, kind)}{mark()}-{secrets.token_hex(4)}{PARTIAL}"


def beside_all(key: str, kind: str) -> str:
    """How all the names begin that `beside` gives for this key and kind."""
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
    """The kind in a name that `beside` gave; empty for another."""
    found = re.search(rf"\.([a-z]+)-{_MARK.pattern}-[0-9a-f]+{re.escape(PARTIAL)}$", key)
    return found[1] if found else ""


@functools.cache
def _own_mark(process: int) -> str:
    return f"{_boot()}-{_namespace()}-{process}-{_begin(process) or 0}"


def mark() -> str:
    """This process's."""
    return _own_mark(os.getpid())


def is_gone(key: str) -> bool | None:
    """Whether the writer whose mark is in this name has ended; None where this machine cannot know."""
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
    """Whether this name says who writes."""
    return bool(_MARK.search(key))


def same_kernel(key: str) -> bool:
    """Whether the writer whose mark is in this name runs, or ran, on the kernel of this machine since it booted."""
    found = _MARK.search(key)
    return bool(found) and found[1] == _boot()  # type: ignore[index]


def boot_id() -> str:
    """Of the running kernel: the same in all its containers, and in no other machine; empty where it cannot be known."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


@functools.cache
def _boot() -> str:
    known = boot_id()
    # where it is not known no machine has this one: nothing is known of anyone
    return hashlib.sha256(f"{known}\n".encode()).hexdigest()[:8] if known else secrets.token_hex(4)


@functools.cache
def _namespace() -> str:
    with suppress(OSError):
        return hashlib.sha256(os.readlink("/proc/self/ns/pid").encode()).hexdigest()[:8]
    return secrets.token_hex(4)


def _begin(process: int) -> int | None:
    """When the process began, in ticks since boot; 0 where it has ended and only waits for its parent, None where unknown."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
