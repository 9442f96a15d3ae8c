"""Run models over the sets whose results `evaluate` found missing. This module and those that it imports need torch."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from trainer import lineage
from trainer.config import EvaluateConfig, Placement, unless_auto
from trainer.data.decode import decode_image
from trainer.errors import Corrupt, InputError, RunError
from trainer.evaluation.encode import Encoder, embed
from trainer.evaluation.jobs import Job, ModelAt
from trainer.evaluation.outcomes import retrieval_outcome, two_afc_outcome, zero_shot_outcome
from trainer.evaluation.prior import Start
from trainer.evaluation.read_sets import RETRIEVAL, EvaluationSet, Item, Triplet, read_set, read_triplets
from trainer.evaluation.represent import measure_group
from trainer.evaluation.results import Outcome, write_result
from trainer.model import gpus, towers
from trainer.model.clip import CLIP
from trainer.progress import check_stop, progress
from trainer.storage import layout
from trainer.storage.base import MissingObject
from trainer.storage.checked import read_hashed

Failure = InputError | RunError

MODELS_AT_ONCE = 4
"""Models that share one pass over the pictures; more wait for the next pass, so memory stays bounded."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The outcome of running the missing jobs: those whose result was written, and the errors of the others."""

    written: list[Job]
    errors: list[Failure]


def measure(config: EvaluateConfig, jobs: Sequence[Job]) -> Measured:
    """Carry out `jobs`, set by set, and write each result as soon as it is available.

    A set or a model that cannot be measured does not stop the others: its error is printed and returned.
    """
    device = _device(config.placement)
    threads = config.placement.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    total, done = sum(job.num_items for job in jobs) if all(job.num_items for job in jobs) else 0, 0  # 0: not known before the set is read
    written: list[Job] = []
    errors: list[Failure] = []
    cell = layout.cell_name(config.arm, config.seed, config.point)
    step = f"evaluate {cell}"

    def advance(jobs_at_once: int, count: int) -> None:
        nonlocal done
        check_stop()
        done += jobs_at_once * count
        progress(step, done, total, "images")

    start_of_cell = Start(config)
    wanted_models = list({job.model: None for job in jobs})
    wanted_models.sort(key=lambda model: model.stage not in ("untrained", "perceptual"))  # layers of the others are compared with theirs
    for start in range(0, len(wanted_models), MODELS_AT_ONCE):
        group = wanted_models[start : start + MODELS_AT_ONCE]
        encoders = load_encoders(config, group, device, errors)
        for same_set in _by_set([job for job in jobs if job.model in encoders]):
            advance_set = partial(advance, len(same_set))
            measure_one = measure_group if same_set[0].group else measure_set
            for job, outcome in measure_one(config, same_set, encoders, threads, advance_set):
                if isinstance(outcome, Outcome) and job.split and job.model.stage == "contrastive":
                    outcome = _with_start(outcome, start_of_cell, encoders[job.model])
                if isinstance(outcome, Outcome):
                    job.wanted.block["weights_sha256"] = job.model.weights_sha256 or encoders[job.model].weights_sha256()
                    write_result(job.wanted, outcome, cell, f"{job.model.stage}-{job.model.when}")
                    written.append(job)
                else:
                    check_stop()  # a stop is not this set's fault
                    print(f"evaluate: {job.wanted.dataset}, {job.model.name}: {outcome}", flush=True)
                    errors.append(outcome)
    if not errors and (done < total or not total):
        progress(step, max(done, total), max(done, total), "images")
    return Measured(written=written, errors=errors)


def _with_start(outcome: Outcome, start: Start, encoder: Encoder) -> Outcome | RunError:
    """The outcome with the model's similarity to its start; why there is none, if the start cannot be read."""
    try:
        return replace(outcome, start_cosine=start.cosine(encoder.vision_weights()))
    except RunError as error:
        return error


def load_encoders(config: EvaluateConfig, group: Sequence[ModelAt], device: torch.device, errors: list[Failure]) -> dict[ModelAt, Encoder]:
    """The models that can be loaded; errors of the others are printed and added to `errors`.

    A damaged checkpoint counts as missing: it is printed but is not an error, since nothing rebuilds it.
    """
    encoders = {}
    for at in group:
        try:
            encoders[at] = Encoder(at.name, load_model(config, at), config.model, device, config.evaluation.precision)
        except (InputError, RunError) as error:
            passed_over = at.checkpoint and isinstance(error, Corrupt | MissingObject)
            print(f"evaluate: {at.name}: {error}{': skipped' if passed_over else ''}", flush=True)
            if not passed_over:
                errors.append(error)
    return encoders


