"""The canonical order: every property that resume, world sizes and the report's fairness stand on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.order import CanonicalOrder, SinglePass
from trainer.errors import InputError


@st.composite
def orders(draw: st.DrawFn) -> tuple[CanonicalOrder, list[int]]:
    """A random order, with the sizes of its shards."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    runs = draw(st.integers(1, 6))
    per_run = draw(st.integers(1, max(1, sum(sizes) // runs)))
    if runs * per_run > sum(sizes):
        runs, per_run = 1, min(per_run, sum(sizes))
    order = CanonicalOrder(
        sizes, seed=draw(st.integers(0, 5)), global_batch_size=runs * per_run, runs=runs, block_shards=draw(st.integers(0, 4))
    )
    return order, sizes


def samples_of(order: CanonicalOrder, epoch: int) -> list[tuple[int, int]]:
    """All samples of an epoch in order."""
    return [(int(shard), int(row)) for b in range(order.steps_per_epoch) for shard, row in order.batch(epoch, b)]


@given(orders(), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_an_epoch_has_every_sample_once_but_for_the_counted_remainder(made: tuple[CanonicalOrder, list[int]], epoch: int) -> None:
    """No sample is lost or repeated, and what is dropped is what `dropped` says."""
    order, sizes = made
    samples = samples_of(order, epoch)
    assert len(samples) == len(set(samples)) == sum(sizes) - order.dropped
    assert order.dropped < order.global_batch_size
    assert all(0 <= row < sizes[shard] for shard, row in samples)


@given(orders(), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_the_parts_of_all_ranks_are_the_global_batch(made: tuple[CanonicalOrder, list[int]], epoch: int) -> None:
    """Whatever world size divides the batch, the ranks' parts in turn are the same list."""
    order, _ = made
    for world_size in (w for w in (1, 2, 3, 4, 8) if order.global_batch_size % w == 0):
        for b in range(order.steps_per_epoch):
            parts = np.concatenate([order.part(epoch, b, rank, world_size) for rank in range(world_size)])
            np.testing.assert_array_equal(parts[:, 1:], order.batch(epoch, b))


@given(orders(), st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_reads_name_all_that_a_rank_needs_and_when(made: tuple[CanonicalOrder, list[int]], epoch: int) -> None:
    """Each sample of a rank lies in a read of its run, between the read's first and last step."""
    order, _ = made
    for world_size in (w for w in (1, 2, 3) if order.global_batch_size % w == 0):
        for rank in range(world_size):
            reads = {(read.run, read.shard): read for read in order.reads(epoch, rank, world_size)}
            steps: dict[tuple[int, int], list[int]] = {}
            for b in range(order.steps_per_epoch):
                for run, shard, row in order.part(epoch, b, rank, world_size).tolist():
                    assert reads[run, shard].first_row <= row < reads[run, shard].stop_row
                    steps.setdefault((run, shard), []).append(b)
            assert all(reads[key].first_step <= min(used) and max(used) <= reads[key].last_step for key, used in steps.items())


def test_a_new_object_gives_the_same_batch() -> None:
    """Resume: any batch can be asked for first, and is a function of its arguments alone."""
    arguments = {"seed": 3, "global_batch_size": 12, "runs": 3, "block_shards": 2}
    old = CanonicalOrder([20, 30, 10, 25], **arguments)
    walked = [old.batch(epoch, b) for epoch in range(3) for b in range(old.steps_per_epoch)]
    new = CanonicalOrder([20, 30, 10, 25], **arguments)
    np.testing.assert_array_equal(new.batch(2, 4), walked[2 * old.steps_per_epoch + 4])


def test_the_order_is_fixed_for_ever() -> None:
    """Literal batches: a change here breaks the resume of every run and must not happen by accident."""
    full = CanonicalOrder([3, 4], seed=0, global_batch_size=3, runs=1, block_shards=0)
    runs = CanonicalOrder([3, 4, 5], seed=0, global_batch_size=4, runs=2, block_shards=1)
    assert full.batch(0, 0).tolist() == [[0, 2], [1, 2], [1, 0]]
    assert runs.batch(1, 2).tolist() == [[1, 3], [0, 1], [2, 3], [2, 4]]


def test_epochs_and_seeds_differ() -> None:
    """Another epoch or seed is another order."""
    orders = [CanonicalOrder([50] * 4, seed=seed, global_batch_size=40, runs=2, block_shards=2) for seed in (0, 1)]
    batches = {tuple(map(tuple, order.batch(epoch, 0).tolist())) for order in orders for epoch in (0, 1)}
    assert len(batches) == 4


def test_a_run_stays_inside_its_sliding_block() -> None:
    """A sample moves by half a block of K shards at most (and a little: it lands beside others), so few shards are open."""
    order = CanonicalOrder([100] * 60, seed=1, global_batch_size=20, runs=2, block_shards=4)
    open_at = [sum(read.first_step <= b <= read.last_step for read in order.reads(0, 0, 2)) for b in range(order.steps_per_epoch)]
    assert max(open_at) <= 4 + 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"global_batch_size": 11}, "at most the 10 samples"),
        ({"global_batch_size": 8, "runs": 3}, "divisor of global_batch_size 8"),
        ({"global_batch_size": 0}, ">= 1"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, int], words: str) -> None:
    """The rule and the value are named."""
    with pytest.raises(InputError, match=words):
        CanonicalOrder([5, 5], **{"seed": 0, "runs": 1, "block_shards": 0, **arguments})


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_a_single_pass_sees_every_sample_once_in_order(sizes: list[int], local: int, world_size: int) -> None:
    """Validation: all ranks together see the split once."""
    order = SinglePass(sizes, global_batch_size=local * world_size)
    seen = [
        (shard, row)
        for b in range(order.steps_per_epoch)
        for rank in range(world_size)
        for _, shard, row in order.part(0, b, rank, world_size).tolist()
    ]
    assert seen == [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
