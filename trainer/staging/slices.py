"""Which of several attempts at a slice counts, and whether what it wrote is complete.

A process that makes a slice writes below `attempts/<random>/`. It then creates `slices/slice-<i>.json`, in which only one process
can succeed: this record lists the chosen attempt's shards, index files and rejects by checksum. The files are then copied to their
published names by their maker, or by any process that finds a record whose files are missing: the checksum identifies them,
wherever they are. Losing attempts are removed by their processes, or by sealing if those were killed. Attempts never mix.
"""

import hashlib
import json
import re
import secrets
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.errors import Corrupt, RunError
from trainer.staging.rows import Reject
from trainer.storage import MissingObject, join, open_store, read_bytes
from trainer.storage.checked import describe, file_sha256, find_damaged, remember
from trainer.storage.documents import encode_document, parse_document
from trainer.storage.manifest import Files, Manifest, Shard, as_format_1, from_json, read_manifest, shard_from_json
from trainer.storage.samples import read_index

ATTEMPTS = "attempts"
RECORD_VERSION = 3
RECORD_WITHOUT_NOTES = 2
"""The version of a record without notes."""


@dataclass(frozen=True, kw_only=True)
class SliceRecord:
    """The record of a finished slice.

    Attributes:
        plan_id: plan it belongs to.
        split: split of all its samples.
        shards: its shards, in order.
        lost: rows that did not become a sample, by cause.
        bad: the lost rows whose cause is a fault in the data.
        examples: one row for each cause.
        rejects: size and sha256 of the list of lost rows; empty if there are none, and in format 1.
        notes: counts of samples from which something was dropped, by what was dropped, such as unreadable EXIF.
        format_version: version of the record.
        stored: size and sha256 of the record as it was read.
    """

    plan_id: str
    split: str
    shards: list[Shard]
    lost: dict[str, int]
    bad: dict[str, int]
    examples: dict[str, str]
    rejects: dict[str, Any]
    notes: dict[str, int] = field(default_factory=dict)
    format_version: int = RECORD_WITHOUT_NOTES
    stored: dict[str, Any] = field(default_factory=dict, compare=False)

    def as_document(self) -> dict[str, Any]:
        """The record as it is stored."""
        left_out = ("stored",) if self.notes else ("stored", "notes")
        return {key: value for key, value in asdict(self).items() if key not in left_out}

    def files(self, number: int) -> Files:
        """All files of the slice for which the record has a checksum."""
        rejects = {rejects_name(number): self.rejects} if self.rejects else {}
        return {name: sealed for files in (*(shard.files for shard in self.shards), rejects) for name, sealed in files.items()}


def record_name(number: int) -> str:
    """The record of a finished slice, relative to the data set's folder."""
    return f"slices/slice-{number:05d}.json"


def rejects_name(number: int) -> str:
    """The list of a slice's lost rows, relative to the data set's folder."""
    return f"rejects/slice-{number:05d}.jsonl"


def tally(rejects: Sequence[Reject]) -> dict[str, Any]:
    """Rejects counted by cause: all (`lost`), those that are faults (`bad`), and one of each cause (`examples`)."""
    examples: dict[str, str] = {}
    for reject in rejects:
        examples.setdefault(reject.cause, f"{reject.where}: {reject.detail}")
    lost = Counter(reject.cause for reject in rejects)
    return {"lost": dict(lost), "bad": dict(Counter(reject.cause for reject in rejects if reject.counts)), "examples": examples}


def encode_rejects(rejects: Sequence[Reject]) -> bytes:
    """A list of rejects, one per line."""
    lines = "".join(json.dumps(asdict(reject), sort_keys=True, ensure_ascii=False) + "\n" for reject in rejects)
    return lines.encode("utf-8", "backslashreplace")


def read_rejects(folder: str, number: int, record: SliceRecord) -> list[Reject]:
    """The rejects of one slice. Raises Corrupt if the list is missing, or is not the one that the record names."""
    if not record.lost:
        return []
    uri = join(folder, rejects_name(number))
    try:
        data = read_bytes(uri)
        rejects = [Reject(**json.loads(line)) for line in data.decode("utf-8", "backslashreplace").split("\n") if line]
    except (MissingObject, ValueError, TypeError) as error:
        raise Corrupt(f"{uri}: missing, or not a list of rejects: {error}") from error
    if record.rejects and hashlib.sha256(data).hexdigest() != record.rejects["sha256"]:
        raise Corrupt(f"{uri}: its checksum does not match the one in {record_name(number)}")
    if tally(rejects)["lost"] != record.lost:
        raise Corrupt(f"{uri}: does not contain the number of rows recorded in {record_name(number)}")
    return rejects


