"""manifest.json: what a staged data set holds, and the identity by which runs are compared.

Format 2 is a document with a checksum, and its identity covers all that a reader acts on. Format 1, which stays readable, had
neither: its identity covers plan id, names and checksums of the tars, so an experiment pins the file's SHA-256 on first use.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from trainer.config import DataConfig, canonical_hash
from trainer.errors import Corrupt, InputError
from trainer.storage.base import exists, join, read_bytes, write_json
from trainer.storage.checked import is_files
from trainer.storage.documents import parse_document, write_document
from trainer.storage.protocol import MissingObject

FORMAT_VERSION = 2
NAME = "manifest.json"
Kind = Literal["pairs", "triplets", "evaluation"]
_SPLITS = ("train", "val", "test")
Files = dict[str, dict[str, Any]]
"""Name relative to a folder -> {"size": bytes, "sha256": hex}, as `checked.find_damaged` takes them."""
_NO_IDENTITY = ("source", "attribution", "account", "format_version", "pin")  # the source's fingerprint is in the plan id
_SINCE_2 = ("index_size", "index_sha256", "files", "account")
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file and its index, both beside the manifest.

    Attributes:
        name: of the tar, `shard-<slice>-<k>.tar`; the index is the same with `.index`.
        split: train, val or test.
        num_samples: samples in it.
        size: bytes of the tar.
        sha256: of the tar, hex.
        crc32c: of the tar.
        index_crc32c: the checksum that the index file ends with (`index.index_checksum`).
        index_size: bytes of the index; 0 in format 1.
        index_sha256: of the index, hex; empty in format 1.
    """

    name: str
    split: str
    num_samples: int
    size: int
    sha256: str
    crc32c: int
    index_crc32c: int
    index_size: int = 0
    index_sha256: str = ""

    @property
    def index_name(self) -> str:
        """The name of the sidecar index."""
        return self.name.removesuffix(".tar") + ".index"

    @property
    def files(self) -> Files:
        """The tar and, from format 2 on, its index."""
        index = {self.index_name: {"size": self.index_size, "sha256": self.index_sha256}} if self.index_sha256 else {}
        return {self.name: {"size": self.size, "sha256": self.sha256}, **index}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A sealed data set.

    Attributes:
        kind: pairs, triplets, or evaluation (CLIP_benchmark's layout).
        name: of the data set; evaluations are filed under it.
        plan_id: hash over the source's fingerprint and the options.
        source: the source's fingerprint and where it was (its URI is for people, not identity).
        options: what was done to the samples (image policy, caption policy, sides …).
        judge: of triplets: `people` or `FLIP`; else empty.
        attribution: licence line of the source, shown wherever its pictures are.
        rows: {"read": n, "written": n, "lost": {cause: n}}, and where samples had something set aside, "notes": {what: n}.
        shards: in canonical order.
        evaluation: evaluation sets staged with it: [{"name", "task", "uri" (relative to the root), "identity"}].
        facts: of evaluation sets and others: class names, templates, MSE's own 2AFC score …
        files: further files of the data set, such as the text files of an evaluation set; empty in format 1.
        account: records and rejects of the slices; not part of the identity, which is the same however it was made; empty in format 1.
        format_version: that it has.
        pin: SHA-256 of the file that it was read from, where it is of format 1: what an experiment must pin. Not stored.
    """

    kind: Kind
    name: str
    plan_id: str
    source: dict[str, Any]
    options: dict[str, Any]
    rows: dict[str, Any]
    shards: list[Shard]
    judge: str = ""
    attribution: str = ""
    evaluation: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    files: Files = field(default_factory=dict)
    account: Files = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    pin: str = field(default="", compare=False)

    @property
    def identity(self) -> str:
        """SHA-256 over all that a reader acts on; in format 1 over the plan id and every shard's name and checksum."""
        if self.format_version == 1:
            return canonical_hash([self.plan_id, [[shard.name, shard.sha256] for shard in self.shards]])
        return canonical_hash({key: value for key, value in asdict(self).items() if key not in _NO_IDENTITY})

    @property
    def all_files(self) -> Files:
        """Every file that the manifest has a checksum of."""
        parts = (*(shard.files for shard in self.shards), self.files, self.account)
        return {name: sealed for files in parts for name, sealed in files.items()}

    def split(self, name: str) -> list[Shard]:
        """The shards of one split, in canonical order."""
        return [shard for shard in self.shards if shard.split == name]


def describe_rows(rows: Mapping[str, Any], folder: str) -> str:
    """What was read, written, left out (by cause) and set aside, and where what was left out is listed.

    Args:
        rows: of a manifest.
        folder: of the data set.
    """
    lost, notes = rows.get("lost") or {}, rows.get("notes") or {}
    words = f"{rows.get('read', 0):,} read, {rows.get('written', 0):,} written"
    if lost:
        causes = ", ".join(f"{count:,} x {cause}" for cause, count in sorted(lost.items()))
        words += f", {sum(lost.values()):,} left out: {causes}; listed in {join(folder, 'rejects')}"
    if notes:
        words += "; read despite: " + ", ".join(f"{count:,} x {what}" for what, count in sorted(notes.items()))
    return words


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Seal the data set in `folder`: its shards and indexes must be there already."""
    value = {**asdict(manifest), "identity": manifest.identity}
    del value["pin"]
    if manifest.format_version > 1:
        write_document(join(folder, NAME), value)
        return
    del value["files"], value["account"]
    value["shards"] = [as_format_1(shard) for shard in value["shards"]]
    write_json(join(folder, NAME), value)


def as_format_1(shard: dict[str, Any]) -> dict[str, Any]:
    """A shard's fields without those that format 1 did not have."""
    return {key: value for key, value in shard.items() if key not in _SINCE_2}


def read_manifest(folder: str) -> Manifest | None:
    """The manifest of `folder`, or None if the data set is not sealed.

    Raises:
        InputError: it was written by a newer format.
        Corrupt: it is no manifest, or was damaged or changed by hand.
    """
    uri = join(folder, NAME)
    try:
        data = read_bytes(uri)
    except MissingObject:
        return None
    value = parse_document(data, uri, "a manifest", FORMAT_VERSION, checked_from=2)
    identity, version = value.pop("identity", None), value["format_version"]
    if not isinstance(value.get("shards"), list):
        raise Corrupt(f"{uri}: not a firstsight manifest: no list of shards")
    shards = [shard_from_json(shard, version, uri) for shard in value["shards"]]
    manifest = from_json(Manifest, {**value, "shards": shards}, version, uri)
    if version == 1:
        manifest = dataclasses.replace(manifest, pin=hashlib.sha256(data).hexdigest())
    if identity != manifest.identity:
        raise Corrupt(f"{uri}: its identity does not match its content ({manifest.identity}): it was damaged or edited by hand")
    if version == 1 and sum(shard.num_samples for shard in shards) != manifest.rows.get("written"):
        raise Corrupt(f"{uri}: its shards do not have the samples that were written: it was damaged or changed by hand")
    return manifest


def shard_from_json(value: Any, version: int, uri: str) -> Shard:
    """A shard as `from_json` reads it, of a split that there is."""
    shard = from_json(Shard, value, version, uri)
    if shard.split not in _SPLITS:
        raise Corrupt(f"{uri}: {shard.name} has the unknown split {shard.split!r}: it was damaged or changed by hand")
    return shard


def from_json(kind: type[_T], value: Any, version: int, uri: str) -> _T:
    """A Shard, a Manifest or another flat dataclass of plain data from JSON.

    Args:
        kind: dataclass whose fields are str, int, Literal, lists and dicts.
        value: parsed JSON.
        version: format in which it was written: later fields must be absent.
        uri: URI of the file, for errors.

    Raises:
        Corrupt: an unknown or missing key, or a value of another type.
    """
    if not isinstance(value, dict):
        raise Corrupt(f"{uri}: not as firstsight writes it: {kind.__name__} is not an object")
    hints = get_type_hints(kind)
    wanted = {key: hints[key] for key in hints if key != "pin" and not (version == 1 and key in _SINCE_2)}
    for key in sorted(wanted.keys() | value.keys()):
        if key not in wanted or key not in value:
            raise Corrupt(f"{uri}: not as firstsight writes it: {kind.__name__} with{'out' if key in wanted else ''} {key!r}")
        if not _has_type(value[key], wanted[key]):
            raise Corrupt(f"{uri}: not as firstsight writes it: {kind.__name__}.{key} has an impossible value")
    return kind(**value)


def _has_type(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint == Files:
        return is_files(value)
    if hint is int:
        return type(value) is int and value >= 0
    return isinstance(value, get_origin(hint) or hint)


def require_manifest(folder: str, identity: str = "", manifest_sha256: str = "") -> Manifest:
    """The manifest of a data set that must be sealed and, if given, of this identity.

    Args:
        folder: of the data set.
        identity: that it must have.
        manifest_sha256: `pin` of the manifest when the experiment first used it; empty if it was of format 2, or not yet pinned.

    Raises:
        InputError: it is not sealed, or another data set.
        Corrupt: the manifest was damaged or changed by hand.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: no sealed data set here ({NAME} is missing): stage it first")
    if identity and manifest.identity != identity:
        raise InputError(f"{folder}: data set {manifest.identity[:12]} is not the one this run was planned with ({identity[:12]})")
    if manifest_sha256 and manifest.pin != manifest_sha256:
        raise Corrupt(
            f"{join(folder, NAME)}: not the file that this run was planned with (SHA-256 {manifest_sha256[:12]}): it was damaged or "
            "changed by hand; stage the data set again, or restore the file from a copy"
        )
    return manifest


def as_data(folder: str) -> DataConfig:
    """The sealed data set in `folder` as a configuration names it, with all that an experiment pins on first use.

    Raises:
        InputError: it is not sealed.
        Corrupt: the manifest, or that of an evaluation set staged with it, was damaged or changed by hand.
    """
    manifest = require_manifest(folder)
    sets = [require_manifest(place.uri, place.identity) for place in staged_sets(folder, manifest)]
    pins = tuple(found.pin for found in sets) if any(found.pin for found in sets) else ()
    return DataConfig(uri=folder, identity=manifest.identity, manifest_sha256=manifest.pin, evaluation_sha256=pins)


def where_it_lies(experiment_uri: str, uri: str) -> str:
    """Where the data set lies that an experiment's staging recorded: with the experiment, where both were copied to another root."""
    root, tail = experiment_uri.rpartition("/experiments/")[0], uri.rstrip("/").split("/")[-3:]
    here = join(root, *tail)
    return here if root and tail[0] == "datasets" and here != uri and exists(join(here, NAME)) else uri


def staged_sets(folder: str, manifest: Manifest, pins: tuple[str, ...] = ()) -> list[DataConfig]:
    """The evaluation sets that were staged with a data set.

    Args:
        folder: of the data set.
        manifest: of the data set.
        pins: `evaluation_sha256` of its DataConfig.

    Raises:
        Corrupt: they are not the pins of this manifest.
    """
    places = [DataConfig(uri=_under_root(folder, entry["uri"]), identity=entry["identity"]) for entry in manifest.evaluation]
    if not pins:
        return places
    if len(pins) != len(places):
        raise Corrupt(f"{join(folder, NAME)}: names {len(places)} evaluation sets, but {len(pins)} were pinned: run the same command again")
    return [dataclasses.replace(place, manifest_sha256=pin) for place, pin in zip(places, pins, strict=True)]


def _under_root(folder: str, uri: str) -> str:
    """The URI of a set that a manifest names relative to the root, which holds datasets/<name>/<plan id>."""
    return uri if "://" in uri or uri.startswith("/") else join(folder.rstrip("/").rsplit("/", 3)[0], uri)
