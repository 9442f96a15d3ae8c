"""The evaluation sets that an experiment can use for representation, from their manifests and indexes, without reading pictures.

The plan checks this before anything is trained, and an evaluation again before it measures; both raise the same errors.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.bounds import MAX_SET_SHARDS
from trainer.config import DataConfig
from trainer.errors import InputError
from trainer.representation import ALL, RepresentationConfig
from trainer.storage.base import exists, join, read_bytes, read_text
from trainer.storage.manifest import read_manifest, require_manifest, staged_sets
from trainer.storage.protocol import MissingObject
from trainer.storage.rdms import Rdm, find_pictures, read_rdm
from trainer.storage.samples import read_index
from trainer.storage.tarfiles import by_sample, read_members

CLASSIFICATION = "zeroshot_classification"


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What is known about an evaluation set without reading its pictures.

    Attributes:
        name: name under which figures are filed.
        uri: its folder.
        task: zeroshot_classification or zeroshot_retrieval.
        multilabel: whether a picture may show several classes.
        trains: whether it has training pictures, either its own split or the pairs with which it was staged.
    """

    name: str
    uri: str
    task: str
    multilabel: bool
    trains: bool


def outline(place: DataConfig, *, with_pairs: bool = False) -> Outline:
    """Describe the set at a place; `with_pairs`: it was staged with the pairs, whose training pictures have its labels."""
    manifest = read_manifest(place.uri)
    if manifest is not None:
        task = str(manifest.facts.get("task", ""))
        return Outline(
            name=manifest.name,
            uri=place.uri,
            task=task,
            multilabel=bool(manifest.facts.get("multilabel")),
            trains=bool(manifest.split("train")) or (with_pairs and task == CLASSIFICATION),
        )
    try:
        kind = read_text(join(place.uri, "dataset_type.txt")).strip().lower()
    except MissingObject:
        kind = "classification"
    return Outline(
        name=place.uri.rstrip("/").rsplit("/", 1)[-1],
        uri=place.uri,
        task="zeroshot_retrieval" if kind == "retrieval" else CLASSIFICATION,
        multilabel=kind == "multilabel",
        trains=exists(join(place.uri, "train", "nshards.txt")),
    )


def outlines(sets: Sequence[DataConfig], pairs: DataConfig) -> dict[str, Outline]:
    """Every set of an experiment by name: the further sets, and those staged with its pairs once the pairs are staged."""
    found = [outline(place) for place in sets]
    if pairs.uri:
        manifest = require_manifest(pairs.uri, pairs.identity, pairs.manifest_sha256)
        found += [outline(place, with_pairs=True) for place in staged_sets(pairs.uri, manifest, pairs.evaluation_sha256)]
    return {one.name: one for one in found}


def keys_of(one: Outline) -> list[str]:
    """The keys of its test pictures, in order."""
    manifest = read_manifest(one.uri)
    if manifest is not None:
        return [key for shard in manifest.split("test") for key in read_index(one.uri, shard).keys]
    keys: list[str] = []
    for number in range(_num_shards(join(one.uri, "test", "nshards.txt"))):
        uri = join(one.uri, "test", f"{number}.tar")
        data = read_bytes(uri)
        keys += (key for key, _ in by_sample(read_members(io.BytesIO(data), len(data), uri, lambda name: False), uri))
    return keys


def _num_shards(uri: str) -> int:
    text = read_text(uri).strip()
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) > MAX_SET_SHARDS:
        raise InputError(f"{uri}: must be a number of shards up to {MAX_SET_SHARDS:,}, got {text[:80]!r}")
    return int(text)


def read_rdms(config: RepresentationConfig, planned: Sequence[DataConfig] = ()) -> list[Rdm]:
    """The RDMs that are requested, or as they were planned.

    Raises:
        InputError: as in `read_rdm`; or two of them have the same name, under which the page would show both.
    """
    places = planned or [DataConfig(uri=uri) for uri in config.rdms]
    found = [read_rdm(place.uri, place.identity) for place in places]
    for number, one in enumerate(found):
        if one.name in {other.name for other in found[:number]}:
            raise InputError(f"RDM {places[number].uri}: there is already an RDM called {one.name}: rename the file")
    return found


def check_representation(config: RepresentationConfig, rdms: Sequence[Rdm], known: Mapping[str, Outline], *, complete: bool) -> None:
    """Refuse what cannot be measured.

    Args:
        config: the request's configuration.
        rdms: the RDMs that it names.
        known: `outlines` of the experiment.
        complete: whether these are all of its sets; otherwise the pairs are not staged yet, and unknown sets are checked later.

    Raises:
        InputError: an unknown set, a probe of a set that does not have exactly one class per picture or has no training
            pictures, or an RDM whose names are not pictures of one of the sets.
    """
    for name in ("sets", "probes"):
        for asked in getattr(config, name):
            if asked not in known and asked != ALL and complete:
                raise InputError(f"representation.{name}: no evaluation set is called {asked!r}; known: {', '.join(known) or 'none'}")
    for one in probed(config, known):
        require_probe(one, known)
    if config.probes and complete and not probed(config, known):
        raise InputError("representation.probes: the experiment has no zero-shot set")
    if complete or all(name in known for name in config.sets):
        sets_of(config, rdms, known)


def probed(config: RepresentationConfig, known: Mapping[str, Outline]) -> list[Outline]:
    """The sets on which probes are requested, as far as they are known; `all`: every zero-shot set."""
    if config.probes == (ALL,):
        return [one for one in known.values() if one.task == CLASSIFICATION]
    return [known[name] for name in config.probes if name in known]


def require_probe(one: Outline, known: Mapping[str, Outline]) -> None:
    """Refuse a set on which no probe can be trained, naming the sets on which one can."""
    why = (
        "it is a retrieval set, which has no classes"
        if one.task != CLASSIFICATION
        else "its pictures show several classes each"
        if one.multilabel
        else f"it has no training split ({join(one.uri, 'train')})"
        if not one.trains
        else ""
    )
    if why:
        able = [other.name for other in known.values() if other.trains and other.task == CLASSIFICATION and not other.multilabel]
        raise InputError(f"representation.probes: {one.name} cannot be probed: {why}; sets that can: {', '.join(able) or 'none'}")


def sets_of(config: RepresentationConfig, rdms: Sequence[Rdm], known: Mapping[str, Outline]) -> dict[str, str]:
    """The set that contains the pictures of each RDM, by the RDM's name; the first one that contains all of them.

    Raises:
        InputError: none of them does.
    """
    keys = {name: keys_of(known[name]) for name in config.sets} if rdms else {}
    found: dict[str, str] = {}
    for rdm in rdms:
        lacking = {name: find_pictures(rdm.names, of_set)[1] for name, of_set in keys.items()}
        name = min(lacking, key=lambda name: len(lacking[name]))
        if lacking[name]:
            count = len(rdm.names)
            raise InputError(
                f"RDM {rdm.name}: {len(lacking[name])} of its {count} names are not pictures in {name}, such as {lacking[name][0]!r}; its "
                f"pictures have names such as {keys[name][0]!r}"
            )
        found[rdm.name] = name
    return found


def planned_rdms(config: RepresentationConfig, rdms: Sequence[Rdm]) -> tuple[DataConfig, ...]:
    """The RDMs as recorded in a plan: place and SHA-256."""
    return tuple(DataConfig(uri=uri, identity=rdm.sha256) for uri, rdm in zip(config.rdms, rdms, strict=True))
