"""Read staged shards back by their index, for evaluation sets, for statistics over a whole data set, and for `inspect`."""

import json
from collections.abc import Iterator, Sequence

import google_crc32c

from trainer.errors import Corrupt
from trainer.storage import join, read_bytes
from trainer.storage.checked import forget
from trainer.storage.manifest import Shard
from trainer.storage.samples import read_index


def read_shard(folder: str, shard: Shard) -> Iterator[tuple[str, tuple[bytes, ...]]]:
    """Key and members (in the order of the index's columns) of every sample.

    Raises:
        Corrupt: the shard or its index differs from what was staged; the next run of staging rebuilds its slice.
    """
    uri = join(folder, shard.name)
    try:
        index = read_index(folder, shard)
        data = read_bytes(uri)
        if len(data) != shard.size or google_crc32c.value(data) != shard.crc32c:
            raise Corrupt(f"{uri}: size or checksum differs from what was staged: run the same command again, which recreates it")
    except Corrupt:
        forget(folder, shard.name, shard.index_name)
        raise
    for row, key in enumerate(index.keys):
        ends = zip(index.offsets[row].tolist(), index.sizes[row].tolist(), strict=True)
        yield key, tuple(data[start : start + size] for start, size in ends)


def mse_accuracy(folder: str, shards: Sequence[Shard]) -> dict[str, float]:
    """How often pixel MSE agrees with the judge, by split: the baseline for a network. Ties of either count one half."""
    right: dict[str, list[float]] = {}
    for shard in shards:
        for _, members in read_shard(folder, shard):
            facts = json.loads(members[-1])
            right.setdefault(shard.split, []).append(agreement(facts["mse_0"], facts["mse_1"], facts["target"]))
    return {split: sum(scores) / len(scores) for split, scores in right.items()}


def agreement(distance_0: float, distance_1: float, target: float) -> float:
    """2AFC score of one triplet: 1 if the nearer variant is the judge's choice, .5 for a tie.

    Args:
        distance_0: distance of variant 0 from the reference.
        distance_1: distance of variant 1 from the reference.
        target: fraction of the votes for variant 1; the score is the fraction of votes that agree with the nearer variant.
    """
    if distance_0 == distance_1:
        return 0.5
    majority = 0.5 if target == 0.5 else float(target > 0.5)
    return majority if distance_1 < distance_0 else 1.0 - majority
