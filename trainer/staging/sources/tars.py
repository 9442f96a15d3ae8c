"""Pairs from WebDataset tars, img2dataset's output included.

Members of one sample share a name up to its first dot. Pictures that img2dataset could not fetch are listed in the table that
it writes beside each tar: they are counted, but not as faults.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from trainer.bounds import MAX_CAPTION_BYTES, MAX_COPY_FILE_BYTES, check_size
from trainer.errors import InputError
from trainer.staging import kinds
from trainer.staging.captions import (
    NO_CAPTION,
    BadCaptionError,
    Facts,
    NoCaptionError,
    as_words,
    check_caption_size,
    clean_name,
    read_facts,
)
from trainer.staging.foreign import lines_of, text_of
from trainer.staging.parquet import read_parquet
from trainer.staging.ranges import BoundedReader, RangeReader
from trainer.staging.rows import Blob, PairRow, Reject, check_rejected, check_split, safe_key
from trainer.staging.sources.listing import Rows, SourceFile
from trainer.storage import open_store
from trainer.storage.tarfiles import Member, by_sample, read_members

_BLOCK_BYTES = 4 << 20
_SMALL = ("txt", "caption", "json", "cls")
_CLASS_NAMES = "classnames.txt"
_STATS = "_stats.json"  # img2dataset writes it beside each finished tar
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")


def read(uri: str, files: Sequence[SourceFile]) -> Rows[PairRow]:
    """Every sample of every tar of the folder. If none has a caption, class labels are used as captions.

    Raises:
        InputError: a tar is invalid, truncated or compressed, two samples in a tar have one name, or no tar has a picture.
    """
    names = next((_class_names(file) for file in files if file.name == _CLASS_NAMES), [])
    by_name = {file.name: file for file in files}
    rows: list[PairRow] = []
    rejects: list[Reject] = []
    labelled: list[tuple[PairRow, Reject]] = []
    for file in files:
        if file.name.lower().endswith(_PACKED):
            raise InputError(f"{file.uri}: compressed tars are not supported: decompress it first (gzip -d, xz -d, zstd -d)")
        if kinds.suffix_of(file.name) in (*kinds.READ, *kinds.NOT_READ):
            rejects.append(Reject(file.name, "picture beside tars", f"{uri} is read as tars: keep loose pictures in a folder of their own"))
        if not file.name.endswith(".tar"):
            continue
        base, keys = file.name.removesuffix(".tar"), set[str]()
        try:
            samples = list(by_sample(walk(file), file.uri))
        except InputError as error:
            raise InputError(f"{error}{_unfinished(base, by_name)}") from error
        if not samples or _unfinished(base, by_name):
            what = "has no samples" if not samples else _unfinished(base, by_name).removeprefix(": ")
            print(f"{file.uri}: {what}", file=sys.stderr)
        for key, members in samples:
            keys.add(key)
            where = f"{file.name}: {key}"
            row, reject = _row(where, f"{base}/{key}", file, members, names)
            if row and reject:
                labelled.append((row, reject))
            rows += [row] if row and not reject else []
            rejects += [reject] if reject and not row else []
        if (table := by_name.get(f"{base}.parquet")) is not None:
            for lost in _not_fetched(file, table, keys):
                rejects.append(lost)
                check_rejected(rejects, len(rows) + len(labelled), table.uri)
    if rows:
        rejects += (reject for _, reject in labelled)
    else:
        rows = [replace(row, captions=(as_words(row.label),)) for row, _ in labelled]
    if not rows and all(reject.cause == "no picture" for reject in rejects):
        raise InputError(f"{uri}: no pictures in its tars (looked for {', '.join(kinds.READ)})")
    return Rows(rows=rows, rejects=rejects)


def _unfinished(base: str, by_name: dict[str, SourceFile]) -> str:
    """A hint for errors about a tar that lacks img2dataset's `_stats.json` although other tars have theirs; else empty."""
    if f"{base}{_STATS}" in by_name or not any(name.endswith(_STATS) for name in by_name):
        return ""
    return f": img2dataset has not finished it (no {base}{_STATS} beside it): let it finish, or remove the tar"


