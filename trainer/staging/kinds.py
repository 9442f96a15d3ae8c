"""Kinds of files that pictures come in, by suffix: those that are read, and those that are not and are said to be left out."""

READ = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".jpx",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".psd", ".pcx", ".sgi", ".mpo", ".avifs", ".j2c", ".jpc", ".jpf",
)  # fmt: skip
"""In this order where a sample of a tar has several."""
NOT_READ = (
    ".heic", ".heif", ".hif", ".svg", ".svgz", ".psb", ".jxl", ".jxr", ".ico", ".exr", ".hdr", ".qoi", ".dds",
    ".xcf", ".eps", ".ai", ".wmf", ".emf", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw",
)  # fmt: skip
"""Pictures all the same: each is a lost sample, and counts against the limit of bad ones."""
_PICTURES = READ + NOT_READ
UNREAD_CAUSE = "kind of file not read"


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case with its dot; empty where it has none."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def explain_unread(suffix: str) -> str:
    """What to do about a picture of a kind that is not read."""
    if suffix in (".heic", ".heif", ".hif"):
        return f"{suffix} is not read: convert it to JPEG or PNG, for example with the Python package pillow-heif"
    return f"{suffix} is not read: convert it to PNG or JPEG (ImageMagick: magick mogrify -format png '*{suffix}')"


def is_picture(name: str) -> bool:
    """Whether a file is a picture by its name, of a kind that is read or not."""
    return name.lower().endswith(_PICTURES)
