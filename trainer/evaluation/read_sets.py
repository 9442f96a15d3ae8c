"""What a model is measured on: sets in CLIP_benchmark's layout, and triplets. No torch here.

A set that firstsight staged has a manifest, and is read by the index of each shard. One that another tool
wrote (`test/nshards.txt`, `test/0.tar` …, classnames.txt, zeroshot_classification_templates.txt,
dataset_type.txt) is read by `webdataset`; its identity is the hash of its bytes.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from trainer.config import canonical_hash
from trainer.errors import InputError, RunError
from trainer.storage import join, read_bytes, read_text
from trainer.storage.base import MissingObject
from trainer.storage.manifest import Manifest, Shard, read_manifest, require_manifest
from trainer.storage.samples import read_index

CLASSIFICATION = "zeroshot_classification"
RETRIEVAL = "zeroshot_retrieval"
TWO_AFC = "2afc"
SPLIT = "test"
IMAGE_SUFFIXES = ("webp", "png", "jpg", "jpeg")  # CLIP_benchmark's, in its order


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A set, described without reading a picture.

    Attributes:
        name: as in the figures' file names.
        task: zeroshot_classification or zeroshot_retrieval.
        uri: its folder.
        identity: of the manifest, or the hash of its bytes where it has none.
        classnames: in the order of the labels; empty for retrieval.
        templates: prompts with `{c}`; empty for retrieval.
        multilabel: whether an image may show several classes (`.npy` of 0 and 1 in place of `.cls`).
        main_metric: what the field reports of it, where its manifest says so.
        attribution: licence line of the source.
        manifest: None where another tool wrote the set.
        num_shards: tars of the test split.
    """

    name: str
    task: str
    uri: str
    identity: str
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    multilabel: bool
    main_metric: str
    attribution: str
    manifest: Manifest | None
    num_shards: int

    @property
    def num_items(self) -> int:
        """Test images, 0 where that is not known before they are read."""
        return sum(shard.num_samples for shard in self.manifest.split(SPLIT)) if self.manifest else 0

    @property
    def prompts(self) -> str:
        """Hash of class names and templates; empty for retrieval."""
        return canonical_hash([self.classnames, self.templates]) if self.classnames else ""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One test image with what is right about it: a label, a row of 0 and 1 over the classes, or captions."""

    key: str
    image: bytes
    label: int = -1
    targets: NDArray[np.bool_] | None = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Triplet:
    """One judged triplet: the images' bytes (reference, 0, 1) and the facts that were staged with it."""

    key: str
    images: tuple[bytes, bytes, bytes]
    facts: Mapping[str, Any]


def describe_set(uri: str, identity: str = "", name: str = "", manifest_sha256: str = "") -> EvaluationSet:
    """What the set at `uri` is.

    Args:
        uri: its folder.
        identity: that it must have, if given.
        name: for a set without a manifest; default: the last part of the URI.
        manifest_sha256: pinned of a manifest of format 1, if given.

    Raises:
        InputError: no set here, another identity, no test images, no class names or templates, a template without
            `{c}`, or text files that contradict the manifest.
    """
    manifest = read_manifest(uri)
    if manifest is None:
        return _describe_foreign(uri, identity, name or uri.rstrip("/").rsplit("/", 1)[-1])
    manifest = require_manifest(uri, identity, manifest_sha256)
    if manifest.kind != "evaluation" or manifest.facts.get("task") not in (CLASSIFICATION, RETRIEVAL):
        raise InputError(f"{uri}: a data set of kind {manifest.kind}, task {manifest.facts.get('task')!r}: not an evaluation set")
    shards = manifest.split(SPLIT)
    if not sum(shard.num_samples for shard in shards):
        raise InputError(f"{uri}: evaluation set {manifest.name} has no test images")
    multilabel = bool(manifest.facts.get("multilabel", False))
    classnames, templates = _prompts(uri) if manifest.facts["task"] == CLASSIFICATION else ((), ())
    for what, found in (("classnames", classnames), ("templates", templates)):
        staged = tuple(manifest.facts.get(what) or found)
        if staged != found:
            raise InputError(f"{uri}: its text file has {len(found)} {what}, its manifest {len(staged)} or others: changed after staging")
    return EvaluationSet(
        name=manifest.name, task=manifest.facts["task"], uri=uri, identity=manifest.identity, classnames=classnames, templates=templates,
        multilabel=multilabel, main_metric=str(manifest.facts.get("main_metric", "")), attribution=manifest.attribution,
        manifest=manifest, num_shards=len(shards),
    )  # fmt: skip


def _describe_foreign(uri: str, identity: str, name: str) -> EvaluationSet:
    try:
        num_shards = int(read_bytes(join(uri, SPLIT, "nshards.txt")))
    except MissingObject as error:
        raise InputError(f"{uri}: no evaluation set here: neither manifest.json nor {SPLIT}/nshards.txt") from error
    except ValueError as error:
        raise InputError(f"{uri}/{SPLIT}/nshards.txt must hold a number: {error}") from error
    if num_shards < 1:
        raise InputError(f"{uri}: {SPLIT}/nshards.txt says {num_shards} shards: no test images")
    kind = (_text(join(uri, "dataset_type.txt")) or "classification").strip().lower()
    classnames, templates = ((), ()) if kind == "retrieval" else _prompts(uri)
    digests = [hashlib.sha256(read_bytes(join(uri, SPLIT, f"{k}.tar"))).hexdigest() for k in range(num_shards)]
    found = canonical_hash(["unstaged", kind, digests])
    if identity and identity != found:
        raise InputError(f"{uri}: evaluation set {found[:12]} is not the one this run was planned with ({identity[:12]})")
    return EvaluationSet(
        name=name, task=RETRIEVAL if kind == "retrieval" else CLASSIFICATION, uri=uri, identity=found, classnames=classnames,
        templates=templates, multilabel=kind == "multilabel", main_metric="", attribution="", manifest=None, num_shards=num_shards,
    )  # fmt: skip


