"""Convert pictures of any format to upright RGB. Formats are detected from the bytes; names and declared types are ignored.

Alpha is composited on white, palettes, grayscale, CMYK and 16 bits are converted, EXIF orientation is applied.
A plain JPEG keeps its bytes under the policy `original`, which is what the paper's recipe reads.
"""

import contextlib
import io
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnContext
from typing import Any, TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from trainer.bounds import MAX_DECODED_BYTES, MAX_DECODED_BYTES_IN_FLIGHT, MAX_PIXELS, MAX_PIXELS_A_BYTE, Budget
from trainer.errors import words_of
from trainer.staging.magic import explain_bytes
from trainer.staging.metadata import read_orientation, without_metadata

RULES = 2
"""Version of the rules for reading pictures; data sets begun under version 1 are finished with it. Since 2: AVIF, JPEG 2000, PSD, PCX, SGI
and TGA are read, unreadable metadata is dropped instead of rejecting the picture, and decompression bombs are refused."""
_MAX_PNG_PIXELS = 512 * 512  # a larger picture that must be re-encoded becomes a JPEG: a PNG of a photo is five times as big
_JPEG_QUALITY = 95
_SHORT_SIDE = 256
_SHORT_QUALITY = 90
_MAX_JPEG_SIDE = 65_500  # libjpeg's limit; larger pictures become PNGs
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# MPO opens as JPEG; PIL does not accept its name here. TGA has no magic number, so it is tried last.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "PSD", "PCX", "SGI", "DIB", "TGA")
_FORMATS_OF_1 = _FORMATS[:7]
_DECODED_BYTES = {"WEBP": 16, "JPEG2000": 20, "AVIF": 10}  # bytes a pixel while PIL decodes (measured); 4 for other formats
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # tags of TIFF
_MAX_TILE_PIXELS = 4 << 20  # for a tile larger than its picture; writers use 256 x 256 or 512 x 512
_LARGE_PIXELS = 25_000_000  # a smaller picture takes at most 100 MB, however small its file
_STRIP_PIXELS = 1 << 20  # pictures are converted in strips: at most two whole ones are in memory
MAX_SCAN_PIXELS = 20 * MAX_PIXELS
"""Scans of a progressive JPEG times its pixels, since each scan visits every pixel. A photo has about ten scans, a bomb thousands."""

Image.MAX_IMAGE_PIXELS = None  # our own limit is checked before decoding; PIL's would only warn at half of it
# glibc frees blocks of this size at once; with PIL's 16 MiB, each thread would keep the blocks of its largest picture.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]
PngImagePlugin.MAX_TEXT_MEMORY = 16 << 20  # all texts of a PNG, unpacked; PIL's default is 64 MiB for each thread
warnings.filterwarnings("ignore", module=r"PIL\.")  # odd pictures are read, or rejected with a cause, so PIL's warnings are noise
T = TypeVar("T")
_DAMAGED = ("broken image", "truncated image", "not an image")  # failures that broken metadata may cause


class BadImageError(ValueError):
    """Bytes that are not a usable picture; `cause` is a short phrase by which rejects are counted."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture: bytes, `jpg` or `png`, decoded size in pixels, a short note on what was dropped, and its perceptual hash."""

    data: bytes
    suffix: str
    width: int
    height: int
    note: str = ""
    look: int | None = None


class _InFlight:
    """The memory budget for decoding: this process's own, or one passed to it at its start."""

    budget = Budget(MAX_DECODED_BYTES_IN_FLIGHT)


def shared_budget(context: SpawnContext) -> Budget:
    """A budget of decoded bytes shared by the processes that this context starts; each must first call `use_budget`."""
    return Budget(MAX_DECODED_BYTES_IN_FLIGHT, context)


def use_budget(budget: Budget) -> None:
    """From now on decode within a budget that other processes share."""
    _InFlight.budget = budget


