"""Shards of small pictures, written as the staging room writes them."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trainer.storage import join, write_bytes
from trainer.storage.index import ShardIndex, encode_index, index_checksum
from trainer.storage.manifest import Shard


def sample(key: str, number: int, members: Mapping[str, bytes]) -> dict[str, bytes]:
    """One sample of pairs or of an evaluation set."""
    return {"__key__": key.encode(), "image": _picture(number), **members}


def triplet(key: str, number: int) -> dict[str, bytes]:
    """One triplet; the judge sides with picture 1 if the number is odd."""
    facts = {"id": number, "target": float(number % 2), "split": key.split("-")[0]}
    pictures = {"ref.png": _picture(number), "0.png": _picture(number, 60), "1.png": _picture(number, 140)}
    return {"__key__": key.encode(), **pictures, "json": json.dumps(facts).encode()}


def _picture(number: int, shade: int = 0) -> bytes:
    """A coloured disc and bar, so that pictures differ."""
    picture = Image.new("RGB", (32, 32), "white")
    draw = ImageDraw.Draw(picture)
    colour = tuple((number * step + shade) % 256 for step in (37, 91, 53))
    draw.ellipse((4, 4, 27, 27), fill=colour)
    draw.rectangle((14, number % 20, 18, number % 20 + 10), fill="black")
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def shard(folder: str, name: str, split: str, samples: list[dict[str, bytes]], columns: tuple[str, ...]) -> Shard:
    """A tar and its index, as the staging room writes them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for sample in samples:
            for column in columns:
                entry = tarfile.TarInfo(f"{sample['__key__'].decode()}.{'png' if column == 'image' else column}")
                entry.size = len(sample[column])
                archive.addfile(entry, io.BytesIO(sample[column]))
    data = buffer.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        places = [member.offset_data for member in archive]
    checksums = [[google_crc32c.value(sample[column]) for column in columns] for sample in samples]
    index = encode_index(
        ShardIndex(
            shard=name,
            shard_size=len(data),
            shard_crc32c=google_crc32c.value(data),
            members=columns,
            keys=tuple(sample["__key__"].decode() for sample in samples),
            offsets=np.array(places, np.uint64).reshape(len(samples), -1),
            sizes=np.array([[len(sample[column]) for column in columns] for sample in samples], np.uint32),
            crc32c=np.array(checksums, np.uint32),
            caption_ends=np.zeros(len(samples), np.uint32),
            token_ends=np.zeros(0, np.uint32),
            tokens=np.zeros(0, np.uint16),
        )
    )
    write_bytes(join(folder, name), data)
    write_bytes(join(folder, name.removesuffix(".tar") + ".index"), index)
    digest = hashlib.sha256(data).hexdigest()
    return Shard(
        name=name,
        split=split,
        num_samples=len(samples),
        size=len(data),
        sha256=digest,
        crc32c=google_crc32c.value(data),
        index_crc32c=index_checksum(index),
    )


TWINS_OF_PAIRS = {
    "captions": 20, "identical": 1, "test": 60, "test_captions": 3, "test_identical": 0, "test_alike": 1, "unseen_labels": 0
}  # fmt: skip


def any_twin(metrics: dict[str, float | None], items: dict[str, NDArray[Any]], chance: dict[str, float]) -> dict[str, Any]:
    """Adds the figures that take any twin for right, as if each rank were half of what it is; what an evaluation says beside them."""
    for way in ("image", "text"):
        items[f"{way}_rank_any_twin"] = items[f"{way}_rank"] // 2
        for k in (1, 5, 10):
            metrics[f"{way}_retrieval_recall_any_twin@{k}"] = float((items[f"{way}_rank_any_twin"] < k).mean())
            chance[f"{way}_retrieval_recall_any_twin@{k}"] = k / 30
    ceiling = {f"{way}_retrieval_recall@{k}": min(1.0, 0.738 + k / 20) for way in ("image", "text") for k in (1, 5, 10)}
    twins = {"captions": 40, "pictures": 20, "identical_pictures": 1}
    return {"ceiling": ceiling, "twins": twins, "sizes": {"pictures": 60, "captions": 120}}
