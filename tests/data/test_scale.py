"""The order at 15 M samples, simulated: 14,700 shards, 64 ranks. What it costs in time stands in docs/SHUFFLE.md."""

import numpy as np
import pytest

from tests.benchmarks.shuffle import BATCH, RUNS, fetched, order, sizes

pytestmark = pytest.mark.slow


def test_64_ranks_together_see_every_sample_once() -> None:
    """15 M samples in one epoch, but for the counted remainder."""
    made, offsets = order(), np.concatenate([[0], np.cumsum(sizes())])
    seen = np.zeros(offsets[-1], np.uint8)
    for rank in range(64):
        for b in range(made.steps_per_epoch):
            part = made.part(3, b, rank, 64)
            seen[offsets[part[:, 1]] + part[:, 2]] += 1
    assert seen.max() == 1
    assert int(seen.sum()) == made.steps_per_epoch * BATCH == offsets[-1] - made.dropped


def test_a_rank_holds_its_own_runs_of_two_epochs_and_no_more() -> None:
    """The memory of an order: 4 bytes a sample of the rank's runs, whatever the number of epochs."""
    made = order()
    for epoch in range(32):
        made.part(epoch, 0, 5, 64)
    held = [run.nbytes for state in made._epochs.values() for run in state._runs.values()]
    assert sum(held) <= 2 * 4 * sum(sizes()) // RUNS


@pytest.mark.parametrize(("world_size", "ranks_per_node"), [(1, 1), (2, 1), (8, 1), (64, 8)])
def test_an_epoch_fetches_little_more_than_it_needs(world_size: int, ranks_per_node: int) -> None:
    """At most 1.1 times the bytes of its samples."""
    assert fetched(world_size, ranks_per_node) <= 1.1
