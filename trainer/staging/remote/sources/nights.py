"""NIGHTS at a URI, in any published form: the table is read when planning, the pictures when fetching.

The source is a folder in its layout, nights.zip, or the folder of its chunk zips with data.csv beside them. Planning reads only
the directories of zips, and fetching reads each picture by its own range, so that none of the 58 GB is stored on this machine.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from trainer.bounds import naming_full_disk
from trainer.config import Recipe, canonical_hash
from trainer.errors import InputError
from trainer.fields import added_fields
from trainer.redaction import without_credentials
from trainer.staging.plans import Plan, plan_id, write_plan
from trainer.staging.remote.http import FetchError, HttpSettings, PoliteClient, base_of, is_web
from trainer.staging.remote.plan import SLICE_SHARDS
from trainer.staging.remote.rows import REMOTE, RemoteRow, as_table, is_planned, write_rows
from trainer.staging.remote.zips import Member, read_directory, read_range, unpack_member
from trainer.staging.rows import SPLITS, TripletRow, in_order
from trainer.staging.slices import tally
from trainer.staging.sources import nights
from trainer.staging.sources.listing import Rows, SourceFile
from trainer.staging.sources.table import read_csv
from trainer.storage import join, layout, read_bytes
from trainer.storage.base import absolute
from trainer.storage.manifest import Files
from trainer.storage.scratch import temporary_folder

_PATHS = ("ref_path", "left_path", "right_path")
_ATTRIBUTION = "NIGHTS (Fu et al. 2023, DreamSim)"


def plan(root: str, source: str, table_uri: str, recipe: Recipe, http: HttpSettings) -> str:
    """Plan a triplet data set; returns its folder.

    Args:
        root: store URI under which datasets/ lies.
        source: URI (http(s), s3 or a path) of a folder in NIGHTS layout, of nights.zip, or of the folder of the chunk zips.
        table_uri: URI of data.csv, for the chunks; empty: it is in the folder or the zip.
        recipe: its staging section and perceptual.min_votes determine the bytes.
        http: settings for HTTP servers.
    """
    root, source = absolute(root), base_of("--list", source).rstrip("/")
    settings = recipe.staging
    client = PoliteClient(http)
    try:
        base, table, files = _look(client, source, table_uri)
    finally:
        client.close()
    options = {
        "min_votes": recipe.perceptual.min_votes, "shard_samples": settings.shard_samples, "slice_shards": SLICE_SHARDS,
        "triplet_side": settings.triplet_side, **added_fields(settings),
    }  # fmt: skip
    members = sorted((member.name, member.crc32, member.packed) for member in files.values() if isinstance(member, Member))
    held = {"members": canonical_hash(members)} if members else {}
    fingerprint = canonical_hash({"layout": "nights", "table": canonical_hash(table.decode("utf-8", "replace")), **held})
    folder = layout.dataset(root, "nights-triplets", plan_id(fingerprint, options))
    if is_planned(folder):
        return folder
    found = _read(source, table, {name: str(place) for name, place in files.items()}, recipe.perceptual.min_votes)
    splits: list[str] = []
    written: Files = {}
    for split in SPLITS:
        rows = [_remote(row) for row in in_order(row for row in found.rows if row.split == split)]
        for start in range(0, len(rows), SLICE_SHARDS * settings.shard_samples):
            written |= write_rows(folder, len(splits), as_table(rows[start : start + SLICE_SHARDS * settings.shard_samples]))
            splits.append(split)
    if "train" not in splits:
        raise InputError(f"{source}: no triplet is left for training among {len(found.rows) + len(found.rejects)}")
    origin = {
        "uri": without_credentials(source),
        "fingerprint": fingerprint,
        "images": base,
        "remote": REMOTE,
        **({"zips": 1} if members else {}),
    }
    planned = Plan(
        kind="triplets", name="nights-triplets", source=origin, options=options, shard_samples=settings.shard_samples, splits=splits,
        rows_read=len(found.rows) + len(found.rejects), columns="triplets", attribution=_ATTRIBUTION, judge=found.judge,
        files=written, **tally(found.rejects),
    )  # fmt: skip
    write_plan(folder, planned, found.rejects)
    return folder


def _look(client: PoliteClient, source: str, table_uri: str) -> tuple[str, bytes, dict[str, str | Member]]:
    """The image base, data.csv, and the place below the base of each picture in the table, by its name there."""
    if source.endswith(".zip"):
        base, _, archive = source.rpartition("/")
        members = {member.name: member for member in read_directory(client, source, archive, "")}
        if table_uri:
            table = _read_table(client, table_uri)
        elif nights.NAME in members:
            inside = members[nights.NAME]
            try:
                table = unpack_member(inside, read_range(client, source, inside.start, inside.length), client.settings.max_bytes)
            except FetchError as error:
                raise error.as_failure(f"{source}: {nights.NAME}") from error
        else:
            raise InputError(f"{source}: contains no {nights.NAME}: pass it with --table")
        names = _named(table, table_uri or source)
        return base, table, {name: members[name] for name in names if name in members}
    table = _read_table(client, table_uri or join(source, nights.NAME))
    names = _named(table, table_uri or join(source, nights.NAME))
    if not table_uri:
        return source, table, {name: name for name in names}
    chunks = sorted({"/".join(name.split("/")[:2]) for name in names})  # ref/017/123.png lies in ref/017.zip

    def read(chunk: str) -> list[Member]:
        return list(read_directory(client, join(source, f"{chunk}.zip"), f"{chunk}.zip", chunk.partition("/")[0]))

    with ThreadPoolExecutor(client.settings.per_host) as pool:
        members = {member.name: member for part in pool.map(read, chunks) for member in part}
    return source, table, {name: members[name] for name in names if name in members}


def _named(table: bytes, uri: str) -> list[str]:
    """The paths that data.csv names; InputError if one leads out of its folder."""
    with _as_file(table) as file:
        names = sorted({record[column] for record in read_csv(file, _PATHS) for column in _PATHS})
    bad = next((name for name in names if name.startswith(("/", "\\")) or ".." in name.split("/") or "://" in name), None)
    if bad is not None:
        raise InputError(f"{uri}: a path must be relative and stay below its folder, got {bad!r}")
    return names


def _read(uri: str, table: bytes, places: dict[str, str], min_votes: int) -> Rows[TripletRow]:
    """The rows of the table, with each picture named by its place."""
    pictures = [SourceFile(name, place, -1, 0.0) for name, place in places.items()]
    with _as_file(table) as file:
        return nights.read(uri, [file, *pictures], min_votes)


@contextmanager
def _as_file(table: bytes) -> Iterator[SourceFile]:
    """data.csv as a local file."""
    with naming_full_disk(nights.NAME), temporary_folder("nights") as scratch:
        path = scratch / nights.NAME
        path.write_bytes(table)
        yield SourceFile(nights.NAME, str(path), len(table), 0.0)


def _read_table(client: PoliteClient, uri: str) -> bytes:
    if not is_web(uri):
        return read_bytes(uri)
    try:
        return client.get(uri)
    except FetchError as error:
        raise error.as_failure(uri) from error


def _remote(row: TripletRow) -> RemoteRow:
    facts = {
        "id": row.where, "left_vote": row.left_vote, "right_vote": row.right_vote, "votes": row.votes, "split": row.split,
        "is_imagenet": row.is_imagenet, "reference": row.reference, "prompt": row.prompt, "flip": list(row.flip) if row.flip else None,
    }  # fmt: skip
    return RemoteRow(key=row.key, images=(row.ref.uri, row.left.uri, row.right.uri), facts=facts)
