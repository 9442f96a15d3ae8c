"""A fraction of a split: nested, drawn by keys alone, ordered as canonically as the whole."""

import hashlib
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.data.datasets import pairs, triplets, write_dataset
from tests.data.loaders import pairs_loader, triplets_loader
from trainer.config import DataConfig, stream_seed
from trainer.data.order import CanonicalOrder
from trainer.data.subset import SubsetOrder, chosen
from trainer.errors import InputError

KEYS = [f"key-{number}" for number in range(1000)]


@pytest.fixture(scope="module")
def triplet_data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """40 triplets in three shards."""
    return write_dataset(str(tmp_path_factory.mktemp("triplets")), "triplets", triplets([15, 15, 10]))


def test_a_fraction_is_the_first_keys_by_their_hash():
    """Compared with the definition, written out."""
    ranked = sorted(range(1000), key=lambda n: hashlib.sha256(f"{stream_seed(3, 'subset')}:{KEYS[n]}".encode()).digest())
    for fraction in (0.001, 0.05, 0.3335, 0.999, 1.0):
        assert chosen(KEYS, 3, fraction).tolist() == sorted(ranked[: round(fraction * 1000)])
    assert len(chosen(KEYS, 3, 0.0001)) == 0


def test_fractions_are_nested_and_each_seed_draws_its_own():
    parts = [set(chosen(KEYS, 0, fraction).tolist()) for fraction in (0.01, 0.05, 0.25, 0.5, 1)]
    assert all(small < large for small, large in pairwise(parts))
    assert set(chosen(KEYS, 1, 0.25).tolist()) != parts[2]


def test_a_fraction_does_not_depend_on_where_its_keys_lie():
    order = np.random.default_rng(0).permutation(1000)
    moved = chosen([KEYS[n] for n in order], 0, 0.1)
    assert {KEYS[order[n]] for n in moved} == {KEYS[n] for n in chosen(KEYS, 0, 0.1)}


@pytest.mark.parametrize(("runs", "block_shards"), [(1, 0), (2, 1), (3, 2)])
def test_an_epoch_over_a_fraction_has_each_of_its_samples_once(runs: int, block_shards: int):
    """Also where a shard has none of them; a rank's samples lie in what it reads, between first and last step."""
    sizes = [20, 7, 18, 12]
    positions = np.array([p for p in range(57) if not 20 <= p < 27 and p % 2])
    order = SubsetOrder(sizes, positions, seed=0, global_batch_size=6, runs=runs, block_shards=block_shards)
    assert order.steps_per_epoch == len(positions) // 6
    starts = np.concatenate([[0], np.cumsum(sizes)])
    seen = Counter()
    for rank in range(2):
        reads = {(read.run, read.shard): read for read in order.reads(1, rank, 2)}
        for b in range(order.steps_per_epoch):
            for run, shard, row in order.part(1, b, rank, 2).tolist():
                seen[int(starts[shard] + row)] += 1
                read = reads[run, shard]
                assert read.first_row <= row < read.stop_row
                assert read.first_step <= b <= read.last_step
    assert set(seen) <= set(positions.tolist())
    assert set(seen.values()) == {1}
    assert sum(seen.values()) == 6 * order.steps_per_epoch


def test_the_whole_split_is_ordered_as_without_a_subset():
    arguments = {"seed": 4, "global_batch_size": 6, "runs": 2, "block_shards": 1}
    whole, same = CanonicalOrder([20, 7, 18, 12], **arguments), SubsetOrder([20, 7, 18, 12], np.arange(57), **arguments)
    for b in range(whole.steps_per_epoch):
        np.testing.assert_array_equal(whole.part(2, b, 0, 1), same.part(2, b, 0, 1))
    assert whole.reads(2, 0, 1) == same.reads(2, 0, 1)


def keys_of(loader, epochs: int) -> list[set[str]]:
    """The keys of each epoch."""
    try:
        batches = list(islice(loader.batches(0), epochs * loader.steps_per_epoch))
    finally:
        loader.close()
    return [{key for batch in batches if batch.epoch == epoch for key in batch.keys} for epoch in range(epochs)]


def test_a_loader_shows_no_sample_beyond_its_fraction(pair_data: DataConfig):
    """And steps shrink with it: 57 x 0.45 is 26, two batches of 12."""
    loader = pairs_loader(pair_data, fraction=0.45)
    assert (loader.num_samples, loader.steps_per_epoch) == (26, 2)
    part = set().union(*keys_of(loader, 6))
    assert len(part) == 26
    assert set().union(*keys_of(pairs_loader(pair_data, fraction=0.25), 6)) < part


def test_partners_are_found_within_the_fraction(triplet_data: DataConfig):
    """A shuffled or instance label from outside would be a larger dose than is asked for."""
    for labels in ("shuffled", "instance"):
        loader = triplets_loader(triplet_data, labels=labels, fraction=0.5)
        own = set(loader._chosen.tolist())
        part = loader.order.part(0, 0, 0, 1)
        others = loader._others(0, part)
        assert {int(loader._bounds[shard] + row) for _, shard, row in others} <= own
        assert {int(loader._bounds[shard] + row) for _, shard, row in part} <= own


def test_a_fraction_below_one_batch_is_refused(pair_data: DataConfig):
    with pytest.raises(InputError, match="at most the 6 samples"):
        _ = pairs_loader(pair_data, fraction=0.1).steps_per_epoch


def test_an_index_that_is_gone_is_named(tmp_path: Path):
    data = write_dataset(str(tmp_path), "pairs", pairs([20, 7]))
    gone = next(Path(tmp_path).rglob("*.index"))
    gone.unlink()
    with pytest.raises(Exception, match=gone.name):
        _ = pairs_loader(data, fraction=0.9).steps_per_epoch
