"""Open a sealed data set and iterate over its decoded samples."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from trainer.data.decode import decode_pixels
from trainer.errors import InputError, RunError
from trainer.evaluation.read_sets import EvaluationSet, Item, describe_set, read_set, read_shard, read_triplets
from trainer.staging.samples import captions_of
from trainer.storage import exists, join
from trainer.storage.base import absolute
from trainer.storage.manifest import Manifest, Shard, read_manifest, require_manifest, staged_sets

Pixels = NDArray[np.uint8]
"""A picture: (height, width, 3), RGB, at the size that it was staged in."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A picture with its captions.

    Attributes:
        key: unique in its data set.
        split: train, val or test.
        image: (H, W, 3) uint8.
        captions: at least one.
        facts: metadata staged with them: label, source …
    """

    key: str
    split: str
    image: Pixels
    captions: tuple[str, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Triplet:
    """A reference and two variants of it, and which of them the judges found closer.

    Attributes:
        key: unique in its data set.
        split: train, val or test.
        reference: (S, S, 3) uint8.
        image_0: (S, S, 3) uint8.
        image_1: (S, S, 3) uint8.
        target: share of the judges, from 0 to 1, who say that image 1 is closer to the reference.
        facts: votes, FLIP's and MSE's distances …
    """

    key: str
    split: str
    reference: Pixels
    image_0: Pixels
    image_1: Pixels
    target: float
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluationItem:
    """A picture of an evaluation set with its ground truth: a label, several labels, or captions.

    Attributes:
        key: unique in its set.
        split: test.
        image: (H, W, 3) uint8.
        label: index into the set's `classnames`; None if there is not exactly one.
        targets: (classes,) bool, in a set whose pictures show several classes; otherwise None.
        captions: in a retrieval set; otherwise empty.
    """

    key: str
    split: str
    image: Pixels
    label: int | None
    targets: NDArray[np.bool_] | None
    captions: tuple[str, ...]


SampleT = TypeVar("SampleT", Pair, Triplet, EvaluationItem)
_KINDS: dict[str, type[Pair] | type[Triplet] | type[EvaluationItem]] = {"pairs": Pair, "triplets": Triplet, "evaluation": EvaluationItem}


@dataclass(frozen=True, kw_only=True)
class DataSet(Generic[SampleT]):
    """A sealed data set; iterating it decodes its samples, in canonical order, each compared with its checksum.

    Attributes:
        uri: its folder.
        name: results are filed under it.
        identity: identity of the data, which reports compare.
        kind: pairs, triplets or evaluation.
        attribution: licence line, to be shown wherever the pictures are shown.
        num_samples: number of samples in each split.
        classnames: classes of a zero-shot set, in the order of the labels; otherwise empty.
        evaluation_sets: name to URI of the sets that were staged with pairs.
    """

    uri: str
    name: str
    identity: str
    kind: str
    attribution: str
    num_samples: Mapping[str, int]
    classnames: Sequence[str] = ()
    evaluation_sets: Mapping[str, str] = field(default_factory=dict)
    _read: Callable[[str], Iterator[SampleT]] = field(repr=False, compare=False)

    def __len__(self) -> int:
        """Samples of all splits."""
        return sum(self.num_samples.values())

    def __iter__(self) -> Iterator[SampleT]:
        """The samples of all splits, split by split."""
        for split in self.num_samples:
            yield from self._read(split)

    def samples(self, split: str) -> Iterator[SampleT]:
        """The samples of one split.

        Raises:
            InputError: there is no such split.
            Corrupt: the bytes differ from those that were staged; the message names shard and sample.
        """
        if split not in self.num_samples:
            raise InputError(f"{self.uri}: has no split {split!r}, only {', '.join(self.num_samples)}")
        return self._read(split)


@overload
def open_dataset(uri: str, kind: type[SampleT], *, identity: str = "") -> DataSet[SampleT]: ...
@overload
def open_dataset(uri: str, kind: None = None, *, identity: str = "") -> DataSet[Pair] | DataSet[Triplet] | DataSet[EvaluationItem]: ...
def open_dataset(uri: str, kind: Any = None, *, identity: str = "") -> Any:
    """Open a sealed data set; only its manifest is read now.

    Args:
        uri: its folder, `<root>/datasets/<name>/<plan id>`; of evaluation sets also one in CLIP_benchmark's layout that another tool wrote.
        kind: the samples that it must contain: `Pair`, `Triplet` or `EvaluationItem`; None accepts any.
        identity: the identity that it must have, if given.

    Raises:
        InputError: there is no sealed data set, or it has another kind or identity.
        Corrupt: its manifest was damaged or changed by hand.
    """
    place = absolute(uri)
    manifest = read_manifest(place)
    if manifest is None and not exists(join(place, "test", "nshards.txt")):
        raise InputError(f"{place}: no manifest.json, so this is not a sealed data set: give the folder <root>/datasets/<name>/<plan id>")
    found = "evaluation" if manifest is None else manifest.kind
    if kind not in (None, _KINDS[found]):
        wanted = next(name for name, samples in _KINDS.items() if samples is kind)
        raise InputError(f"{place}: contains {found}, but {wanted} are needed")
    if found == "evaluation":
        return _evaluation_set(describe_set(place, identity))
    manifest = require_manifest(place, identity)
    return _pairs(place, manifest) if found == "pairs" else _triplets(place, manifest)


def _pairs(uri: str, manifest: Manifest) -> DataSet[Pair]:
    def read(split: str) -> Iterator[Pair]:
        for shard in manifest.split(split):
            yield from (_pair(uri, shard, key, members) for key, members in read_shard(uri, shard))

    places = zip(manifest.evaluation, staged_sets(uri, manifest), strict=True)
    return DataSet(**_described(uri, manifest), evaluation_sets={entry["name"]: place.uri for entry, place in places}, _read=read)


def _pair(uri: str, shard: Shard, key: str, members: Mapping[str, bytes]) -> Pair:
    where = f"{join(uri, shard.name)}: sample {key!r}"
    facts = json.loads(members["json"] or b"{}")
    captions = tuple(captions_of(members["txt"], facts))
    return Pair(key=key, split=shard.split, image=_pixels(where, members["image"]), captions=captions, facts=facts)


def _triplets(uri: str, manifest: Manifest) -> DataSet[Triplet]:
    def read(split: str) -> Iterator[Triplet]:
        for triplet in read_triplets(uri, manifest, split):
            reference, image_0, image_1 = (_pixels(f"{uri}: sample {triplet.key!r}", data) for data in triplet.images)
            yield Triplet(
                key=triplet.key, split=split, reference=reference, image_0=image_0, image_1=image_1,
                target=float(triplet.facts["target"]), facts=triplet.facts,
            )  # fmt: skip

    return DataSet(**_described(uri, manifest), _read=read)


def _evaluation_set(described: EvaluationSet) -> DataSet[EvaluationItem]:
    def read(split: str) -> Iterator[EvaluationItem]:
        yield from (_item(described.uri, split, item) for item in read_set(described))

    return DataSet(
        uri=described.uri, name=described.name, identity=described.identity, kind="evaluation", attribution=described.attribution,
        num_samples={"test": described.num_items}, classnames=described.classnames, _read=read,
    )  # fmt: skip


def _item(uri: str, split: str, item: Item) -> EvaluationItem:
    image, label = _pixels(f"{uri}: sample {item.key!r}", item.image), None if item.label < 0 else item.label
    return EvaluationItem(key=item.key, split=split, image=image, label=label, targets=item.targets, captions=item.captions)


def _described(uri: str, manifest: Manifest) -> dict[str, Any]:
    num_samples: dict[str, int] = {}
    for shard in manifest.shards:
        num_samples[shard.split] = num_samples.get(shard.split, 0) + shard.num_samples
    return {
        "uri": uri, "name": manifest.name, "identity": manifest.identity, "kind": manifest.kind, "attribution": manifest.attribution,
        "num_samples": num_samples,
    }  # fmt: skip


def _pixels(where: str, data: bytes) -> Pixels:
    """A picture's pixels; an error names the sample."""
    try:
        return decode_pixels(data, "exact")
    except RunError as error:
        raise RunError(f"{where}: {error}") from error
