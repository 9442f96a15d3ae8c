"""Batches for training: image-text pairs, and triplets (ref, 0, 1), in the canonical order.

    loader = PairsLoader(config.data, seed=0, global_batch_size=4096, rank=rank, world_size=world_size, …)
    for batch in loader.batches(start_step): …

`batches(start_step)` never ends, and resumes exactly: the step is its only state. The content of a batch does not
depend on the world size, the number of workers or the place of the data.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import DataConfig, Placement, stream_seed
from trainer.data.augment import Augmentation
from trainer.data.cache import InPlace, Prefetcher, Source, check_cache
from trainer.data.decode import Decoder, uniforms
from trainer.data.decoders import DecodedPairs, DecodedTriplets, PairsDecoder, TripletsDecoder
from trainer.data.machine import memory_for_pictures
from trainer.data.order import CanonicalOrder, SinglePass
from trainer.data.pipeline import BATCHES_AT_ONCE, CHUNK_SAMPLES, Chunk, Pipeline
from trainer.data.subset import SubsetOrder, read_chosen
from trainer.data.workers import ChunkDecoder, Threads, open_workers
from trainer.errors import InputError
from trainer.labels import named_labels
from trainer.storage.base import local_path
from trainer.storage.manifest import Manifest, require_manifest

if TYPE_CHECKING:
    from trainer.labels import Partners

Split = Literal["train", "val", "test"]
_DECODED_BYTES_PER_BYTE = 10  # a photo of 57 KB has 560 KB of pixels

DecodedT = TypeVar("DecodedT")
BatchT = TypeVar("BatchT", bound="PairBatch | TripletBatch")


@dataclass(kw_only=True)
class PairBatch:
    """A rank's part of one global batch of pairs.

    Attributes:
        images: (B, 3, S, S) uint8, cropped and resized, channels last in memory.
        tokens: (B, context_length) int64, 0 after each caption's end.
        lengths: (B,) int64, tokens of each caption, start and end included.
        keys: of the samples.
        augmentation_seeds: (B,) int64, seeds for augment_on_device.
        step: of the whole run, from 0.
        epoch: from 0.
        data_wait_seconds: how long the consumer waited for it.
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    keys: list[str]
    augmentation_seeds: Tensor
    step: int
    epoch: int
    data_wait_seconds: float = 0.0


@dataclass(kw_only=True)
class TripletBatch:
    """A rank's part of one global batch of triplets.

    Attributes:
        images: (B, 3, 3, S, S) uint8: ref, 0, 1.
        target: (B,) float32, the fraction of judges who say that image 1 is closer to ref.
        keys: of the samples.
        step: of the whole run, from 0.
        epoch: from 0.
        data_wait_seconds: how long the consumer waited for it.
    """

    images: Tensor
    target: Tensor
    keys: list[str]
    step: int
    epoch: int
    data_wait_seconds: float = 0.0


