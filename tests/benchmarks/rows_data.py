"""Rows A, B, C, E and F: pictures, shards, the whole loader and the stream from S3, per CPU-second."""

import dataclasses
import datetime
import io
import tarfile
from itertools import islice
from pathlib import Path

import torch
import webdataset
from open_clip.transform import image_transform
from PIL import Image

from tests.benchmarks.harness import Measured, answer_of, cpu_cost, cpu_rate, interleaved, row, server_of
from tests.benchmarks.photos import photos, short256, store, write_photos
from tests.reference import reference_python
from trainer.config import DataConfig, Placement
from trainer.data.cache import InPlace
from trainer.data.decode import decode_image
from trainer.data.loader import PairsLoader
from trainer.data.order import CanonicalOrder
from trainer.data.shards import Views
from trainer.storage.base import join, open_store
from trainer.storage.manifest import require_manifest

SIDE = 224
PICTURES = 96
BATCH = 32
LOADED = 4608
"""Samples of row E: many, since our loader decodes three batches more than were requested."""


def open_clip_images(pictures: list[bytes]) -> int:
    """open_clip's evaluation transform, from bytes."""
    transform = image_transform(SIDE, is_train=False)
    for data in pictures:
        with Image.open(io.BytesIO(data)) as image:
            transform(image.convert("RGB"))
    return len(pictures)


def our_images(pictures: list[bytes]) -> int:
    """The fast decoder, from bytes."""
    for data in pictures:
        decode_image(data, SIDE, "fast")
    return len(pictures)


@row("A", what="JPEG 500x375 to 224 px: the fast decoder against open_clip's transform", unit="images / CPU-s", target=3.0)
def image_path(folder: Path) -> Measured:
    """Both decode the same bytes; the pictures must agree to .05 of 255 on average."""
    torch.set_num_threads(1)
    pictures = photos(PICTURES)
    apart = [(decode_image(data, SIDE, "fast").float() - decode_image(data, SIDE, "exact").float()).abs().mean() for data in pictures]
    difference = float(torch.stack(apart).mean())
    assert difference <= 0.05, f"the fast decoder differs from PIL by {difference} of 255"
    note = f"mean difference from PIL {difference:.4f} of 255; our output stays uint8, and normalising is left to the device"
    return interleaved(cpu_rate(lambda: open_clip_images(pictures)), cpu_rate(lambda: our_images(pictures)), rounds=7, note=note)


@row("B", what="the same with short256 shards, against open_clip's transform on the originals", unit="images / CPU-s", target=5.0)
def short_image_path(folder: Path) -> Measured:
    """The gain from the image policy short256."""
    torch.set_num_threads(1)
    pictures = photos(PICTURES)
    short = [short256(data) for data in pictures]
    mean, less = (sum(map(len, group)) / PICTURES / 1e3 for group in (pictures, short))
    note = f"{mean:.0f} KB against {less:.0f} KB per picture"
    return interleaved(cpu_rate(lambda: open_clip_images(pictures)), cpu_rate(lambda: our_images(short)), rounds=7, note=note)


@row(
    "C",
    what="reading local shards in canonical order, checksums compared, against webdataset in file order",
    unit="samples / CPU-s",
    target=8.0,
)
def shard_reading(folder: Path) -> Measured:
    """Picture and tokens of every sample, in batches of 64 from four runs."""
    pictures = photos(64)
    data = write_photos(str(folder), [pictures[i % 64] for i in range(2048)], 256)
    manifest = require_manifest(data.uri, data.identity)
    urls = [str(folder / shard.name) for shard in manifest.shards]
    order = CanonicalOrder([256] * 8, seed=0, global_batch_size=64, runs=4, block_shards=2)
    source, views = InPlace(data.uri, manifest.shards), Views(16)

    def reference() -> int:
        return sum(len(sample["jpg"]) > 0 and len(sample["txt"]) > 0 for sample in webdataset.WebDataset(urls, shardshuffle=False))

    def ours() -> int:
        done = 0
        for b in range(order.steps_per_epoch):
            part = order.part(0, b, 0, 1)
            for run, shard, place in part.tolist():
                view = views.view(source.file(0, run, shard, b))
                view.member(place, view.column("image"))
                done += len(view.index.captions(place)[0]) > 0
        return done

    return interleaved(cpu_rate(reference), cpu_rate(ours), note="2,048 samples of 61 KB in 8 shards, in the page cache")