def _prompts(uri: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names and templates from the set's text files, checked."""
    lines = []
    for file in ("classnames.txt", "zeroshot_classification_templates.txt"):
        text = _text(join(uri, file))
        if text is None or not text.strip():
            raise InputError(f"{join(uri, file)}: missing or empty: zero-shot classification needs it")
        lines.append(tuple(line.strip() for line in text.splitlines()))
    classnames, templates = lines
    for number, template in enumerate(templates, 1):
        if "{c}" not in template:
            raise InputError(f"{uri}/zeroshot_classification_templates.txt, line {number}: no {{c}} in {template!r}")
    return classnames, templates


def _text(uri: str) -> str | None:
    try:
        return read_text(uri)
    except MissingObject:
        return None


def read_set(described: EvaluationSet) -> Iterator[Item]:
    """Every test image, in the order of the shards.

    Raises:
        InputError: a missing shard, a sample without its members, a label that is no class.
        RunError: bytes that do not match their checksum.
    """
    count = 0
    for where, key, members in _samples(described):
        image = next((members[suffix] for suffix in ("image", *IMAGE_SUFFIXES) if suffix in members), None)
        if image is None:
            raise InputError(f"{where}: sample {key} has no image, only {sorted(members)}")
        yield _item(described, where, key, image, members)
        count += 1
    if not count:
        raise InputError(f"{described.uri}: evaluation set {described.name} has no test images")


def _item(described: EvaluationSet, where: str, key: str, image: bytes, members: Mapping[str, bytes]) -> Item:
    suffix = "txt" if described.task == RETRIEVAL else "npy" if described.multilabel else "cls"
    if suffix not in members:
        raise InputError(f"{where}: sample {key} has no .{suffix}, only {sorted(members)}")
    data, num_classes = members[suffix], len(described.classnames)
    if suffix == "txt":
        captions = tuple(data.decode(errors="strict").splitlines())
        if not captions:
            raise InputError(f"{where}: sample {key} has no caption")
        return Item(key=key, image=image, captions=captions)
    try:
        if suffix == "npy":
            targets = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            label = int(data)
    except ValueError as error:
        raise InputError(f"{where}: sample {key}: .{suffix} is no label: {error}") from error
    if suffix == "npy":
        if targets.shape != (num_classes,) or not np.isin(targets, (0, 1)).all():
            raise InputError(f"{where}: sample {key}: labels must be {num_classes} of 0 and 1, got shape {targets.shape}")
        return Item(key=key, image=image, targets=targets.astype(bool))
    if not 0 <= label < num_classes:
        raise InputError(f"{where}: sample {key} has label {label}, but classnames.txt names classes 0 to {num_classes - 1}")
    return Item(key=key, image=image, label=label)


def _samples(described: EvaluationSet) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """(shard URI, key, members by suffix without a dot) of every test sample."""
    if described.manifest:
        for shard in described.manifest.split(SPLIT):
            for key, members in read_shard(described.uri, shard):
                yield join(described.uri, shard.name), key, members
        return
    from webdataset.tariterators import group_by_keys, tar_file_expander

    for k in range(described.num_shards):
        uri = join(described.uri, SPLIT, f"{k}.tar")
        streams = [{"url": uri, "stream": io.BytesIO(read_bytes(uri))}]
        for sample in group_by_keys(tar_file_expander(streams)):
            yield uri, sample["__key__"], {name: value for name, value in sample.items() if not name.startswith("__")}


def read_triplets(uri: str, manifest: Manifest, split: str) -> Iterator[Triplet]:
    """Every triplet of one split, in the order of the shards.

    Raises:
        InputError: the split is empty.
        RunError: bytes that do not match their checksum.
    """
    count = 0
    for shard in manifest.split(split):
        for key, members in read_shard(uri, shard):
            yield Triplet(key=key, images=(members["ref.png"], members["0.png"], members["1.png"]), facts=json.loads(members["json"]))
            count += 1
    if not count:
        raise InputError(f"{uri}: triplets {manifest.name} have none in split {split}")


def read_shard(folder: str, shard: Shard) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by the index's column) of each sample of one shard, verified."""
    index = read_index(folder, shard)
    data = read_bytes(join(folder, shard.name))
    if len(data) != shard.size or google_crc32c.value(data) != shard.crc32c:
        raise RunError(f"{join(folder, shard.name)}: its bytes are not those of the manifest: cut short or changed")
    names = [member.lstrip(".") for member in index.members]
    starts, sizes = index.offsets.astype(np.int64), index.sizes.astype(np.int64)
    for row, key in enumerate(index.keys):
        yield key, {name: data[starts[row, m] : starts[row, m] + sizes[row, m]] for m, name in enumerate(names)}
