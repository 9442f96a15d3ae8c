"""Runs in the reference environment: CPU-seconds of an epoch of open_clip's own training loader, start-up left out.

python open_clip_rate.py; each line of input is an epoch as JSON (urls, num_samples, batch_size, image_size), answered by a line of seconds.
"""

import json
import os
import resource
import sys
import time
from argparse import Namespace

import open_clip
import torch
from open_clip.transform import image_transform
from open_clip_train.data import get_wds_dataset


def cpu_seconds() -> float:
    """Of this process and of the ended programs that fetched its shards."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    """Serve until the input ends. One process, as ours is measured, and open_clip's default augmentation."""
    torch.set_num_threads(1)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        args = Namespace(
            train_data=asked["urls"], train_num_samples=asked["num_samples"], batch_size=asked["batch_size"], workers=0, world_size=1,
            seed=0, dataset_resampled=False, train_data_upsampling_factors=None,
        )  # fmt: skip
        transform = image_transform(asked["image_size"], is_train=True)
        start = cpu_seconds()
        loader = get_wds_dataset(args, transform, is_train=True, tokenizer=tokenizer).dataloader
        done = sum(len(images) for images, _ in loader)
        seconds = cpu_seconds() - start
        assert done == asked["num_samples"], f"{done} of {asked['num_samples']} samples"
        print(seconds, file=answers, flush=True)


if __name__ == "__main__":
    main()
