"""Limits on untrusted input: files, archives and pictures may be malicious or damaged.

Each limit is far above what any real source needs, and far below what exhausts a pod of 4 GiB. docs/DATA.md lists all of them.
An error names the file, the limit and what was found, in one line.
"""

import csv
import errno
import json
import os
import re
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainer.errors import InputError, RunError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext

MAX_DEPTH = 64
"""Nesting levels of JSON and YAML; configurations have 5. Deeper nesting exhausts the stack of any recursive reader."""
MAX_YAML_BYTES = 256 << 10
"""Size of a recipe, request, profile or list of settings; real ones have a few kB, and PyYAML reads 200 kB in about 1 s."""
MAX_YAML_NODES = 10_000
"""Values in a YAML file after expanding aliases ("billion laughs"): PyYAML reads this many in about 1 s."""
MAX_NUMBER_CHARS = 1000
"""Length of a number in YAML: conversion time grows with its square."""
MAX_PIXELS = 100_000_000
"""Pixels of a picture, according to its header: decoded, it takes 4 bytes a pixel, and 4 more during conversion."""
MAX_PIXELS_A_BYTE = 32
"""Pixels per encoded byte in a picture of more than 25 megapixels: photos have 3 to 20, a single-colour bomb 250 and more."""
MAX_DECODED_BYTES = 8 * MAX_PIXELS
"""Memory to decode one picture: 4 bytes a pixel, but 10 for AVIF, 16 for WebP and 20 for JPEG 2000."""
MAX_DECODED_BYTES_IN_FLIGHT = 256 << 20
"""Memory for all pictures that a process and its children decode at one time; a picture that needs more is decoded alone."""
MAX_PICTURE_BYTES = 8 * MAX_PIXELS
"""Size of an encoded picture: MAX_PIXELS with four channels of 16 bits, uncompressed."""
MAX_PICTURE_BYTES_IN_FLIGHT = 256 << 20
"""Total size of the encoded pictures of a local source in memory at one time; a larger picture is read alone."""
MAX_CAPTION_BYTES = 1 << 20
"""Size of a sample's .txt, .caption, .json or .cls file, or of an XML annotation; Flickr's longest descriptions have 64 kB."""
MAX_CAPTIONS = 1000
"""Captions of one sample; the data sets in use have up to 20."""
MAX_SET_SHARDS = 100_000
"""Shards in a split of an evaluation set; CLIP_benchmark writes up to a few hundred."""
MAX_TEMPLATES = 1000
"""Prompt templates of an evaluation set, each filled with every class name; CLIP_benchmark's have up to 80."""
MAX_TABLE_BYTES = 1 << 30
"""Size of captions.csv or data.csv, which are read whole: about ten million rows."""
MAX_HEADER_CHARS = 64 << 10
"""Length of the first line of a list, which names its columns."""
MAX_ROW_CHARS = 4 << 20
"""Length of a CSV row, however many lines and fields it has."""
MAX_REJECTED_ROWS = 100_000
"""Rejected rows of a source's lists, while fewer rows are usable: each is kept with its cause, at 350 bytes. Of ten million rows, as many
as MAX_TABLE_BYTES hold, --max-reject-fraction allows this many by default."""
MAX_JSON_PARTS = 20_000_000
"""Commas and brackets in a JSON file, each of which makes a value of 50 bytes or more: three million pictures with a caption have 13
million, COCO's captions 4 million. A file with this many takes about 1 GB to read, but has 160 MB or more: see MIN_JSON_PART_BYTES."""
MIN_JSON_PART_BYTES = 8
"""Bytes per comma or bracket in a JSON file that has more than MAX_DENSE_JSON_PARTS of them: lists of captions have 20 to 30, Karpathy's,
which list each word, 12, and `{},` 1.5."""
MAX_DENSE_JSON_PARTS = 2_000_000
"""Commas and brackets in a JSON file of any density: reading them takes at most 150 MB."""
MAX_COPY_FILE_BYTES = 1 << 30
"""Size of a file in a copy of an evaluation set that is read whole; the largest, STL-10's test_X.bin, has 221 MB."""
MAX_CELLS = 1_000_000
"""Cells and fields in a MATLAB file, each of which becomes an object; Stanford Cars has 50,000."""
MAX_UNPACKED_BYTES = 128 << 20
"""Decompressed size of an evaluation set's gzip file; MNIST's has 8 MB."""
MAX_RDM_NAMES = 5000
"""Pictures in a dissimilarity matrix: correlating two of this size takes about 1 GB."""
MAX_RDM_BYTES = 1 << 30
"""Size of a dissimilarity matrix as .csv or .npy, which is read whole: 5,000 pictures in double precision take 200 MB as .npy."""
MAX_ARCHIVE_READ_BYTES = 16 << 20
"""Size of one read of a zip's or tar's headers: the directory of nights.zip has 7 MB, and a bomb may declare any size."""
MAX_TAR_READ_BYTES = 1 << 20
"""Size of one read of a tar's headers: a name has up to 4 kB, and tarfile makes an object for each value in an extended header."""
MAX_ARCHIVE_MEMBERS = 250_000
"""Files in one zip; nights.zip has 60,000."""
MAX_MEMBER_BYTES = 64 << 20
"""Unpacked size of a file in a zip of pictures; the largest in NIGHTS has 2 MB."""
MAX_ARCHIVE_RATIO = 20
"""Compression ratio of a zip: pictures are compressed already (NIGHTS: 1.0), a bomb has up to 1,000."""
MAX_TABLE_ROWS = 1_000_000
"""Rows in a parquet file that is read row by row; img2dataset writes 10,000."""
MAX_LIST_RATIO = 200
"""Compression ratio of the beginning of a list (.gz, .zst): text has 3 to 20, a bomb 1,000 and more."""


