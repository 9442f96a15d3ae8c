"""Slices of shards: plain tar files that `webdataset` reads, each with a sidecar index, and the seal over all of them.

A *slice* is a run of rows of one split that one process makes, alone or as one index of an Indexed Job. It uploads its
shards, then `slices/slice-<i>.json`, which is what makes it count; `seal` checks that every slice of the plan is
there and writes the manifest. All bytes are a function of plan and source: killed anywhere and run again, the same comes out.

    plan = Plan(...); write_plan(folder, plan)                    # once
    with SliceWriter(folder, plan, slice_index) as slice_writer:  # each slice, anywhere; skip it if slice_done(...)
        slice_writer.add(key, {"image": ("jpg", data), ...}, captions)
        slice_writer.reject(Reject(...))
    seal(folder, plan, ...)                                       # once
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, BinaryIO, cast

import google_crc32c
import numpy as np

from trainer.config import canonical_hash
from trainer.errors import InputError, RunError
from trainer.staging.rows import Reject
from trainer.storage import join, open_store, read_json, write_bytes, write_json
from trainer.storage.base import MissingObject
from trainer.storage.index import ShardIndex, encode_index, index_checksum
from trainer.storage.manifest import Kind, Manifest, Shard, write_manifest

PLAN_VERSION = 1
COLUMNS: dict[str, tuple[str, ...]] = {
    "pairs": ("image", "txt", "json"),
    "triplets": ("ref.png", "0.png", "1.png", "json"),
    "zeroshot_classification": ("image", "cls"),
    "zeroshot_multilabel": ("image", "npy"),
    "zeroshot_retrieval": ("image", "txt"),
}
"""The index columns of each sort of data set. A column is logical: `image` is `.jpg` or `.png` in the tar."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be staged: all of it decides the bytes, but for `source["uri"]`, which is for people.

    Attributes:
        kind: of the data set.
        name: of the data set.
        source: {"uri", "fingerprint", …}.
        options: what is done to the samples.
        shard_samples: samples a shard.
        splits: the split of each slice.
        rows_read: rows of the source, those that became no sample at planning included.
        lost: rows lost at planning, by cause.
        bad: those of them that are faults of the data.
        examples: one of them for each cause.
        columns: key of COLUMNS.
        attribution: licence line.
        judge: of triplets.
    """

    kind: Kind
    name: str
    source: dict[str, Any]
    options: dict[str, Any]
    shard_samples: int
    splits: list[str]
    rows_read: int
    columns: str
    lost: dict[str, int] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    attribution: str = ""
    judge: str = ""

    @property
    def plan_id(self) -> str:
        """Of the data set's folder."""
        return plan_id(self.source["fingerprint"], self.options)


def plan_id(fingerprint: object, options: Mapping[str, Any]) -> str:
    """Hash over what the source holds and what is done to it, 16 hex digits."""
    return canonical_hash({"version": PLAN_VERSION, "source": fingerprint, "options": dict(options)})[:16]


def write_plan(folder: str, plan: Plan, rejects: Sequence[Reject] = ()) -> None:
    """Leave plan.json in `folder`, and the rows that were lost at planning in rejects/plan.jsonl."""
    _write_rejects(folder, "plan", rejects)
    write_json(join(folder, "plan.json"), {"format_version": PLAN_VERSION, "plan_id": plan.plan_id, **asdict(plan)})


def slice_uri(folder: str, slice_index: int) -> str:
    """The object that says that a slice is done."""
    return join(folder, "slices", f"slice-{slice_index:05d}.json")


def slice_done(folder: str, slice_index: int) -> bool:
    """Whether this slice was finished before (its record is the last thing that it writes)."""
    return open_store(folder).head(slice_uri(folder, slice_index)) is not None


def tally(rejects: Sequence[Reject]) -> dict[str, Any]:
    """Rejects counted by cause: all (`lost`), those that are faults (`bad`), and one of each cause (`examples`)."""
    examples: dict[str, str] = {}
    for reject in rejects:
        examples.setdefault(reject.cause, f"{reject.where}: {reject.detail}")
    lost = Counter(reject.cause for reject in rejects)
    return {"lost": dict(lost), "bad": dict(Counter(reject.cause for reject in rejects if reject.counts)), "examples": examples}


def _write_rejects(folder: str, name: str, rejects: Sequence[Reject]) -> None:
    if rejects:
        lines = "".join(json.dumps(asdict(reject), sort_keys=True, ensure_ascii=False) + "\n" for reject in rejects)
        write_bytes(join(folder, "rejects", f"{name}.jsonl"), lines.encode("utf-8", "backslashreplace"))


