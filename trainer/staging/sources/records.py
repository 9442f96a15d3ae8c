"""Lists of pictures in every supported form: CSV with any separator, JSON, JSON lines, COCO's and Karpathy's JSON, parquet.

`open_list` detects a list's form and columns, and yields its rows one by one.
"""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.bounds import MAX_HEADER_CHARS, MAX_ROW_CHARS, MAX_TABLE_BYTES, MAX_TABLE_ROWS, check_size, csv_rows, parse_json
from trainer.errors import InputError, RunError
from trainer.staging.captions import decode
from trainer.staging.foreign import shown
from trainer.staging.kinds import suffix_of
from trainer.staging.parquet import BROKEN, first_line, folded, read_batches
from trainer.staging.ranges import RangeReader
from trainer.staging.rows import Blob
from trainer.staging.sources.listing import SourceFile
from trainer.storage import open_store

SUFFIXES = (".csv", ".tsv", ".psv", ".tab", ".txt", ".token", ".jsonl", ".ndjson", ".json", ".parquet")
"""Suffixes of files that may be a list."""
COLUMNS = {
    "file": (
        "file", "filename", "filepath", "image", "imagename", "imagefile", "imagepath", "img", "imgname", "imgpath", "path", "picture",
        "photo", "imageid",
    ),
    "caption": (
        "captions", "caption", "text", "texts", "sentences", "sentence", "comment", "raw", "description", "alttext", "title", "prompt",
    ),
    "label": ("label", "class", "classname"),
    "split": ("split", "subset"),
    "family": ("family",),
    "url": ("url", "imageurl", "imgurl", "imagelink", "originalurl"),
}  # fmt: skip
"""Role -> column names for it, in order of preference; case, spaces, hyphens and underscores are ignored."""
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_SHOWN_COLUMNS = 12
_SEEN_ROWS = 100  # rows of JSON that are inspected: their keys are the columns
_BLOCK_BYTES = 1 << 20

Record = dict[str, Any]


class PicturesInParquetError(InputError):
    """A parquet file contains the pictures themselves, and is not a list."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An opened list.

    Attributes:
        file: the file.
        form: CSV, JSON lines …, for people.
        columns: its columns, for people.
        roles: role -> the columns with it.
        rows: the place of each row, and its values by column or, for a bad row, what is wrong with it.
        splits: further names of splits, with their meaning.
    """

    file: SourceFile
    form: str
    columns: Sequence[str]
    roles: dict[str, list[str]]
    rows: Callable[[], Iterable[tuple[str, Record | str]]]
    known_splits: tuple[tuple[str, str], ...] = ()

    @property
    def is_list(self) -> bool:
        """Whether its rows name pictures and captions."""
        return "file" in self.roles and "caption" in self.roles

    @property
    def of_labels(self) -> bool:
        """Whether its rows name pictures and labels but no captions: labels are then used as captions, like those of class folders."""
        return "file" in self.roles and "label" in self.roles and "caption" not in self.roles

    @property
    def has_urls(self) -> bool:
        """Whether its rows contain URLs of pictures, in a URL column or in a list without a header."""
        return "url" in self.roles or any(is_url(column) for column in self.columns)

    def __str__(self) -> str:
        """The list as named in messages."""
        columns = ", ".join(self.columns[:_SHOWN_COLUMNS]) + (", …" if len(self.columns) > _SHOWN_COLUMNS else "")
        return f"{self.file.name} ({self.form} with {columns or 'no columns'})"


def open_list(file: SourceFile, is_picture: Callable[[str], bool] = lambda name: False) -> Listed:
    """Open a list.

    Args:
        file: a file with one of SUFFIXES.
        is_picture: whether a name is that of a picture, for lists without a header.

    Raises:
        InputError: not UTF-8, or not in the form that its suffix implies.
    """
    suffix = suffix_of(file.name)
    if suffix == ".parquet":
        return _open_parquet(file)
    check_size(file.size, MAX_TABLE_BYTES, file.uri)
    data = Blob(file.uri).read()
    try:
        text = decode(data)
    except ValueError as error:
        raise InputError(f"{file.uri}: {error}") from error
    del data
    if suffix in (".jsonl", ".ndjson") and text.lstrip()[:1] != "[":
        return _open_json_lines(file, text)
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _open_json(file, text, is_picture)
    return _open_table(file, text, is_picture)


def roles_of(columns: Iterable[str]) -> dict[str, list[str]]:
    """Role -> the columns with it, in the order of COLUMNS."""
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(re.sub(r"[\s_-]+", "", column.lower()), column)
    found = {role: [by_name[name] for name in names if name in by_name] for role, names in COLUMNS.items()}
    return {role: names for role, names in found.items() if names}


def is_url(text: str) -> bool:
    """Whether a text is a web URL."""
    return text[:8].lower().startswith(("http://", "https://"))


def _is_list(columns: Iterable[str]) -> bool:
    return {"file", "caption"} <= roles_of(columns).keys()


