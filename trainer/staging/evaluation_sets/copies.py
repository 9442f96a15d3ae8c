"""A local copy of a set: its files, and what a converter makes of them."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.bounds import MAX_COPY_FILE_BYTES, MAX_UNPACKED_BYTES, check_size, gunzip
from trainer.errors import InputError
from trainer.staging.foreign import lines_of, text_of
from trainer.staging.images import BadImageError, decoding, loaded
from trainer.staging.sources.listing import SourceFile
from trainer.storage import read_bytes

KEPT_FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats whose bytes are kept: CLIP_benchmark reads them, and equal bytes give equal figures."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".ppm", ".bmp", ".tif", ".tiff")


Split = Literal["test", "train"]
"""Split of a copy: `test` measures models, `train` trains probes."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture: its place in the copy, a function that reads it, and its ground truth.

    Attributes:
        name: unique in the set.
        image: returns the encoded picture.
        label: class; -1 for multi-label and retrieval.
        targets: (C,) of 0 and 1, for multi-label.
        captions: for retrieval.
    """

    name: str
    image: Callable[[], bytes]
    label: int = -1
    targets: NDArray[np.int64] | None = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A set as read from a copy: its rows in order, and the class names that the copy itself gives (or none)."""

    rows: Iterable[Row]
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()


class Copy:
    """The files below a folder, found by the end of their paths, so that an archive's top folder may be present or not.

    Attributes:
        uri: of the folder.
        names: of all files, relative, sorted.
    """

    def __init__(self, uri: str, files: Sequence[SourceFile]) -> None:
        self.uri = uri
        self._files = {file.name: file for file in files}
        self.names = sorted(self._files)
        self._by_file: dict[str, list[str]] = {}
        for name in self.names:
            self._by_file.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def find(self, ending: str) -> str | None:
        """The file whose path ends with `ending` or `ending.gz`, the shortest path if several; None if there is none."""
        found = []
        for end in (ending, f"{ending}.gz"):
            found += [name for name in self._by_file.get(end.rsplit("/", 1)[-1], []) if f"/{name}".endswith(f"/{end}")]
        return min(found, key=lambda name: (name.count("/"), name)) if found else None

    def require(self, ending: str) -> str:
        """Like `find`, but InputError if there is none."""
        found = self.find(ending)
        if found is None:
            raise InputError(f"{self.uri}: no {ending} in this copy")
        return found

    def read(self, name: str) -> bytes:
        """The bytes of a file, unpacked if it ends in `.gz`. InputError if they exceed the limit or are damaged."""
        check_size(self._files[name].size, MAX_COPY_FILE_BYTES, f"{self.uri}/{name}")
        data = read_bytes(self._files[name].uri)
        return gunzip(data, f"{self.uri}/{name}", MAX_UNPACKED_BYTES) if name.endswith(".gz") else data

    def file(self, name: str) -> SourceFile:
        """A file, to be read in parts."""
        return self._files[name]

    def lines(self, ending: str) -> list[str]:
        """The non-empty lines of a text file; InputError if it is not UTF-8."""
        name = self.require(ending)
        return [line.strip() for line in lines_of(text_of(self.read(name), f"{self.uri}/{name}")) if line.strip()]

    def reader(self, name: str) -> Callable[[], bytes]:
        """A function that reads a file of the copy; InputError now if it is missing."""
        if name not in self._files:
            raise InputError(f"{self.uri}: {name} is listed but missing")
        return lambda: self.read(name)

    def base(self, name: str, ending: str) -> str:
        """The part of a path before `ending`: the copy's top folder with its slash, or nothing."""
        return name.removesuffix(".gz").removesuffix(ending)

    def images(self) -> Iterator[str]:
        """Names of all pictures, by their suffix."""
        return (name for name in self.names if name.lower().endswith(IMAGE_SUFFIXES))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W) or (H, W, 3) pixels as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def as_kept(data: bytes, name: str) -> tuple[str, bytes]:
    """Suffix and bytes of a picture: unchanged if CLIP_benchmark reads the format, else the same pixels as PNG.

    EXIF orientation is not applied and nothing else changed, as in CLIP_benchmark, so that results are comparable.

    Raises:
        InputError: not a picture, or cut short.
    """
    try:
        with decoding(data) as image:
            if image.format in KEPT_FORMATS:
                loaded(image)
                return KEPT_FORMATS[image.format], data
            return "png", encode_png(np.asarray(loaded(image, "RGB")))
    except BadImageError as error:
        raise InputError(f"{name}: not a picture, or truncated: {error}") from error
