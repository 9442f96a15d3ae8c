"""Slices of shards: plain tar files that `webdataset` reads, each with a sidecar index, and the seal over all of them.

A *slice* is a run of rows of one split that one process makes, alone or as one index of an Indexed Job. It uploads its
shards as an attempt, and the record `slices/slice-<i>.json` chooses one attempt (slices.py); `gather` checks that every slice
of the plan is complete, and `seal` writes the manifest. All bytes are a function of plan and source: a run
that is killed at any point and restarted writes the same bytes.

    plan = Plan(...); write_plan(folder, plan)                        # once
    for number in slices_to_make(folder, plan):                       # anywhere, by any number of processes
        with SliceWriter(folder, plan, number) as slice_writer:
            slice_writer.add(key, {"image": ("jpg", data), ...}, captions)
            slice_writer.reject(Reject(...))
    seal(folder, plan, gather(folder, plan))                          # once
"""

import dataclasses
import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, BinaryIO, cast

import google_crc32c
import numpy as np

from trainer.bounds import naming_full_disk
from trainer.errors import InputError, RunError
from trainer.staging.plans import Plan
from trainer.staging.rows import Reject
from trainer.staging.slices import (
    RECORD_VERSION,
    RECORD_WITHOUT_NOTES,
    Attempt,
    SliceRecord,
    encode_rejects,
    find_sealed,
    find_whole,
    record_name,
    rejects_name,
    sweep,
    tally,
)
from trainer.storage import join, open_store, read_bytes, write_bytes
from trainer.storage.checked import describe
from trainer.storage.index import ShardIndex, encode_index, index_checksum
from trainer.storage.manifest import NAME as MANIFEST
from trainer.storage.manifest import Files, Manifest, Shard, as_format_1, write_manifest

COLUMNS: dict[str, tuple[str, ...]] = {
    "pairs": ("image", "txt", "json"),
    "triplets": ("ref.png", "0.png", "1.png", "json"),
    "zeroshot_classification": ("image", "cls"),
    "zeroshot_multilabel": ("image", "npy"),
    "zeroshot_retrieval": ("image", "txt"),
}
"""The index columns of each kind of data set. A column is logical: `image` is `.jpg` or `.png` in the tar."""


class SliceWriter:
    """Writes the shards of one slice. Leave the `with` block without an error and the slice is done; else it is not."""

    def __init__(self, folder: str, plan: Plan, slice_index: int) -> None:
        self._plan = plan
        self._slice = slice_index
        self._split = plan.splits[slice_index]
        self._attempt = Attempt(folder, slice_index)
        self._shards: list[Shard] = []
        self._rejects: list[Reject] = []
        self._notes = Counter[str]()
        self._open: _OpenShard | None = None

    def __enter__(self) -> "SliceWriter":
        """Start."""
        return self

    def add(self, key: str, members: Mapping[str, tuple[str, bytes]], captions: Sequence[Sequence[int]] = (), note: str = "") -> None:
        """Add a sample.

        Args:
            key: unique in the data set.
            members: for each column its suffix in the tar (without the first dot) and its bytes.
            captions: token ids of each caption.
            note: a short phrase for what was dropped from it, such as unreadable EXIF; samples are counted by note.
        """
        if note:
            self._notes[note] += 1
        with naming_full_disk(self._shard_name(len(self._shards))):
            if self._open is None:
                self._open = _OpenShard(self._shard_name(len(self._shards)), COLUMNS[self._plan.columns])
            self._open.add(key, members, captions)
        if len(self._open.keys) == self._plan.shard_samples:
            self._close_shard()

    def reject(self, reject: Reject) -> None:
        """Record a row that does not become a sample."""
        self._rejects.append(reject)

    def adopt(self, shard: Shard, folder: str) -> None:
        """Add a complete shard of another data set, with its index; both must have been checked."""
        for name in (shard.name, shard.index_name):
            open_store(folder).copy(join(folder, name), join(self._attempt.folder, name))
        index = describe(read_bytes(join(folder, shard.index_name)))
        self._shards.append(dataclasses.replace(shard, index_size=index["size"], index_sha256=index["sha256"]))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Upload the last shard, and make this attempt the chosen one, unless another already is."""
        try:
            if error is None:
                self._close_shard()
                rejects = encode_rejects(self._rejects)
                if rejects:
                    write_bytes(join(self._attempt.folder, rejects_name(self._slice)), rejects)
                record = SliceRecord(
                    plan_id=self._plan.plan_id, split=self._split, shards=self._shards, **tally(self._rejects),
                    rejects=describe(rejects) if rejects else {}, notes=dict(self._notes),
                    format_version=RECORD_VERSION if self._notes else RECORD_WITHOUT_NOTES,
                )  # fmt: skip
                self._attempt.settle(record)
        except BaseException:
            self._give_up()
            raise
        if error is not None:
            self._give_up()

    def _give_up(self) -> None:
        """Remove this attempt's files; what cannot be removed now is removed when the data set is sealed."""
        if self._open is not None:
            self._open.discard()
        if not self._attempt.may_count:
            with suppress(InputError, RunError):
                self._attempt.drop()

    def _shard_name(self, number: int) -> str:
        if self._plan.kind == "evaluation":  # CLIP_benchmark's layout; such a set is one slice
            return f"{self._split}/{number}.tar"
        return f"shard-{self._slice:05d}-{number:05d}.tar"

    def _close_shard(self) -> None:
        if self._open is not None:
            try:
                with naming_full_disk(self._open.name):
                    self._shards.append(self._open.upload(self._attempt.folder, self._split))
            finally:
                self._open.discard()
                self._open = None


