"""Read evaluation sets in CLIP_benchmark's layout, and triplets. No torch here.

A set that firstsight staged has a manifest, and is read by the index of each shard. One that another tool
wrote (`test/nshards.txt`, `test/0.tar` …, classnames.txt, zeroshot_classification_templates.txt,
dataset_type.txt) is read by `webdataset`; its identity is the hash of its bytes.
"""

import dataclasses
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from trainer.bounds import MAX_SET_SHARDS
from trainer.config import DataConfig, canonical_hash
from trainer.errors import Corrupt, InputError
from trainer.staging.foreign import lines_of, text_of, whole
from trainer.storage import join, open_store, read_bytes
from trainer.storage.arrays import decode_array
from trainer.storage.base import MissingObject
from trainer.storage.checked import file_sha256, forget, read_hashed
from trainer.storage.manifest import Manifest, Shard, read_manifest, require_manifest
from trainer.storage.samples import read_index
from trainer.storage.tarfiles import by_sample, read_members

CLASSIFICATION = "zeroshot_classification"
RETRIEVAL = "zeroshot_retrieval"
TWO_AFC = "2afc"
SPLIT, TRAIN = "test", "train"
DISTANCES = ("mse_0", "mse_1", "flip_0", "flip_1")
"""Facts of a triplet that are measured beside the model, where it has them."""
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
        manifest: None if another tool wrote the set.
        digests: SHA-256 of each tar of the split.
        split: test; train where the pictures are those that a probe learns from.
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
    digests: tuple[str, ...]
    split: str = SPLIT

    @property
    def num_shards(self) -> int:
        """Tars of the split."""
        return len(self.digests)

    @property
    def num_items(self) -> int:
        """Images of the split, 0 if that is not known before they are read."""
        return sum(shard.num_samples for shard in self.manifest.split(self.split)) if self.manifest else 0

    @property
    def prompts(self) -> str:
        """Hash of class names and templates; empty for retrieval."""
        return canonical_hash([self.classnames, self.templates]) if self.classnames else ""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One test image with its ground truth: a label, a row of 0 and 1 over the classes, or captions.

    `digest` is that of the image's bytes, by which twins are told; empty if nobody asked.
    """

    key: str
    image: bytes
    label: int = -1
    targets: NDArray[np.bool_] | None = None
    captions: tuple[str, ...] = ()
    digest: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Triplet:
    """One judged triplet: the images' bytes (reference, 0, 1) and the facts that were staged with it."""

    key: str
    images: tuple[bytes, bytes, bytes]
    facts: Mapping[str, Any]


def describe_set(uri: str, identity: str = "", manifest_sha256: str = "") -> EvaluationSet:
    """Describe the set at `uri`.

    Args:
        uri: its folder.
        identity: that it must have, if given.
        manifest_sha256: pinned of a manifest of format 1, if given.

    Raises:
        InputError: no set here, another identity, no test images, no class names or templates, or a template without `{c}`.
        Corrupt: its manifest was damaged or changed by hand.
    """
    manifest = read_manifest(uri)
    if manifest is None:
        return _describe_foreign(uri, identity)
    manifest = require_manifest(uri, identity, manifest_sha256)
    if manifest.kind != "evaluation" or manifest.facts.get("task") not in (CLASSIFICATION, RETRIEVAL):
        raise InputError(f"{uri}: a data set of kind {manifest.kind}, task {manifest.facts.get('task')!r}: not an evaluation set")
    shards = manifest.split(SPLIT)
    if not sum(shard.num_samples for shard in shards):
        raise InputError(f"{uri}: evaluation set {manifest.name} has no test images")
    multilabel = bool(manifest.facts.get("multilabel", False))
    classnames, templates = _prompts(uri, manifest.facts) if manifest.facts["task"] == CLASSIFICATION else ((), ())
    return EvaluationSet(
        name=manifest.name, task=manifest.facts["task"], uri=uri, identity=manifest.identity, classnames=classnames, templates=templates,
        multilabel=multilabel, main_metric=str(manifest.facts.get("main_metric", "")), attribution=manifest.attribution,
        manifest=manifest, digests=tuple(shard.sha256 for shard in shards),
    )  # fmt: skip


