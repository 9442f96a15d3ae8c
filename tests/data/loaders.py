"""Loaders for tests, each argument as a test leaves it or sets it."""

from trainer.config import DataConfig, Placement
from trainer.data.loader import PairsLoader, TripletsLoader


def pairs_loader(data: DataConfig, **changes: object) -> PairsLoader:
    """A loader of 12 in two runs, one rank."""
    arguments = {
        "seed": 0, "global_batch_size": 12, "rank": 0, "world_size": 1, "runs": 2, "block_shards": 1, "image_size": 8,
        "augmentation": "crop", "crop_scale_min": 0.5, "decoder": "fast", "placement": Placement(), "context_length": 8,
    }  # fmt: skip
    return PairsLoader(data, **{**arguments, **changes})


def triplets_loader(data: DataConfig, **changes: object) -> TripletsLoader:
    """A loader of 5 with people's votes, one rank."""
    arguments = {
        "seed": 0, "global_batch_size": 5, "rank": 0, "world_size": 1, "image_size": 12, "labels": "votes", "split": "train",
        "mirror": False, "placement": Placement(),
    }  # fmt: skip
    return TripletsLoader(data, **{**arguments, **changes})
