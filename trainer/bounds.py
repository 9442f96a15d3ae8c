"""How much of what others wrote is taken: files, archives and pictures may be made to hurt, or be damaged.

A bound lies far above what any real source holds, and far below what stops a pod of 4 GiB. docs/DATA.md lists all of them.
Whoever meets one says which file, which bound and what was found, in one line.
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
"""Levels of JSON and YAML inside each other; configurations have 5. What is deeper exhausts the stack of whoever walks it."""
MAX_YAML_BYTES = 256 << 10
"""Of a recipe, request, profile or list of settings; they have a few kB, and PyYAML reads 200 kB in about 1 s."""
MAX_YAML_NODES = 10_000
"""Values of a YAML file once each alias is written out ("billion laughs"): PyYAML reads so many in about 1 s."""
MAX_NUMBER_CHARS = 1000
"""Characters of a number in YAML: the time to convert one grows with the square of its length."""
MAX_PIXELS = 100_000_000
"""Of one picture, by its header: a decoded one takes 4 bytes a pixel, and 4 more while it is converted."""
MAX_PIXELS_A_BYTE = 32
"""Of a picture of more than 25 megapixels: photos have 3 to 20, however they are packed, and a bomb of one colour 250 and more."""
MAX_DECODED_BYTES = 8 * MAX_PIXELS
"""Of memory to decode one picture: 4 bytes a pixel, but of AVIF 10, of WebP 16 and of JPEG 2000 20."""
MAX_DECODED_BYTES_IN_FLIGHT = 256 << 20
"""Of all pictures that a process and those it started decode at one time; what takes more is decoded alone."""
MAX_PICTURE_BYTES = 8 * MAX_PIXELS
"""Of an encoded picture: the largest one with four channels of 16 bits, not packed at all."""
MAX_PICTURE_BYTES_IN_FLIGHT = 256 << 20
"""Of encoded pictures of a local source that are held at one time; a larger one is held alone."""
MAX_CAPTION_BYTES = 1 << 20
"""Of a sample's .txt, .caption, .json or .cls, and of an annotation in XML; Flickr's longest descriptions have 64 kB."""
MAX_CAPTIONS = 1000
"""Of one sample; the sets in use have up to 20."""
MAX_SET_SHARDS = 100_000
"""Of a split of an evaluation set; CLIP_benchmark writes up to a few hundred."""
MAX_TEMPLATES = 1000
"""Of an evaluation set, each filled with every class name; CLIP_benchmark's have up to 80."""
MAX_TABLE_BYTES = 1 << 30
"""Of captions.csv and data.csv, which are read whole: ten million rows."""
MAX_HEADER_CHARS = 64 << 10
"""Of the first line of a list, which names its columns."""
MAX_ROW_CHARS = 4 << 20
"""Of a row of a CSV file, however many lines and fields it has."""
MAX_REJECTED_ROWS = 100_000
"""Of a source's lists, while fewer rows are usable: each is kept with its cause, 350 bytes for a row that may have three. Of ten million
rows, as many as MAX_TABLE_BYTES hold, --max-reject-fraction allows as many unless it is raised."""
MAX_JSON_PARTS = 20_000_000
"""Commas and brackets of a JSON file, each of which makes a value of 50 bytes or more: three million pictures with a caption have 13
million, COCO's captions 4 million. As many as are read take about 1 GB, but only of a file of 160 MB and more: MIN_JSON_PART_BYTES."""
MIN_JSON_PART_BYTES = 8
"""Bytes of a JSON file over its commas and brackets, where these are more than MAX_DENSE_JSON_PARTS: lists of captions have 20 to 30,
Karpathy's with each word 12, `{},` 1.5."""
MAX_DENSE_JSON_PARTS = 2_000_000
"""Commas and brackets of a JSON file, however close to each other: at most 150 MB."""
MAX_COPY_FILE_BYTES = 1 << 30
"""Of one file of an evaluation set's copy that is read whole; the largest, STL-10's test_X.bin, has 221 MB."""
MAX_CELLS = 1_000_000
"""Cells and fields of a MATLAB file, each of which becomes an object; Stanford Cars has 50,000."""
MAX_UNPACKED_BYTES = 128 << 20
"""Of a gzip file of an evaluation set; MNIST's has 8 MB."""
MAX_RDM_NAMES = 5000
"""Pictures of a dissimilarity matrix: a correlation with it takes about 1 GB."""
MAX_RDM_BYTES = 1 << 30
"""Of a dissimilarity matrix as .csv or .npy, which is read whole: 5,000 pictures in double precision have 200 MB as .npy."""
MAX_ARCHIVE_READ_BYTES = 16 << 20
"""Of one read of a tar's or zip's own headers: the directory of nights.zip has 7 MB, and a bomb may declare any size."""
MAX_TAR_READ_BYTES = 1 << 20
"""Of one read of a tar's headers: a name has up to 4 kB, and tarfile makes an object of each value of an extended header."""
MAX_ARCHIVE_MEMBERS = 250_000
"""Files of one zip; nights.zip has 60,000."""
MAX_MEMBER_BYTES = 64 << 20
"""Of one file of a zip of pictures, unpacked; NIGHTS' largest has 2 MB."""
MAX_ARCHIVE_RATIO = 20
"""Bytes of a zip's files, unpacked, over those of the zip: pictures are packed already (NIGHTS: 1.0), a bomb has up to 1,000."""
MAX_TABLE_ROWS = 1_000_000
"""Rows of one parquet file that is read row by row; img2dataset writes 10,000."""
MAX_LIST_RATIO = 200
"""Bytes of a packed list (.gz, .zst), unpacked, over those of its packed beginning: text has 3 to 20, a bomb 1,000 and more."""


