import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.config import Recipe
from trainer.configs import load_recipe
from trainer.staging.shards import read_shard
from trainer.staging.slices import record_name
from trainer.staging.stage import stage_pairs, stage_triplets
from trainer.storage import exists, join
from trainer.storage.manifest import Manifest, require_manifest


@pytest.fixture(scope="session")
def smoke() -> Recipe:
    return load_recipe("smoke")


def picture(seed: int, size: tuple[int, int] = (40, 30), kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """An encoded smooth picture, different for each seed."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    stream = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def photo_folder(folder: Path, count: int = 20, suffix: str = "png") -> Path:
    """`count` captioned pictures in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"p{number:03d}.{suffix}").write_bytes(picture(number, kind="JPEG" if suffix == "jpg" else "PNG"))
        (folder / f"p{number:03d}.txt").write_text(f"picture number {number}\nanother caption of {number}\n", encoding="utf-8")
    return folder


def slice_done(folder: str, number: int) -> bool:
    """Whether a slice has its record."""
    return exists(join(folder, record_name(number)))


Samples = dict[str, tuple[bytes, ...]]


def samples(uri: str, manifest: Manifest) -> Samples:
    """Every staged sample by key."""
    return {key: members for shard in manifest.shards for key, members in read_shard(uri, shard)}


@pytest.fixture
def stage(tmp_path: Path, smoke: Recipe) -> Callable[..., tuple[str, Manifest]]:
    """Stages pairs of a source under a fresh root; the folder and its manifest."""

    def run(source: object, limit: float = 0.01, recipe: Recipe = smoke) -> tuple[str, Manifest]:
        uri, identity = stage_pairs(root=str(tmp_path / "root"), source=str(source), recipe=recipe, max_reject_fraction=limit)
        return uri, require_manifest(uri, identity)

    return run


@pytest.fixture
def stage_three(tmp_path: Path, smoke: Recipe) -> Callable[..., tuple[str, Manifest]]:
    """Stages triplets of a source under a fresh root; the folder and its manifest."""

    def run(source: object = "demo", from_pairs: object = "", recipe: Recipe = smoke, limit: float = 0.01) -> tuple[str, Manifest]:
        uri, identity = stage_triplets(
            root=str(tmp_path / "root"), source=str(source), recipe=recipe, max_reject_fraction=limit, from_pairs=str(from_pairs)
        )
        return uri, require_manifest(uri, identity)

    return run


def facts(members: tuple[bytes, ...]) -> dict[str, Any]:
    """A sample's json."""
    return dict(json.loads(members[-1]))