class _Loader(ABC, Generic[DecodedT, BatchT]):
    """The common part of both loaders: the manifest, the order, the pool, and one running pipeline."""

    def __init__(
        self,
        dataset: DataConfig,
        *,
        kind: str,
        split: str,
        seed: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        runs: int,
        block_shards: int,
        fraction: float,
        placement: Placement,
    ) -> None:
        self._uri, self._seed = dataset.uri, seed
        self._manifest: Manifest = require_manifest(dataset.uri, dataset.identity, dataset.manifest_sha256)
        if self._manifest.kind != kind:
            raise InputError(f"{dataset.uri}: contains {self._manifest.kind}, but {kind} are needed")
        self._shards = self._manifest.split(split)
        if not self._shards:
            raise InputError(f"{dataset.uri}: has no split {split!r}")
        if global_batch_size % world_size:
            raise InputError(f"global_batch_size must be a multiple of the {world_size} ranks, got {global_batch_size}")
        check_cache(dataset.uri, self._shards, placement, runs=runs, block_shards=block_shards)
        self._global_batch_size, self._rank, self._world_size = global_batch_size, rank, world_size
        self._runs, self._block_shards, self._placement = runs, block_shards, placement
        self._sizes = [shard.num_samples for shard in self._shards]
        self._fraction = fraction
        window = len(self._shards) if not block_shards else 2 * (-(-runs // world_size) + 1) * (block_shards + 2)
        self._views_capacity = min(len(self._shards) * (2 if block_shards else 1), window) + 8
        self._running: Pipeline[DecodedT, BatchT] | None = None
        self._workers: Threads[DecodedT] | None = None

    @property
    def num_samples(self) -> int:
        """Number of samples of the split that are used for training."""
        return round(self._fraction * sum(self._sizes))

    @cached_property
    def order(self) -> CanonicalOrder | SubsetOrder:
        """The canonical order. Raises InputError if the samples used for training do not fill one global batch."""
        if self._chosen is None:
            return CanonicalOrder(
                self._sizes, seed=self._seed, global_batch_size=self._global_batch_size, runs=self._runs, block_shards=self._block_shards
            )
        return SubsetOrder(
            self._sizes,
            self._chosen,
            seed=self._seed,
            global_batch_size=self._global_batch_size,
            runs=self._runs,
            block_shards=self._block_shards,
        )

    @cached_property
    def _chosen(self) -> NDArray[np.int64] | None:
        """Positions of the samples that are used for training, ascending; None: all of the split."""
        return read_chosen(self._uri, self._shards, self._seed, self._fraction) if self._fraction < 1 else None

    @property
    def steps_per_epoch(self) -> int:
        """Global batches per epoch; leftover samples are dropped, different ones each time."""
        return self.order.steps_per_epoch

    def batches(self, start_step: int) -> Iterator[BatchT]:
        """The rank's part of every global batch from `start_step` of the run on, without end.

        Raises:
            RunError: a damaged sample (named with its shard), a dead worker, a store that stayed down.
        """
        return self._run(self.order, start_step)

    def close(self) -> None:
        """Stop background work. An iterator that is still open ends."""
        if self._running is not None:
            self._running.close()
            self._running = None
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _run(self, order: CanonicalOrder | SubsetOrder | SinglePass, start_step: int) -> Iterator[BatchT]:
        self.close()
        decoder, in_memory, sample_bytes = self._decoder()
        chunks = -(-(self._global_batch_size // self._world_size) // CHUNK_SAMPLES)
        self._workers = open_workers(
            self._placement,
            decoder,
            processes=not in_memory,
            slots=BATCHES_AT_ONCE * chunks,
            slot_bytes=CHUNK_SAMPLES * sample_bytes,
        )
        source: Source = InPlace(self._uri, self._shards)
        if local_path(self._uri) is None:
            source = Prefetcher(
                self._uri, self._manifest, self._shards, order,
                rank=self._rank, world_size=self._world_size, placement=self._placement, start_step=start_step,
            )  # fmt: skip
        self._running = Pipeline(
            order=order,
            source=source,
            rank=self._rank,
            world_size=self._world_size,
            workers=self._workers,
            assemble=self._assemble,
            others=self._others,
            start_step=start_step,
            stop_step=order.steps_per_epoch if isinstance(order, SinglePass) else None,
        )
        return _timed(self._running)

    def _others(self, epoch: int, part: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The samples, (n, 3) of (run, shard, row), that those of `part` are paired with; None: they stand alone."""
        return None

    @abstractmethod
    def _decoder(self) -> tuple[ChunkDecoder[Chunk, DecodedT], bool, int]:
        """The decoder; whether it keeps pictures in memory (it then runs in threads, which share them); bytes of pixels per sample."""

    @abstractmethod
    def _assemble(self, step: int, epoch: int, chunks: list[DecodedT]) -> BatchT:
        """Decoded chunks as one batch."""


class PairsLoader(_Loader[DecodedPairs, PairBatch]):
    """Image-text pairs.

    A data set counts as small if its tars take at most a tenth of the memory allowed for pictures, which is a quarter of
    the free memory. Its pictures are decoded once and kept.
    """

    def __init__(
        self,
        dataset: DataConfig,
        *,
        seed: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        runs: int,
        block_shards: int,
        image_size: int,
        augmentation: Augmentation,
        crop_scale_min: float,
        decoder: Decoder,
        placement: Placement,
        split: Split = "train",
        context_length: int = 77,
        fraction: float = 1.0,
    ) -> None:
        """Read the manifest. Raises InputError if data set, batch, ranks or cache do not fit together."""
        super().__init__(
            dataset,
            kind="pairs",
            split=split,
            seed=seed,
            global_batch_size=global_batch_size,
            rank=rank,
            world_size=world_size,
            runs=runs,
            block_shards=block_shards,
            fraction=fraction,
            placement=placement,
        )
        memory = memory_for_pictures(placement.processes_per_node)
        small = sum(shard.size for shard in self._shards) * _DECODED_BYTES_PER_BYTE <= memory
        self._pairs_decoder = PairsDecoder(
            seed=seed,
            image_size=image_size,
            augmentation=augmentation,
            crop_scale_min=crop_scale_min,
            mode=decoder,
            context_length=context_length,
            views_capacity=self._views_capacity,
            keep_bytes=memory if small else 0,
        )

    def _decoder(self) -> tuple[ChunkDecoder[Chunk, DecodedPairs], bool, int]:
        return self._pairs_decoder, self._pairs_decoder.keep_bytes > 0, 3 * self._pairs_decoder.image_size**2

    def _assemble(self, step: int, epoch: int, chunks: list[DecodedPairs]) -> PairBatch:
        return PairBatch(
            images=_joined([chunk.images for chunk in chunks]).permute(0, 3, 1, 2),
            tokens=_joined([chunk.tokens for chunk in chunks]),
            lengths=torch.cat([chunk.lengths for chunk in chunks]),
            keys=[key for chunk in chunks for key in chunk.keys],
            augmentation_seeds=torch.cat([chunk.seeds for chunk in chunks]),
            step=step,
            epoch=epoch,
        )


class TripletsLoader(_Loader[DecodedTriplets, TripletBatch]):
    """Triplets, in a full permutation per epoch. If they fit into a quarter of the free memory, they are decoded only once."""

    def __init__(
        self,
        dataset: DataConfig,
        *,
        seed: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        image_size: int,
        labels: str,
        split: Split,
        mirror: bool,
        placement: Placement,
        fraction: float = 1.0,
    ) -> None:
        """Read the manifest. Raises InputError if data set, batch, ranks or cache do not fit together."""
        super().__init__(
            dataset,
            kind="triplets",
            split=split,
            seed=seed,
            global_batch_size=global_batch_size,
            rank=rank,
            world_size=world_size,
            runs=1,
            block_shards=0,
            fraction=fraction,
            placement=placement,
        )
        self._labels = named_labels(labels)
        if self.num_samples < self._labels.min_triplets:
            needs = f"labels are {labels}, which need {self._labels.min_triplets} triplets"
            raise InputError(f"{dataset.uri}: {needs}; split {split!r} has {self.num_samples}")
        self._triplets_decoder = TripletsDecoder(
            seed=seed,
            image_size=image_size,
            labels=labels,
            mirror=mirror,
            views_capacity=self._views_capacity,
            keep=self.num_samples * 9 * image_size**2 <= memory_for_pictures(placement.processes_per_node),
        )

    def all_once(self) -> Iterator[TripletBatch]:
        """The split once, in order, the last batch short; a rank whose share of it is empty does not see it."""
        return self._run(SinglePass(self._sizes, global_batch_size=self._global_batch_size), 0)

    @cached_property
    def _bounds(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self._sizes)])

    @cached_property
    def _partners(self) -> "Partners | None":
        return self._labels.partners(self.num_samples, self._draw)

    def _draw(self, stream: str, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        return uniforms(samples ^ np.int64(stream_seed(self._seed, stream)), 0, 1)[:, 0]

    def _others(self, epoch: int, part: NDArray[np.int64]) -> NDArray[np.int64] | None:
        if self._partners is None:
            return None
        own = self._bounds[part[:, 1]] + part[:, 2]
        if self._chosen is None:
            others = self._partners(own, epoch)
        else:  # partners are chosen among the samples used for training, by position there rather than in the split
            others = self._chosen[self._partners(self._chosen.searchsorted(own), epoch)]
        shards = self._bounds.searchsorted(others, side="right") - 1
        return np.stack([np.zeros_like(others), shards, others - self._bounds[shards]], axis=1)

    def _decoder(self) -> tuple[ChunkDecoder[Chunk, DecodedTriplets], bool, int]:
        return self._triplets_decoder, self._triplets_decoder.keep, 9 * self._triplets_decoder.image_size**2

    def _assemble(self, step: int, epoch: int, chunks: list[DecodedTriplets]) -> TripletBatch:
        return TripletBatch(
            images=_joined([chunk.images for chunk in chunks]),
            target=_joined([chunk.target for chunk in chunks]),
            keys=[key for chunk in chunks for key in chunk.keys],
            step=step,
            epoch=epoch,
        )


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts as one tensor; in pinned memory if there is a GPU, so that the copy to it does not block.

    Without a GPU, NumPy copies them: torch would start OpenMP threads for it, and as soon as OpenMP has more threads than there are
    cores, those that compute the step sleep between two kernels instead of spinning.
    """
    if not torch.cuda.is_available():
        return torch.from_numpy(np.concatenate([part.numpy() for part in parts]))
    size = sum(len(part) for part in parts)
    joined = torch.empty((size, *parts[0].shape[1:]), dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(parts, out=joined)


def _timed(batches: Iterable[BatchT]) -> Iterator[BatchT]:
    """The batches, each with the seconds spent waiting for it."""
    start = time.perf_counter()
    for batch in batches:
        batch.data_wait_seconds = time.perf_counter() - start
        yield batch
        start = time.perf_counter()
