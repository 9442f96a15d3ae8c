"""MoCo-v2's augmentation as it was before its indices went to the device in one copy: every later form must equal it.

A copy, so that no change to the product's changes it too.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.decode import uniforms

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_FIRST_DRAW, _DRAWS = 64, 13
_LUMA = (0.299, 0.587, 0.114)
_BLUR_RADIUS = 6


def augment(images: Tensor, seeds: Tensor) -> Tensor:
    """(B, 3, S, S) uint8 and seeds (B,) to float32, normalised."""
    draws = uniforms(seeds.cpu().numpy(), _FIRST_DRAW, _DRAWS)
    result = _jitter(images.float() / 255, draws[:, 0:9])
    result = _where(result, draws[:, 9] < 0.2, _grayscale)
    blurred, sigmas = draws[:, 10] < 0.5, 0.1 + 1.9 * draws[:, 11]
    result = _where(result, blurred, lambda chosen: _blur(chosen, torch.from_numpy(sigmas[blurred])))
    result = _where(result, draws[:, 12] < 0.5, lambda chosen: chosen.flip(-1))
    return _normalise(result)


def _normalise(images: Tensor) -> Tensor:
    return (images - _per_channel(CLIP_MEAN, images.device)) / _per_channel(CLIP_STD, images.device)


def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None, None]


def _sent(values: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)


def _where(images: Tensor, chosen: NDArray[np.bool_], change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change` applied to the chosen ones, in place; the choice is made on the CPU, so the device never waits."""
    index = _sent(np.flatnonzero(chosen), images.device)
    return images.index_copy_(0, index, change(images[index])) if len(index) else images


def _jitter(images: Tensor, draws: NDArray[np.float64]) -> Tensor:
    """Brightness, contrast, saturation and hue in an order of each picture's own, in place. draws: (B, 9)."""
    applied = draws[:, 0] < 0.8
    order = np.argsort(draws[:, 1:5], axis=1, kind="stable")  # (B, 4): which change comes at which place
    factors = _sent((0.6 + 0.8 * draws[:, 5:8]).astype(np.float32), images.device)
    turns = _sent((0.2 * draws[:, 8] - 0.1).astype(np.float32), images.device)
    changes = (_brightness, _contrast, _saturation)
    for place in range(4):
        for kind in range(4):
            chosen = np.flatnonzero(applied & (order[:, place] == kind))
            if not len(chosen):
                continue
            index = _sent(chosen, images.device)
            amount = (turns[index] if kind == 3 else factors[index, kind])[:, None, None, None]
            changed = _hue(images[index], amount) if kind == 3 else changes[kind](images[index], amount)
            images.index_copy_(0, index, changed)
    return images


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _luma(images).mean(dim=(-2, -1), keepdim=True)
    return (mean + (images - mean) * factor).clamp(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    gray = _luma(images)
    return (gray + (images - gray) * factor).clamp(0, 1)


def _hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by a part of the circle (-.1 to .1) in HSV: value and chroma of every pixel stay."""
    red, green, blue = images.unbind(1)
    high, low = images.amax(1), images.amin(1)
    chroma = high - low
    scale = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sixth = torch.where(
        high == red, (green - blue) / scale, torch.where(high == green, 2 + (blue - red) / scale, 4 + (red - green) / scale)
    )
    sixth = sixth + 6 * turn[:, 0]
    # In HSV a channel is high minus the part of the chroma that its distance from its own hue takes away.
    offsets = _per_channel((5.0, 3.0, 1.0), images.device)
    away = torch.remainder(offsets + sixth[:, None], 6)
    return high[:, None] - chroma[:, None] * torch.minimum(away, 4 - away).clamp(0, 1)


def _grayscale(images: Tensor) -> Tensor:
    return _luma(images).expand_as(images)


def _luma(images: Tensor) -> Tensor:
    """(B, 1, S, S)."""
    return (images * _per_channel(_LUMA, images.device)).sum(1, keepdim=True)


def _blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Gaussian blur with each picture's own sigma (B,), mirrored at the edge."""
    taps = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (taps / sigmas[:, None]) ** 2)
    weights = _sent((weights / weights.sum(1, keepdim=True)).float().numpy(), images.device)  # (B, taps)
    batch, _, height, width = images.shape
    reach = min(_BLUR_RADIUS, height - 1, width - 1)
    weights = weights[:, _BLUR_RADIUS - reach : _BLUR_RADIUS + reach + 1]
    weights = weights / weights.sum(1, keepdim=True)
    kernels = weights.repeat_interleave(3, 0)
    rows = torch.nn.functional.pad(images, (reach, reach, reach, reach), mode="reflect").reshape(1, batch * 3, height + 2 * reach, -1)
    rows = torch.nn.functional.conv2d(rows, kernels[:, None, None, :], groups=batch * 3)
    return torch.nn.functional.conv2d(rows, kernels[:, None, :, None], groups=batch * 3).reshape(batch, 3, height, width)
