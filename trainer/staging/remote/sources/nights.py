"""NIGHTS, or any folder in its layout, behind a URI: data.csv is read when planning, the pictures when fetching."""

import tempfile
from pathlib import Path

from trainer.config import Recipe, canonical_hash
from trainer.errors import InputError
from trainer.staging.remote.http import FetchError, Manners, PoliteClient
from trainer.staging.remote.plan import SLICE_SHARDS
from trainer.staging.remote.rows import RemoteRow, as_table, write_rows
from trainer.staging.rows import SPLITS, TripletRow, in_order
from trainer.staging.sources import nights
from trainer.staging.sources.listing import SourceFile
from trainer.staging.sources.table import read_csv
from trainer.staging.writer import Plan, plan_id, tally, write_plan
from trainer.storage import exists, join, layout, read_bytes
from trainer.storage.base import absolute

_PATHS = ("ref_path", "left_path", "right_path")
_ATTRIBUTION = "NIGHTS (Fu et al. 2023, DreamSim)"


def plan(root: str, base: str, recipe: Recipe, manners: Manners) -> str:
    """Plan a triplet data set from the folder in NIGHTS layout at `base` (http(s), s3 or a path); returns its folder."""
    root = absolute(root)
    base = absolute(base).rstrip("/")
    settings = recipe.staging
    table = _read_table(join(base, nights.NAME), manners)
    options = {
        "min_votes": recipe.perceptual.min_votes, "shard_samples": settings.shard_samples, "slice_shards": SLICE_SHARDS,
        "triplet_side": settings.triplet_side,
    }  # fmt: skip
    fingerprint = canonical_hash({"layout": "nights", "table": canonical_hash(table.decode("utf-8", "replace"))})
    folder = layout.dataset(root, "nights-triplets", plan_id(fingerprint, options))
    if exists(join(folder, "plan.json")):
        return folder
    with tempfile.TemporaryDirectory(prefix="firstsight-nights-") as scratch:
        path = Path(scratch) / nights.NAME
        path.write_bytes(table)
        here = SourceFile(nights.NAME, str(path), len(table), 0.0)
        named = {record[column] for record in read_csv(here, _PATHS) for column in _PATHS}
        bad = next((name for name in named if name.startswith(("/", "\\")) or ".." in name.split("/") or "://" in name), None)
        if bad is not None:
            raise InputError(f"{join(base, nights.NAME)}: a path must be relative and stay below its folder, got {bad!r}")
        files = [here, *(SourceFile(name, name, -1, 0.0) for name in sorted(named))]
        found = nights.read(base, files, recipe.perceptual.min_votes)
    splits: list[str] = []
    for split in SPLITS:
        rows = [_remote(row) for row in in_order(row for row in found.rows if row.split == split)]
        for start in range(0, len(rows), SLICE_SHARDS * settings.shard_samples):
            write_rows(folder, len(splits), as_table(rows[start : start + SLICE_SHARDS * settings.shard_samples]))
            splits.append(split)
    if "train" not in splits:
        raise InputError(f"{base}: no triplet is left for training among {len(found.rows) + len(found.rejects)}")
    planned = Plan(
        kind="triplets", name="nights-triplets", source={"uri": base, "fingerprint": fingerprint, "images": base, "remote": 1},
        options=options, shard_samples=settings.shard_samples, splits=splits, rows_read=len(found.rows) + len(found.rejects),
        columns="triplets", attribution=_ATTRIBUTION, judge=found.judge, **tally(found.rejects),
    )  # fmt: skip
    write_plan(folder, planned, found.rejects)
    return folder


def _read_table(uri: str, manners: Manners) -> bytes:
    if not uri.startswith(("http://", "https://")):
        return read_bytes(uri)
    client = PoliteClient(manners)
    try:
        return client.get(uri)
    except FetchError as error:
        raise InputError(f"{uri}: {error}") from error
    finally:
        client.close()


def _remote(row: TripletRow) -> RemoteRow:
    facts = {
        "id": row.where, "left_vote": row.left_vote, "right_vote": row.right_vote, "votes": row.votes, "split": row.split,
        "is_imagenet": row.is_imagenet, "reference": row.reference, "prompt": row.prompt, "flip": list(row.flip) if row.flip else None,
    }  # fmt: skip
    return RemoteRow(key=row.key, images=(row.ref.uri, row.left.uri, row.right.uri), facts=facts)
