"""A bucket that is a local folder, loaders and prefetchers on it, and all that may happen to a file."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch

from tests.data.datasets import pairs, write_dataset
from tests.data.loaders import pairs_loader
from trainer.config import DataConfig, Placement
from trainer.data.cache import Prefetcher
from trainer.data.loader import PairBatch, PairsLoader
from trainer.data.order import CanonicalOrder
from trainer.storage.file import FileStore
from trainer.storage.manifest import require_manifest

SIZES = [8] * 11 + [5]
"""Eleven batches of 8 an epoch, whose two runs of 44 end inside shards."""
REMOTE = "s3://bucket/pairs"


@dataclass
class Bucket:
    """A local folder that is taken for a bucket.

    Attributes:
        folder: with the data set.
        streamed: (object, start, length) of each stream.
        flips: how many of the next answers have a byte flipped on the way, each another one.
        gate: what a stream waits for before each piece.
    """

    folder: Path
    streamed: list[tuple[str, int, int | None]] = field(default_factory=list)
    flips: int = 0
    gate: Callable[[], object] = lambda: None

    def local(self, uri: str) -> str:
        """Where an object really lies."""
        return str(self.folder / uri.removeprefix(REMOTE).lstrip("/")) if uri.startswith(REMOTE) else uri

    def get(self, uri: str) -> bytes:
        """A whole object."""
        return self._changed(FileStore().get(self.local(uri)))

    def stream(self, uri: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """An object, or a range of it."""
        self.streamed.append((Path(uri).name, start, length))
        for piece in FileStore().stream(self.local(uri), start, length):
            self.gate()
            yield self._changed(piece)

    def _changed(self, data: bytes) -> bytes:
        if not self.flips:
            return data
        self.flips -= 1
        return data[: 300 + self.flips] + bytes([data[300 + self.flips] ^ 1]) + data[301 + self.flips :]


def loader(uri: str, cache: Path | None, *, cache_shards: int = 99, **changes: object) -> PairsLoader:
    """Batches of 8 in two runs; a cache of six shards does not hold them all."""
    placement = {"cache_dir": str(cache) if cache else "", "cache_bytes": cache_shards * 31_000}
    placement |= {"loader_workers": changes.pop("loader_workers", 0)}
    return pairs_loader(DataConfig(uri=uri), global_batch_size=8, placement=Placement(**placement), **changes)


def take(made: PairsLoader, count: int = 13) -> list[PairBatch]:
    """An epoch and the beginning of the next; the loader is closed."""
    try:
        return list(islice(made.batches(0), count))
    finally:
        made.close()


def assert_same(ours: list[PairBatch], theirs: list[PairBatch]) -> None:
    """Two runs loaded the same."""
    assert [batch.keys for batch in ours] == [batch.keys for batch in theirs]
    assert all(torch.equal(one.images, other.images) for one, other in zip(ours, theirs, strict=True))
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(ours, theirs, strict=True))


def flip(path: Path, *positions: int) -> None:
    """Flip a bit at each position, in the file that others may have mapped."""
    with open(path, "r+b") as stream:
        for position in positions:
            stream.seek(position)
            byte = stream.read(1)[0]
            stream.seek(position)
            stream.write(bytes([byte ^ 4]))


def cached_files(cache: Path) -> list[Path]:
    """All that lies below it."""
    return sorted(path for path in cache.rglob("*") if path.is_file())


def prefetcher(bucket: Bucket, cache: Path, *, rank: int = 0, world_size: int = 1, processes: int = 1, shards: int = 99) -> Prefetcher:
    """A rank's prefetcher of the pairs, for one full permutation an epoch."""
    manifest = require_manifest(str(bucket.folder))
    order = CanonicalOrder([shard.num_samples for shard in manifest.shards], seed=0, global_batch_size=8, runs=1, block_shards=0)
    placement = Placement(cache_dir=str(cache), cache_bytes=shards * 31_000, processes_per_node=processes)
    return Prefetcher(
        REMOTE, manifest, manifest.shards, order, rank=rank, world_size=world_size, placement=placement, start_step=0
    )  # fmt: skip


def another_set(path: Path) -> None:
    """The same file of another data set."""
    write_dataset(str(path.parent / "other"), "pairs", pairs([7]))
    os.replace(path.parent / "other" / f"shard-000-00000{path.suffix}", path)
    shutil.rmtree(path.parent / "other")


def turn_into_folder(path: Path) -> None:
    """A folder where the file was."""
    path.unlink()
    (path / "in it").mkdir(parents=True)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped magic or tar header": lambda path: flip(path, 3),
    "flipped version or tar header": lambda path: flip(path, 9),
    "flipped middle": lambda path: flip(path, path.stat().st_size // 2),
    "flipped all over": lambda path: flip(path, *range(0, path.stat().st_size, 97)),
    "flipped last byte": lambda path: flip(path, path.stat().st_size - 1),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 100),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 512),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "missing": lambda path: path.unlink(),
    "of another data set": another_set,
    "a folder": turn_into_folder,
    "a folder where the part is written": lambda path: path.with_name(f"{path.name}.part").mkdir(),
    "garbage where the part is written": lambda path: path.with_name(f"{path.name}.part").write_bytes(b"x" * 99),
}
