"""Fetches a shard, or rows of it, from the store into the cache; verifies it before it is published there."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import google_crc32c

from trainer.data.folder import PART
from trainer.data.shards import ShardFile, find_damage
from trainer.errors import Corrupt, RunError
from trainer.storage.base import MIN_RANGE_BYTES, open_store
from trainer.storage.checked import forget
from trainer.storage.protocol import MissingObject
from trainer.storage.samples import is_index_of

_TRIES = 3
"""Wrong bytes are read again, since the network may have changed them; if the same ones arrive twice, they are wrong in the store."""
_IN_STORE = "the store's copy was changed or is damaged: run the experiment again: that stages the data again from its source"


def fetch_shard(file: ShardFile, rows: range | None, stopped: Callable[[], bool]) -> int:
    """Publish tar and index at the paths of `file`.

    Args:
        file: what to fetch, and where to.
        rows: the rows to fetch; None: all.
        stopped: says whether to stop early.

    Returns:
        Bytes read from the store.

    Raises:
        Corrupt: the store's shard is not the one that was staged; the message names the sample.
        RunError: it was stopped, or the store stayed down.
    """
    part = dataclasses.replace(file, path=f"{file.path}{PART}", index=f"{file.index}{PART}")
    pairs = [(Path(part.index), Path(file.index)), (Path(part.path), Path(file.path))]
    try:
        for path in (path for pair in pairs for path in pair):
            if path.is_dir():
                shutil.rmtree(path)
        fetched = _fetch_index(part) + _fetch_tar(part, rows, stopped)
        for source, target in pairs:
            os.replace(source, target)
        return fetched
    except MissingObject as error:
        raise Corrupt(f"{error}, though the manifest names it: {_IN_STORE}") from error
    except Corrupt:
        forget(file.uri.removesuffix(f"/{file.shard.name}"), file.shard.name, file.shard.index_name)
        raise
    finally:
        for source, _ in pairs:
            source.unlink(missing_ok=True)


def _fetch_index(part: ShardFile) -> int:
    uri = part.uri.removesuffix(part.shard.name) + part.shard.index_name
    before = None
    for _ in range(_TRIES):
        data = open_store(uri).get(uri)
        if is_index_of(data, part.shard):
            Path(part.index).write_bytes(data)
            return len(data)
        if data == before:
            break
        before = data
    raise Corrupt(f"{uri}: not the index that the manifest names: {_IN_STORE}")


def _fetch_tar(part: ShardFile, rows: range | None, stopped: Callable[[], bool]) -> int:
    start, stop = 0, part.shard.size
    if rows is not None:
        index = part.read_index()
        chosen = slice(rows.start, rows.stop)
        start = int(index.offsets[chosen].min())
        stop = int((index.offsets[chosen] + index.sizes[chosen]).max())
        stop = min(max(stop, start + MIN_RANGE_BYTES), part.shard.size)
    before, fetched = None, 0
    for _ in range(_TRIES):
        checksum = 0
        with open(part.path, "wb") as stream:
            stream.truncate(part.shard.size)
            stream.seek(start)
            for piece in open_store(part.uri).stream(part.uri, start, stop - start):
                stream.write(piece)
                checksum = google_crc32c.extend(checksum, piece)
                fetched += len(piece)
                if stopped():
                    raise RunError(f"{part.uri}: the loader was closed while it was fetched")
        damage = "" if rows is None and checksum == part.shard.crc32c else find_damage(part, rows)
        if not damage:
            return fetched
        if checksum == before:
            break
        before = checksum
    raise Corrupt(f"{part.uri}: {damage}: {_IN_STORE}")
