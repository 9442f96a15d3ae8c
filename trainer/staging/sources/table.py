"""Pairs from a folder with a list: a row names a picture, its caption or captions, and optionally label, split and family.

docs/DATA.md describes which files are lists, their forms and their column names.
"""

import ast
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trainer.bounds import MAX_CAPTIONS, MAX_DEPTH, MAX_TABLE_BYTES, check_size, csv_rows, depth
from trainer.errors import InputError
from trainer.staging import kinds
from trainer.staging.captions import BadCaptionError, caption_of, decode, first_captions, one_line, split_lines
from trainer.staging.foreign import shown
from trainer.staging.rows import Blob, PairRow, Reject, check_rejected, check_split, check_unique, safe_key
from trainer.staging.sources import records
from trainer.staging.sources.listing import Rows, SourceFile
from trainer.staging.sources.places import (
    AmbiguousNameError,
    Places,
    class_folders,
    folder_splits,
    named_split,
    split_in,
    split_of,
    tell_splits,
)
from trainer.staging.sources.records import Listed, Record

NAME = "captions.csv"
_STEMS = ("captions", "metadata")
_MOST_GUESSED = 16
_MAX_LISTED_CHARS = 1 << 16
"""Length of a CSV field that is a list of captions in JSON or Python syntax."""
READ = (
    "captions.csv or metadata.csv, .tsv, .jsonl, .json or .parquet with a column file (or file_name, image …) and a column caption "
    "(or text …) or label, COCO's and Karpathy's JSON, or a .txt or .json beside each picture"
)
"""Supported lists, for messages."""
_PLANNED = "is planned and fetched, by python -m trainer stage plan urls --list {uri} or with a YAML file of kind urls as the source"
_PLANNED += " (docs/DATA.md)"
_SHOWN_COLUMNS = 12


def is_list_file(uri: str, file: SourceFile) -> bool:
    """Whether a source is a list rather than a folder."""
    return uri.endswith(f"/{file.name}") and kinds.suffix_of(file.name) in records.SUFFIXES


def find(uri: str, files: Sequence[SourceFile], name: str = "") -> list[Listed]:
    """The lists of a folder; none if captions are beside the pictures, in tars, or missing.

    In order of preference: the list given as the source; captions.csv at the top; the files called captions or metadata; and, if no
    picture has a caption beside it, one file of any name that lists pictures and captions, or pictures and labels unless the
    pictures are in class folders.

    Raises:
        InputError: a list cannot be read, or several files could be the list.
    """
    by_name = {file.name: file for file in files}
    pictures = {file.name.rpartition(".")[0] for file in files if kinds.is_picture(file.name)}
    places = Places(uri, files)

    def open_one(file: SourceFile) -> Listed:
        return records.open_list(file, lambda name: _find_quietly(places, name) is not None)

    if name or NAME in by_name:
        return [_require_list(open_one(by_name[name or NAME]), bool(pictures))]
    if any(file.name.endswith(".tar") for file in files):
        return []
    beside = {file.name.rpartition(".")[0] for file in files if kinds.suffix_of(file.name) in (".txt", ".json", ".caption")}
    has_captions = not pictures.isdisjoint(beside)
    free = [file for file in files if kinds.suffix_of(file.name) in records.SUFFIXES and file.name.rpartition(".")[0] not in pictures]
    named = [file for file in free if _is_named_as_list(file)]
    lists = [listed for listed in map(open_one, named) if listed.is_list or not has_captions]
    if lists:
        labels_do = not any(listed.is_list for listed in lists)
        return _settle(uri, [_require_list(listed, bool(pictures), labels_do) for listed in lists])
    if has_captions:
        return []
    opened = [one for file in _guessed(free) for one in _open_quietly(open_one, file)]
    if not pictures and (of_urls := next((listed for listed in opened if listed.has_urls), None)):
        raise InputError(explain_urls(of_urls))
    if not pictures:
        return []
    found = [listed for listed in opened if listed.is_list]
    if not found and not class_folders([file.name for file in files if kinds.is_picture(file.name)]):
        found = [listed for listed in opened if listed.of_labels]
    return _settle(uri, found)


