"""Loaders on small data sets: what a batch holds, at any world size, number of workers, place and resume point."""

import os
import signal
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.datasets import pairs, triplets, write_dataset
from tests.data.loaders import pairs_loader, triplets_loader
from tests.pipelines.operator import eventually
from tests.servers import S3Server
from trainer.config import DataConfig, Placement
from trainer.data.loader import PairBatch, PairsLoader, TripletBatch
from trainer.errors import InputError, RunError


@pytest.fixture(scope="module")
def triplet_data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """22 triplets in three shards."""
    return write_dataset(str(tmp_path_factory.mktemp("triplets")), "triplets", triplets([9, 9, 4]))


def take(loader: PairsLoader, start: int, count: int) -> list[PairBatch]:
    """Some batches; the loader is closed."""
    try:
        return list(islice(loader.batches(start), count))
    finally:
        loader.close()


def same(ours: PairBatch, theirs: PairBatch) -> bool:
    """Whether two batches hold the same, bit for bit."""
    tensors = ("images", "tokens", "lengths", "augmentation_seeds")
    return ours.keys == theirs.keys and all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in tensors)


def joined(parts: list[PairBatch]) -> PairBatch:
    """The parts of several ranks as one batch."""
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("images", "tokens", "lengths", "augmentation_seeds")}
    return PairBatch(keys=[key for part in parts for key in part.keys], step=parts[0].step, epoch=parts[0].epoch, **tensors)


def test_a_batch_of_pairs_has_the_promised_shapes(pair_data: DataConfig) -> None:
    """Shapes, types, padding with 0 after each caption's end."""
    batch = take(pairs_loader(pair_data), 0, 1)[0]
    assert batch.images.shape == (12, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.tokens.shape == (12, 8)
    assert (batch.step, batch.epoch) == (0, 0)
    for tokens, length in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True):
        assert tokens[0] == 49406
        assert tokens[length - 1] == 49407
        assert not any(tokens[length:])


def test_an_epoch_of_pairs_repeats_no_key(pair_data: DataConfig) -> None:
    """57 samples in batches of 12: four batches, nine left over."""
    loader = pairs_loader(pair_data)
    keys = [key for batch in take(loader, 0, loader.steps_per_epoch) for key in batch.keys]
    assert len(keys) == len(set(keys)) == 48


@given(world_size=st.sampled_from([2, 3, 4, 6, 12]), start=st.integers(0, 9), epoch_runs=st.sampled_from([(1, 0), (2, 1), (3, 2)]))
@settings(max_examples=5, deadline=None)
def test_world_size_and_resume_change_no_bit(pair_data: DataConfig, world_size: int, start: int, epoch_runs: tuple[int, int]) -> None:
    """The parts of any number of ranks, begun anywhere, are the batches of one rank that began at 0."""
    runs = {"runs": epoch_runs[0], "block_shards": epoch_runs[1]}
    whole = take(pairs_loader(pair_data, **runs), 0, start + 2)[start:]
    ranks = [take(pairs_loader(pair_data, rank=rank, world_size=world_size, **runs), start, 2) for rank in range(world_size)]
    assert all(same(joined(list(parts)), batch) for parts, batch in zip(zip(*ranks, strict=True), whole, strict=True))


