"""Kinds of distortion that look different to people: a variant of a picture is one kind at a random strength.

Each takes an RGB picture as (S, S, 3) uint8 and a generator, and returns another of that shape.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]
Distortion = Callable[[Pixels, np.random.Generator], Pixels]


def blur(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Gaussian blur, radius 1 to 5 % of the side."""
    radius = random.uniform(0.01, 0.05) * len(pixels)
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def noise(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Gaussian noise, per colour channel or of brightness."""
    channels = 3 if random.random() < 0.5 else 1
    grain = random.normal(0, random.uniform(0.04, 0.25), (*pixels.shape[:2], channels))
    return _to_bytes(pixels / 255 + grain)


def jpeg(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """JPEG at quality 2 to 25."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=int(random.integers(2, 26)))
    return np.asarray(Image.open(stream))


def colour(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Scale each channel by up to 40 %, and rotate hues."""
    hue = np.asarray(Image.fromarray(pixels).convert("HSV")).copy()
    hue[..., 0] += random.integers(-40, 41).astype(np.int16).astype(np.uint8)
    turned = np.asarray(Image.fromarray(hue, "HSV").convert("RGB"))
    return _to_bytes(turned / 255 * random.uniform(0.6, 1.1, 3))


def contrast(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Reduce contrast around the mean, and shift brightness."""
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    return _to_bytes((mean + (pixels - mean) * random.uniform(0.3, 0.9)) / 255 + random.uniform(-0.15, 0.15))


def move(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Shift, rotate and scale the whole picture a little."""
    side = len(pixels)
    angle, scale = np.deg2rad(random.uniform(-15, 15)), random.uniform(0.85, 1.15)
    shift = random.uniform(-0.1, 0.1, 2) * side
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    centre = side / 2
    matrix = (
        cosine, sine, centre - cosine * (centre + shift[0]) - sine * (centre + shift[1]),
        -sine, cosine, centre + sine * (centre + shift[0]) - cosine * (centre + shift[1]),
    )  # fmt: skip
    image = Image.fromarray(pixels)
    fill = tuple(int(value) for value in pixels[0, 0])
    return np.asarray(image.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill))


def warp(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Bend rows and columns in waves."""
    side = len(pixels)
    line = np.arange(side)
    bends = []
    for _ in range(2):
        phase = random.uniform(0.5, 3) * line / side + random.random()
        bends.append(np.rint(random.uniform(0.02, 0.08) * side * np.sin(2 * np.pi * phase)).astype(np.int64))
    rows, columns = np.meshgrid(line, line, indexing="ij")
    bent: Pixels = pixels[np.clip(rows + bends[0][None, :], 0, side - 1), np.clip(columns + bends[1][:, None], 0, side - 1)]
    return bent


def erase(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Fill a rectangle of 3 to 15 % of the picture with one of its colours."""
    side = len(pixels)
    area, ratio = random.uniform(0.03, 0.15), random.uniform(0.5, 2)
    height, width = (min(side, max(1, round(side * float(np.sqrt(part))))) for part in (area * ratio, area / ratio))
    top, left = random.integers(0, side - height + 1), random.integers(0, side - width + 1)
    changed = pixels.copy()
    changed[top : top + height, left : left + width] = pixels[random.integers(side), random.integers(side)]
    return changed


def pixelate(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Fewer, larger pixels."""
    side = len(pixels)
    coarse = max(2, round(side * random.uniform(0.15, 0.5)))
    image = Image.fromarray(pixels).resize((coarse, coarse), Image.Resampling.BOX)
    return np.asarray(image.resize((side, side), Image.Resampling.NEAREST))


def posterise(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Few levels a channel."""
    steps = int(random.integers(1, 5))
    return _to_bytes(np.rint(pixels / 255 * steps) / steps)


KINDS: dict[str, Distortion] = {
    "blur": blur, "noise": noise, "jpeg": jpeg, "colour": colour, "contrast": contrast, "move": move, "warp": warp,
    "erase": erase, "pixelate": pixelate, "posterise": posterise,
}  # fmt: skip


def _to_bytes(values: NDArray[np.floating]) -> Pixels:
    rounded: Pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return rounded