def _guessed(free: Sequence[SourceFile]) -> Sequence[SourceFile]:
    """Files that are inspected although their names do not mark them as lists."""
    few = free if len(free) <= _MOST_GUESSED else [file for file in free if kinds.suffix_of(file.name) not in (".txt", ".json")]
    return few[:_MOST_GUESSED]


def looked_into(uri: str, files: Sequence[SourceFile]) -> list[Listed]:
    """Files with several columns that `find` did not accept as a list, for messages; at most three."""
    free = [file for file in files if kinds.suffix_of(file.name) in records.SUFFIXES]
    opened = [listed for file in _guessed(free) for listed in _open_quietly(records.open_list, file)]
    return [listed for listed in opened if len(listed.columns) > 1][:3]


def _is_named_as_list(file: SourceFile) -> bool:
    stem = file.name.rpartition("/")[2].rpartition(".")[0].lower()
    return stem.startswith(_STEMS) and not stem.removeprefix("captions").removeprefix("metadata")[:1].isalnum()


def _open_quietly(open_one: Any, file: SourceFile) -> Iterator[Listed]:
    """Open a file that may be a list, ignoring one that cannot be read, unless it contains the pictures themselves."""
    try:
        yield open_one(file)
    except records.PicturesInParquetError:
        raise
    except InputError:
        return


def _find_quietly(places: Places, name: str) -> SourceFile | None:
    with suppress(AmbiguousNameError):
        return places.find(name)
    return None


def _require_list(listed: Listed, has_pictures: bool, labels_do: bool = True) -> Listed:
    """InputError if a list lacks a column or contains URLs: says what was found, what is supported, and how to convert it."""
    if listed.has_urls and ("file" not in listed.roles or not has_pictures):
        raise InputError(explain_urls(listed))
    if listed.is_list or (listed.of_labels and labels_do):
        return listed
    missing = [role for role in ("file", "caption") if role not in listed.roles]
    found = ", ".join(listed.columns) or "nothing"
    raise InputError(
        f"{listed.file.uri}: has no column {' and no column '.join(map(repr, missing))} (found: {listed.form} with {found}); "
        f"read are {READ}; {_conversion(listed, missing)}"
    )


def explain_urls(listed: Listed) -> str:
    """What to do with a list of pictures on the web."""
    uri, what = listed.file.uri, f"a list of URLs ({listed.form} with {', '.join(listed.columns[:_SHOWN_COLUMNS])})"
    if "caption" not in listed.roles and len(listed.columns) < 2:
        return f"{uri}: {what} without captions: it needs columns url and caption, one row per picture"
    return f"{uri}: {what}, which {_PLANNED.format(uri=uri)}"


def _conversion(listed: Listed, missing: Sequence[str]) -> str:
    """A one-line command that makes a list readable."""
    name, suffix = listed.file.name.rpartition("/")[2], kinds.suffix_of(listed.file.name)
    if listed.form.startswith("CSV"):
        renames = ";".join(f"1s/NAME/{role}/" for role in missing)
        return f"to rename its columns: sed -i '{renames}' {name} (NAME: the column that is the {' or the '.join(missing)})"
    read = {".parquet": "read_parquet(F)", ".json": "read_json(F)"}.get(suffix, "read_json(F, lines=True)")
    renames = ", ".join(f"NAME='{role}'" for role in missing)
    program = f"import pandas as p; F='{name}'; p.{read}.rename(columns=dict({renames})).to_csv('{NAME}', index=False)"
    return f'to convert it: python -c "{program}"'


def _settle(uri: str, lists: list[Listed]) -> list[Listed]:
    """Accept several lists as parts of one if each has its own folder, or is named after its own split; otherwise InputError."""
    parts = [(listed.file.name.rpartition("/")[0], split_in(listed.file.name)) for listed in lists]
    for number, part in enumerate(parts):
        if part in parts[:number]:
            first = lists[parts.index(part)]
            raise InputError(
                f"{uri}: found {first} and {lists[number]}, and either could be the list: keep only one, or rename the right one to {NAME}"
            )
    return lists