class _OpenShard:
    """A shard that is being filled, in a temporary file."""

    def __init__(self, name: str, columns: tuple[str, ...]) -> None:
        import webdataset

        self.name = name
        self.keys: list[str] = []
        self.stream = cast(BinaryIO, tempfile.TemporaryFile())
        self._tar = webdataset.TarWriter(self.stream, encoder=False, mtime=0, user="firstsight", group="firstsight")
        self._columns = columns
        self._names: list[tuple[str, ...]] = []
        self._crc32c: list[tuple[int, ...]] = []
        self._captions: list[Sequence[Sequence[int]]] = []

    def add(self, key: str, members: Mapping[str, tuple[str, bytes]], captions: Sequence[Sequence[int]]) -> None:
        parts = [members[column] for column in self._columns]
        self._tar.write({"__key__": key, **dict(parts)})
        self.keys.append(key)
        self._names.append(tuple(f"{key}.{suffix}" for suffix, _ in parts))
        self._crc32c.append(tuple(google_crc32c.value(data) for _, data in parts))
        self._captions.append(captions)

    def discard(self) -> None:
        with suppress(OSError):  # a full disk has no room for the tar's end marker either
            self._tar.close()  # before its stream: tarfile writes an end marker, which fails on a closed stream
        with suppress(OSError):
            self.stream.close()

    def upload(self, folder: str, split: str) -> Shard:
        self._tar.close()
        size = self.stream.seek(0, 2)
        self.stream.seek(0)
        sha256, crc32c = hashlib.sha256(), 0
        while block := self.stream.read(1 << 20):
            sha256.update(block)
            crc32c = google_crc32c.extend(crc32c, block)
        index = encode_index(self._index(size, crc32c))
        self.stream.seek(0)
        store = open_store(folder)
        store.put_stream(join(folder, self.name), self.stream, size)
        shard = Shard(
            name=self.name, split=split, num_samples=len(self.keys), size=size,
            sha256=sha256.hexdigest(), crc32c=crc32c, index_crc32c=index_checksum(index),
            index_size=len(index), index_sha256=hashlib.sha256(index).hexdigest(),
        )  # fmt: skip
        write_bytes(join(folder, shard.index_name), index)
        return shard

    def _places(self, size: int) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name, offset and size of each member, from the headers (tarfile reads them five times as slowly)."""
        position = 0
        while position < size:
            self.stream.seek(position)
            header = self.stream.read(512)
            if not header[0]:  # two empty blocks end a tar
                return
            if header[156:157] != b"0":
                raise RunError(f"{self.name}: member at {position} is not a plain file: a key is too long for a tar header")
            length = int(header[124:135], 8)
            yield header[:100].rstrip(b"\0").decode(), (position + 512, length)
            position += 512 + (length + 511) // 512 * 512

    def _index(self, size: int, crc32c: int) -> ShardIndex:
        places = dict(self._places(size))
        where = np.array([[places[name] for name in names] for names in self._names], np.uint64)  # (N, M, 2)
        captions = [caption for sample in self._captions for caption in sample]
        return ShardIndex(
            shard=self.name,
            shard_size=size,
            shard_crc32c=crc32c,
            members=self._columns,
            keys=tuple(self.keys),
            offsets=where[..., 0],
            sizes=where[..., 1].astype(np.uint32),
            crc32c=np.array(self._crc32c, np.uint32),
            caption_ends=np.cumsum([len(sample) for sample in self._captions], dtype=np.uint32),
            token_ends=np.cumsum([len(caption) for caption in captions], dtype=np.uint32),
            tokens=np.array([token for caption in captions for token in caption], np.uint16),
        )


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of the rows of a plan.

    Attributes:
        shards: of all slices, in order.
        written: samples in them.
        lost: rows that did not become a sample, by cause.
        bad: the lost rows whose cause is a fault in the data.
        examples: one row for each cause.
        files: the slices' records and rejects.
        notes: counts of samples from which something was dropped, by what was dropped.
    """

    shards: list[Shard]
    written: int
    lost: dict[str, int]
    bad: dict[str, int]
    examples: dict[str, str]
    files: Files
    notes: dict[str, int] = field(default_factory=dict)


