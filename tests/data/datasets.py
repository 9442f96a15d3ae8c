"""Small data sets for tests and benches, written with the storage codecs alone."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.config import DataConfig
from trainer.storage.base import join, write_bytes
from trainer.storage.index import ShardIndex, encode_index, index_checksum
from trainer.storage.manifest import Manifest, Shard, write_manifest


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample to write: members by column name, and the token ids of each caption."""

    key: str
    members: dict[str, bytes]
    captions: list[list[int]] = field(default_factory=list)


def write_dataset(
    uri: str, kind: Literal["pairs", "triplets"], shards: Iterable[tuple[str, Sequence[Sample]]], *, suffixes: dict[str, str] | None = None
) -> DataConfig:
    """Write and seal a data set of (split, samples) shards; `suffixes` renames columns in the tar (image -> jpg)."""
    written = []
    for number, (split, samples) in enumerate(shards):
        name = f"shard-000-{number:05d}.tar"
        tar, index = _pack(name, samples, suffixes or {})
        encoded = encode_index(index)
        write_bytes(join(uri, name), tar)
        shard = Shard(
            name=name,
            split=split,
            num_samples=len(samples),
            size=len(tar),
            sha256=hashlib.sha256(tar).hexdigest(),
            crc32c=index.shard_crc32c,
            index_crc32c=index_checksum(encoded),
        )
        write_bytes(join(uri, shard.index_name), encoded)
        written.append(shard)
    total = sum(shard.num_samples for shard in written)
    rows = {"read": total, "written": total, "lost": {}}
    manifest = Manifest(kind=kind, name="tests", plan_id="0" * 64, source={}, options={}, rows=rows, shards=written)
    write_manifest(uri, manifest)
    return DataConfig(uri=uri, identity=manifest.identity)


def pairs(sizes: Sequence[int], *, side: int = 16, split: str = "train", encoding: str = "PNG") -> Iterable[tuple[str, list[Sample]]]:
    """Shards of pairs: sample n of all has key `n` in six digits, a picture of its own, and one to three captions."""
    number = 0
    for size in sizes:
        samples = []
        for _ in range(size):
            captions = [[49406, *range(1 + number % 7, 3 + number % 7 + caption), 49407] for caption in range(1 + number % 3)]
            samples.append(
                Sample(
                    key=f"{number:06d}",
                    members={"image": picture(number, side, side, encoding), "txt": f"number {number}".encode(), "json": b"{}"},
                    captions=captions,
                )
            )
            number += 1
        yield split, samples


def triplets(sizes: Sequence[int], *, side: int = 12, split: str = "train", flip: bool = True) -> Iterable[tuple[str, list[Sample]]]:
    """Shards of triplets; pixel (0, 0) of sample n's pictures is (n, picture 0 to 2, 7), its target is n % 3 / 2."""
    number = 0
    for size in sizes:
        samples = []
        for _ in range(size):
            facts = {"id": number, "target": number % 3 / 2, "split": split}
            facts |= {"flip_0": 0.2, "flip_1": 0.1 + number % 3 / 10} if flip else {}
            members = {}
            for which, name in enumerate(("ref.png", "0.png", "1.png")):
                pixels = pattern(number * 3 + which, side, side)
                pixels[0, 0] = number % 256, which, 7
                members[name] = _encode(pixels, "PNG")
            samples.append(Sample(key=f"{number:06d}", members={**members, "json": json.dumps(facts).encode()}))
            number += 1
        yield split, samples


def pattern(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """Smooth noise, as a photo's detail costs a decoder: (height, width, 3) uint8."""
    random = np.random.default_rng(number)
    coarse = np.uint8(np.clip(random.normal(128, 60, (height // 25 + 2, width // 25 + 2, 3)), 0, 255))
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return np.uint8(np.clip(smooth + random.normal(0, 6, (height, width, 3)), 0, 255))


def picture(number: int, height: int, width: int, encoding: str = "PNG", quality: int = 92) -> bytes:
    """`pattern` encoded."""
    return _encode(pattern(number, height, width), encoding, quality)


def _encode(pixels: NDArray[np.uint8], encoding: str, quality: int = 92) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, encoding, **({"quality": quality} if encoding == "JPEG" else {}))
    return stream.getvalue()


def _pack(name: str, samples: Sequence[Sample], suffixes: dict[str, str]) -> tuple[bytes, ShardIndex]:
    columns = tuple(samples[0].members)
    stream, offsets = io.BytesIO(), []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            row = []
            for column in columns:
                info = tarfile.TarInfo(f"{sample.key}.{suffixes.get(column, column)}")
                info.size = len(sample.members[column])
                row.append(stream.tell() + 512)
                tar.addfile(info, io.BytesIO(sample.members[column]))
            offsets.append(row)
    data = stream.getvalue()
    captions = [caption for sample in samples for caption in sample.captions]
    return data, ShardIndex(
        shard=name,
        shard_size=len(data),
        shard_crc32c=google_crc32c.value(data),
        members=columns,
        keys=tuple(sample.key for sample in samples),
        offsets=np.array(offsets, np.uint64),
        sizes=np.array([[len(member) for member in sample.members.values()] for sample in samples], np.uint32),
        crc32c=np.array([[google_crc32c.value(member) for member in sample.members.values()] for sample in samples], np.uint32),
        caption_ends=np.cumsum([len(sample.captions) for sample in samples]).astype(np.uint32),
        token_ends=np.cumsum([len(caption) for caption in captions]).astype(np.uint32),
        tokens=np.array([token for caption in captions for token in caption], np.uint16),
    )
