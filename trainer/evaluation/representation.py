"""Which results of representation an evaluation wants: layers of some sets, probes of others. No torch here.

Layers are `layer-01` … after each block, and `layer-output`. Tasks of one `group` on one set come of one pass over its pictures.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.config import EvaluateConfig, canonical_hash
from trainer.configs.sizes import sizes
from trainer.errors import InputError
from trainer.evaluation.read_sets import EvaluationSet, training_part
from trainer.representation import LAYER, OUTPUT, PROBES
from trainer.storage.outlines import check_representation, outlines, probed

VERSION = 1
"""Raised where the same model and data would give other figures of representation."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One result of representation on one set.

    Attributes:
        described: the set, its test pictures.
        name: as a result's `task`.
        group: layers or probes.
        basis: hash of all that the result depends on beside model, set and evaluation version.
        count: pictures to run, 0 if that is not known before.
        training: pictures that a probe learns from.
    """

    described: EvaluationSet
    name: str
    group: Literal["layers", "probes"]
    basis: str
    count: int
    training: EvaluationSet | None = None


def layer_names(config: EvaluateConfig) -> list[str]:
    """The tasks of a model's layers, in order."""
    return [*(f"{LAYER}{number:02d}" for number in range(1, sizes(config.model).vision.layers + 1)), OUTPUT]


def find_tasks(config: EvaluateConfig, sets: Iterable[EvaluationSet]) -> Iterator[Task]:
    """What the configuration asks for on these sets.

    Raises:
        InputError: an unknown set, or one that cannot be probed.
    """
    asked = config.representation
    if not asked.sets and not asked.probes:
        return
    known = outlines(config.sets, config.pairs)
    check_representation(asked, [], known, complete=True)
    by_uri = {described.uri: described for described in sets}
    basis = canonical_hash(["layers", VERSION, asked.pictures, [rdm.identity for rdm in config.rdms]])
    for described in (by_uri[known[name].uri] for name in asked.sets if known[name].uri in by_uri):
        count = min(asked.pictures, described.num_items)
        for name in layer_names(config):
            yield Task(described=described, name=name, group="layers", basis=basis, count=count)
    for described in (by_uri[one.uri] for one in probed(asked, known) if one.uri in by_uri):
        training = training_part(described, config.pairs)
        if training is None:
            raise InputError(f"{described.uri}: evaluation set {described.name} has no training split: it cannot be probed")
        basis = canonical_hash(["probes", VERSION, training.digests])
        count = described.num_items + training.num_items if described.num_items and training.num_items else 0
        for name in PROBES:
            yield Task(described=described, name=name, group="probes", basis=basis, count=count, training=training)


def choose_pictures(keys: Sequence[str], most: int, always: Iterable[str]) -> set[str]:
    """The pictures of a set that go through the layers: the first by a hash of their names, so the same for every model and seed.

    Args:
        keys: of all of them.
        most: pictures.
        always: those that RDMs name; where they are more than `most`, they alone.
    """
    chosen = set(always)
    ranked = sorted(set(keys) - chosen, key=lambda key: hashlib.sha256(key.encode()).digest())
    return chosen | set(ranked[: max(most - len(chosen), 0)])
