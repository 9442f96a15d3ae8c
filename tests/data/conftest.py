"""Fixtures of the loader's tests."""

from pathlib import Path

import pytest

from tests.data.buckets import SIZES, Bucket, loader, take
from tests.data.datasets import pairs, write_dataset
from trainer.config import DataConfig
from trainer.data import fetch
from trainer.data.loader import PairBatch
from trainer.storage.manifest import require_manifest


@pytest.fixture(scope="session")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[PairBatch]:
    """What loaders of the bucket's pairs give, whatever happens to the cache."""
    folder = str(tmp_path_factory.mktemp("batches"))
    write_dataset(folder, "pairs", pairs(SIZES))
    return take(loader(folder, None))


@pytest.fixture(scope="session")
def pair_data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """57 pairs in four shards."""
    return write_dataset(str(tmp_path_factory.mktemp("pairs")), "pairs", pairs([20, 7, 18, 12]))


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """93 pairs in twelve shards, in a bucket."""
    write_dataset(str(tmp_path / "bucket"), "pairs", pairs(SIZES))
    made = Bucket(tmp_path / "bucket")
    monkeypatch.setattr(fetch, "open_store", lambda uri: made)
    monkeypatch.setattr("trainer.data.loader.require_manifest", lambda uri, *known: require_manifest(made.local(uri), *known))
    return made
