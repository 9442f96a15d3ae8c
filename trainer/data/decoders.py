"""Decode chunks of samples: the part of loading that runs in worker processes or threads."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.augment import Augmentation
from trainer.data.decode import (
    CROP_DRAWS,
    Decoder,
    Interpolation,
    centre,
    crop_and_resize,
    decode_image,
    decode_pixels,
    picture_size,
    random_crops,
    sample_seeds,
    uniforms,
)
from trainer.data.pipeline import Chunk
from trainer.data.shards import ShardView, Views
from trainer.errors import InputError, RunError
from trainer.labels import OWN, Shown, named_labels

END_OF_TEXT = 49407
_CAPTION_DRAW = CROP_DRAWS
_TRIPLET_MEMBERS = ("ref.png", "0.png", "1.png")


@dataclass(frozen=True, kw_only=True)
class DecodedPairs:
    """n pairs: images (n, S, S, 3) uint8, tokens (n, L) int64, lengths (n,) int64, seeds (n,) int64."""

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    seeds: Tensor
    keys: list[str]


@dataclass(frozen=True, kw_only=True)
class DecodedTriplets:
    """n triplets: images (n, 3, 3, S, S) uint8, target (n,) float32."""

    images: Tensor
    target: Tensor
    keys: list[str]


@dataclass(kw_only=True)
class PairsDecoder:
    """Decodes, crops and resizes pictures, and draws a caption for each.

    Attributes:
        seed: seed of the run.
        image_size: S.
        augmentation: moco_v2 and crop use a random resized crop (bilinear and bicubic), none the centre crop.
        crop_scale_min: smallest fraction of a picture's area for a crop.
        mode: the decoder.
        context_length: L; longer captions are truncated, keeping the end token.
        views_capacity: number of shards kept open.
        keep_bytes: decoded pictures are kept while they take less than this; 0: none are kept.
    """

    seed: int
    image_size: int
    augmentation: Augmentation
    crop_scale_min: float
    mode: Decoder
    context_length: int
    views_capacity: int
    keep_bytes: int
    _kept: dict[tuple[int, int], NDArray[np.uint8]] = field(default_factory=dict)
    _kept_bytes: int = 0

    @cached_property
    def _views(self) -> Views:
        return Views(self.views_capacity)

    def decode(self, chunk: Chunk) -> DecodedPairs:
        """Decode one chunk. Raises RunError naming shard and sample."""
        views = [self._views.view(file) for file in chunk.files]
        samples = [(views[which], row) for which, row in zip(chunk.which[:, 0].tolist(), chunk.rows[:, 0].tolist(), strict=True)]
        keys = [view.index.keys[row] for view, row in samples]
        seeds = sample_seeds(self.seed, chunk.epoch, keys)
        places = [(place[0], place[1]) for place in chunk.positions[:, 0].tolist()]
        tokens, lengths = self._captions(samples, seeds)
        images = torch.from_numpy(self._images(samples, places, seeds))
        return DecodedPairs(images=images, tokens=tokens, lengths=lengths, seeds=torch.from_numpy(seeds), keys=keys)

    def _images(self, samples: list[tuple[ShardView, int]], places: list[tuple[int, int]], seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode each picture into its place in the batch (B, S, S, 3) before the next, so that its pixels stay in the CPU's cache."""
        side = self.image_size
        images = np.empty((len(samples), side, side, 3), np.uint8)
        sources = [
            self._kept[place] if place in self._kept else view.member(row, view.column("image"))
            for (view, row), place in zip(samples, places, strict=True)
        ]
        boxes: list[list[int]] | None = None
        if self.augmentation != "none":
            shapes = np.array([_size(view, row, source) for (view, row), source in zip(samples, sources, strict=True)])
            boxes = random_crops(seeds, shapes[:, 0], shapes[:, 1], self.crop_scale_min).tolist()
        interpolation: Interpolation = "bilinear" if self.augmentation == "moco_v2" else "bicubic"
        for i, ((view, row), source) in enumerate(zip(samples, sources, strict=True)):
            if isinstance(source, bytes):
                with _naming(view, row):
                    pixels = decode_pixels(source, self.mode)
                self._keep(places[i], pixels)
            else:
                pixels = source
            made = crop_and_resize(pixels, boxes[i], side, self.mode, interpolation) if boxes else centre(pixels, side, self.mode)
            images[i] = made.permute(1, 2, 0).numpy()
        return images

    def _keep(self, place: tuple[int, int], pixels: NDArray[np.uint8]) -> None:
        if self._kept_bytes + pixels.nbytes <= self.keep_bytes:
            self._kept[place] = pixels
            self._kept_bytes += pixels.nbytes

    def _captions(self, samples: list[tuple[ShardView, int]], seeds: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        tokens = np.zeros((len(samples), self.context_length), np.int64)
        lengths = np.empty(len(samples), np.int64)
        draws = uniforms(seeds, _CAPTION_DRAW, 1)[:, 0]
        for i, ((view, row), draw) in enumerate(zip(samples, draws.tolist(), strict=True)):
            first, stop = int(view.index.caption_ends[row - 1]) if row else 0, int(view.index.caption_ends[row])
            if first == stop:
                raise RunError(f"{view.sample(row)}: has no caption")
            caption = first + int(draw * (stop - first))
            begin = int(view.index.token_ends[caption - 1]) if caption else 0
            ids = view.index.tokens[begin : int(view.index.token_ends[caption])]
            lengths[i] = length = min(len(ids), self.context_length)
            tokens[i, :length] = ids[:length]
            if len(ids) > length:
                tokens[i, -1] = END_OF_TEXT
        return torch.from_numpy(tokens), torch.from_numpy(lengths)


def _size(view: ShardView, row: int, source: NDArray[np.uint8] | bytes) -> tuple[int, int]:
    """Height and width of a sample's picture, decoded or not."""
    if not isinstance(source, bytes):
        return source.shape[0], source.shape[1]
    with _naming(view, row):
        return picture_size(source)


@contextlib.contextmanager
def _naming(view: ShardView, row: int, *member: str) -> Iterator[None]:
    """Within this context, a RunError names the sample (and its member)."""
    try:
        yield
    except RunError as error:
        raise RunError(": ".join([view.sample(row), *member, str(error)])) from error


@dataclass(kw_only=True)
class TripletsDecoder:
    """Decodes triplets and determines which side is closer, by one of the kinds of labels (trainer/labels/).

    Attributes:
        seed: of the run.
        image_size: S; pictures of another size are resized to it.
        labels: name of the kind of labels.
        mirror: mirror a triplet's three pictures together, half of the time.
        views_capacity: shards kept open.
        keep: keep every decoded triplet.
    """

    seed: int
    image_size: int
    labels: str
    mirror: bool
    views_capacity: int
    keep: bool
    _kept: dict[tuple[int, int], NDArray[np.uint8]] = field(default_factory=dict)

    @cached_property
    def _views(self) -> Views:
        return Views(self.views_capacity)

    def decode(self, chunk: Chunk) -> DecodedTriplets:
        """Decode one chunk. Raises RunError naming shard and sample, InputError if it lacks the judgement asked for."""
        views = [self._views.view(file) for file in chunk.files]
        which, rows, places = chunk.which.tolist(), chunk.rows.tolist(), chunk.positions.tolist()
        keys = [views[files[0]].index.keys[row[0]] for files, row in zip(which, rows, strict=True)]
        draws = uniforms(sample_seeds(self.seed, chunk.epoch, keys), 0, 4).tolist()
        images = np.empty((len(keys), 3, 3, self.image_size, self.image_size), np.uint8)
        target = torch.empty(len(keys))
        for i, (files, row, place) in enumerate(zip(which, rows, places, strict=True)):
            own, other = (views[files[0]], row[0]), (views[files[-1]], row[-1])
            shown = self._shown(own, other, draws[i][1:])
            target[i] = shown.target
            pictures = [self._pictures(*own, place[0])]
            if shown.pictures == OWN:
                images[i] = pictures[0]
            else:
                pictures.append(self._pictures(*other, place[-1]))
                for number, (whose, picture) in enumerate(shown.pictures):
                    images[i, number] = pictures[whose][picture]
            if self.mirror and draws[i][0] < 0.5:
                images[i] = images[i, ..., ::-1]
        return DecodedTriplets(images=torch.from_numpy(images), target=target, keys=keys)

    def _pictures(self, view: ShardView, row: int, place: list[int]) -> NDArray[np.uint8]:
        """(3, 3, S, S)."""
        name = (place[0], place[1])
        if (kept := self._kept.get(name)) is not None:
            return kept
        pictures = []
        for member in _TRIPLET_MEMBERS:
            data = view.member(row, view.column(member))
            with _naming(view, row, member):
                pictures.append(decode_image(data, self.image_size, "exact", squash=True).numpy())
        result = np.stack(pictures)
        if self.keep:
            self._kept[name] = result
        return result

    def _shown(self, own: tuple[ShardView, int], other: tuple[ShardView, int], draws: list[float]) -> Shown:
        view, row = other  # if labels read another triplet, the error is in the json of that one
        try:
            return named_labels(self.labels).show(partial(_facts, *own), partial(_facts, *other), draws)
        except InputError as error:
            raise InputError(f"{view.sample(row)}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{view.sample(row)}: json has no readable target: {error!r}") from error


def _facts(view: ShardView, row: int) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(view.member(row, view.column("json")))
    return facts
