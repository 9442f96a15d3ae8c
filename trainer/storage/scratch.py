"""Temporary folders that are gone with whoever made them: what a killed process left is swept by the next one that makes one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.bounds import naming_full_disk
from trainer.storage.writers import is_gone, mark

_PREFIX = "firstsight-"


@contextmanager
def temporary_folder(kind: str, place: str = "") -> Iterator[Path]:
    """A new folder, removed at the end of the block.

    Args:
        kind: a word for its name, for people.
        place: folder that it is made in; empty: the system's for temporary files.
    """
    base = Path(place or tempfile.gettempdir())
    _sweep(base)
    with (
        naming_full_disk(f"temporary files ({kind})", base if place else None),
        tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{kind}-{mark()}-", dir=base) as folder,
    ):
        yield Path(folder)


def _sweep(base: Path) -> None:
    """Remove what this user's killed processes left. Of a process in another container or machine nothing is known: its folder stays."""
    try:
        found = list(os.scandir(base))
    except OSError:
        return
    for entry in found:
        with suppress(FileNotFoundError):  # another process swept it
            if entry.name.startswith(_PREFIX) and is_gone(entry.name) and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                shutil.rmtree(entry.path, ignore_errors=True)  # follows no symbolic link
