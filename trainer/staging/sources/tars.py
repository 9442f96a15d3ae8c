"""Pairs from WebDataset tars, img2dataset's output included.

Members of one sample share a name up to its first dot. What img2dataset could not fetch stands in the table that it
leaves beside each tar: it is counted, but it is no fault of these files.
"""

import tarfile
from collections.abc import Iterator, Sequence

from trainer.bounds import MAX_CAPTION_BYTES, MAX_COPY_FILE_BYTES, check_size
from trainer.errors import InputError
from trainer.staging import kinds
from trainer.staging.captions import BadCaptionError, check_caption_size, read_facts
from trainer.staging.foreign import text_of
from trainer.staging.parquet import read_parquet
from trainer.staging.ranges import BoundedReader, RangeReader
from trainer.staging.rows import Blob, PairRow, Reject, check_split, safe_key
from trainer.staging.sources.listing import Rows, SourceFile
from trainer.storage import open_store

_BLOCK_BYTES = 4 << 20
_SMALL = ("txt", "caption", "json", "cls")
_CLASS_NAMES = "classnames.txt"
_BROKEN_TAR = (tarfile.TarError, EOFError, ValueError, OverflowError, LookupError, RecursionError)
"""What tarfile raises on bytes that are no tar, by kind of damage."""


def read(uri: str, files: Sequence[SourceFile]) -> Rows[PairRow]:
    """Every sample of every tar of the folder.

    Raises:
        InputError: a tar that is none or is cut short, two samples of one name in a tar, no picture in any of them.
    """
    names = next((_class_names(file) for file in files if file.name == _CLASS_NAMES), [])
    tables = {file.name: file for file in files if file.name.endswith(".parquet")}
    rows: list[PairRow] = []
    rejects: list[Reject] = []
    for file in files:
        if not file.name.endswith(".tar"):
            continue
        for key, members in _samples(file):
            where = f"{file.name}: {key}"
            row = _row(where, f"{file.name.removesuffix('.tar')}/{key}", file, members, names)
            if isinstance(row, Reject):
                rejects.append(row)
            else:
                rows.append(row)
        if (table := tables.get(file.name.removesuffix(".tar") + ".parquet")) is not None:
            rejects += _not_fetched(file, table)
    if not rows and all(reject.cause == "no picture" for reject in rejects):
        raise InputError(f"{uri}: no pictures in its tars (looked for {', '.join(kinds.READ)})")
    return Rows(rows=rows, rejects=rejects)


def _class_names(file: SourceFile) -> list[str]:
    check_size(file.size, MAX_CAPTION_BYTES, file.uri)
    return text_of(Blob(file.uri).read(), file.uri).splitlines()


def _not_fetched(tar: SourceFile, table: SourceFile) -> Iterator[Reject]:
    """The rows of a tar that img2dataset got no picture for."""
    check_size(table.size, MAX_COPY_FILE_BYTES, table.uri)
    for row in read_parquet(Blob(table.uri).read(), table.uri, ["key", "status", "error_message"]):
        if row["status"] != "success":
            why = str(row["error_message"] or row["status"])
            yield Reject(f"{tar.name}: {row['key']}", "not fetched by its maker", why, counts=False)


_Members = dict[str, tuple[int, int, bytes]]  # suffix -> offset, size, bytes where they are few


def _samples(file: SourceFile) -> Iterator[tuple[str, _Members]]:
    """Each sample's key and members, in the order of the tar."""
    seen: set[str] = set()
    current, members = "", _Members()
    for name, offset, size, data in walk(file):
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        key = folder + slash + stem
        if key != current:
            if members:
                yield current, members
            current, members = key, {}
            if key in seen:
                raise InputError(f"{file.uri}: two samples are named {key!r}: a name must be unique in its tar, and its members adjacent")
            seen.add(key)
        if suffix.lower() in members:
            raise InputError(f"{file.uri}: {name!r} is in it twice: names must be unique")
        members[suffix.lower()] = (offset, size, data)
    if members:
        yield current, members


def walk(file: SourceFile) -> Iterator[tuple[str, int, int, bytes]]:
    """Name, offset, size and (for captions and facts) bytes of each regular file in a tar."""
    store = open_store(file.uri)
    ranges = RangeReader(file.size, lambda start, length: store.get_range(file.uri, start, length))
    reader = BoundedReader(ranges, _BLOCK_BYTES, file.uri)
    try:
        with tarfile.open(fileobj=reader, mode="r:") as tar:
            for member in tar:
                end = member.offset_data + member.size
                if member.issparse():
                    raise InputError(f"{file.uri}: {member.name} is a sparse file: a tar of samples must hold plain ones")
                if not 0 <= member.size <= end <= file.size:
                    raise InputError(f"{file.uri}: cut short: {member.name} should end at byte {end}, the tar has {file.size}")
                if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
                    continue
                small = member.name.rpartition("/")[2].partition(".")[2].lower() in _SMALL and member.size <= MAX_CAPTION_BYTES
                stream = tar.extractfile(member) if small else None
                yield member.name, member.offset_data, member.size, stream.read() if stream else b""
    except InputError:
        raise
    except _BROKEN_TAR as error:
        raise InputError(f"{file.uri}: not a whole tar file: {error}") from error


def _row(where: str, key: str, file: SourceFile, members: _Members, class_names: list[str]) -> PairRow | Reject:
    image = next((members[suffix[1:]] for suffix in kinds.READ if suffix[1:] in members), None)
    if image is None:
        return Reject(where, "no picture", f"only {', '.join(sorted(members)) or 'nothing'}")
    try:
        for suffix in _SMALL:
            check_caption_size(members[suffix][1] if suffix in members else 0, f"{where}.{suffix}")
        facts = read_facts({suffix: data for suffix, (_, _, data) in members.items() if suffix in _SMALL}, where)
    except BadCaptionError as error:
        return Reject(where, error.cause, error.detail)
    label = facts.label
    if "cls" in members:
        label = _class_name(members["cls"][2], class_names, where)
    return PairRow(
        key=safe_key(key),
        where=where,
        image=Blob(file.uri, image[0], image[1]),
        captions=facts.captions,
        label=label,
        split=check_split(facts.split, where),
        family=facts.family,
    )


def _class_name(data: bytes, class_names: list[str], where: str) -> str:
    text = data.decode("utf-8", "replace").strip()
    if text.isdecimal() and class_names:
        if len(text) > 20 or int(text) >= len(class_names):
            raise InputError(f"{where}.cls: class {text[:20]} is not in {_CLASS_NAMES}, which has {len(class_names)} lines")
        return class_names[int(text)]
    return text