def read_record(folder: str, plan_id: str, split: str, number: int) -> SliceRecord | None:
    """The record of one slice, or None if it is not done. Raises Corrupt if it is damaged, or belongs to another plan."""
    uri = join(folder, record_name(number))
    try:
        data = read_bytes(uri)
    except MissingObject:
        return None
    value = parse_document(data, uri, "a slice's record", RECORD_VERSION, checked_from=2, bare=True)
    version, shards = value["format_version"], value.get("shards")
    if not isinstance(shards, list):
        raise Corrupt(f"{uri}: not a firstsight slice record: no list of shards")
    read = {
        **({"notes": {}} if version <= RECORD_WITHOUT_NOTES else {}),
        **value,
        "shards": [shard_from_json(shard, version, uri) for shard in shards],
        "stored": describe(data), **({"rejects": {}} if version == 1 else {}),
    }  # fmt: skip
    record = from_json(SliceRecord, read, 2, uri)
    if (record.plan_id, record.split) != (plan_id, split):
        raise Corrupt(f"{uri}: belongs to split {record.split} of plan {record.plan_id}, not to {split} of {plan_id}")
    return record


def sealed_shards(manifest: Manifest, number: int) -> list[Shard]:
    """The shards of one slice of a sealed data set."""
    return [shard for shard in manifest.shards if manifest.kind == "evaluation" or shard.name.startswith(f"shard-{number:05d}-")]


def _are_sealed(shards: Sequence[Shard], number: int, manifest: Manifest) -> bool:
    """Whether a slice's shards are those in the manifest, as far as its format can tell."""
    sealed = [asdict(shard) for shard in sealed_shards(manifest, number)]
    found = [asdict(shard) for shard in shards]
    if manifest.format_version == 1:
        sealed, found = [as_format_1(shard) for shard in sealed], [as_format_1(shard) for shard in found]
    return sealed == found


def find_sealed(folder: str) -> Manifest | None:
    """The manifest of a data set, or None if there is none that can be read."""
    try:
        return read_manifest(folder)
    except Corrupt:
        return None


def find_whole(folder: str, plan_id: str, splits: Mapping[int, str]) -> tuple[dict[int, SliceRecord], dict[int, str]]:
    """Check slices, and publish files of chosen attempts that are not published yet.

    Args:
        folder: the data set's folder.
        plan_id: id of its plan.
        splits: number -> split of the slices to check.

    Returns:
        The records of complete slices; for the others the reason, which is empty if a slice was not made yet.
    """
    manifest = find_sealed(folder)
    records: dict[int, SliceRecord] = {}
    unfit: dict[int, str] = {}
    for number, split in splits.items():
        try:
            record = read_record(folder, plan_id, split, number)
        except Corrupt as error:
            unfit[number] = str(error)
            continue
        if record is None:
            unfit[number] = f"{join(folder, record_name(number))}: missing" if manifest else ""
        elif manifest and not _are_sealed(record.shards, number, manifest):
            unfit[number] = f"{join(folder, record_name(number))}: not the slice that the manifest names"
        else:
            records[number] = record
    owners = {name: number for number, record in records.items() for name in record.files(number)}
    files = {name: sealed for number, record in records.items() for name, sealed in record.files(number).items()}
    damaged = find_damaged(folder, files)
    if damaged:
        _publish_found(folder, {name: files[name] for name in damaged})
        damaged = find_damaged(folder, files)
    reasons = {owners[name]: f"{join(folder, name)}: {reason}" for name, reason in damaged.items()}
    for number, record in records.items():
        reason = reasons.get(number) or _damaged_in_format_1(folder, number, record)
        if reason:
            unfit[number] = reason
    return {number: record for number, record in records.items() if number not in unfit}, dict(sorted(unfit.items()))


def _damaged_in_format_1(folder: str, number: int, record: SliceRecord) -> str:
    """What is wrong with the files for which a record of format 1 has no checksum."""
    try:
        for shard in record.shards:
            if not shard.index_sha256:
                read_index(folder, shard)
        if record.format_version == 1:
            read_rejects(folder, number, record)
    except (Corrupt, MissingObject) as error:
        return str(error)
    return ""


def _publish_found(folder: str, files: Files) -> None:
    """Copy files found in any attempt to their published names; the checksum identifies them."""
    store = open_store(folder)
    prefix = join(folder, ATTEMPTS) + "/"
    for info in store.list(prefix):
        name = info.uri.removeprefix(prefix).partition("/")[2]
        if name in files and info.size == files[name]["size"]:
            with suppress(MissingObject):  # published and removed by its maker meanwhile
                if file_sha256(info.uri, files[name]["sha256"]) == files[name]["sha256"]:
                    store.copy(info.uri, join(folder, name))
                    files = {other: sealed for other, sealed in files.items() if other != name}