class SliceWriter:
    """Writes the shards of one slice. Leave the `with` block without an error and the slice is done; else it is not."""

    def __init__(self, folder: str, plan: Plan, slice_index: int) -> None:
        self._folder = folder
        self._plan = plan
        self._slice = slice_index
        self._split = plan.splits[slice_index]
        self._shards: list[Shard] = []
        self._rejects: list[Reject] = []
        self._open: _OpenShard | None = None

    def __enter__(self) -> "SliceWriter":
        """Start."""
        return self

    def add(self, key: str, members: Mapping[str, tuple[str, bytes]], captions: Sequence[Sequence[int]] = ()) -> None:
        """Add a sample.

        Args:
            key: unique in the data set.
            members: for each column its suffix in the tar (without the first dot) and its bytes.
            captions: token ids of each caption.
        """
        if self._open is None:
            self._open = _OpenShard(self._shard_name(len(self._shards)), COLUMNS[self._plan.columns])
        self._open.add(key, members, captions)
        if len(self._open.keys) == self._plan.shard_samples:
            self._close_shard()

    def reject(self, reject: Reject) -> None:
        """Record a row that does not become a sample."""
        self._rejects.append(reject)

    def adopt(self, shard: Shard) -> None:
        """Take a whole shard that lies in the folder already, with its index."""
        self._shards.append(shard)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Upload the last shard, then the slice's record."""
        if error is not None:
            if self._open is not None:
                self._open.discard()
            return
        self._close_shard()
        _write_rejects(self._folder, f"slice-{self._slice:05d}", self._rejects)
        record = {
            "plan_id": self._plan.plan_id, "split": self._split, "shards": [asdict(shard) for shard in self._shards],
            **tally(self._rejects),
        }  # fmt: skip
        write_json(slice_uri(self._folder, self._slice), record)

    def _shard_name(self, number: int) -> str:
        if self._plan.kind == "evaluation":  # CLIP_benchmark's layout; such a set is one slice
            return f"{self._split}/{number}.tar"
        return f"shard-{self._slice:05d}-{number:05d}.tar"

    def _close_shard(self) -> None:
        if self._open is not None:
            try:
                self._shards.append(self._open.upload(self._folder, self._split))
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
        self._tar.close()  # before its stream: tarfile would write its end into a closed one, and complain
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
                raise RunError(f"{self.name}: member at {position} is no plain file: a key is too long for a tar header")
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
        lost: rows that became none, by cause.
        bad: those of them that are faults of the data.
        examples: one row for each cause.
    """

    shards: list[Shard]
    written: int
    lost: dict[str, int]
    bad: dict[str, int]
    examples: dict[str, str]


def gather(folder: str, plan: Plan) -> Account:
    """Add up the records of all slices. RunError naming the slices that are not done."""
    shards: list[Shard] = []
    lost, bad, examples = Counter(plan.lost), Counter(plan.bad), dict(plan.examples)
    missing = []
    for slice_index in range(len(plan.splits)):
        try:
            record = read_json(slice_uri(folder, slice_index))
        except MissingObject:
            missing.append(slice_index)
            continue
        if record["plan_id"] != plan.plan_id:
            raise RunError(f"{slice_uri(folder, slice_index)}: belongs to plan {record['plan_id']}, not {plan.plan_id}")
        shards += [Shard(**shard) for shard in record["shards"]]
        lost.update(record["lost"])
        bad.update(record["bad"])
        examples = {**record["examples"], **examples}
    if missing:
        raise RunError(f"{folder}: {len(missing)} of {len(plan.splits)} slices are not done: {', '.join(map(str, missing[:20]))}")
    written = sum(shard.num_samples for shard in shards)
    return Account(shards=shards, written=written, lost=dict(lost), bad=dict(bad), examples=examples)


def check_rejects(folder: str, plan: Plan, account: Account, max_reject_fraction: float) -> None:
    """InputError, with the causes counted, where more samples are bad than is allowed, or none is left."""
    num_bad = sum(account.bad.values())
    causes = "; ".join(f"{count} x {cause} (such as {account.examples[cause]})" for cause, count in sorted(account.bad.items()))
    candidates = account.written + num_bad
    if num_bad > max_reject_fraction * candidates:
        raise InputError(
            f"{plan.source['uri']}: {num_bad} of {candidates} samples are bad ({num_bad / candidates:.1%}, --max-reject-fraction allows "
            f"{max_reject_fraction:.1%}): {causes}; all are listed in {join(folder, 'rejects')}"
        )


def seal(
    folder: str,
    plan: Plan,
    account: Account,
    *,
    evaluation: Sequence[dict[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write the manifest: from now on the data set counts."""
    manifest = Manifest(
        kind=plan.kind,
        name=plan.name,
        plan_id=plan.plan_id,
        source=plan.source,
        options=plan.options,
        rows={"read": plan.rows_read, "written": account.written, "lost": account.lost},
        shards=account.shards,
        judge=plan.judge,
        attribution=plan.attribution,
        evaluation=list(evaluation),
        facts=dict(facts or {}),
    )
    write_manifest(folder, manifest)
    return manifest
