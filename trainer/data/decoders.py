"""What a chunk of samples becomes: the part of loading that runs in worker processes or threads."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import TripletLabels
from trainer.data.augment import Augmentation
from trainer.data.decode import (
    CROP_DRAWS,
    Decoder,
    Interpolation,
    centre,
    crop_and_resize,
    decode_image,
    decode_pixels,
    random_crops,
    sample_seeds,
    uniforms,
)
from trainer.data.pipeline import Chunk
from trainer.data.shards import ShardView, Views
from trainer.errors import InputError, RunError

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
        seed: of the run.
        image_size: S.
        augmentation: moco_v2 and crop take a random resized crop (bilinear and bicubic), none the centre.
        crop_scale_min: smallest part of a picture's area that is cropped.
        mode: the decoder.
        context_length: L; longer captions are cut, their end kept.
        views_capacity: shards kept open.
        keep_bytes: decoded pictures are kept while they take less than this; 0: none is.
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
        pictures = [self._pixels(view, row, place) for (view, row), place in zip(samples, chunk.positions[:, 0].tolist(), strict=True)]
        tokens, lengths = self._captions(samples, seeds)
        return DecodedPairs(images=self._resized(pictures, seeds), tokens=tokens, lengths=lengths, seeds=torch.from_numpy(seeds), keys=keys)

    def _pixels(self, view: ShardView, row: int, place: list[int]) -> NDArray[np.uint8]:
        name = (place[0], place[1])
        if (kept := self._kept.get(name)) is not None:
            return kept
        try:
            pixels = decode_pixels(view.member(row, view.column("image")), self.mode)
        except RunError as error:
            raise RunError(str(error) if "sample" in str(error) else f"{view.sample(row)}: {error}") from error
        if self._kept_bytes + pixels.nbytes <= self.keep_bytes:
            self._kept[name] = pixels
            self._kept_bytes += pixels.nbytes
        return pixels

    def _resized(self, pictures: list[NDArray[np.uint8]], seeds: NDArray[np.int64]) -> Tensor:
        side = self.image_size
        images = np.empty((len(pictures), side, side, 3), np.uint8)
        if self.augmentation == "none":
            for image, pixels in zip(images, pictures, strict=True):
                image[:] = centre(pixels, side, self.mode).permute(1, 2, 0).numpy()
            return torch.from_numpy(images)
        interpolation: Interpolation = "bilinear" if self.augmentation == "moco_v2" else "bicubic"
        shapes = np.array([pixels.shape[:2] for pixels in pictures])
        boxes = random_crops(seeds, shapes[:, 0], shapes[:, 1], self.crop_scale_min)
        for image, pixels, box in zip(images, pictures, boxes.tolist(), strict=True):
            image[:] = crop_and_resize(pixels, box, side, self.mode, interpolation).permute(1, 2, 0).numpy()
        return torch.from_numpy(images)

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


@dataclass(kw_only=True)
class TripletsDecoder:
    """Decodes triplets and says which side is closer, by one of the kinds of labels.

    Attributes:
        seed: of the run.
        image_size: S; pictures of another size are squashed to it.
        labels: votes; flip; instance (an own distortion against another triplet's); shuffled (another triplet's votes).
        flip: mirror a triplet's three pictures together, half of the time.
        views_capacity: shards kept open.
        keep: keep every decoded triplet.
    """

    seed: int
    image_size: int
    labels: TripletLabels
    flip: bool
    views_capacity: int
    keep: bool
    _kept: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @cached_property
    def _views(self) -> Views:
        return Views(self.views_capacity)

    def decode(self, chunk: Chunk) -> DecodedTriplets:
        """Decode one chunk. Raises RunError naming shard and sample, InputError where it lacks the judgement asked for."""
        views = [self._views.view(file) for file in chunk.files]
        which, rows, places = chunk.which.tolist(), chunk.rows.tolist(), chunk.positions.tolist()
        keys = [views[files[0]].index.keys[row[0]] for files, row in zip(which, rows, strict=True)]
        draws = uniforms(sample_seeds(self.seed, chunk.epoch, keys), 0, 4).tolist()
        images = torch.empty((len(keys), 3, 3, self.image_size, self.image_size), dtype=torch.uint8)
        target = torch.empty(len(keys))
        for i, (files, row, place) in enumerate(zip(which, rows, places, strict=True)):
            own = self._pictures(views[files[0]], row[0], place[0])
            if self.labels == "instance":
                other = self._pictures(views[files[1]], row[1], place[1])
                side, own_side, other_side = (int(draw < 0.5) for draw in draws[i][1:])
                images[i, 0], images[i, 1 + side], images[i, 2 - side] = own[0], own[1 + own_side], other[1 + other_side]
                target[i] = side
            else:
                images[i] = own
                target[i] = self._target(views[files[-1]], row[-1])
            if self.flip and draws[i][0] < 0.5:
                images[i] = images[i].flip(-1)
        return DecodedTriplets(images=images, target=target, keys=keys)

    def _pictures(self, view: ShardView, row: int, place: list[int]) -> Tensor:
        """(3, 3, S, S) uint8."""
        name = (place[0], place[1])
        if (kept := self._kept.get(name)) is not None:
            return kept
        pictures = []
        for member in _TRIPLET_MEMBERS:
            data = view.member(row, view.column(member))
            try:
                pictures.append(decode_image(data, self.image_size, "exact", squash=True))
            except RunError as error:
                raise RunError(f"{view.sample(row)}: {member}: {error}") from error
        result = torch.stack(pictures)
        if self.keep:
            self._kept[name] = result
        return result

    def _target(self, view: ShardView, row: int) -> float:
        try:
            facts: dict[str, Any] = json.loads(view.member(row, view.column("json")))
            if self.labels != "flip":
                return float(facts["target"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{view.sample(row)}: json has no readable target: {error!r}") from error
        if "flip_0" not in facts or "flip_1" not in facts:
            raise InputError(f"{view.sample(row)}: labels are flip, but it was staged without FLIP's judgement (flip_0, flip_1)")
        difference = facts["flip_0"] - facts["flip_1"]  # the smaller distance is closer
        return 0.5 if difference == 0 else float(difference > 0)