def gather(folder: str, plan: Plan) -> Account:
    """Add up the records of all slices, which must be complete. RunError names those that are not done, or damaged."""
    records, unfit = find_whole(folder, plan.plan_id, dict(enumerate(plan.splits)))
    if unfit:
        named = ", ".join(map(str, list(unfit)[:20]))
        reasons = "".join(f"; {reason}" for reason in [reason for reason in unfit.values() if reason][:3])
        raise RunError(
            f"{folder}: {len(unfit)} of {len(plan.splits)} slices are not done: {named}{reasons}; rerun the command that makes them"
        )
    lost, bad, examples = Counter(plan.lost), Counter(plan.bad), dict(plan.examples)
    files: Files = {}
    notes = Counter[str]()
    for number, record in records.items():
        lost.update(record.lost)
        notes.update(record.notes)
        bad.update(record.bad)
        examples = {**record.examples, **examples}
        files |= {record_name(number): record.stored, **({rejects_name(number): record.rejects} if record.rejects else {})}
    shards = [shard for _, record in sorted(records.items()) for shard in record.shards]
    written = sum(shard.num_samples for shard in shards)
    return Account(shards=shards, written=written, lost=dict(lost), bad=dict(bad), examples=examples, files=files, notes=dict(notes))


def check_rejects(folder: str, source: str, account: Account, max_reject_fraction: float) -> None:
    """InputError, with the causes counted, if more samples of a source are bad than allowed; `folder` is the data set's."""
    num_bad = sum(account.bad.values())
    causes = "; ".join(f"{count} x {cause} (such as {account.examples[cause]})" for cause, count in sorted(account.bad.items()))
    candidates = account.written + num_bad
    if num_bad > max_reject_fraction * candidates:
        raise InputError(
            f"{source}: {num_bad} of {candidates} samples are bad ({num_bad / candidates:.1%}, --max-reject-fraction allows "
            f"{max_reject_fraction:.1%}): {causes}; all are listed in {join(folder, 'rejects')}"
        )


def seal(
    folder: str,
    plan: Plan,
    account: Account,
    *,
    evaluation: Sequence[dict[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
    files: Files | None = None,
) -> Manifest:
    """Write the manifest, which makes the data set valid. RunError if it is already sealed with a different identity.

    Args:
        folder: the data set's.
        plan: its plan.
        account: what became of its rows; all its slices are whole.
        evaluation: evaluation sets staged with it.
        facts: see Manifest.
        files: further files of the data set.
    """
    old = plan.format_version == 1
    manifest = Manifest(
        kind=plan.kind,
        name=plan.name,
        plan_id=plan.plan_id,
        source=plan.source,
        options=plan.options,
        rows={
            "read": plan.rows_read,
            "written": account.written,
            "lost": account.lost,
            **({"notes": account.notes} if account.notes else {}),
        },
        shards=[Shard(**as_format_1(asdict(shard))) if old else shard for shard in account.shards],
        judge=plan.judge,
        attribution=plan.attribution,
        evaluation=list(evaluation),
        facts=dict(facts or {}),
        files={} if old else dict(files or {}),
        account={} if old else account.files,
        format_version=plan.format_version,
    )
    sealed = find_sealed(folder)
    if sealed is not None and sealed.identity != manifest.identity:
        raise RunError(
            f"{join(folder, MANIFEST)}: staged again, the data set is {manifest.identity[:12]}, not the sealed {sealed.identity[:12]}: its "
            f"source no longer yields the same data; delete {folder} to stage it from scratch as a different data set"
        )
    if sealed is not None and old:  # its bytes may be pinned
        manifest = dataclasses.replace(manifest, source=sealed.source, attribution=sealed.attribution)
    if manifest != sealed:
        write_manifest(folder, manifest)
    sweep(folder, manifest)
    return manifest