def _open_table(file: SourceFile, text: str, is_picture: Callable[[str], bool]) -> Listed:
    """Open a CSV. The separator is the one that yields columns for picture and caption in the first line."""
    first = text[: text.find("\n")] if "\n" in text else text
    if len(first) > MAX_HEADER_CHARS:
        raise InputError(f"{file.uri}: its first line has {len(first):,} characters, but at most {MAX_HEADER_CHARS:,} name columns")
    headers = {separator: _fields(first, separator) for separator in _SEPARATORS}
    ordered = sorted(headers, key=lambda separator: -len(headers[separator]))
    of_urls = (one for one in ordered if any(map(is_url, headers[one])))
    separator = next((one for one in ordered if _is_list(headers[one])), next(of_urls, ordered[0]))
    columns = headers[separator]
    form = f"CSV separated by {_SEPARATORS[separator]}" if separator != "," else "CSV"
    body, first_row = text, 2
    if not _is_list(columns):
        for one in ordered:
            fields = headers[one]
            if len(fields) == 2 and is_picture(_without_number(fields[0])):
                separator, columns, first_row = one, ["file", "caption"], 1
    if first_row == 2:
        body = text[len(first) + 1 :]
    numbered = first_row == 1

    def rows() -> Iterator[tuple[str, Record | str]]:
        for number, fields in enumerate(_table_rows(file, body, first_row, separator, len(columns)), start=first_row):
            if len(fields) != len(columns):
                yield f"row {number}", f"line {number} must have {len(columns)} columns, as the first line has, and has {len(fields)}"
                continue
            if numbered:
                fields[0] = _without_number(fields[0])
            yield f"row {number}", dict(zip(columns, fields, strict=True))

    return Listed(file=file, form=form, columns=columns, roles=roles_of(columns), rows=rows)


def _fields(line: str, separator: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator, strict=True), [])]
    except csv.Error:
        return [field.strip() for field in line.split(separator)]


def _without_number(name: str) -> str:
    """Remove the caption number that Flickr8k's list appends to a picture's name: `1000.jpg#0`."""
    return re.sub(r"#\d+$", "", name)


def _table_rows(file: SourceFile, body: str, first: int, separator: str, width: int) -> Iterator[list[str]]:
    """The fields of each non-empty row.

    With commas and semicolons, quotes follow CSV. With tabs and bars, quotes are often literal: a field is unquoted only if it is
    quoted as a whole, as long as every line has all the columns; otherwise rows span lines, and CSV rules apply again.
    """
    if separator in "\t|":
        if all(line.count(separator) + 1 == width for line in _lines(body) if line):
            yield from ([_unquoted(field) for field in line.split(separator)] for line in _lines(body) if line)
            return
        if '"' not in body:
            if max(map(len, _lines(body))) > MAX_ROW_CHARS:
                raise InputError(f"{file.uri}: a row of more than {MAX_ROW_CHARS:,} characters")
            yield from (line.split(separator) for line in _lines(body) if line)
            return
    yield from (fields for _, fields in csv_rows(body, file.uri, first, delimiter=separator, strict=True))


