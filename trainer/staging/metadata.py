"""A picture's metadata: read its orientation, and strip metadata that keeps the picture from being read."""

from collections.abc import Iterator

from PIL import Image, TiffImagePlugin

_ORIENTATION = 0x0112
_RESOLUTIONS = (0x011A, 0x011B)
_READ = "firstsight: orientation"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
_WEBP_KEPT = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
_ADOBE_BYTES = 14  # of the segment that says how colours are stored, with its length


def read_orientation(image: Image.Image) -> tuple[int, str]:
    """The orientation from EXIF (or XMP), and a note if it is unreadable: such a picture counts as upright.

    Returns:
        1 to 8; and a short note by which such pictures are counted, or an empty string.
    """
    if _READ not in image.info:
        image.info[_READ] = _orientation(image)  # PIL raises on broken EXIF once, then returns empty EXIF
    found: tuple[int, str] = image.info[_READ]
    return found


def _orientation(image: Image.Image) -> tuple[int, str]:
    xmp = image.info.get("xmp")
    try:
        if isinstance(xmp, bytes):
            xmp.decode()
    except UnicodeDecodeError:
        del image.info["xmp"]  # PIL would look for an orientation among its bytes
        return _exif_orientation(image)[0], "unreadable XMP"
    return _exif_orientation(image)


def _exif_orientation(image: Image.Image) -> tuple[int, str]:
    try:
        found = dict(image.getexif())
        if not found and image.info.get("exif"):  # PIL's reader of JPEG has met the damage before, and passed over it
            Image.Exif().load(image.info["exif"])
    except Exception:  # whatever PIL raises on invalid EXIF
        return 1, "unreadable EXIF"
    value = found.get(_ORIENTATION, 1)
    upright = 1 if value == 0 else value  # 0: "unknown", as some cameras write
    if not isinstance(upright, int) or not 1 <= upright <= 8:
        return 1, "unreadable EXIF"
    return upright, "" if all(_is_resolution(found[tag]) for tag in _RESOLUTIONS if tag in found) else "unreadable EXIF"


def _is_resolution(value: object) -> bool:
    return isinstance(value, int | float | TiffImagePlugin.IFDRational) and not value < 0


def without_metadata(data: bytes) -> bytes | None:
    """A JPEG, PNG or WebP without metadata; None if there is nothing to strip, or it is another format."""
    parts: Iterator[tuple[bytes, bool]]
    if data.startswith(b"\xff\xd8"):
        parts = _jpeg_parts(data)
    elif data.startswith(_PNG_START):
        parts = _png_parts(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        parts = _webp_parts(data)
    else:
        return None
    kept, all_kept = [], True
    for part, is_kept in parts:
        all_kept = all_kept and is_kept
        kept += [part] if is_kept else []
    if all_kept:
        return None
    bare = b"".join(kept)
    return data[:4] + (len(bare) - 8).to_bytes(4, "little") + bare[8:] if data[:4] == b"RIFF" else bare


def _jpeg_parts(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Segments up to the first scan, and whether each is kept; the rest as one part."""
    position = 2
    yield data[:2], True
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4])
        if marker == 0xDA:
            break
        end = position + 2 + length
        is_colours = marker == 0xEE and length >= _ADOBE_BYTES and data[position + 4 : position + 9] == b"Adobe"
        yield data[position:end], is_colours or not (0xE0 <= marker <= 0xEF or marker == 0xFE)
        position = end
    yield data[position:], True


def _png_parts(data: bytes) -> Iterator[tuple[bytes, bool]]:
    position = len(_PNG_START)
    yield data[:position], True
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        yield data[position:end], data[position + 4 : position + 8] in _PNG_KEPT
        position = end


def _webp_parts(data: bytes) -> Iterator[tuple[bytes, bool]]:
    position = 12
    yield data[:position], True
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        end = position + 8 + size + size % 2
        part = data[position:end]
        if part[:4] == b"VP8X" and len(part) > 8:  # its flags name the chunks that are left out
            part = part[:8] + bytes([part[8] & ~0x2C]) + part[9:]
        yield part, part[:4] in _WEBP_KEPT
        position = end