class Budget:
    """An amount that is in use at one time at most, over the threads of a process, or over processes that are given the budget.

    Whoever wants more than the whole waits until all is free, and has it alone. First come, first served: nobody starves.
    """

    def __init__(self, limit: int, context: "SpawnContext | None" = None) -> None:
        """Of `limit`; with a context, for processes that it starts."""
        self.limit = limit
        make: Any = context or threading
        self._turn = make.Lock()
        self._freed = make.Condition()
        self._used: Any = context.Value("q", 0, lock=False) if context else _Number()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Hold `amount` of it inside the block, as soon as there is so much."""
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
    """As multiprocessing's Value."""

    value = 0


def parse_json(data: bytes | str, source: str, error: type[Exception] = InputError, most: int | None = None) -> Any:
    """JSON of others.

    Args:
        data: the text, or its bytes in UTF-8 (-16, -32).
        source: names it in errors.
        error: what to raise.
        most: bytes (characters) that are taken.

    Raises:
        error: not JSON, nested deeper than MAX_DEPTH, a whole number of thousands of digits, of more parts than MAX_JSON_PARTS and
            MIN_JSON_PART_BYTES allow, or longer than `most`.
    """
    check_size(len(data), most, source, error)
    brackets = _count(data, "[{")
    most_parts = min(MAX_JSON_PARTS, max(MAX_DENSE_JSON_PARTS, len(data) // MIN_JSON_PART_BYTES))
    if brackets + _count(data, ",") > most_parts:
        raise error(f"{source}: more than {most_parts:,} commas and brackets, as many as are read of {len(data):,} bytes")
    try:
        value = json.loads(data)
    except RecursionError as cause:
        raise error(f"{source}: nested deeper than {MAX_DEPTH} levels") from cause
    except ValueError as cause:  # json's own, UnicodeDecodeError, and int's of too many digits
        raise error(f"{source}: not JSON: {cause}") from cause
    if brackets > MAX_DEPTH and depth(value) > MAX_DEPTH:  # to count brackets is much faster than to walk the value
        raise error(f"{source}: nested deeper than {MAX_DEPTH} levels")
    return value


def _count(data: bytes | str, letters: str) -> int:
    """How many of the letters there are."""
    return sum(data.count(letter) if isinstance(data, str) else data.count(letter.encode()) for letter in letters)


def depth(value: object) -> int:
    """Levels of lists and mappings inside each other, walked without recursion."""
    deepest, level = 0, [value]
    while level:
        containers = [part for part in level if isinstance(part, dict | list)]
        deepest += bool(containers)
        level = [inner for part in containers for inner in (part.values() if isinstance(part, dict) else part)]
    return deepest


_LINE = re.compile(r"[^\r\n]*(?:\r\n|[\r\n])|[^\r\n]+")


def csv_rows(text: str, source: str, first: int = 1, **options: Any) -> Iterator[tuple[int, list[str]]]:
    """The rows of CSV of others that have any field, each with the number of the line in which it ends.

    Args:
        text: all of it.
        source: names it in errors.
        first: number of its first line.
        options: of csv.reader.

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
    """Refuse what has more bytes than are taken of its kind."""
    if most is not None and size > most:
        raise error(f"{source}: {size:,} bytes, but at most {most:,} are read")


def gunzip(data: bytes, source: str, most: int) -> bytes:
    """The content of a gzip file, all its parts; InputError if it is damaged, cut short or more than `most` bytes."""
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
    """A disk that takes no more inside the block is a RunError that names what was written, and the folder that is full.

    Args:
        what: was being written.
        folder: it was written to; None: that of temporary files.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        place = tempfile.gettempdir() if folder is None else os.fspath(folder)
        remedy = "free some space there, or set TMPDIR to a folder with more" if folder is None else "free some space there"
        raise RunError(f"{what}: cannot be written: {_FULL[error.errno]} in {place}: {remedy}") from error