def test_worker_processes_change_no_bit(pair_data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that keep pictures, and processes that do not, give the same."""
    threads = take(pairs_loader(pair_data), 3, 6)
    monkeypatch.setattr("trainer.data.machine.available_memory", lambda: 0)
    processes = take(pairs_loader(pair_data, placement=Placement(loader_workers=2)), 3, 6)
    assert all(same(ours, theirs) for ours, theirs in zip(threads, processes, strict=True))


def test_loading_starts_no_openmp_threads(tmp_path: Path) -> None:
    """With more of them than cores, OpenMP lets the threads that compute a step on the CPU sleep between two kernels."""
    data = write_dataset(str(tmp_path), "pairs", pairs([64], side=40))
    loader = pairs_loader(data, global_batch_size=64, image_size=32, runs=1, block_shards=0)  # large enough for torch to use threads
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.ones(1 << 20).add_(1)  # this thread has its own
        before = other_threads()
        batches = loader.batches(0)
        next(batches), next(batches)
        assert eventually(lambda: other_threads() <= before)  # a thread that is just starting is not yet among Python's
    finally:
        loader.close()
        torch.set_num_threads(threads)


def other_threads() -> int:
    """Number of threads of this process that Python did not start."""
    return len(os.listdir("/proc/self/task")) - threading.active_count()


def test_epochs_crop_and_caption_differently(pair_data: DataConfig) -> None:
    """The draws are of (seed, epoch, key): another epoch gives most samples another crop."""
    loader = pairs_loader(pair_data)
    steps = loader.steps_per_epoch
    batches = take(loader, 0, 2 * steps)
    first, second = ({k: i for b in part for k, i in zip(b.keys, b.images, strict=True)} for part in (batches[:steps], batches[steps:]))
    both = first.keys() & second.keys()
    assert sum(torch.equal(first[key], second[key]) for key in both) < len(both) / 2


def test_a_store_gives_what_a_folder_gives(
    pair_data: DataConfig, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched ahead, whole or in part, into the cache: the same batches, and nothing stays behind."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    remote = write_dataset(f"{s3_server.make_bucket()}/pairs", "pairs", pairs([20, 7, 18, 12]))
    size = 57 * 5000
    for cache_bytes in (size, 10 * size):
        placement = Placement(cache_dir=str(tmp_path / str(cache_bytes)), cache_bytes=cache_bytes)
        ours = take(pairs_loader(remote, placement=placement), 2, 9)
        assert all(same(one, other) for one, other in zip(ours, take(pairs_loader(pair_data), 2, 9), strict=True))


def test_a_flipped_byte_names_shard_and_sample(tmp_path: Path) -> None:
    """A changed byte of a picture ends the run with the place, not with a picture."""
    data = write_dataset(str(tmp_path), "pairs", pairs([12]))
    tar = tmp_path / "shard-000-00000.tar"
    changed = bytearray(tar.read_bytes())
    changed[512 + 60] ^= 1
    tar.write_bytes(changed)
    with pytest.raises(RunError, match=r"shard-000-00000\.tar: sample '000000': checksum of image"):
        take(pairs_loader(data, runs=1, block_shards=0), 0, 1)


def test_a_short_tar_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """A mapping beyond a file's end would kill the process."""
    data = write_dataset(str(tmp_path), "pairs", pairs([12]))
    tar = tmp_path / "shard-000-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-2000])
    with pytest.raises(RunError, match="truncated or changed"):
        take(pairs_loader(data, runs=1, block_shards=0), 0, 1)


def test_a_dead_worker_is_named(pair_data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is killed ends the run with a line that says so, not with a hang."""
    monkeypatch.setattr("trainer.data.machine.available_memory", lambda: 0)
    loader = pairs_loader(pair_data, placement=Placement(loader_workers=1))
    batches = loader.batches(0)
    next(batches)
    os.kill(next(iter(loader._workers._pool._processes)), signal.SIGKILL)
    with pytest.raises(RunError, match="a loader worker died"):
        list(islice(batches, 50))
    loader.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"world_size": 5}, "multiple of the 5 ranks"),
        ({"split": "val"}, "no split 'val'"),
        ({"global_batch_size": 58, "runs": 1}, "at most the 57 samples"),
    ],
)
def test_wrong_use_is_refused(pair_data: DataConfig, changes: dict[str, object], words: str) -> None:
    """Each fault is named in one line."""
    with pytest.raises(InputError, match=words):
        pairs_loader(pair_data, **changes).batches(0)


def test_triplets_are_not_pairs(triplet_data: DataConfig) -> None:
    """The kind of a data set is checked."""
    with pytest.raises(InputError, match="contains triplets, but pairs are needed"):
        pairs_loader(triplet_data)


def numbers(batch: TripletBatch) -> np.ndarray:
    """Which triplet each picture of a batch is of, and which of its pictures: (B, 3, 2), from the marked pixel."""
    return batch.images[:, :, :2, 0, 0].numpy()


def test_votes_and_pictures_belong_together(triplet_data: DataConfig) -> None:
    """Pictures, key and target are of the same triplet; image 0 and 1 stay on their sides."""
    loader = triplets_loader(triplet_data)
    for batch in islice(loader.batches(0), loader.steps_per_epoch):
        for key, target, marks in zip(batch.keys, batch.target.tolist(), numbers(batch).tolist(), strict=True):
            assert marks == [[int(key), 0], [int(key), 1], [int(key), 2]]
            assert target == int(key) % 3 / 2
    loader.close()


def test_all_once_sees_the_split_in_order_over_all_ranks(triplet_data: DataConfig) -> None:
    """Validation: every triplet once, the last batch short."""
    batches = [list(triplets_loader(triplet_data, global_batch_size=6, rank=rank, world_size=2).all_once()) for rank in (0, 1)]
    assert [len(batch.keys) for batch in batches[0]] == [3, 3, 3, 3]
    assert sorted(key for rank in batches for batch in rank for key in batch.keys) == [f"{n:06d}" for n in range(22)]


def test_flip_labels_are_of_the_smaller_distance(triplet_data: DataConfig) -> None:
    """flip_1 = .1, .2, .3 against flip_0 = .2: closer is 1, none, 0."""
    for batch in triplets_loader(triplet_data, labels="flip").all_once():
        for key, target in zip(batch.keys, batch.target.tolist(), strict=True):
            assert target == pytest.approx([1.0, 0.5, 0.0][int(key) % 3])


def test_flip_labels_need_the_judgement(tmp_path: Path) -> None:
    """The fault names sample and rule."""
    data = write_dataset(str(tmp_path), "triplets", triplets([5], flip=False))
    with pytest.raises(InputError, match=r"sample '00000.': labels is flip, but"):
        list(triplets_loader(data, labels="flip").all_once())


def test_instance_labels_set_an_own_distortion_against_anothers(triplet_data: DataConfig) -> None:
    """The target side holds a distortion of the reference, the other side one of another triplet; sides vary."""
    sides = set()
    for batch in triplets_loader(triplet_data, labels="instance").all_once():
        for key, target, marks in zip(batch.keys, batch.target.tolist(), numbers(batch).tolist(), strict=True):
            own, other = marks[1 + int(target)], marks[2 - int(target)]
            assert marks[0] == [int(key), 0]
            assert own[0] == int(key) != other[0]
            assert own[1] in (1, 2)
            assert other[1] in (1, 2)
            sides.add(target)
    assert sides == {0.0, 1.0}


def test_shuffled_labels_are_a_permutation_of_the_votes(triplet_data: DataConfig) -> None:
    """The same votes in all, in another order that the epoch does not change, and pictures left alone."""
    given_votes, shuffled = ([*triplets_loader(triplet_data, labels=labels).all_once()] for labels in ("votes", "shuffled"))
    votes, mixed = (torch.cat([batch.target for batch in batches]) for batches in (given_votes, shuffled))
    assert sorted(votes.tolist()) == sorted(mixed.tolist())
    assert not torch.equal(votes, mixed)
    assert all(torch.equal(a.images, b.images) for a, b in zip(given_votes, shuffled, strict=True))


def test_mirrored_triplets_are_mirrored_together(triplet_data: DataConfig) -> None:
    """About half of the triplets are mirrored, all three pictures of each."""
    plain = next(triplets_loader(triplet_data, global_batch_size=22).batches(0))
    mirrored = next(triplets_loader(triplet_data, global_batch_size=22, mirror=True).batches(0))
    changed = [not torch.equal(a, b) for a, b in zip(plain.images, mirrored.images, strict=True)]
    assert 3 < sum(changed) < 19
    assert all(torch.equal(b, a.flip(-1) if was else a) for a, b, was in zip(plain.images, mirrored.images, changed, strict=True))


def test_triplets_resume_exactly(triplet_data: DataConfig) -> None:
    """Instance labels draw anew each epoch, and from the step alone."""
    loader = triplets_loader(triplet_data, labels="instance", mirror=True)
    walked = list(islice(loader.batches(0), 11))[9:]
    resumed = list(islice(loader.batches(9), 2))
    loader.close()
    assert all(torch.equal(a.images, b.images) and torch.equal(a.target, b.target) for a, b in zip(walked, resumed, strict=True))