def _describe_foreign(uri: str, identity: str) -> EvaluationSet:
    place = join(uri, SPLIT, "nshards.txt")
    text = _text(place)
    if text is None:
        raise InputError(f"{uri}: no evaluation set here: neither manifest.json nor {SPLIT}/nshards.txt")
    num_shards = whole(text, place, 0, MAX_SET_SHARDS)
    if num_shards < 1:
        raise InputError(f"{uri}: {SPLIT}/nshards.txt says {num_shards} shards: no test images")
    _check_shards(uri, num_shards)
    kind = (_text(join(uri, "dataset_type.txt")) or "classification").strip().lower()
    classnames, templates = ((), ()) if kind == "retrieval" else _prompts(uri, {})
    digests = tuple(file_sha256(join(uri, SPLIT, f"{k}.tar")) for k in range(num_shards))
    found = canonical_hash(["unstaged", kind, digests])
    if identity and identity != found:
        why = f"no manifest.json here, and by its files it is evaluation set {found[:12]}"
        raise InputError(f"{uri}: {why}, not the one this run was planned with ({identity[:12]})")
    return EvaluationSet(
        name=uri.rstrip("/").rsplit("/", 1)[-1], task=RETRIEVAL if kind == "retrieval" else CLASSIFICATION, uri=uri, identity=found,
        classnames=classnames, templates=templates, multilabel=kind == "multilabel", main_metric="", attribution="", manifest=None,
        digests=digests,
    )  # fmt: skip


def training_part(described: EvaluationSet, pairs: DataConfig) -> EvaluationSet | None:
    """The training pictures of a set: its own split; else, of a set that was staged with the pairs, those pairs that have a label.

    Args:
        described: the set.
        pairs: of the experiment; empty if it has none.

    Returns:
        None if there is neither.
    """
    manifest = described.manifest
    if manifest is None:
        text = _text(join(described.uri, TRAIN, "nshards.txt"))
        if text is None:
            return None
        num_shards = whole(text, join(described.uri, TRAIN, "nshards.txt"), 0, MAX_SET_SHARDS)
        _check_shards(described.uri, num_shards, TRAIN)
        digests = tuple(file_sha256(join(described.uri, TRAIN, f"{k}.tar")) for k in range(num_shards))
        return dataclasses.replace(described, digests=digests, split=TRAIN)
    uri = described.uri
    if not manifest.split(TRAIN):
        staged = require_manifest(pairs.uri, pairs.identity, pairs.manifest_sha256) if pairs.uri else None
        if staged is None or described.identity not in [entry["identity"] for entry in staged.evaluation]:
            return None
        manifest, uri = staged, pairs.uri
    digests = tuple(shard.sha256 for shard in manifest.split(TRAIN))
    return dataclasses.replace(described, uri=uri, manifest=manifest, digests=digests, split=TRAIN)


def _check_shards(uri: str, num_shards: int, split: str = SPLIT) -> None:
    """InputError if a tar is missing, or there are more than nshards.txt says."""
    prefix = join(uri, split) + "/"
    names = {info.uri.removeprefix(prefix) for info in open_store(uri).list(prefix)}
    there = {int(name.removesuffix(".tar")) for name in names if re.fullmatch(r"\d{1,9}\.tar", name)}
    missing, more = sorted(set(range(num_shards)) - there), sorted(number for number in there if number >= num_shards)
    if missing:
        raise InputError(f"{prefix}{missing[0]}.tar: missing: nshards.txt says {num_shards} shards, and {len(missing)} are missing")
    if more:
        raise InputError(f"{prefix}{more[0]}.tar: exists, but nshards.txt says {num_shards} shards: the set would be measured only in part")


