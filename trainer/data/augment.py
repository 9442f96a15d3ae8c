"""Augment and normalise a batch of pictures on the device: MoCo-v2's augmentation, and CLIP's normalisation.

MoCo-v2 (arXiv 2003.04297, as DeCLIP uses it): colour jitter (.4, .4, .4, .1) with probability .8 in random order,
grayscale .2, Gaussian blur of sigma .1 to 2 with .5, mirror .5; the random resized crop is part of decoding. Every
random number is a function of the sample's own seed, so it does not depend on batch, rank or device.

Suffixes: B (batch), S (side); pictures are float in [0, 1] between the steps.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.decode import uniforms
from trainer.device import sent

Augmentation = Literal["moco_v2", "crop", "none"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_FIRST_DRAW, _DRAWS = 64, 13
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in PIL
_BLUR_RADIUS = 6  # three of the largest sigma


def normalise(images: Tensor) -> Tensor:
    """(B, 3, S, S) uint8 as float32 with CLIP's mean and deviation."""
    return _normalise(images.float() / 255)


def augment_on_device(images: Tensor, seeds: Tensor, augmentation: Augmentation) -> Tensor:
    """Augment and normalise a batch.

    Args:
        images: (B, 3, S, S) uint8, on the device.
        seeds: (B,) int64, on the CPU: `PairBatch.augmentation_seeds`.
        augmentation: `crop` and `none` normalise only.

    Returns:
        (B, 3, S, S) float32, normalised, on the device.
    """
    if augmentation != "moco_v2":
        return normalise(images)
    changes = _plan(uniforms(seeds.numpy(), _FIRST_DRAW, _DRAWS), *images.shape[-2:])
    there = iter(sent([torch.from_numpy(part) for change in changes for part in (change.chosen, change.amounts)], images.device))
    result = images.float() / 255
    for change, index, amounts in zip(changes, there, there, strict=False):
        result.index_copy_(0, index, change.make(result[index], amounts[:, None, None, None]))
    return _normalise(result)


@dataclass(frozen=True)
class _Change:
    """A change of some pictures of a batch, each by its own amount.

    Attributes:
        make: maps ((n, 3, S, S), amounts of shape (n, 1, 1, 1) or more) to the changed pictures.
        chosen: (n,) int64, their indices in the batch; never empty.
        amounts: (n,) or (n, taps) float32.
    """

    make: Callable[[Tensor, Tensor], Tensor]
    chosen: NDArray[np.int64]
    amounts: NDArray[np.float32]


def _plan(draws: NDArray[np.float64], height: int, width: int) -> list[_Change]:
    """The changes that `draws` (B, 13) make to a batch, in order. They are computed on the CPU, so that the device never synchronises."""
    applied = draws[:, 0] < 0.8
    order = np.argsort(draws[:, 1:5], axis=1, kind="stable")  # (B, 4): the order of the colour changes
    amounts = np.concatenate([0.6 + 0.8 * draws[:, 5:8], 0.2 * draws[:, 8:9] - 0.1], axis=1).astype(np.float32)
    colours = (_brightness, _contrast, _saturation, _hue)
    plan = []
    for place in range(4):
        for kind, make in enumerate(colours):
            chosen = np.flatnonzero(applied & (order[:, place] == kind))
            plan.append(_Change(make, chosen, amounts[chosen, kind]))
    gray, blurred, mirrored = (np.flatnonzero(draws[:, column] < part) for column, part in ((9, 0.2), (10, 0.5), (12, 0.5)))
    plan.append(_Change(_grayscale, gray, np.zeros(len(gray), np.float32)))
    plan.append(_Change(_blur, blurred, _blur_weights(0.1 + 1.9 * draws[blurred, 11], height, width)))
    plan.append(_Change(_mirror, mirrored, np.zeros(len(mirrored), np.float32)))
    return [change for change in plan if len(change.chosen)]


def _normalise(images: Tensor) -> Tensor:
    return (images - _per_channel(CLIP_MEAN, images.device)) / _per_channel(CLIP_STD, images.device)


@functools.cache
def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """(3, 1, 1) float32 on the device, copied only once, since a copy from pageable memory waits until the device's queue is empty."""
    return torch.tensor(values, device=device)[:, None, None]


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _luma(images).mean(dim=(-2, -1), keepdim=True)
    return (mean + (images - mean) * factor).clamp(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    gray = _luma(images)
    return (gray + (images - gray) * factor).clamp(0, 1)


def _hue(images: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue by a fraction of the circle (-.1 to .1) in HSV; value and chroma of every pixel stay the same."""
    red, green, blue = images.unbind(1)
    high, low = images.amax(1), images.amin(1)
    chroma = high - low
    scale = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sixth = torch.where(
        high == red, (green - blue) / scale, torch.where(high == green, 2 + (blue - red) / scale, 4 + (red - green) / scale)
    )
    sixth = sixth + 6 * turn[:, 0]
    # In HSV a channel is the maximum minus a part of the chroma that grows with its distance from its own hue.
    offsets = _per_channel((5.0, 3.0, 1.0), images.device)
    away = torch.remainder(offsets + sixth[:, None], 6)
    return high[:, None] - chroma[:, None] * torch.minimum(away, 4 - away).clamp(0, 1)


def _grayscale(images: Tensor, _: Tensor) -> Tensor:
    return _luma(images).expand_as(images)


def _mirror(images: Tensor, _: Tensor) -> Tensor:
    return images.flip(-1)


def _luma(images: Tensor) -> Tensor:
    """(B, 1, S, S)."""
    return (images * _per_channel(_LUMA, images.device)).sum(1, keepdim=True)


def _blur_weights(sigmas: NDArray[np.float64], height: int, width: int) -> NDArray[np.float32]:
    """(B, taps), each row with sum 1: a Gaussian with each picture's own sigma, truncated for small pictures."""
    reach = min(_BLUR_RADIUS, height - 1, width - 1)
    taps = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (taps / torch.from_numpy(sigmas)[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).float()
    weights = weights[:, _BLUR_RADIUS - reach : _BLUR_RADIUS + reach + 1]
    result: NDArray[np.float32] = (weights / weights.sum(1, keepdim=True)).numpy()
    return result


def _blur(images: Tensor, weights: Tensor) -> Tensor:
    """Gaussian blur with each picture's own weights, (B, 1, 1, 1, taps), mirrored at the edge."""
    batch, _, height, width = images.shape
    reach, kernels = weights.shape[-1] // 2, weights.flatten(1).repeat_interleave(3, 0)
    rows = torch.nn.functional.pad(images, (reach, reach, reach, reach), mode="reflect").reshape(1, batch * 3, height + 2 * reach, -1)
    rows = torch.nn.functional.conv2d(rows, kernels[:, None, None, :], groups=batch * 3)
    return torch.nn.functional.conv2d(rows, kernels[:, None, :, None], groups=batch * 3).reshape(batch, 3, height, width)