@contextlib.contextmanager
def decoding(data: bytes, rules: int = RULES) -> Iterator[Image.Image]:
    """Open a picture without decoding it; inside the block, the memory to decode and convert it is reserved.

    Raises:
        BadImageError: empty, not an image, or too large; and whatever a library raises inside the block.
    """
    image = _open_header(data, rules)
    with _InFlight.budget.taken(_bytes_needed(image)), _naming_damage():
        yield image


@contextlib.contextmanager
def _naming_damage() -> Iterator[None]:
    """Turn anything raised while opening, decoding, converting or encoding a picture into a BadImageError."""
    try:
        yield
    except (BadImageError, UnidentifiedImageError):
        raise
    except Exception as error:
        cause = "truncated image" if "truncated" in str(error) or isinstance(error, EOFError) else "broken image"
        raise BadImageError(cause, words_of(error)) from error


def _open_header(data: bytes, rules: int) -> Image.Image:
    """Open a picture from its header; no pixel is decoded yet."""
    if not data:
        raise BadImageError("empty file", "0 bytes")
    _check_pixels(*_webp_size(data))
    try:
        with _naming_damage():
            image = Image.open(io.BytesIO(data), formats=_FORMATS if rules > 1 else _FORMATS_OF_1)
    except UnidentifiedImageError as error:
        if rules > 1 and (unread := explain_bytes(data)):
            raise BadImageError(*unread) from error
        what = "an HTML page" if data[:512].lstrip()[:1] == b"<" else f"begins with {data[:8]!r}"
        raise BadImageError("not an image", what) from error
    _check_pixels(image.width, image.height)
    if rules > 1:
        _check_unpacked(image, len(data))
    if image.format in ("JPEG", "MPO"):
        scans = data.count(b"\xff\xda")
        if scans * image.width * image.height > MAX_SCAN_PIXELS:
            most = MAX_SCAN_PIXELS // 1_000_000
            raise BadImageError("too many scans", f"{scans} scans of {image.width}x{image.height}, at most {most} megapixels in all")
    return image


def _check_pixels(width: int, height: int, most: int = MAX_PIXELS, kind: str = "") -> None:
    if width * height > most:
        raise BadImageError("too many pixels", f"{width}x{height}, at most {most // 1_000_000} megapixels{kind}")


