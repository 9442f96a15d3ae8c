"""A training process as far as data goes, for row J: `python -m tests.benchmarks.first_batch URI CACHE START STEPS`.

Prints the seconds from the loader's construction to its first batch, then a line of keys for each step.
"""

import sys
import time
from itertools import islice

from trainer.config import DataConfig, Placement
from trainer.data.loader import PairsLoader
from trainer.storage import exists, join

BATCH, RUNS, BLOCK = 64, 4, 1


def main() -> None:
    """Load STEPS batches from START on."""
    uri, cache, start, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    assert exists(join(uri, "manifest.json"))  # the store's client is there: a training process has read its configuration by then
    begin = time.perf_counter()
    loader = PairsLoader(
        DataConfig(uri=uri),
        seed=0,
        global_batch_size=BATCH,
        rank=0,
        world_size=1,
        runs=RUNS,
        block_shards=BLOCK,
        image_size=224,
        augmentation="moco_v2",
        crop_scale_min=0.2,
        decoder="fast",
        placement=Placement(cache_dir=cache),
    )
    for number, batch in enumerate(islice(loader.batches(start), steps)):
        if number == 0:
            print(time.perf_counter() - begin, flush=True)
        print(batch.step, *batch.keys, flush=True)
    loader.close()


if __name__ == "__main__":
    main()