def our_loader(data: DataConfig, batch: int, cache: Path) -> int:
    """One epoch of a new loader, from the store to batches, without keeping pictures in memory."""
    loader = PairsLoader(
        data,
        seed=0,
        global_batch_size=batch,
        rank=0,
        world_size=1,
        runs=2,
        block_shards=1,
        image_size=SIDE,
        augmentation="crop",
        crop_scale_min=0.9,
        decoder="fast",
        placement=Placement(cache_dir=str(cache)),
    )
    loader._pairs_decoder = dataclasses.replace(loader._pairs_decoder, keep_bytes=0)
    done = sum(len(part.keys) for part in islice(loader.batches(0), loader.steps_per_epoch))
    loader.close()
    return done


def whole_loader(folder: Path, *, short: bool) -> Measured:
    """From a local S3 server to batches: random resized crop of .9 to 1, as open_clip's default. Each side in one process and thread."""
    torch.set_num_threads(1)
    pictures = photos(64)
    theirs = server_of(reference_python(), Path(__file__).with_name("open_clip_rate.py"))
    with store(folder / "server") as server, theirs as open_clip:
        bucket = server.make_bucket()
        originals = [pictures[i % 64] for i in range(LOADED)]
        data = write_photos(f"{bucket}/originals", originals, 192)
        ours = write_photos(f"{bucket}/short", [short256(p) for p in originals], 192) if short else data
        names = [shard.name for shard in require_manifest(data.uri, data.identity).shards]
        lifetime = datetime.timedelta(hours=1)
        links = [server.client.presigned_get_object(bucket.removeprefix("s3://"), f"originals/{name}", lifetime) for name in names]
        urls = [f"pipe:curl -sf '{link}'" for link in links]
        request = {"urls": urls, "num_samples": LOADED, "batch_size": BATCH, "image_size": SIDE}
        runs = iter(range(100))
        return interleaved(
            lambda: LOADED / answer_of(open_clip, request),
            cpu_rate(lambda: our_loader(ours, BATCH, folder / f"cache-{next(runs)}")),
            rounds=3,
            note=f"{LOADED:,} samples from a local SeaweedFS, batches of 32; theirs is open_clip_train 3.3.0's own get_wds_dataset in the "
            "reference environment; pictures that our loader decodes ahead of the last batch count against it",
        )


@row("E", what="whole loader, S3 to batch, against open_clip's own loader on the same shards", unit="samples / CPU-s", target=3.0)
def loader(folder: Path) -> Measured:
    """On the original pictures."""
    return whole_loader(folder, short=False)


@row("E256", what="whole loader on short256 shards, against open_clip's own loader on the originals", unit="samples / CPU-s", target=4.5)
def short_loader(folder: Path) -> Measured:
    """With the image policy short256."""
    return whole_loader(folder, short=True)


@row("F", what="streaming shards from S3, against tarfile over minio", unit="CPU-s / GB", target=0.4, at_least=False)
def stream(folder: Path) -> Measured:
    """CPU time of this process; the server is a separate one."""
    pictures = photos(64)
    with store(folder / "server") as server:
        bucket = server.make_bucket()
        data = write_photos(f"{bucket}/photos", [pictures[i % 64] for i in range(2048)], 1024)
        names = [shard.name for shard in require_manifest(data.uri, data.identity).shards]

        def reference() -> float:
            total = 0
            for name in names:
                response = server.client.get_object(bucket.removeprefix("s3://"), f"photos/{name}")
                with tarfile.open(fileobj=response, mode="r|") as tar:
                    for member in tar:
                        content = tar.extractfile(member)
                        total += len(content.read()) if content else 0
                response.close()
                response.release_conn()
            return total / 1e9

        def ours() -> float:
            return sum(len(piece) for name in names for piece in open_store(data.uri).stream(join(data.uri, name))) / 1e9

        return interleaved(cpu_cost(reference), cpu_cost(ours), note="two shards of 62 MB from a local SeaweedFS")