def _check_unpacked(image: Image.Image, size: int) -> None:
    """Refuse a picture that needs far more memory than is usual for its format and file size."""
    needed = _DECODED_BYTES.get(image.format or "", 4)
    _check_pixels(image.width, image.height, MAX_DECODED_BYTES // needed, f" of {image.format}")
    tile = _tile_pixels(image)
    if tile > max(_MAX_TILE_PIXELS, image.width * image.height):
        raise BadImageError("unpacks to too much", f"{image.width}x{image.height} in tiles of {tile:,} pixels: a decompression bomb?")
    if image.width * image.height > max(_LARGE_PIXELS, size * MAX_PIXELS_A_BYTE):
        ratio = f"more than {MAX_PIXELS_A_BYTE} pixels a byte"
        raise BadImageError("unpacks to too much", f"{image.width}x{image.height} in {size:,} bytes, {ratio}: a decompression bomb?")


def _tile_pixels(image: Image.Image) -> int:
    """Pixels of a TIFF's tile, which libtiff always unpacks whole; 0 for other pictures."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0)
    return width * height if isinstance(width, int) and isinstance(height, int) else 0


def _bytes_needed(image: Image.Image) -> int:
    """Approximate memory to decode the picture and convert it to upright RGB."""
    may_turn = image.format == "TIFF" or ("exif" in image.info and read_orientation(image)[0] != 1)
    converted = 0 if image.mode == "RGB" and not may_turn else 4
    coefficients = 2 * len(image.getbands()) if image.info.get("progressive") else 0  # kept until the last scan has been read
    return image.width * image.height * (_DECODED_BYTES.get(image.format or "", 4) + converted + coefficients)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP picture's canvas, which PIL allocates on opening; 0, 0 for other formats."""
    kind = data[12:16] if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30 else b""
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 0, 0


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB of a picture of any mode; transparency becomes white. BadImageError if it is cut short or broken."""
    with _naming_damage():
        return _convert(_upright(image))


def _convert(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):  # 16-bit grayscale: the high byte
        return _in_strips(image, _high_bytes)
    if image.mode == "F":
        raise BadImageError("unsupported pixels", "floating point")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _in_strips(image, _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def loaded(image: Image.Image, mode: str = "") -> Image.Image:
    """The decoded picture, converted to `mode` if given; BadImageError if it is truncated or broken."""
    with _naming_damage():
        image.load()
        return image.convert(mode) if mode else image


def _only_rgb(image: Image.Image) -> Image.Image:
    """The same, consuming the picture."""
    rgb = to_rgb(image)
    if rgb is not image:
        image.close()
    return rgb


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    method = _UPRIGHT.get(read_orientation(image)[0])
    return image if method is None else image.transpose(method)


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """An RGB picture made strip by strip."""
    if image.width * image.height <= _STRIP_PIXELS:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for top, bottom in _strips(image):
        whole.paste(convert(image.crop((0, top, image.width, bottom))), (0, top))
    return whole


def _strips(image: Image.Image) -> Iterator[tuple[int, int]]:
    rows = max(1, _STRIP_PIXELS // image.width)
    return ((top, min(top + rows, image.height)) for top in range(0, image.height, rows))


def _high_bytes(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8)).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def normalise(data: bytes, policy: str, rules: int = RULES, *, looks: bool = False) -> Picture:
    """A picture as stored in a shard. If broken metadata prevents reading it, it is read without metadata.

    Args:
        data: the source's bytes.
        policy: `original` keeps the bytes of an upright RGB or grayscale JPEG; `short256` makes the short side
            256 (larger pictures only) and encodes at quality 90.
        rules: version of the staging rules under which the data set was begun.
        looks: whether to compute the perceptual hash, which takes a tenth of the time of encoding a small picture.

    Raises:
        BadImageError: not a usable picture.
    """
    picture, note = _or_without_metadata(lambda data: _normalise(data, policy, rules, looks), data, rules)
    return replace(picture, note=note or picture.note)


def _normalise(data: bytes, policy: str, rules: int, looks: bool) -> Picture:
    with decoding(data, rules) as image:
        note = read_orientation(image)[1]
        if policy == "short256":
            return _short256(data, image, note, looks)
        if _is_plain_jpeg(image):
            width, height = image.size
            image.draft("RGB", (max(1, width // 8), max(1, height // 8)))  # reads the whole stream, at an eighth of each side
            loaded(image)
            return Picture(data, "jpg", width, height, note, look_of(image) if looks else None)
        rgb = _only_rgb(image)
        look = look_of(rgb) if looks else None
        if rgb.width * rgb.height > _MAX_PNG_PIXELS and max(rgb.size) <= _MAX_JPEG_SIDE:
            return Picture(_encode(rgb, "JPEG", quality=_JPEG_QUALITY), "jpg", rgb.width, rgb.height, note, look)
        return Picture(encode_png(rgb), "png", rgb.width, rgb.height, note, look)


def look_of(image: Image.Image) -> int | None:
    """A perceptual hash of 64 bits: whether each cell of a 9 x 8 grid is lighter than the next; None if contrast is too low.

    Args:
        image: decoded, of any mode that becomes gray.
    """
    if min(image.size) < 8:
        return None
    grid = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    if int(grid.max()) - int(grid.min()) < 16:  # all single-colour pictures would hash alike
        return None
    return int.from_bytes(np.packbits(grid[:, 1:] > grid[:, :-1]).tobytes(), "big")


def _or_without_metadata(read: Callable[[bytes], T], data: bytes, rules: int) -> tuple[T, str]:
    """read(data); if that fails as damaged, read it without metadata and return a note that says so."""
    try:
        return read(data), ""
    except BadImageError as error:
        is_bomb = "MAX_TEXT_" in error.detail  # PIL's words for texts of a PNG that unpack to too much
        bare = without_metadata(data) if rules > 1 and error.cause in _DAMAGED and not is_bomb else None
        if bare is None:
            raise
        try:
            return read(bare), "unreadable metadata"
        except BadImageError:
            raise error from None


def squash(data: bytes, side: int) -> tuple[NDArray[np.uint8], str]:
    """A picture squashed to a square, bicubic, as DreamSim reads NIGHTS. Returns (side, side, 3) and a note as in Picture.

    Raises:
        BadImageError: not a usable picture.
    """

    def read(data: bytes) -> tuple[NDArray[np.uint8], str]:
        with decoding(data) as source:
            note = read_orientation(source)[1]
            image = _only_rgb(source)
            if image.size != (side, side):
                image = image.resize((side, side), Image.Resampling.BICUBIC)
            return np.asarray(image), note

    (pixels, note), bare = _or_without_metadata(read, data, RULES)
    return pixels, bare or note


def is_plain_png(data: bytes, side: int) -> bool:
    """Whether `data` is a square RGB PNG of 8 bits and of this side, with nothing but pixels in it."""
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", side, side, 8, 2, 0, 0, 0)
    return data.startswith(start) and data[37:41] == b"IDAT"


def encode_png(image: Image.Image) -> bytes:
    """Lossless PNG of an RGB picture, without metadata."""
    return _encode(image, "PNG", compress_level=6)


def _short256(data: bytes, image: Image.Image, note: str, looks: bool) -> Picture:
    """Short side 256 (never upscaled), antialiased bicubic, JPEG at quality 90."""
    pixels: NDArray[np.uint8] | None = None
    if _is_plain_jpeg(image):
        with contextlib.suppress(ValueError):  # PIL gives a better error, or reads it after all
            pixels = simplejpeg.decode_jpeg(data, "RGB", strict=True)
            pixels = _resize(pixels, *_short_size(*pixels.shape[:2]))
    if pixels is None:
        pixels = _resize_image(_only_rgb(image))
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_SHORT_QUALITY, colorspace="RGB", colorsubsampling="420")
    look = look_of(Image.fromarray(pixels)) if looks else None
    return Picture(encoded, "jpg", pixels.shape[1], pixels.shape[0], note, look)


def _short_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the same picture with a short side of at most 256."""
    scale = _SHORT_SIDE / min(height, width)
    return (max(1, round(height * scale)), max(1, round(width * scale))) if scale < 1 else (height, width)


def _resize_image(image: Image.Image) -> NDArray[np.uint8]:
    """The resized pixels of a picture, which is consumed; a large one is narrowed in strips, with the same result."""
    height, width = _short_size(image.height, image.width)
    if image.width * image.height <= _STRIP_PIXELS:
        return _resize(np.asarray(image), height, width)
    rows = [_resize(np.asarray(image.crop((0, top, image.width, bottom))), bottom - top, width) for top, bottom in _strips(image)]
    image.close()
    return _resize(np.concatenate(rows), height, width)


def _resize(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Antialiased bicubic, in integers as PIL does it, within 2 of 255 of it, at a third of its time (row T of docs/BENCHMARKS.md)."""
    if pixels.shape[:2] == (height, width):
        return pixels
    import torch  # already imported if captions were tokenised; other policies do not need it

    # Unsqueeze first: with another batch stride torch assumes channels-first layout, and is half as fast.
    channels_last = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).unsqueeze(0).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(channels_last, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


def _is_plain_jpeg(image: Image.Image) -> bool:
    """An upright RGB or grayscale JPEG, which every decoder reads alike."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return False
    return read_orientation(image)[0] == 1


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    info, image.info = image.info, {}  # drops profile, comment and transparency
    try:
        image.save(stream, kind, **options)
    finally:
        image.info = info
    return stream.getvalue()
