"""Loaders on a store that goes away: an outage is waited out with the same batches, and one that lasts is named."""

import dataclasses
import json
import threading
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.data.datasets import pairs, write_dataset
from tests.data.loaders import pairs_loader
from tests.fault_proxy import FaultProxy, Refuse
from tests.run import build
from trainer.config import DataConfig, Placement
from trainer.configs import dump_yaml
from trainer.data.loader import PairsLoader
from trainer.errors import InputError, RunError
from trainer.run.train import launch
from trainer.storage import join, read_bytes, write_bytes

SIZES = [8] * 20


def loader(data: DataConfig, cache: Path, cache_shards: int = 6) -> PairsLoader:
    """Batches of 8 in two runs; the cache holds a part of the 20 shards."""
    return pairs_loader(data, global_batch_size=8, placement=Placement(cache_dir=str(cache), cache_bytes=31_000 * cache_shards))


def epoch_through_an_outage(root: str, tmp_path: Path, proxy: FaultProxy, seconds: float) -> None:
    """Two epochs with an outage after the third batch give what a local folder gives."""
    remote = write_dataset(root, "pairs", pairs(SIZES))
    local = write_dataset(str(tmp_path / "local"), "pairs", pairs(SIZES))
    expected_loader, ours_loader = loader(local, tmp_path / "none"), loader(remote, tmp_path / "cache")
    expected = islice(expected_loader.batches(0), 40)
    start = 0.0
    for number, (ours, theirs) in enumerate(zip(ours_loader.batches(0), expected, strict=False)):
        if number == 2:
            proxy.always = Refuse()
            start = time.monotonic()
            threading.Timer(seconds, lambda: setattr(proxy, "always", None)).start()
        assert ours.keys == theirs.keys
        assert torch.equal(ours.images, theirs.images)
    assert time.monotonic() - start > seconds, "the outage was over before the loader needed the store"
    ours_loader.close()
    expected_loader.close()


def test_a_short_outage_changes_no_batch(s3_root: str, tmp_path: Path, proxy: FaultProxy) -> None:
    """A second without a store in the middle of an epoch."""
    epoch_through_an_outage(s3_root, tmp_path, proxy, 1.0)


@pytest.mark.campaign
def test_an_outage_of_a_minute_changes_no_batch(s3_root: str, tmp_path: Path, proxy: FaultProxy) -> None:
    """The promise of the failure model."""
    epoch_through_an_outage(s3_root, tmp_path, proxy, 60.0)


def trained(root: str, name: str, data: DataConfig, cache: Path) -> tuple[list[float], bytes]:
    """The losses and the final weights of a small stage 2 whose cache holds a part of its shards."""
    config = build.contrastive(cache, epochs=2, cache_dir=str(cache), cache_bytes=6 * 31_000, checkpoint_every_steps=4)
    contrastive = dataclasses.replace(config.contrastive, global_batch_size=8, contrast_batch_size=8, order_runs=2, order_block_shards=1)
    config = dataclasses.replace(config, data=data, output=join(root, name), contrastive=contrastive)
    uri = join(config.output, "config.yaml")
    write_bytes(uri, dump_yaml(config).encode())
    launch("contrastive", uri, [])
    records = [json.loads(line) for line in read_bytes(join(config.output, "progress.jsonl")).splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    return losses, read_bytes(join(config.output, "final", "open_clip_model.safetensors"))


@pytest.mark.slow
def test_an_outage_of_a_minute_changes_no_loss(s3_root: str, tmp_path: Path, proxy: FaultProxy) -> None:
    """The store goes away while training saves its first checkpoint; afterwards it goes on, to the losses and weights of a calm run."""
    data = write_dataset(s3_root, "pairs", pairs(SIZES))
    calm = trained(s3_root, "calm", data, tmp_path / "calm")
    began = threading.Event()

    def begins(method: str, path: str) -> bool:
        if method == "PUT" and "/checkpoints/step-" in path and not began.is_set():
            began.set()
            proxy.always = Refuse()
            threading.Timer(60.0, lambda: setattr(proxy, "always", None)).start()
        return True

    proxy.applies = begins
    start = time.monotonic()
    assert trained(s3_root, "rough", data, tmp_path / "rough") == calm
    assert began.is_set()
    assert time.monotonic() - start > 60
    assert len(calm[0]) == 40


def test_a_store_that_stays_down_is_named(s3_root: str, tmp_path: Path, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error carries the shard's URI and the cause; it is no hang."""
    data = write_dataset(s3_root, "pairs", pairs(SIZES))
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.2")
    ours = loader(data, tmp_path)
    batches = ours.batches(0)
    next(batches)
    proxy.always = Refuse()
    with pytest.raises(RunError, match=r"shard-000-000..\.(tar|index): .*cannot be reached"):
        list(islice(batches, 100))
    ours.close()


def test_a_changed_shard_is_refused_when_fetched(s3_root: str, tmp_path: Path) -> None:
    """Whole shards are held against the manifest before any sample of them is used."""
    data = write_dataset(s3_root, "pairs", pairs([8] * 6))  # runs of three whole shards
    shard = join(s3_root, "shard-000-00000.tar")
    changed = bytearray(read_bytes(shard))
    changed[700] ^= 1
    write_bytes(shard, bytes(changed))
    with pytest.raises(RunError, match=r"shard-000-00000\.tar: sample '000000': checksum of image is wrong: the store's copy"):
        list(islice(loader(data, tmp_path).batches(0), 6))


def test_a_cache_too_small_for_the_order_is_refused(s3_root: str, tmp_path: Path) -> None:
    """The bytes that it takes are named."""
    data = write_dataset(s3_root, "pairs", pairs(SIZES))
    with pytest.raises(InputError, match=r"placement\.cache_bytes must be at least \d+: order_runs 2 and order_block_shards 1"):
        loader(data, tmp_path, cache_shards=2)


def test_the_bounded_cache_is_bounded_and_emptied(s3_root: str, tmp_path: Path) -> None:
    """Never more bytes of shards than allowed lie there, and none after the end."""
    data = write_dataset(s3_root, "pairs", pairs(SIZES))
    ours = loader(data, tmp_path)
    most = 0
    for _ in islice(ours.batches(0), 40):
        most = max(most, len(shard_files(tmp_path)))
    ours.close()
    assert 2 <= most <= 6 + 4  # and the parts of shards at the ends of both runs
    assert not shard_files(tmp_path)


def shard_files(cache: Path) -> list[Path]:
    """Whole and partial shards that lie in the cache."""
    return [path for path in cache.rglob("*.tar*") if path.suffix not in (".lock", ".part")]