def _lines(text: str) -> Iterator[str]:
    """The lines of a text, one in memory at a time: a list of short ones takes twenty times as much as the text."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end].removesuffix("\r")
        start = end + 1
    yield text[start:].removesuffix("\r")


def _unquoted(field: str) -> str:
    field = field.strip()
    if len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', ""):
        return field[1:-1].replace('""', '"')
    return field


def _open_json_lines(file: SourceFile, text: str) -> Listed:
    def rows() -> Iterator[tuple[str, Record | str]]:
        for number, line in enumerate(_lines(text), start=1):
            if not line or line.isspace():
                continue
            try:
                value = parse_json(line, f"line {number}", ValueError)  # an InputError looks for credentials, for 50 us a row
            except ValueError as error:
                yield f"line {number}", str(error)
                continue
            yield f"line {number}", value if isinstance(value, dict) else f"expected an object, got {shown(value)}"

    return _listed(file, "JSON lines", rows)


def _open_json(file: SourceFile, text: str, is_picture: Callable[[str], bool]) -> Listed:
    """Open JSON: a list of objects (also as the only list in an object), captions or objects by file name, COCO's or Karpathy's."""
    try:
        value = parse_json(text, file.uri)
    except InputError:
        first = text.lstrip().partition("\n")[0]
        if not (first.startswith("{") and first.rstrip().endswith("}")):
            raise
        return _open_json_lines(file, text)
    if isinstance(value, dict) and isinstance(value.get("images"), list):
        if any(isinstance(image, dict) and "sentences" in image for image in value["images"][:1]):
            return _listed(file, "Karpathy's JSON", lambda: _karpathy_rows(value["images"]), (("restval", "train"),))
        if isinstance(value.get("annotations"), list):
            return _listed(file, "COCO's JSON", lambda: _coco_rows(value))
    within = list(value.values()) if isinstance(value, dict) else []
    lists = [value] if isinstance(value, list) else [one for one in within if _holds_objects(one)]
    if len(lists) == 1:
        return _listed(file, "JSON", lambda: _numbered(lists[0]))
    columns = list(value) if isinstance(value, dict) else []
    if columns and (suffix_of(columns[0]) or is_picture(columns[0])):
        if not any(isinstance(one, dict) for one in within):
            pairs = [{"file": name, "caption": captions} for name, captions in value.items()]
            return _listed(file, "JSON of captions by file name", lambda: _numbered(pairs))
        if all(isinstance(one, dict) for one in within):
            objects = [{**one, "file": name} for name, one in value.items()]
            return _listed(file, "JSON of objects by file name", lambda: _numbered(objects))
    return Listed(file=file, form="JSON", columns=columns, roles={}, rows=lambda: ())


def _listed(
    file: SourceFile, form: str, rows: Callable[[], Iterable[tuple[str, Record | str]]], known_splits: tuple[tuple[str, str], ...] = ()
) -> Listed:
    """A list whose columns are the keys of its first rows."""
    columns: dict[str, None] = {}
    for (_, row), _ in zip(rows(), range(_SEEN_ROWS), strict=False):
        columns |= dict.fromkeys(row) if isinstance(row, dict) else {}
    return Listed(file=file, form=form, columns=list(columns), roles=roles_of(columns), rows=rows, known_splits=known_splits)


def _holds_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _numbered(entries: Sequence[object]) -> Iterator[tuple[str, Record | str]]:
    for number, entry in enumerate(entries, start=1):
        yield f"entry {number}", entry if isinstance(entry, dict) else f"expected an object, got {shown(entry)}"


def _coco_rows(value: dict[str, Any]) -> Iterator[tuple[str, Record | str]]:
    """One row per image, with all its captions; other annotations (boxes, masks) have none."""
    captions: dict[object, list[object]] = defaultdict(list)
    of_captions = False
    for number, annotation in enumerate(value["annotations"], start=1):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(image_id, int | str):
            yield f"annotation {number}", f"has no image_id: {shown(annotation)}"
        elif "caption" in annotation:
            captions[image_id].append(annotation["caption"])
            of_captions = True
    for number, image in enumerate(value["images"], start=1):
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            yield f"image {number}", f"has no id: {shown(image)}"
            continue
        found = captions.pop(image["id"], [])
        yield f"image {number}", {"file": image.get("file_name"), **({"caption": found} if of_captions else {})}
    for image_id in captions:
        yield f"image {shown(image_id)}", "has captions, but no entry among the images"


def _karpathy_rows(images: Sequence[Any]) -> Iterator[tuple[str, Record | str]]:
    for number, image in enumerate(images, start=1):
        place = f"image {number}"
        if not isinstance(image, dict) or not isinstance(image.get("sentences"), list):
            yield place, f"has no sentences: {shown(image)}"
            continue
        name, folder = image.get("filename"), image.get("filepath")
        captions = [sentence.get("raw") for sentence in image["sentences"] if isinstance(sentence, dict)]
        yield place, {"file": f"{folder}/{name}" if folder and name else name, "caption": captions, "split": image.get("split")}


def _open_parquet(file: SourceFile) -> Listed:
    with _parquet(file) as parquet:
        schema, count = parquet.schema_arrow, parquet.metadata.num_rows
    pictures = {field.name for field in schema if pa.types.is_struct(field.type) or pa.types.is_binary(field.type)}
    roles = roles_of(name for name in schema.names if name not in pictures)
    if "file" not in roles and "file" in roles_of(pictures):
        (column,) = roles_of(pictures)["file"][:1]
        raise PicturesInParquetError(
            f"{file.uri}: contains the pictures themselves, in the column {column!r}: convert it to tars with python -m trainer stage "
            "unpack --source FOLDER --folder TARS, then stage TARS"
        )
    check_size(file.size, MAX_TABLE_BYTES, file.uri)
    if not 0 <= count <= MAX_TABLE_ROWS:
        raise InputError(f"{file.uri}: {shown(count)} rows, at most {MAX_TABLE_ROWS:,} are read")
    wanted = [name for names in roles.values() for name in names]

    def rows() -> Iterator[tuple[str, Record | str]]:
        with _parquet(file, folded) as parquet:
            for number, row in enumerate(read_batches(parquet, file.uri, wanted, MAX_TABLE_BYTES), start=1):
                yield f"row {number}", row

    return Listed(file=file, form="parquet", columns=schema.names, roles=roles, rows=rows)


@contextmanager
def _parquet(file: SourceFile, opened: Callable[[Any], pq.ParquetFile] = pq.ParquetFile) -> Iterator[pq.ParquetFile]:
    """Open a parquet file, reading only what is needed; InputError if it is incomplete."""
    store = open_store(file.uri)
    ranges = RangeReader(file.size, lambda start, length: store.get_unsealed(file.uri, start, length))
    try:
        with opened(io.BufferedReader(ranges, _BLOCK_BYTES)) as parquet:
            yield parquet
    except (InputError, RunError):
        raise
    except BROKEN as error:
        raise InputError(f"{file.uri}: not a whole parquet file: {first_line(error)}") from error
