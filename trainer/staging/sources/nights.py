"""Triplets from a folder in the layout of NIGHTS (Fu et al., 2023): ref/, distort/, and data.csv read by column names."""

from collections.abc import Sequence

from trainer.errors import InputError
from trainer.staging.foreign import number
from trainer.staging.rows import Blob, Reject, TripletRow, check_rejected, check_split, safe_key
from trainer.staging.sources.listing import Rows, SourceFile
from trainer.staging.sources.table import read_csv

NAME = "data.csv"
COLUMNS = ("id", "left_vote", "right_vote", "votes", "ref_path", "left_path", "right_path", "split", "is_imagenet", "prompt")
_REQUIRED = ("id", "left_vote", "right_vote", "votes", "ref_path", "left_path", "right_path", "split")


def read(uri: str, files: Sequence[SourceFile], min_votes: int) -> Rows[TripletRow]:
    """Every row of data.csv with at least `min_votes` human votes; one vote is enough if a model judged.

    A row with an empty vote field has no votes: it is left out, and not counted as a fault.

    Our own generated sets have three more columns: judge, flip_left, flip_right.

    Raises:
        InputError: no data.csv, a missing column, a vote that is not a number, or a duplicate id.
    """
    by_name = {file.name: file for file in files}
    if NAME not in by_name:
        raise InputError(f"{uri}: no {NAME}: triplets come as a folder in NIGHTS layout ({NAME}, ref/, distort/)")
    table = by_name[NAME]
    judge = ""
    rows: list[TripletRow] = []
    rejects: list[Reject] = []
    ids: set[str] = set()
    for line, record in enumerate(read_csv(table, _REQUIRED), start=2):
        if record["id"] in ids:
            raise InputError(f"{table.uri}: row {line}: a second triplet with the id {record['id']!r}: ids must be unique")
        ids.add(record["id"])
        judge = judge or record.get("judge") or "people"
        row = _row(record, by_name, f"{table.uri}: row {line}")
        if isinstance(row, TripletRow) and judge == "people" and row.votes < min_votes:
            row = Reject(row.where, "too few votes", f"{row.votes}, the recipe asks for {min_votes}", counts=False)
        if isinstance(row, Reject):
            rejects.append(row)
            check_rejected(rejects, len(rows), table.uri)
        else:
            rows.append(row)
    if not judge:
        raise InputError(f"{table.uri}: no rows below the header")
    return Rows(rows=rows, rejects=rejects, judge=judge)


def _row(record: dict[str, str], by_name: dict[str, SourceFile], where: str) -> TripletRow | Reject:
    empty = next((column for column in ("left_vote", "right_vote") if record[column].strip().lower() in _EMPTY), None)
    if empty:
        return Reject(record["id"], "no votes", f"{empty} is empty", counts=False)
    left, right = (_votes(record, column, where) for column in ("left_vote", "right_vote"))
    if left + right <= 0:
        return Reject(record["id"], "no votes", f"left_vote {left:g}, right_vote {right:g}", counts=False)
    votes = left + right if record["votes"].strip().lower() in _EMPTY else _votes(record, "votes", where)
    blobs = []
    for column in ("ref_path", "left_path", "right_path"):
        file = by_name.get(record[column])
        if file is None:
            return Reject(record["id"], "no such file", f"{column} {record[column]}")
        blobs.append(Blob(file.uri, length=file.size))
    split = check_split(record["split"], where)
    if not split:
        raise InputError(f"{where}: split must be train, val or test, got ''")
    has_flip = bool(record.get("flip_left")) and bool(record.get("flip_right"))
    return TripletRow(
        key=safe_key(record["id"].rjust(6, "0")),
        where=record["id"],
        ref=blobs[0],
        left=blobs[1],
        right=blobs[2],
        left_vote=left,
        right_vote=right,
        votes=int(votes),
        split=split,
        is_imagenet=(record.get("is_imagenet") or "").strip().lower() in ("true", "1", "1.0"),
        prompt=record.get("prompt") or "",
        reference=record["ref_path"],
        flip=(number(record["flip_left"], f"{where}: flip_left"), number(record["flip_right"], f"{where}: flip_right"))
        if has_flip
        else None,
    )


_EMPTY = ("", "nan", "none", "null")  # an empty field as pandas and others write it
_MAX_VOTES = 999_999  # per triplet; NIGHTS has up to 10


def _votes(record: dict[str, str], column: str, where: str) -> float:
    return number(record[column], f"{where}: {column}", 0, _MAX_VOTES)