class Budget:
    """Limits how much is in use at one time, across the threads of a process or across the processes that share the budget.

    A request for more than the limit waits until nothing is in use, and then runs alone. First come, first served: nobody starves.
    """

    def __init__(self, limit: int, context: "SpawnContext | None" = None) -> None:
        """Allow `limit`; with a context, shared with the processes that it starts."""
        self.limit = limit
        make: Any = context or threading
        self._turn = make.Lock()
        self._freed = make.Condition()
        self._used: Any = context.Value("q", 0, lock=False) if context else _Number()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Hold `amount` inside the block; waits until that much is free."""
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._used.value == 0 or self._used.value + amount <= self.limit)
            self._used.value += amount
        try:
            yield
        finally:
            with self._freed:
                self._used.value -= amount
                self._freed.notify_all()


class _Number:
    """Stands in for multiprocessing's Value within one process."""

    value = 0


def parse_json(data: bytes | str, source: str, error: type[Exception] = InputError, most: int | None = None) -> Any:
    """Parse untrusted JSON.

    Args:
        data: the text, or its bytes in UTF-8 (-16, -32).
        source: names it in errors.
        error: what to raise.
        most: bytes (characters) allowed; None for no limit.

    Raises:
        error: not JSON, nested deeper than MAX_DEPTH, an integer of thousands of digits, more commas and brackets than MAX_JSON_PARTS
            and MIN_JSON_PART_BYTES allow, or longer than `most`.
    """
    check_size(len(data), most, source, error)
    brackets = _count(data, "[{")
    most_parts = min(MAX_JSON_PARTS, max(MAX_DENSE_JSON_PARTS, len(data) // MIN_JSON_PART_BYTES))
    if brackets + _count(data, ",") > most_parts:
        raise error(f"{source}: more than {most_parts:,} commas and brackets, the most that are read in {len(data):,} bytes")
    try:
        value = json.loads(data)
    except RecursionError as cause:
        raise error(f"{source}: nested deeper than {MAX_DEPTH} levels") from cause
    except ValueError as cause:  # json's own, UnicodeDecodeError, and int's of too many digits
        raise error(f"{source}: not JSON: {cause}") from cause
    if brackets > MAX_DEPTH and depth(value) > MAX_DEPTH:  # counting brackets is much faster than walking the value
        raise error(f"{source}: nested deeper than {MAX_DEPTH} levels")
    return value


def _count(data: bytes | str, letters: str) -> int:
    """How often any of the letters occurs."""
    return sum(data.count(letter) if isinstance(data, str) else data.count(letter.encode()) for letter in letters)


def depth(value: object) -> int:
    """Nesting levels of lists and mappings, counted without recursion."""
    deepest, level = 0, [value]
    while level:
        containers = [part for part in level if isinstance(part, dict | list)]
        deepest += bool(containers)
        level = [inner for part in containers for inner in (part.values() if isinstance(part, dict) else part)]
    return deepest


_LINE = re.compile(r"[^\r\n]*(?:\r\n|[\r\n])|[^\r\n]+")


def csv_rows(text: str, source: str, first: int = 1, **options: Any) -> Iterator[tuple[int, list[str]]]:
    """Parse untrusted CSV: the non-empty rows, each with the number of the line in which it ends.

    Args:
        text: the whole file.
        source: names it in errors.
        first: number of its first line.
        options: passed to csv.reader.

    Raises:
        InputError: not CSV, or a row of more than MAX_ROW_CHARS, however many lines it has.
    """
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        for line in _LINE.finditer(text):  # io.StringIO would take four bytes for each character
            taken += line.end() - line.start()
            if taken > MAX_ROW_CHARS:
                raise InputError(f"{source}: line {first + reader.line_num}: a row of more than {MAX_ROW_CHARS:,} characters")
            yield line[0]

    reader = csv.reader(lines(), **options)
    try:
        for fields in reader:
            taken = 0
            if fields:
                yield first + reader.line_num - 1, fields
    except csv.Error as error:
        raise InputError(f"{source}: line {first + reader.line_num - 1}: not CSV: {error}") from error


def check_size(size: int, most: int | None, source: str, error: type[Exception] = InputError) -> None:
    """Raise `error` if `size` exceeds `most`."""
    if most is not None and size > most:
        raise error(f"{source}: {size:,} bytes, but at most {most:,} are read")


def gunzip(data: bytes, source: str, most: int) -> bytes:
    """The content of a gzip file, all its members; InputError if it is damaged, truncated or larger than `most` bytes."""
    content, rest = bytearray(), data
    try:
        while rest:
            part = zlib.decompressobj(wbits=31)
            content += part.decompress(rest, most + 1 - len(content))
            if len(content) > most:
                raise InputError(f"{source}: more than {most:,} bytes when decompressed ({len(data):,} compressed): a decompression bomb?")
            if not part.eof:
                raise InputError(f"{source}: truncated gzip file")
            rest = part.unused_data.lstrip(b"\0")
    except zlib.error as error:
        raise InputError(f"{source}: incomplete or damaged gzip file: {error}") from error
    return bytes(content)


_FULL = {
    errno.ENOSPC: "No space left",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EFBIG: "File too large",
    errno.EROFS: "Read-only file system",
}


@contextmanager
def naming_full_disk(what: str, folder: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Turn a full disk inside the block into a RunError that names what was being written, and the full folder.

    Args:
        what: what was being written.
        folder: where it was written; None: the folder for temporary files.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        place = tempfile.gettempdir() if folder is None else os.fspath(folder)
        remedy = "free some space there, or set TMPDIR to a folder with more" if folder is None else "free some space there"
        raise RunError(f"{what}: cannot be written: {_FULL[error.errno]} in {place}: {remedy}") from error