def _class_names(file: SourceFile) -> list[str]:
    check_size(file.size, MAX_CAPTION_BYTES, file.uri)
    return lines_of(text_of(Blob(file.uri).read(), file.uri))


def _not_fetched(tar: SourceFile, table: SourceFile, keys: set[str]) -> Iterator[Reject]:
    """Rejects for rows that img2dataset could not fetch, and for those that it lists as fetched but the tar lacks."""
    check_size(table.size, MAX_COPY_FILE_BYTES, table.uri)
    for row in read_parquet(Blob(table.uri).read(), table.uri, ["key", "status", "error_message"]):
        if row["status"] != "success":
            why = str(row["error_message"] or row["status"])
            yield Reject(f"{tar.name}: {row['key']}", "not fetched by its maker", why, counts=False)
        elif str(row["key"]) not in keys:
            yield Reject(f"{tar.name}: {row['key']}", "not in its tar", f"{table.name} says that it was fetched")


def walk(file: SourceFile) -> list[Member]:
    """The members of a tar in a store; captions, facts and classes with their bytes."""
    store = open_store(file.uri)
    ranges = RangeReader(file.size, lambda start, length: store.get_unsealed(file.uri, start, length))
    return read_members(BoundedReader(ranges, _BLOCK_BYTES, file.uri), file.size, file.uri, _is_small)


def _is_small(name: str) -> bool:
    return name.rpartition("/")[2].partition(".")[2].lower() in _SMALL


def _row(
    where: str, key: str, file: SourceFile, members: dict[str, Member], class_names: list[str]
) -> tuple[PairRow | None, Reject | None]:
    """A sample as a row, or as a reject; both if it has a label but no caption."""
    image = next((members[suffix[1:]] for suffix in kinds.READ if suffix[1:] in members), None)
    if image is None:
        unread = next((suffix for suffix in kinds.NOT_READ if suffix[1:] in members), None)
        if unread:
            return None, Reject(where, kinds.UNREAD_CAUSE, kinds.explain_unread(unread))
        return None, Reject(where, "no picture", f"only {', '.join(sorted(members)) or 'nothing'}")
    small = {suffix: members[suffix] for suffix in _SMALL if suffix in members}
    for member in (image, *small.values()):
        if member.fault:
            return None, Reject(where, "broken link", member.fault)
    reject, label, facts = None, "", Facts()
    try:
        for suffix, member in small.items():
            check_caption_size(member.size, f"{where}.{suffix}")
        label = _class_name(members["cls"].data, class_names, where) if "cls" in members else ""
        facts = read_facts({suffix: member.data for suffix, member in small.items()}, where)
    except BadCaptionError as error:
        others = "" if small else f" (only {', '.join(sorted(members))})"
        unnamed = f"; class {label} has no name: put names in {_CLASS_NAMES} next to the tars, one per line" if label.isdecimal() else ""
        reject = Reject(where, error.cause, f"{error.detail}{others}{unnamed}")
        facts = error.facts if isinstance(error, NoCaptionError) else facts
        label = label or facts.label
        if not label or label.isdecimal() or not (isinstance(error, NoCaptionError) or error.cause == NO_CAPTION):
            return None, reject
    else:
        label = label if "cls" in members else facts.label
    row = PairRow(
        key=safe_key(key),
        where=where,
        image=Blob(file.uri, image.offset, image.size),
        captions=facts.captions,
        label=label,
        split=check_split(facts.split, where),
        family=facts.family,
    )
    return row, reject


def _class_name(data: bytes, class_names: list[str], where: str) -> str:
    try:
        text = clean_name(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadCaptionError("class not UTF-8", f"{where}.cls has byte {data[error.start]:#04x} at {error.start}") from error
    if text.isdecimal() and class_names:
        if len(text) > 20 or int(text) >= len(class_names):
            raise BadCaptionError("no such class", f"{where}.cls: {text[:20]}, {_CLASS_NAMES} has {len(class_names)} lines")
        return clean_name(class_names[int(text)])
    return text
