"""Kinds of files that pictures come in, by suffix: those that are read, and those that are not and are reported as skipped."""

READ = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".jpx",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".psd", ".pcx", ".sgi", ".mpo", ".avifs", ".j2c", ".jpc", ".jpf",
)  # fmt: skip
"""In order of preference when a sample in a tar has several."""
NOT_READ = (
    ".heic", ".heif", ".hif", ".svg", ".svgz", ".psb", ".jxl", ".jxr", ".ico", ".exr", ".hdr", ".qoi", ".dds",
    ".xcf", ".eps", ".ai", ".wmf", ".emf", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw",
)  # fmt: skip
"""These are still pictures: each counts as a lost sample, against the limit on bad samples."""
_PICTURES = READ + NOT_READ
_UNPACKED = {
    ".zip": "unzip", ".7z": "7z x", ".rar": "unrar x", ".tgz": "tar xf", ".tbz2": "tar xf", ".txz": "tar xf", ".gz": "gzip -d",
    ".bz2": "bzip2 -d", ".xz": "xz -d", ".zst": "zstd -d",
}  # fmt: skip
PACKED = tuple(_UNPACKED)
"""Files that may contain pictures but are not opened."""
_CONVERTED = {
    ".arrow": "datasets.load_from_disk('FOLDER').to_parquet('NAME.parquet'), then python -m trainer stage unpack",
    ".tfrecord": "write its pictures to a folder or to WebDataset tars",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save it as CSV"),
}  # fmt: skip
_CONVERTED |= dict.fromkeys((".mdb", ".h5", ".hdf5", ".npz", ".npy", ".pkl", ".pickle", ".mat", ".beton", ".mds"), _CONVERTED[".tfrecord"])
UNREAD_CAUSE = "kind of file not read"


def suffix_of(name: str) -> str:
    """The suffix of a file name in lower case, including the dot; empty if there is none."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def explain_unread(suffix: str) -> str:
    """What to do about a picture of a kind that is not read."""
    if suffix in (".heic", ".heif", ".hif"):
        return f"{suffix} is not read: convert it to JPEG or PNG, for example with the Python package pillow-heif"
    if suffix == ".psd":
        return "this kind of .psd is not read (only 8 bits per channel is): save it as PNG or JPEG"
    return f"{suffix} is not read: convert it to PNG or JPEG (ImageMagick: magick mogrify -format png '*{suffix}')"


def explain_kind(name: str) -> str:
    """What to do with a file that holds pictures or captions in a form that is not read; empty for any other."""
    suffix, base = suffix_of(name), name.rpartition("/")[2]
    if suffix in _UNPACKED:
        return f"unpack {base} first ({_UNPACKED[suffix]} {base})"
    return f"{base} is not read: {_CONVERTED[suffix]}" if suffix in _CONVERTED else ""


def is_picture(name: str) -> bool:
    """Whether a file is a picture judging by its name, whether or not its kind is read."""
    return name.lower().endswith(_PICTURES)
