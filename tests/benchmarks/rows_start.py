"""Rows J and R: time to the first batch, fresh and after kill -9, and bytes fetched per epoch by 1, 2 and 8 ranks."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from minio import Minio

from tests.benchmarks.first_batch import BATCH, BLOCK, RUNS
from tests.benchmarks.harness import Measured, row
from tests.benchmarks.photos import photos, store, write_photos
from tests.data.datasets import Sample, write_dataset
from tests.servers import S3Server
from trainer.config import Placement
from trainer.data.cache import Prefetcher
from trainer.data.order import CanonicalOrder
from trainer.storage.manifest import Manifest, require_manifest

ROUNDS = 3
CONNECTIONS = 4
PROXY = """
import sys
from tests.fault_proxy import Slow, fault_proxy
with fault_proxy(sys.argv[1]) as proxy:
    proxy.always = Slow(1 << 20, 0.03)
    print(proxy.endpoint, flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Photos behind a server that gives each connection some 30 MB/s, and the order in which the child process reads them."""

    server: S3Server
    uri: str
    manifest: Manifest
    order: CanonicalOrder

    def get_seconds(self, step: int) -> float:
        """Seconds for plain GETs of the shards that one batch reads, four at a time as in the loader."""
        client = Minio(urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc, self.server.access_key, self.server.secret_key, secure=False)
        bucket, folder = self.uri.removeprefix("s3://").split("/")

        def get(shard: int) -> None:
            response = client.get_object(bucket, f"{folder}/{self.manifest.shards[shard].name}")
            for _ in response.stream(1 << 20):
                pass
            response.release_conn()

        epoch, b = divmod(step, self.order.steps_per_epoch)
        start = time.perf_counter()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(get, np.unique(self.order.batch(epoch, b)[:, 0]).tolist()))
        return time.perf_counter() - start

    def child(self, cache: Path, start: int, steps: int) -> "subprocess.Popen[str]":
        """A training process."""
        command = [sys.executable, "-m", "tests.benchmarks.first_batch", self.uri, str(cache), str(start), str(steps)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@contextmanager
def slow_store(folder: Path) -> Iterator[Setting]:
    """8 shards of 512 photos, 31 MB each: half of what staging writes."""
    pictures = photos(64)
    with store(folder / "server") as server:
        bucket = server.make_bucket()
        data = write_photos(f"{bucket}/photos", [pictures[i % 64] for i in range(8 * 512)], 512)
        manifest = require_manifest(data.uri, data.identity)
        order = CanonicalOrder([512] * 8, seed=0, global_batch_size=BATCH, runs=RUNS, block_shards=BLOCK)
        command = [sys.executable, "-c", PROXY, server.endpoint]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
            assert proxy.stdout is not None
            os.environ["AWS_ENDPOINT_URL"] = proxy.stdout.readline().strip()
            yield Setting(server=server, uri=data.uri, manifest=manifest, order=order)
            proxy.communicate("")


NOTE = "31 MB shards behind a proxy that gives each of four connections some 30 MB/s; batch of 64 in 4 runs"


@row("J", what="first batch, from the loader's construction, against GETs of the shards it reads", unit="s", target=2.0, at_least=False)
def first_batch(folder: Path) -> Measured:
    """With an empty cache; interpreter and imports are not counted."""
    reference, ours = [], []
    with slow_store(folder) as setting:
        for number in range(ROUNDS):
            reference.append(setting.get_seconds(0))
            with setting.child(folder / f"cache-{number}", 0, 1) as child:
                ours.append(float(child.communicate()[0].split("\n")[0]))
    return Measured(reference=statistics.median(reference), ours=statistics.median(ours), note=NOTE)


@row("J2", what="first batch after kill -9, no sample lost or repeated, against the same GETs", unit="s", target=2.0, at_least=False)
def resume(folder: Path) -> Measured:
    """A process is killed during the epoch; the next one continues after the last step of the first."""
    reference, ours = [], []
    with slow_store(folder) as setting:
        for number in range(ROUNDS):
            cache, seen = folder / f"cache-{number}", []
            with setting.child(cache, 0, 1000) as child:
                assert child.stdout is not None
                child.stdout.readline()
                while len(seen) < 20 + number:
                    seen.append(child.stdout.readline().split())
                child.kill()
            reference.append(setting.get_seconds(len(seen)))
            with setting.child(cache, len(seen), setting.order.steps_per_epoch - len(seen)) as child:
                first, *rest = child.communicate()[0].splitlines()
            ours.append(float(first))
            seen += [line.split() for line in rest]
            keys = [key for line in seen for key in line[1:]]
            assert [int(line[0]) for line in seen] == list(range(setting.order.steps_per_epoch))
            assert len(set(keys)) == len(keys) == setting.order.steps_per_epoch * BATCH, "a sample was lost or repeated"
    return Measured(reference=statistics.median(reference), ours=statistics.median(ours), note=f"{NOTE}; 0 lost, 0 repeated in each round")


@row(
    "R",
    what="bytes fetched in an epoch, the maximum over 1, 2 and 8 ranks, against the bytes of its samples",
    unit="MB",
    target=1.1,
    at_least=False,
)
def bytes_fetched(folder: Path) -> Measured:
    """Every rank is a separate node with its own cache; indexes and tar headers count as fetched."""
    random = np.random.default_rng(0)
    sizes = random.integers(100, 141, 24).tolist()
    noise = random.bytes(60_000 * 2)
    samples = (
        Sample(
            key=f"{n:06d}",
            members={"image": noise[n * 7 : n * 7 + 57_000], "txt": b"a caption", "json": b"{}"},
            captions=[[49406, 320, 49407]],
        )
        for n in range(sum(sizes))
    )
    with store(folder / "server") as server:
        data = write_dataset(f"{server.make_bucket()}/noise", "pairs", (("train", [next(samples) for _ in range(size)]) for size in sizes))
        manifest = require_manifest(data.uri, data.identity)
        order = CanonicalOrder(sizes, seed=0, global_batch_size=64, runs=8, block_shards=1)
        needed, fetched = 0.0, {}
        for world_size in (1, 2, 8):
            fetched[world_size] = 0.0
            for rank in range(world_size):
                count, used = epoch_bytes(data.uri, manifest, order, rank, world_size, folder / f"cache-{world_size}-{rank}")
                fetched[world_size] += count / 1e6
                needed += used / 1e6 if world_size == 1 else 0
    ratios = ", ".join(f"{count / needed:.3f} at {world_size}" for world_size, count in fetched.items())
    return Measured(reference=needed, ours=max(fetched.values()), note=f"24 shards of 100 to 140 samples of 57 KB, C = 8, K = 1: {ratios}")


def epoch_bytes(uri: str, manifest: Manifest, order: CanonicalOrder, rank: int, world_size: int, cache: Path) -> tuple[int, int]:
    """The bytes that one rank fetches for the first epoch, and the bytes of the members that it uses."""
    placement = Placement(cache_dir=str(cache), cache_bytes=sum(shard.size for shard in manifest.shards) - 1)
    prefetcher = Prefetcher(uri, manifest, manifest.shards, order, rank=rank, world_size=world_size, placement=placement, start_step=0)
    indexes = {}
    used = 0
    for b in range(order.steps_per_epoch):
        for run, shard, place in order.part(0, b, rank, world_size).tolist():
            file = prefetcher.file(0, run, shard, b)
            if shard not in indexes:
                indexes[shard] = file.read_index()
            used += int(indexes[shard].sizes[place].sum())
        prefetcher.release(b + 1)
    prefetcher.close()
    return prefetcher.fetched_bytes[0], used
