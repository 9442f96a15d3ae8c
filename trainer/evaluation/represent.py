"""Measure representation: layers of the vision tower on some sets, probes on others. One pass over a set for all its models."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer import similarity
from trainer.config import EvaluateConfig, unless_auto
from trainer.data.decode import decode_image
from trainer.errors import InputError, RunError
from trainer.evaluation import probes, zero_shot
from trainer.evaluation.encode import Encoder, check_finite, embed
from trainer.evaluation.jobs import Job, ModelAt
from trainer.evaluation.read_sets import EvaluationSet, Item, read_set
from trainer.evaluation.representation import choose_pictures, layer_names
from trainer.evaluation.results import Outcome
from trainer.representation import CKA_START, CKA_TOWER, FEATURES, FEW_SHOT, LINEAR_PROBE, NEIGHBOURS, RSA
from trainer.storage import join
from trainer.storage.arrays import read_arrays
from trainer.storage.outlines import keys_of, outlines, read_rdms, sets_of
from trainer.storage.rdms import Rdm, find_pictures

_SMALL = 4_000_000
"""Numbers of training features below which threads wait for each other longer than they work."""
Failure = InputError | RunError
Measurement = tuple[Job, Outcome | Failure]


def measure_group(
    config: EvaluateConfig, jobs: Sequence[Job], encoders: Mapping[ModelAt, Encoder], threads: int, advance: Callable[[int], None]
) -> Iterator[Measurement]:
    """All results of one group on one set, model by model, or their errors; a pass that fails is an error of its first job."""
    models = list(dict.fromkeys(job.model for job in jobs))
    measure = _layers if jobs[0].group == "layers" else _probes
    try:
        of_model = measure(config, jobs, [encoders[model] for model in models], threads, advance)
    except (InputError, RunError) as error:
        yield jobs[0], error
        return
    for number, model in enumerate(models):
        for job in (job for job in jobs if job.model == model):
            try:
                yield job, of_model(number, job)
            except (InputError, RunError) as error:
                yield job, error


def _run(
    config: EvaluateConfig,
    described: EvaluationSet,
    encoders: Sequence[Encoder],
    threads: int,
    advance: Callable[[int], None],
    run: Callable[[Encoder, Tensor], Tensor],
    chosen: set[str] | None = None,
) -> tuple[list[Item], list[Tensor]]:
    """One pass over a set, or over the pictures of it that were chosen: what is right about them, and of each encoder (N, …)."""
    items: list[Item] = []

    def pictures() -> Iterator[bytes]:
        for item in read_set(described):
            if chosen is None or item.key in chosen:
                items.append(Item(key=item.key, image=b"", label=item.label))
                yield item.image

    decode = partial(decode_image, side=encoders[0].image_size, mode=config.evaluation.decoder, squash=False)
    found = embed(
        encoders, pictures(), decode, batch_size=unless_auto(config.placement.local_batch_size) or 64, threads=threads, advance=advance,
        where=lambda number: f"{described.uri}: sample {items[number].key}", run=run,
    )  # fmt: skip
    for encoder, features in zip(encoders, found, strict=True):
        check_finite(encoder, features, [item.key for item in items], f"images of {described.name}")
    return items, found


# ------------------------------------------------------------------------------------------------------------------ layers


def _layers(
    config: EvaluateConfig, jobs: Sequence[Job], encoders: Sequence[Encoder], threads: int, advance: Callable[[int], None]
) -> Callable[[int, Job], Outcome]:
    described = _set_of(jobs[0])
    known = outlines(config.sets, config.pairs)
    rdms = read_rdms(config.representation, config.rdms)
    of_set = sets_of(config.representation, rdms, known)
    rdms = [rdm for rdm in rdms if of_set[rdm.name] == described.name]
    keys = keys_of(known[described.name])
    named = {keys[place] for rdm in rdms for place in find_pictures(rdm.names, keys)[0]}
    chosen = choose_pictures(keys, config.representation.pictures, named)
    items, found = _run(config, described, encoders, threads, advance, Encoder.layers, chosen)
    keys = [item.key for item in items]
    ranked = {rdm.name: _ranked(rdm, keys) for rdm in rdms}

    def outcome(number: int, job: Job) -> Outcome:
        place = layer_names(config).index(job.wanted.task)
        features = found[number].split(encoders[number].widths, dim=1)[place].numpy()  # type: ignore[no-untyped-call]
        return layer_outcome(config, job, keys, features, ranked)

    return outcome


def layer_outcome(
    config: EvaluateConfig,
    job: Job,
    keys: list[str],
    features: NDArray[np.float32],
    ranked: Mapping[str, tuple[list[int], NDArray[np.float64]]],
) -> Outcome:
    """Figures of one layer of one model.

    Args:
        config: of the evaluation.
        job: the layer and the model; what its cell's untrained model and tower make of the same pictures is read from its folder.
        keys: of the N pictures.
        features: (N, W).
        ranked: RDM to the places of its pictures, and `similarity.ranks` of its upper triangle.
    """
    own = similarity.centred(features).astype(np.float16)
    metrics: dict[str, float | None] = {}
    towers = [model.stage for model in config.models if model.stage == "perceptual"]
    for name, stage in ((CKA_START, "untrained"), *((CKA_TOWER, stage) for stage in towers)):
        if job.model.stage == stage and job.model.when == "final":
            metrics[name] = 1.0
        elif job.model.stage != "untrained":  # arms share it, and not all of them have a tower
            metrics[name] = similarity.cka(own, _features_of(config, job, stage, keys))
    metrics |= {f"{RSA}{name}": similarity.rsa(features[places], ranks) for name, (places, ranks) in ranked.items()}
    kept = {FEATURES: own} if job.model.when == "final" else {}
    return Outcome(
        metrics=metrics,
        chance={},
        baselines={},
        items={"key": np.array(keys), **kept},
        num_items=len(keys),
        sizes={"pictures": len(keys)},
        about={"rdms": {name: len(places) for name, (places, _) in ranked.items()}} if ranked else {},
    )


def _features_of(config: EvaluateConfig, job: Job, stage: str, keys: list[str]) -> NDArray[Any]:
    """What a final model of the cell, measured before this one, made of the same pictures at this layer."""
    place = join(config.output, f"{stage}-final", job.wanted.items_uri.rpartition("/")[2])
    arrays = read_arrays(place, ("key", FEATURES))
    if arrays["key"].tolist() != keys:
        raise RunError(f"{place}: was made from other pictures; delete it, and the next run will measure it again")
    return arrays[FEATURES]


def _ranked(rdm: Rdm, keys: list[str]) -> tuple[list[int], NDArray[np.float64]]:
    return find_pictures(rdm.names, keys)[0], similarity.ranks(similarity.upper_triangle(rdm.values))


# ------------------------------------------------------------------------------------------------------------------ probes


def _probes(
    config: EvaluateConfig, jobs: Sequence[Job], encoders: Sequence[Encoder], threads: int, advance: Callable[[int], None]
) -> Callable[[int, Job], Outcome]:
    described, training = _set_of(jobs[0]), jobs[0].training
    assert training is not None
    learned, train = _run(config, training, encoders, threads, advance, Encoder.tower)
    items, test = _run(config, described, encoders, threads, advance, Encoder.tower)

    def outcome(number: int, job: Job) -> Outcome:
        if train[number].numel() < _SMALL:
            torch.set_num_threads(1)
        try:
            return probe_outcome(described, job.wanted.task, (learned, train[number]), (items, test[number]), config.seed)
        finally:
            torch.set_num_threads(threads)

    return outcome


def probe_outcome(
    described: EvaluationSet, task: str, train: tuple[list[Item], Tensor], test: tuple[list[Item], Tensor], seed: int
) -> Outcome:
    """Figures of one probe.

    Args:
        described: the set.
        task: of `representation.PROBES`.
        train: N pictures and (N, W) what is read of them.
        test: the same of the M test pictures.
        seed: of the cell, which draws validation part and shots.
    """
    keys, labels, test_labels = [item.key for item in train[0]], _labels(train[0]), _labels(test[0])
    features, targets, count = train[1], torch.from_numpy(labels), len(described.classnames)
    metric = described.main_metric or "acc1"
    about: dict[str, Any] = {}
    if task == NEIGHBOURS:
        prediction = probes.nearest_neighbours(features, targets, test[1], count)
    else:
        strength = probes.FEW_SHOT_STRENGTH
        held = torch.from_numpy(probes.split_validation(keys, labels, seed))
        if task == LINEAR_PROBE and held.any():
            parts = [(features[part], targets[part]) for part in (~held, held)]
            strength, sweep = probes.choose_strength(parts[0], parts[1], count, lambda found, right: _figures(found, right)[metric])
            about["validation"] = {f"{tried:.4g}": figure for tried, figure in sweep.items()}
        elif task != LINEAR_PROBE:
            shots = torch.from_numpy(probes.draw_shots(keys, labels, int(task.removeprefix(FEW_SHOT)), seed))
            features, targets = features[shots], targets[shots]
        about["lambda"] = strength
        prediction = probes.predict(test[1], *probes.LogisticRegression(features, targets, count).fit(strength))
    figures = _figures(prediction, test_labels)
    names = np.array([item.key for item in test[0]])
    return Outcome(
        metrics=figures,
        chance=dict.fromkeys(figures, 1 / count),
        baselines={
            "majority_class": float(np.bincount(test_labels).max() / len(test_labels)),
            "majority_class_per_class": 1 / len(np.unique(test_labels)),
        },
        sizes={"pictures": len(names), "classes": count},
        items={"key": names, "clusters": names, "label": test_labels, "prediction": prediction, "correct": prediction == test_labels},
        num_items=len(names),
        main_metric=metric,
        about={**about, "training_pictures": len(targets)},
    )


def _figures(prediction: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    return {"acc1": float((prediction == labels).mean()), "mean_per_class_recall": zero_shot.mean_per_class_recall(prediction, labels)}


def _labels(items: Sequence[Item]) -> NDArray[np.int64]:
    return np.array([item.label for item in items], np.int64)


def _set_of(job: Job) -> EvaluationSet:
    assert job.described is not None
    return job.described
