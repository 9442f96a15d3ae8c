"""manifest.json: what a staged data set holds, and the identity by which runs are compared."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from trainer.config import canonical_hash
from trainer.errors import InputError, RunError
from trainer.storage.base import join, read_versioned, write_json

FORMAT_VERSION = 1
NAME = "manifest.json"
Kind = Literal["pairs", "triplets", "evaluation"]


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
    """

    name: str
    split: str
    num_samples: int
    size: int
    sha256: str
    crc32c: int
    index_crc32c: int

    @property
    def index_name(self) -> str:
        """The name of the sidecar index."""
        return self.name.removesuffix(".tar") + ".index"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A sealed data set.

    Attributes:
        kind: pairs, triplets, or evaluation (CLIP_benchmark's layout).
        name: of the data set, for people.
        plan_id: hash over the source's fingerprint and the options.
        source: the source's fingerprint and where it was (its URI is for people, not identity).
        options: what was done to the samples (image policy, caption policy, sides …).
        judge: of triplets: `people` or `FLIP`; else empty.
        attribution: licence line of the source, shown wherever its pictures are.
        rows: {"read": n, "written": n, "lost": {cause: n}}.
        shards: in canonical order.
        evaluation: evaluation sets staged with it: [{"name", "task", "uri" (relative to this folder), "identity"}].
        facts: of evaluation sets and others: class names, templates, MSE's own 2AFC score …
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
    format_version: int = FORMAT_VERSION

    @property
    def identity(self) -> str:
        """SHA-256 over the plan id and every shard's name and checksum: equal bytes, equal identity."""
        return canonical_hash([self.plan_id, [[shard.name, shard.sha256] for shard in self.shards]])

    def split(self, name: str) -> list[Shard]:
        """The shards of one split, in canonical order."""
        return [shard for shard in self.shards if shard.split == name]


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Seal the data set in `folder`: its shards and indexes must be there already."""
    write_json(join(folder, NAME), {**asdict(manifest), "identity": manifest.identity})


def read_manifest(folder: str) -> Manifest | None:
    """The manifest of `folder`, or None where the data set is not sealed.

    Raises:
        InputError: it was written by a newer format.
        RunError: it is no manifest, or its identity is not that of its shards.
    """
    uri = join(folder, NAME)
    value = read_versioned(uri, "a manifest", FORMAT_VERSION)
    if value is None:
        return None
    identity = value.pop("identity", None)
    try:
        manifest = Manifest(**{**value, "shards": [Shard(**shard) for shard in value["shards"]]})
    except (TypeError, KeyError) as error:
        raise RunError(f"{uri}: not a manifest of firstsight: {error}") from error
    if identity != manifest.identity:
        raise RunError(f"{uri}: identity {identity} is not that of its shards ({manifest.identity}): the manifest was changed by hand")
    return manifest


def require_manifest(folder: str, identity: str = "") -> Manifest:
    """The manifest of a data set that must be sealed and, if given, of this identity."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: no sealed data set here ({NAME} is missing): stage it first")
    if identity and manifest.identity != identity:
        raise InputError(f"{folder}: data set {manifest.identity[:12]} is not the one this run was planned with ({identity[:12]})")
    return manifest