def _prompts(uri: str, facts: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names and templates, checked: the manifest's own where it has them, else those of the set's text files."""
    lines = []
    for what, file in (("classnames", "classnames.txt"), ("templates", "zeroshot_classification_templates.txt")):
        text = None if facts.get(what) else _text(join(uri, file))
        if not facts.get(what) and (text is None or not text.strip()):
            raise InputError(f"{join(uri, file)}: missing or empty: zero-shot classification needs it")
        lines.append(tuple(str(line).strip() for line in (facts.get(what) or lines_of(text or ""))))
    classnames, templates = lines
    for number, template in enumerate(templates, 1):
        if "{c}" not in template:
            raise InputError(f"{uri}/zeroshot_classification_templates.txt, line {number}: no {{c}} in {template!r}")
    return classnames, templates


def _text(uri: str) -> str | None:
    try:
        return text_of(read_bytes(uri), uri)
    except MissingObject:
        return None


def read_set(described: EvaluationSet) -> Iterator[Item]:
    """Every image of the split, in the order of the shards; of pairs, those with a label that the set has.

    Raises:
        InputError: a missing shard, a sample without its members, a label that is no class.
        Corrupt: bytes that do not match their checksum.
    """
    count = 0
    for where, key, members in _samples(described):
        image = next((members[suffix] for suffix in ("image", *IMAGE_SUFFIXES) if suffix in members), None)
        if image is None:
            raise InputError(f"{where}: sample {key} has no image, only {sorted(members)}")
        if described.manifest is not None and described.manifest.kind == "pairs":
            item = _labelled_pair(described, where, key, image, members)
            if item is None:
                continue
        else:
            item = _item(described, where, key, image, members)
        yield item
        count += 1
    if not count:
        what = "test images" if described.split == SPLIT else "training pictures with a label"
        raise InputError(f"{described.uri}: evaluation set {described.name} has no {what}")


def _item(described: EvaluationSet, where: str, key: str, image: bytes, members: Mapping[str, bytes]) -> Item:
    suffix = "txt" if described.task == RETRIEVAL else "npy" if described.multilabel else "cls"
    if suffix not in members:
        raise InputError(f"{where}: sample {key} has no .{suffix}, only {sorted(members)}")
    data, num_classes = members[suffix], len(described.classnames)
    try:
        if suffix == "txt":
            lines = (line.removesuffix("\r") for line in text_of(data, "its bytes").split("\n"))  # as CLIP_benchmark splits them
            captions = tuple(line for line in lines if line.strip())
        elif suffix == "npy":
            targets = decode_array(data, f"{where}: sample {key}")
        else:
            label = int(text_of(data, "its bytes"))
    except (ValueError, Corrupt, InputError) as error:
        raise InputError(f"{where}: sample {key}: .{suffix} is not a {'caption' if suffix == 'txt' else 'label'}: {error}") from error
    if suffix == "txt":
        if not captions:
            raise InputError(f"{where}: sample {key} has no caption")
        return Item(key=key, image=image, captions=captions)
    if suffix == "npy":
        if targets.dtype.kind not in "biuf" or targets.shape != (num_classes,) or not np.isin(targets, (0, 1)).all():
            raise InputError(f"{where}: sample {key}: labels must be {num_classes} values of 0 or 1, got shape {targets.shape}")
        return Item(key=key, image=image, targets=targets.astype(bool))
    if not 0 <= label < num_classes:
        raise InputError(f"{where}: sample {key} has label {label}, but classnames.txt names classes 0 to {num_classes - 1}")
    return Item(key=key, image=image, label=label)


def _labelled_pair(described: EvaluationSet, where: str, key: str, image: bytes, members: Mapping[str, bytes]) -> Item | None:
    """A training pair as a picture of the set that was staged with the pairs; None if it has no label of that set."""
    try:
        label = json.loads(members["json"]).get("label")
    except (KeyError, AttributeError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: sample {key}: not a pair: {type(error).__name__} {error}") from error
    return Item(key=key, image=image, label=described.classnames.index(label)) if label in described.classnames else None


def _samples(described: EvaluationSet) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """(shard URI, key, members by suffix without a dot) of every sample of the split."""
    if described.manifest:
        for shard in described.manifest.split(described.split):
            for key, members in read_shard(described.uri, shard):
                yield join(described.uri, shard.name), key, members
        return
    for k, digest in enumerate(described.digests):
        uri = join(described.uri, described.split, f"{k}.tar")
        for key, members in _foreign_samples(uri, _read_sealed(uri, digest)):
            yield uri, key, members


def _foreign_samples(uri: str, data: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members by suffix of a tar that another tool wrote; InputError if it is not a whole one, or has no samples."""
    count = 0
    for key, members in by_sample(read_members(io.BytesIO(data), len(data), uri, lambda name: False), uri):
        broken = next((member.fault for member in members.values() if member.fault), "")
        if broken:
            raise InputError(f"{uri}: sample {key}: {broken}")
        yield key, {suffix: data[member.offset : member.offset + member.size] for suffix, member in members.items()}
        count += 1
    if not count:
        raise InputError(f"{uri}: has no samples: an empty shard, or not a set in CLIP_benchmark's layout")


def _read_sealed(uri: str, digest: str) -> bytes:
    """The object's bytes, which must be those whose SHA-256 is recorded."""
    data, found = read_hashed(uri, digest)
    if found != digest:
        raise Corrupt(f"{uri}: its bytes differ from those recorded: truncated or changed")
    return data


def read_triplets(uri: str, manifest: Manifest, split: str) -> Iterator[Triplet]:
    """Every triplet of one split, in the order of the shards.

    Raises:
        InputError: the split is empty.
        Corrupt: bytes that do not match their checksum.
    """
    count = 0
    for shard in manifest.split(split):
        for key, members in read_shard(uri, shard):
            yield _triplet(join(uri, shard.name), key, members)
            count += 1
    if not count:
        raise InputError(f"{uri}: data set {manifest.name} has no triplets in split {split}")


def _triplet(where: str, key: str, members: Mapping[str, bytes]) -> Triplet:
    """A sample as a triplet, with the facts that a measurement needs as numbers."""
    try:
        images = members["ref.png"], members["0.png"], members["1.png"]
        facts = json.loads(members["json"])
        numbers = [facts["target"], *(facts[name] for name in DISTANCES if facts.get(name) is not None)]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: sample {key}: not a triplet: {type(error).__name__} {error}") from error
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers) or not 0 <= numbers[0] <= 1:
        raise InputError(f"{where}: sample {key}: target must be a number from 0 to 1 and distances numbers, got {numbers}")
    return Triplet(key=key, images=images, facts=facts)


def read_shard(folder: str, shard: Shard) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by the index's column) of each sample of one shard, verified by the checksums that make the identity.

    Raises:
        Corrupt: the tar or its index is missing, or not the one that was staged; staging will look at both again.
    """
    try:
        yield from _read_whole(folder, shard)
    except Corrupt:
        forget(folder, shard.name, shard.index_name)
        raise


def _read_whole(folder: str, shard: Shard) -> Iterator[tuple[str, dict[str, bytes]]]:
    uri = join(folder, shard.name)
    try:
        index = read_index(folder, shard)
        data = _read_sealed(uri, shard.sha256)
    except MissingObject as error:
        raise Corrupt(f"{error}: the data set is sealed, so the file must have existed: stage it again") from error
    names = [member.lstrip(".") for member in index.members]
    starts, sizes = index.offsets.tolist(), index.sizes.tolist()
    checksums = index.crc32c.tolist()
    for row, key in enumerate(index.keys):
        members = {name: data[starts[row][m] : starts[row][m] + sizes[row][m]] for m, name in enumerate(names)}
        if [google_crc32c.value(member) for member in members.values()] != checksums[row]:
            raise Corrupt(f"{uri}: sample {key!r}: its index does not match it")
        yield key, members