@dataclass(slots=True)
class _Picture:
    """The combined rows of one picture."""

    file: SourceFile
    place: str
    captions: list[str]
    facts: dict[str, str]


def read(uri: str, files: Sequence[SourceFile], lists: Sequence[Listed] | None = None) -> Rows[PairRow]:
    """Every picture of the lists; several captions are in one field (one per line), in a list, or in rows of their own.

    Args:
        uri: the folder's URI.
        files: the files in it.
        lists: its lists; default: they are searched for.

    Raises:
        InputError: no list, one without rows or without a column, an unknown split, or pictures whose names differ only in suffix.
    """
    lists = find(uri, files) if lists is None else lists
    places = Places(uri, files)
    pictures: dict[str, _Picture] = {}
    named: set[str] = set()
    rejects: list[Reject] = []
    usable = 0
    for listed in lists:
        count, taker = 0, _Taker(listed, places, pictures, named)
        for place, record in listed.rows():
            count += 1
            reject = record if isinstance(record, str) else taker.take(place, record)
            if isinstance(reject, str):
                reject = Reject(f"{listed.file.name}: {place}", "bad row", reject)
            if reject is not None:
                rejects.append(reject)
                check_rejected(rejects, usable + taker.usable, listed.file.uri)
        usable += taker.usable
        if not count:
            raise InputError(f"{listed.file.uri}: no rows below the header" if "CSV" in listed.form else f"{listed.file.uri}: no rows")
    check_unique((name.rpartition(".")[0] or name for name in pictures), lists[0].file.uri if lists else uri)
    rows, empty = _rows(pictures)
    rejects += empty
    rejects += (
        Reject(file.name, "not in the list", f"{lists[0].file.name} does not name it", counts=False)
        for file in files
        if kinds.is_picture(file.name) and file.name not in named
    )
    return Rows(rows=rows, rejects=rejects)


class _Taker:
    """Collects the rows of one list by picture."""

    def __init__(self, listed: Listed, places: Places, pictures: dict[str, _Picture], named: set[str]) -> None:
        """`named` receives the names of all pictures in the list, usable or not."""
        self.usable = 0
        self._listed = listed
        self._places = places
        self._pictures = pictures
        self._named = named
        self._folder, _, base = listed.file.name.rpartition("/")
        self._part = split_in(base) or split_of(self._folder.rpartition("/")[2])
        self._roles: list[str] = [role for role in ("label", "split", "family") if role in listed.roles]
        self._is_table = "CSV" in listed.form

    def take(self, place: str, record: Record) -> Reject | str | None:
        """Collect a row; returns None, or why it is not used, as a reject or in words."""
        value = self._first(record, "file")
        if isinstance(value, bool) or not isinstance(value, str | int):
            return f"the picture's name must be text, got {shown(value)}"
        name, where = str(value).strip(), f"{place} of {self._listed.file.name}"
        try:
            facts = self._facts(place, record) if self._roles else {}
            file = self._places.find(name, self._folder, facts.get("split") or self._part)
            if file is None:
                self._refuse_url(place, name)
                return Reject(name or place, "no such file", f"{where}: not a file of this folder")
            name = file.name
            self._named.add(name)
            if name.lower().endswith(kinds.NOT_READ):
                return Reject(name, kinds.UNREAD_CAUSE, kinds.explain_unread(kinds.suffix_of(name)))
            captions = self._captions(record, facts.get("label", ""), where)
        except AmbiguousNameError as error:
            return Reject(name, "ambiguous name", f"{where}: {error}")
        except BadCaptionError as error:
            return Reject(name, error.cause, error.detail)
        picture = self._pictures.get(name)
        if picture is None:
            self._pictures[name] = _Picture(file, where, list(dict.fromkeys(captions)), {**facts, "part": self._part})
            self.usable += 1
            return None
        for role, text in {**facts, "part": self._part}.items():
            known = picture.facts.get(role, "")
            if text and known and text != known:
                return f"{role} {text!r} of {name}, but {known!r} in {picture.place}"
            picture.facts[role] = known or text
        if len(picture.captions) > MAX_CAPTIONS:  # already lost, so its further rows need no comparison
            return None
        new = [caption for caption in dict.fromkeys(captions) if caption not in picture.captions]
        picture.captions += new
        self.usable += bool(new)
        return None if new else Reject(name, "duplicate", f"{where}: says what {picture.place} says", counts=False)

    def _captions(self, record: Record, label: str, where: str) -> tuple[str, ...]:
        if self._listed.of_labels:
            return first_captions([caption_of(label, where)], where)
        values = [record.get(column) for column in self._listed.roles["caption"]]
        return first_captions(map(_cell, values) if self._is_table else values, where)

    def _first(self, record: Record, role: str) -> object:
        """A row's value in the first non-empty column for a role."""
        for column in self._listed.roles[role]:
            value = record.get(column)
            if value is not None and value != "":
                return value
        return ""

    def _facts(self, place: str, record: Record) -> dict[str, str]:
        where = f"{place} of {self._listed.file.name}"
        facts = {role: one_line(self._first(record, role), f"{where}: {role}") for role in self._roles}
        if facts.get("split"):
            facts["split"] = check_split(named_split(facts["split"], self._listed.known_splits), f"{self._listed.file.uri}: {place}")
        return facts

    def _refuse_url(self, place: str, name: str) -> None:
        if records.is_url(name):
            uri = self._listed.file.uri
            raise InputError(f"{uri}: {place}: {name} is a URL: a list of URLs {_PLANNED.format(uri=uri)}")


