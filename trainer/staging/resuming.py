"""Whether slices made by an earlier run can be reused: one data set never mixes rows that were read in two ways.

A plan keeps a digest of its rows. If another version of firstsight read the same source differently, or left no digest, each
complete slice is compared with the rows as they are read now; a slice that differs is rebuilt.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

from trainer.errors import Corrupt
from trainer.staging.plans import Plan, read_plan
from trainer.staging.rows import Blob, RowT
from trainer.staging.samples import as_json, said_by
from trainer.staging.shards import read_shard
from trainer.staging.slices import SliceRecord, find_whole, record_name
from trainer.storage import exists, join, open_store
from trainer.storage.manifest import NAME as MANIFEST

ROWS = "rows"
"""Key of a plan's source: the digest of its rows."""


def rows_digest(slices: Sequence[Sequence[RowT]]) -> str:
    """Hash over the rows without the places of their pictures, which may have been moved; 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for rows in slices:
        for row in rows:
            said = [value for name in (item.name for item in fields(row)) if not isinstance(value := getattr(row, name), Blob)]
            digest.update(repr(said).encode("utf-8", "backslashreplace"))
        digest.update(b"\n")
    return digest.hexdigest()


def changed_slices(folder: str, plan: Plan, slices: Sequence[Sequence[RowT]], said: Callable[[RowT], Mapping[str, Any]]) -> list[int]:
    """The complete slices of an unsealed data set that differ from the rows as they are read now.

    Args:
        folder: the data set's folder.
        plan: today's plan.
        slices: the rows of each slice.
        said: returns the metadata of a row's sample.
    """
    if exists(join(folder, MANIFEST)):  # sealed: a rebuilt slice must equal the sealed one
        return []
    begun = None
    with suppress(Corrupt):  # then it is written again
        begun = read_plan(folder)
    if begun is not None and begun.source.get(ROWS) == plan.source[ROWS]:
        return []
    if not open_store(folder).holds(join(folder, "slices")):
        return []
    whole, _ = find_whole(folder, plan.plan_id, dict(enumerate(plan.splits)))
    return [number for number, record in whole.items() if not _says_the_same(folder, record, slices[number], said)]


def make_again(folder: str, numbers: Sequence[int]) -> None:
    """Invalidate slices, so that they are rebuilt."""
    for number in numbers:
        open_store(folder).delete(join(folder, record_name(number)))
    if numbers:
        named = ", ".join(map(str, numbers[:20]))
        print(
            f"{folder}: another version of firstsight read this source differently, so these slices are rebuilt: {named}", file=sys.stderr
        )


def _says_the_same(folder: str, record: SliceRecord, rows: Sequence[RowT], said: Callable[[RowT], Mapping[str, Any]]) -> bool:
    found = {key: said_by(members) for shard in record.shards for key, members in read_shard(folder, shard)}
    wanted = {row.key: json.loads(as_json(said(row))) for row in rows if row.key in found}
    return found == wanted and list(found) == list(wanted) and len(rows) == len(found) + sum(record.lost.values())
