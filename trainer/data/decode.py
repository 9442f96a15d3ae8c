"""Decode a picture's bytes to uint8 pixels of a fixed size, in two ways.

`exact` uses PIL throughout, like open_clip's own transforms; results that are compared with others use it.
`fast` uses simplejpeg with torch's antialiased uint8 resize, and PIL where necessary (PNG, CMYK, a JPEG that strict
decoding refuses): within .05 of 255 on average, at three times the speed (row A of docs/BENCHMARKS.md).

Suffixes: H W (source height and width), S (side of the result), B (batch).
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trainer.bounds import MAX_PIXELS
from trainer.errors import RunError

Decoder = Literal["fast", "exact"]
Interpolation = Literal["bicubic", "bilinear"]
Buffer = bytes | memoryview

Image.MAX_IMAGE_PIXELS = None  # our own limit is checked before decoding; PIL's would raise its own type of error
_PIL_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_CROP_ATTEMPTS = 10
_CROP_RATIOS = (3 / 4, 4 / 3)


def decode_image(data: Buffer, side: int, mode: Decoder, *, squash: bool = False) -> torch.Tensor:
    """A picture as a model is evaluated on it: bicubic to short side `side` and the centre, or squashed to the square.

    Returns:
        (3, S, S) uint8.

    Raises:
        RunError: PIL cannot read the bytes as a picture.
    """
    pixels = decode_pixels(data, mode)
    return resize(pixels, (side, side), mode, "bicubic") if squash else centre(pixels, side, mode)


def centre(pixels: NDArray[np.uint8], side: int, mode: Decoder) -> torch.Tensor:
    """Short side to `side`, bicubic, and the centre of it: (3, S, S) uint8."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    size = (side * height // short, side * width // short)  # torchvision's Resize cuts the long side down
    resized = resize(pixels, size, mode, "bicubic")
    top, left = (round((length - side) / 2) for length in size)
    return resized[:, top : top + side, left : left + side]


def decode_pixels(data: Buffer, mode: Decoder) -> NDArray[np.uint8]:
    """All pixels of a picture as RGB: (H, W, 3). Raises RunError if the bytes are no picture, or one of too many pixels."""
    if mode == "fast" and bytes(data[:2]) == b"\xff\xd8":
        try:
            _check_size(*simplejpeg.decode_jpeg_header(data)[:2])
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
            return pixels
        except ValueError:  # CMYK, or a slip in the stream that PIL, which staging checked with, lets pass
            pass
    with _opened(data) as image:
        return np.array(image.convert("RGB"))


def picture_size(data: Buffer) -> tuple[int, int]:
    """Height and width from a picture's header: those of `decode_pixels`, without decoding."""
    if bytes(data[:2]) == b"\xff\xd8":
        with contextlib.suppress(ValueError):  # PIL, which staging checked with, may read it
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
            _check_size(height, width)
            return height, width
    with _opened(data) as image:
        return image.height, image.width


