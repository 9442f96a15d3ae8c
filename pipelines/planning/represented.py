"""What a request's `representation` takes beside the figures: pictures through layers and for probes, and what is computed of them."""

from dataclasses import dataclass

from pipelines.planning.plan import Experiment
from pipelines.planning.request import Request
from pipelines.planning.sources import DEMO_HELD_OUT, DEMO_PAIRS, is_demo
from trainer.config import DataConfig
from trainer.configs import parse_config, sizes
from trainer.configs.evaluation_sets import FAMILIES, SETS, find_set
from trainer.errors import InputError
from trainer.representation import ALL, RepresentationConfig
from trainer.storage.manifest import read_manifest, staged_sets

LAYERS_SECONDS = 61.0
"""CPU-seconds of CKA to start and tower and of one RSA over 5,000 pictures and 12 layers of width 768, a model (docs/EVALUATION.md)."""
SWEEP_SECONDS = 14.0
"""CPU-seconds of the sweep of lambda over 50,000 pictures of 512 features and 10 classes, a model (docs/EVALUATION.md)."""
IMAGENET_TRAINING = 1_281_167
_TRAINING, _TEST, _CLASSES = 35_000, 10_000, 10
"""Assumed of a set that is not staged: pictures of its training and test split, where it is not of the field, and classes."""


@dataclass(frozen=True, kw_only=True)
class Represented:
    """What is measured beside the figures of one model.

    Attributes:
        layer_pictures: that go through every layer.
        layer_seconds: CPU-seconds of CKA and RSA.
        probe_pictures: that probes learn from and are tested on.
        probe_seconds: CPU-seconds of fitting them.
    """

    layer_pictures: int = 0
    layer_seconds: float = 0.0
    probe_pictures: int = 0
    probe_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Set:
    test: int
    training: int
    classes: int


_DEMO = _Set(test=DEMO_HELD_OUT, training=DEMO_PAIRS, classes=9)


def represented(experiment: Experiment, request: Request) -> Represented:
    """What a request asks for, by the sets as far as they are known; sets that are not staged count as the field has them."""
    asked = parse_config(RepresentationConfig, request.representation, source="representation")
    tower = sizes.sizes(experiment.recipe.model).vision
    demo = not experiment.pairs.uri and is_demo(request.pairs, experiment.recipe)
    known = _known(experiment) | ({"demo-categories": _DEMO} if demo else {})
    through = sum(min(asked.pictures, known.get(name, _of_the_field(name)).test) for name in asked.sets)
    if asked.probes == (ALL,):
        probed = list(known.values()) or [_of_the_field(name) for name in _probed_by_the_field()]
    else:
        probed = [known.get(name, _of_the_field(name)) for name in asked.probes]
    each = (one.training / 50_000 * tower.width / 512 * one.classes / 10 for one in probed)
    return Represented(
        layer_pictures=through,
        layer_seconds=LAYERS_SECONDS * through / 5_000 * tower.layers / 12 * tower.width / 768,
        probe_pictures=sum(one.test + one.training for one in probed),
        probe_seconds=SWEEP_SECONDS * sum(each),
    )


def _known(experiment: Experiment) -> dict[str, _Set]:
    """The sets that have a manifest and classes, by name; of one that was staged with the pairs these are its training pictures."""
    pairs = read_manifest(experiment.pairs.uri) if experiment.pairs.uri else None
    own = staged_sets(experiment.pairs.uri, pairs) if pairs else []
    found = {}
    for place in (*experiment.sets, *own):
        manifest = read_manifest(place.uri) if place.uri not in experiment.unread else None
        if manifest is not None and manifest.facts.get("task") == "zeroshot_classification":
            training = manifest.split("train") or (pairs.split("train") if pairs and place in own else [])
            test, learned = (sum(shard.num_samples for shard in shards) for shards in (manifest.split("test"), training))
            found[manifest.name] = _Set(test=test, training=learned, classes=len(manifest.facts.get("classnames") or ()) or _CLASSES)
        elif manifest is None:
            name = _name_of(place)
            found[name] = _of_the_field(name)
    return found


def _name_of(place: DataConfig) -> str:
    return place.uri.rstrip("/").rpartition("/")[2]


def _of_the_field(name: str) -> _Set:
    try:
        facts = find_set(name)
    except InputError:
        return _Set(test=_TEST, training=_TRAINING, classes=_CLASSES)
    return _Set(test=facts.test_size, training=IMAGENET_TRAINING if name == "imagenet-1k" else _TRAINING, classes=facts.classes)


def _probed_by_the_field() -> list[str]:
    """The zero-shot sets that have a training split: all but those that are ImageNet again."""
    return [known.name for known in SETS if known.counted and known.name not in FAMILIES["OOD"]]
