"""Row M: training on a GPU fed from JPEG shards, against the same step on a batch that is already on the device."""

import dataclasses
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from tests.benchmarks import training
from tests.benchmarks.harness import Measured, interleaved, row
from tests.benchmarks.photos import shards, short256
from tests.data.datasets import picture, write_dataset
from trainer.config import DataConfig, ModelConfig, Placement
from trainer.data.loader import PairsLoader

BATCH, PICTURES, SAMPLES, STEPS = 1024, 256, 8192, 18
WARM_UP = 48
"""Warm-up steps: on an H100 some forty are slower, each with a number of tokens not seen before."""


def _photo(number: int) -> bytes:
    return short256(picture(number, 375, 500, "JPEG"))


def dataset(folder: Path, samples: int = SAMPLES) -> DataConfig:
    """Pairs of 256 photos at short side 256, with captions of mean 24 tokens."""
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        photos = list(pool.map(_photo, range(PICTURES)))
    captions = [[training.START, *range(320, 318 + length), training.END] for length in training.lengths_of_captions(samples).tolist()]
    written = (
        (split, [dataclasses.replace(sample, captions=[captions[int(sample.key)]]) for sample in shard])
        for split, shard in shards([photos[number % PICTURES] for number in range(samples)], 1024)
    )
    return write_dataset(str(folder), "pairs", written, suffixes={"image": "jpg"})


def _loader(data: DataConfig, folder: Path, workers: int) -> PairsLoader:
    loader = PairsLoader(
        data, seed=0, global_batch_size=BATCH, rank=0, world_size=1, runs=4, block_shards=1, image_size=224,
        augmentation="moco_v2", crop_scale_min=0.2, decoder="fast", placement=Placement(cache_dir=str(folder), loader_workers=workers),
    )  # fmt: skip
    loader._pairs_decoder = dataclasses.replace(loader._pairs_decoder, keep_bytes=0)  # a large data set is decoded each time
    return loader


@row(
    "M",
    what="GPU: fed from JPEG shards, short256, MoCo-v2 augmentation, against a batch on the device",
    unit="pairs/s",
    target=0.95,
    gpu=True,
)
def fed_from_shards(folder: Path) -> Measured:
    """The step of row L with augmentation. Decoding runs in two processes fewer than there are cores, beside the trainer's."""
    data, workers = dataset(folder / "data"), max(1, len(os.sched_getaffinity(0)) - 2)
    loader = _loader(data, folder / "cache", workers)
    batches = loader.batches(0)
    stage_step = training.our_stage_step(ModelConfig(), BATCH, "bf16", torch.device("cuda"), augmentation="moco_v2", compile=True)
    first = next(batches)
    there = dataclasses.replace(first, images=first.images.cuda(), tokens=first.tokens.cuda())
    for _ in range(WARM_UP):
        stage_step(next(batches))

    def rate(batch: Callable[[], object]) -> Callable[[], float]:
        def measure() -> float:
            for _ in range(4):  # until the loader works at the step's pace, neither idle nor drained
                stage_step(batch())
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(STEPS):
                stage_step(batch())
            torch.cuda.synchronize()
            return STEPS * BATCH / (time.perf_counter() - began)

        return measure

    measured = interleaved(rate(lambda: there), rate(lambda: next(batches)), rounds=3)
    began = time.perf_counter()
    for _ in range(STEPS):
        next(batches)
    alone = STEPS * BATCH / (time.perf_counter() - began)
    loader.close()
    return dataclasses.replace(
        measured, note=f"local batch {BATCH}, mean 24 tokens, {workers} workers; the loader alone reaches {alone:.0f} pairs/s"
    )
