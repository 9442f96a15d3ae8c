"""Pictures of any kind become upright RGB. Names and declared types are not believed, only bytes.

Alpha is composited on white, palettes, grayscale, CMYK and 16 bits are converted, EXIF orientation is applied.
A plain JPEG keeps its bytes under the policy `original`, which is what the paper's recipe reads.
"""

import contextlib
import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
"""A picture that declares more is refused before a pixel is decoded (decompression bombs)."""
_MAX_PNG_PIXELS = 512 * 512  # a larger picture that must be encoded anew becomes a JPEG: a PNG of a photo is five times as big
_JPEG_QUALITY = 95
_SHORT_SIDE = 256
_SHORT_QUALITY = 90
_EXIF_ORIENTATION = 0x0112
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # MPO opens as JPEG, and is no name that PIL takes here

Image.MAX_IMAGE_PIXELS = None  # our own limit is checked before decoding; PIL's would only warn at half of it


class BadImageError(ValueError):
    """Bytes that are no usable picture; `cause` is one of a few words that rejects are counted by."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture: bytes, `jpg` or `png`, and its size in pixels as decoded."""

    data: bytes
    suffix: str
    width: int
    height: int


def open_image(data: bytes) -> Image.Image:
    """Decode all of `data`: any mode, not yet turned upright.

    Raises:
        BadImageError: empty, not an image, too large, cut short or broken.
    """
    image = _open_header(data)
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, MemoryError) as error:
        cause = "truncated image" if "truncated" in str(error) or isinstance(error, EOFError) else "broken image"
        raise BadImageError(cause, _words(error)) from error
    return image


def _open_header(data: bytes) -> Image.Image:
    """What `data` says that it is; no pixel is decoded yet."""
    if not data:
        raise BadImageError("empty file", "0 bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        what = "an HTML page" if data[:512].lstrip()[:1] == b"<" else f"begins with {data[:8]!r}"
        raise BadImageError("not an image", what) from error
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise BadImageError("broken image", _words(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError("too many pixels", f"{image.width}x{image.height}, at most {MAX_PIXELS // 1_000_000} megapixels")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB of a decoded picture of any mode; transparency becomes white."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):  # 16-bit grayscale: the high byte
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImageError("unsupported pixels", "floating point")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def normalise(data: bytes, policy: str) -> Picture:
    """A picture as it goes into a shard.

    Args:
        data: the source's bytes.
        policy: `original` keeps the bytes of an upright RGB or grayscale JPEG; `short256` makes the short side
            256 (larger pictures only) and encodes at quality 90.

    Raises:
        BadImageError: not a usable picture.
    """
    if policy == "short256":
        return _short256(data)
    image = open_image(data)
    if _is_plain_jpeg(image):
        return Picture(data, "jpg", image.width, image.height)
    rgb = to_rgb(image)
    if rgb.width * rgb.height > _MAX_PNG_PIXELS:
        return Picture(_encode(rgb, "JPEG", quality=_JPEG_QUALITY), "jpg", rgb.width, rgb.height)
    return Picture(encode_png(rgb), "png", rgb.width, rgb.height)


def squash(data: bytes, side: int) -> NDArray[np.uint8]:
    """A picture squashed to a square, bicubic, as DreamSim reads NIGHTS. Returns (side, side, 3)."""
    image = to_rgb(open_image(data))
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image)


def is_plain_png(data: bytes, side: int) -> bool:
    """Whether `data` is a square RGB PNG of 8 bits and of this side, with nothing but pixels in it."""
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", side, side, 8, 2, 0, 0, 0)
    return data.startswith(start) and data[37:41] == b"IDAT"


def encode_png(image: Image.Image) -> bytes:
    """Lossless PNG of an RGB picture, without metadata."""
    return _encode(image, "PNG", compress_level=6)


def _short256(data: bytes) -> Picture:
    """Short side 256 (never larger than it came), antialiased bicubic, JPEG at quality 90."""
    image = _open_header(data)
    pixels: NDArray[np.uint8] | None = None
    if _is_plain_jpeg(image):
        with contextlib.suppress(ValueError):  # PIL says better what is wrong, or reads it after all
            pixels = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    if pixels is None:
        pixels = np.asarray(to_rgb(open_image(data)))
    scale = _SHORT_SIDE / min(pixels.shape[:2])
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
        pixels = _resize(pixels, height, width)
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_SHORT_QUALITY, colorspace="RGB", colorsubsampling="420")
    return Picture(encoded, "jpg", pixels.shape[1], pixels.shape[0])


def _resize(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Antialiased bicubic, in integers as PIL does it, within 2 of 255 of it, at a third of its time (row T of docs/BENCHMARKS.md)."""
    import torch  # here already where captions were tokenised, and not needed by other policies

    # Unsqueezed first: with any other stride of the batch torch takes the picture for channels first, and is half as fast.
    channels_last = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).unsqueeze(0).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(channels_last, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


def _is_plain_jpeg(image: Image.Image) -> bool:
    """An upright RGB or grayscale JPEG, which every decoder reads alike."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return False
    return image.getexif().get(_EXIF_ORIENTATION, 1) in (0, 1)


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(stream, kind, **options)  # through an array: no profile or comment comes along
    return stream.getvalue()


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