def load_model(config: EvaluateConfig, at: ModelAt) -> CLIP:
    """The model, with every key, shape and hash verified; for a perceptual stage, only the vision tower."""
    model = towers.build_model(config.model, config.seed)
    if at.checkpoint:
        data, found = read_hashed(at.checkpoint, at.checkpoint_sha256)
        if found != at.checkpoint_sha256:
            raise Corrupt(f"{at.checkpoint}: checksum does not match COMMITTED.json: the file was changed or truncated")
        try:
            tensors, source = load(data), at.checkpoint
        except SafetensorError as error:
            raise Corrupt(f"{at.checkpoint}: not a safetensors file: {error}") from error
    elif at.start is not None:
        state, _ = lineage.read_start(at.start)
        tensors, source = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}, at.start.uri
    else:
        return model
    module = model.visual if at.stage == "perceptual" else model
    towers.load_strict(module, tensors, source)
    return model


def _device(placement: Placement) -> torch.device:
    available = gpus.usable(placement.device)
    if placement.device == "auto":
        return torch.device("cuda" if available else "cpu")
    if placement.device == "cuda" and not available:
        raise InputError("placement.device must be cpu or auto if there is no CUDA device, got 'cuda'")
    return torch.device(placement.device)


def _by_set(jobs: Sequence[Job]) -> list[list[Job]]:
    groups: dict[tuple[str, str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.group or job.wanted.task, job.wanted.dataset, job.split), []).append(job)
    return list(groups.values())


def measure_set(
    config: EvaluateConfig, jobs: Sequence[Job], encoders: Mapping[ModelAt, Encoder], threads: int, advance: Callable[[int], None]
) -> Iterator[tuple[Job, Outcome | Failure]]:
    """One pass over one set for all its models; each model then gets its figures or its own error."""
    used = [encoders[job.model] for job in jobs]
    batch_size = unless_auto(config.placement.local_batch_size) or 64
    decode = partial(decode_image, side=used[0].image_size, mode=config.evaluation.decoder, squash=bool(jobs[0].split))
    outcome_of: Callable[[Encoder, Tensor], Outcome]
    try:
        if jobs[0].split:
            assert jobs[0].triplets is not None
            triplets: list[Triplet] = []
            source = _images_of_triplets(read_triplets(config.triplets.uri, jobs[0].triplets, jobs[0].split), triplets)
            outcome_of = partial(two_afc_outcome, triplets)

            def where(number: int) -> str:
                return f"{config.triplets.uri}: sample {triplets[number // 3].key}"
        else:
            described = jobs[0].described
            assert described is not None
            items: list[Item] = []
            source = _images_of_set(described, items)
            outcome_of = partial(zero_shot_outcome, described, items)
            if described.task == RETRIEVAL:
                outcome_of = partial(retrieval_outcome, described, items, twins_too=config.evaluation_version > 1)

            def where(number: int) -> str:
                return f"{described.uri}: sample {items[number].key}"

        features = embed(used, source, decode, batch_size=batch_size, threads=threads, advance=advance, where=where)
    except (InputError, RunError) as error:
        yield jobs[0], error
        return
    for job, encoder, own in zip(jobs, used, features, strict=True):
        try:
            yield job, outcome_of(encoder, own)
        except (InputError, RunError) as error:
            yield job, error


def _images_of_set(described: EvaluationSet, items: list[Item]) -> Iterator[bytes]:
    """The pictures of a set; the ground truth of each is kept in `items`, without the picture."""
    for item in read_set(described):
        digest = hashlib.blake2b(item.image, digest_size=16).digest()
        items.append(replace(item, image=b"", digest=digest))
        yield item.image


def _images_of_triplets(source: Iterator[Triplet], triplets: list[Triplet]) -> Iterator[bytes]:
    """The reference and variants 0 and 1 of each triplet in turn; the triplet's facts are kept in `triplets`."""
    for triplet in source:
        triplets.append(Triplet(key=triplet.key, images=(b"", b"", b""), facts=triplet.facts))
        yield from triplet.images