def to_make(folder: str, plan_id: str, splits: Mapping[int, str]) -> Iterator[int]:
    """The slices that are still to be made or rebuilt; each is checked as late as possible."""
    whole, unfit = find_whole(folder, plan_id, splits)
    for number in splits:
        if number in whole:
            continue
        if not unfit[number] and open_store(folder).head(join(folder, record_name(number))) is None:
            yield number
            continue
        _, now = find_whole(folder, plan_id, {number: splits[number]})  # another process may have made it meanwhile
        if number in now:
            print(f"{now[number]}: slice {number} is being rebuilt", file=sys.stderr)
            yield number


class Attempt:
    """One try at a slice, in its own folder.

    Attributes:
        folder: where it is written.
        may_count: whether a record may list files of this attempt that are not all published; if so, it must not be dropped.
    """

    def __init__(self, folder: str, number: int) -> None:
        self._target = folder
        self._number = number
        self._store = open_store(folder)
        self.may_count = False
        self.folder = join(folder, ATTEMPTS, f"slice-{number:05d}-{secrets.token_hex(8)}")
        before = self._store.head(join(folder, record_name(number)))
        self._replaces = before.stamp if before else ""

    def drop(self) -> None:
        """Remove what was written."""
        for info in self._store.list(self.folder):
            self._store.delete(info.uri)
        self._store.sweep(join(self._target, ATTEMPTS))

    def settle(self, record: SliceRecord) -> None:
        """Publish this attempt if it is the chosen one, else make sure that the chosen one is published; then drop this one.

        Raises:
            RunError: the data set is sealed with different bytes, or the chosen attempt's files are gone.
        """
        manifest = find_sealed(self._target)
        fits, files = manifest is None or _are_sealed(record.shards, self._number, manifest), record.files(self._number)
        self.may_count = fits
        published = self._publish(record) if fits and self._choose(record) else {}
        self.may_count = False
        self.drop()
        if published:
            now = {name: self._store.head(join(self._target, name)) for name in published}
            ours = {name: info.stamp for name, info in now.items() if info and _content_of(info.stamp) == published[name]}
            remember(self._target, {name: (stamp, str(files[name]["sha256"])) for name, stamp in ours.items()})
            return
        _, unfit = find_whole(self._target, record.plan_id, {self._number: record.split})
        if unfit and fits:
            raise RunError(
                f"{unfit[self._number]}: slice {self._number} was changed while it was being written; run the same command again"
            )
        if unfit:
            raise RunError(
                f"{unfit[self._number]}; slice {self._number} was rebuilt, but its source no longer yields the sealed bytes: restore the "
                f"file from a copy, or delete {self._target} to stage it from scratch as a different data set"
            )

    def _choose(self, record: SliceRecord) -> bool:
        """Make this attempt the one that counts; return False if another one already is."""
        uri = join(self._target, record_name(self._number))
        data = encode_document(record.as_document())
        if self._find_chosen(record) != record:
            written = self._store.replace(uri, data, self._replaces) if self._replaces else self._store.create(uri, data)
            return written and self._find_chosen(record) == record
        return True

    def _find_chosen(self, record: SliceRecord) -> SliceRecord | None:
        try:
            return read_record(self._target, record.plan_id, record.split, self._number)
        except Corrupt:
            return None

    def _publish(self, record: SliceRecord) -> dict[str, str]:
        """Copy all files to their published names; return a content identifier for each, or nothing if a sealer has removed them.

        Another attempt, chosen before, may still be publishing under the same names, so the final files may be its own.
        """
        published = {}
        try:
            for name in record.files(self._number):
                source = self._store.head(join(self.folder, name))
                self._store.copy(join(self.folder, name), join(self._target, name))
                published[name] = _content_of(source.stamp) if source else ""
        except MissingObject:
            return {}
        return published


def _content_of(stamp: str) -> str:
    """The part of a stamp that a copy shares: the inode of a link, the ETag of an object."""
    return stamp.partition("-")[0]


def sweep(folder: str, manifest: Manifest) -> None:
    """Remove the attempts' files from a sealed data set.

    A live attempt may be among them: it can only lose now, and will find its files already published.
    """
    store = open_store(folder)
    kept = {*manifest.all_files, *(shard.index_name for shard in manifest.shards)}
    ours = re.compile(
        r"attempts/.*|(shard-\d+-\d+|test/\d+)\.(tar|index)" + ("" if manifest.format_version == 1 else r"|rejects/slice-\d+\.jsonl")
    )
    for info in store.list(folder):
        name = info.uri.removeprefix(f"{folder.rstrip('/')}/")
        if name not in kept and ours.fullmatch(name):
            store.delete(info.uri)
    store.sweep(folder)