def _cell(value: object) -> object:
    """The value of a CSV field: captions, one per line, or a list of them in JSON or Python syntax."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] != "[" and "\n" not in text and "\r" not in text:
        return text
    if text[:1] == "[" and text[-1:] == "]" and len(text) <= _MAX_LISTED_CHARS and (found := _list_in(text)) is not None:
        if depth(found) > MAX_DEPTH:
            raise BadCaptionError("caption not JSON", f"nested deeper than {MAX_DEPTH} levels")
        return found
    return split_lines(text)


def _list_in(text: str) -> list[object] | None:
    """The list that a text represents, or None; its strings are captions, its brackets are not."""
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            found = parse(text)
            if isinstance(found, list):
                return found
    return None


def _rows(pictures: dict[str, _Picture]) -> tuple[list[PairRow], list[Reject]]:
    """The pictures as rows; without a split in the rows, that of the lists or folders is used, if all have one."""
    rows: list[PairRow] = []
    rejects: list[Reject] = []
    splits = {name: picture.facts.get("split", "") for name, picture in pictures.items()}
    if not any(splits.values()):
        splits = {name: picture.facts["part"] for name, picture in pictures.items()}
        if not tell_splits(splits.values()):
            splits = folder_splits(pictures)
    for name, picture in pictures.items():
        if len(picture.captions) > MAX_CAPTIONS:
            rejects.append(Reject(name, "too many captions", f"{picture.place}: more than {MAX_CAPTIONS}"))
            continue
        rows.append(
            PairRow(
                key=safe_key(name.rpartition(".")[0] or name),
                where=name,
                image=Blob(picture.file.uri, length=picture.file.size),
                captions=tuple(picture.captions),
                label=picture.facts.get("label", ""),
                split=splits.get(name, ""),
                family=picture.facts.get("family", ""),
            )
        )
    return rows, rejects


def read_csv(table: SourceFile, required: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV file by column name; InputError if it is not UTF-8 or lacks a column."""
    check_size(table.size, MAX_TABLE_BYTES, table.uri)
    try:
        text = decode(Blob(table.uri).read())
    except ValueError as error:
        raise InputError(f"{table.uri}: {error}") from error
    rows = csv_rows(text, table.uri, strict=True)
    columns = [column.strip() for column in next(rows, (0, []))[1]]
    missing = [column for column in required if column not in columns]
    if missing:
        has = ", ".join(columns) or "nothing"
        raise InputError(f"{table.uri}: has no column {' and no column '.join(map(repr, missing))} (its first line: {has})")
    for line, fields in rows:
        if len(fields) != len(columns):
            raise InputError(f"{table.uri}: line {line} must have {len(columns)} columns, like the first line")
        yield dict(zip(columns, fields, strict=True))