@contextlib.contextmanager
def _opened(data: Buffer) -> Iterator[Image.Image]:
    """A picture as PIL reads it; what PIL raises on bad bytes, then or when pixels are asked for, is a RunError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.height, image.width)
            yield image
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise RunError(f"not a picture: {error}") from error


def _check_size(height: int, width: int) -> None:
    """Refuse a picture whose header declares more than staging accepts, before it takes memory."""
    if height * width > MAX_PIXELS:
        raise RunError(f"a picture of {width}x{height}, but at most {MAX_PIXELS // 1_000_000} megapixels are decoded")


def crop_and_resize(
    pixels: NDArray[np.uint8], box: Sequence[int] | NDArray[np.int64], side: int, mode: Decoder, interpolation: Interpolation
) -> torch.Tensor:
    """The box (top, left, height, width) of a picture at S x S: (3, S, S) uint8."""
    top, left, height, width = (int(value) for value in box)
    cropped = np.ascontiguousarray(pixels[top : top + height, left : left + width])  # torch's own copy of a crop is ten times slower
    return resize(cropped, (side, side), mode, interpolation)


def resize(pixels: NDArray[np.uint8], size: tuple[int, int], mode: Decoder, interpolation: Interpolation) -> torch.Tensor:
    """An (H, W, 3) picture at `size` (height, width), antialiased: (3, height, width) uint8."""
    if pixels.shape[:2] == size:
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    if mode == "exact":
        resized = Image.fromarray(pixels).resize((size[1], size[0]), _PIL_FILTERS[interpolation])
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    # Unsqueeze first: with another batch stride torch assumes channels-first layout, and is half as fast.
    channels_last = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(channels_last, size=size, mode=interpolation, antialias=True, align_corners=False)[0]


def sample_seeds(seed: int, epoch: int, keys: Sequence[str]) -> NDArray[np.int64]:
    """What all of a sample's draws in one epoch come from: (B,) int64, >= 0, a function of (seed, epoch, key)."""
    salt = f"firstsight sample:{seed}:{epoch}:".encode()
    digests = b"".join(hashlib.blake2b(salt + key.encode(), digest_size=8).digest() for key in keys)
    return (np.frombuffer(digests, "<u8") >> np.uint64(1)).astype(np.int64)


def uniforms(seeds: NDArray[np.int64], first: int, count: int) -> NDArray[np.float64]:
    """Draws `first` to `first + count` of each sample, in [0, 1): (B, count). SplitMix64, so any draw costs the same."""
    counters = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    state = seeds.astype(np.uint64)[:, None] + counters * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: NDArray[np.float64] = ((state ^ (state >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return result


CROP_DRAWS = 2 * _CROP_ATTEMPTS + 2
"""Draws 0 to CROP_DRAWS of a sample place its crop; the caption takes the next one, augment.py begins at 64."""


def random_crops(seeds: NDArray[np.int64], heights: NDArray[np.int64], widths: NDArray[np.int64], scale_min: float) -> NDArray[np.int64]:
    """Random resized crops as torchvision draws them: an area of `scale_min` to 1, a ratio of 3/4 to 4/3, anywhere.

    Args:
        seeds: (B,), of `sample_seeds`.
        heights: (B,), of the pictures.
        widths: (B,).
        scale_min: smallest part of the picture's area.

    Returns:
        (B, 4) of (top, left, height, width).
    """
    draws = uniforms(seeds, 0, CROP_DRAWS)
    scales, ratios, places = draws[:, :_CROP_ATTEMPTS], draws[:, _CROP_ATTEMPTS:-2], draws[:, -2:]
    areas = (heights * widths)[:, None] * (scale_min + (1 - scale_min) * scales)
    low, high = np.log(_CROP_RATIOS[0]), np.log(_CROP_RATIOS[1])
    ratios = np.exp(low + (high - low) * ratios)
    crop_heights = np.rint(np.sqrt(areas / ratios)).astype(np.int64)  # (B, attempts)
    crop_widths = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    fits = (crop_heights <= heights[:, None]) & (crop_widths <= widths[:, None]) & (crop_heights > 0) & (crop_widths > 0)
    first = fits.argmax(axis=1)
    each = np.arange(len(seeds))
    # No attempt fits a very long picture: then the largest centre crop whose ratio is allowed.
    tall = np.minimum(heights, np.rint(widths / _CROP_RATIOS[0]).astype(np.int64))
    wide = np.minimum(widths, np.rint(heights * _CROP_RATIOS[1]).astype(np.int64))
    found = fits.any(axis=1)
    height = np.where(found, crop_heights[each, first], tall)
    width = np.where(found, crop_widths[each, first], wide)
    top = np.where(found, (places[:, 0] * (heights - height + 1)).astype(np.int64), (heights - height) // 2)
    left = np.where(found, (places[:, 1] * (widths - width + 1)).astype(np.int64), (widths - width) // 2)
    return np.stack([top, left, height, width], axis=1)
