"""What the rows of the data plane are measured on: shards of synthetic photos as YFCC100M's are sized.

500 x 375 at quality 92 (61 KB each), and the same at short side 256, quality 90: the two image policies.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tests.data.datasets import Sample, picture, write_dataset
from tests.servers import S3Server, seaweedfs
from trainer.config import DataConfig

CAPTION = "a photo of number {} on a wall near the harbour, taken in late summer"
TOKENS = [49406, *range(320, 336), 49407]


def photos(count: int) -> list[bytes]:
    """Originals: 500 x 375, quality 92."""
    return [picture(number, 375, 500, "JPEG") for number in range(count)]


def short256(photo: bytes) -> bytes:
    """A photo as the policy short256 stages it."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as image:
        image.resize((341, 256), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def shards(pictures: list[bytes], per_shard: int) -> Iterator[tuple[str, list[Sample]]]:
    """Shards of pairs with these pictures."""
    for start in range(0, len(pictures), per_shard):
        yield (
            "train",
            [
                Sample(
                    key=f"{number:06d}",
                    members={"image": pictures[number], "txt": CAPTION.format(number).encode(), "json": b"{}"},
                    captions=[TOKENS],
                )
                for number in range(start, min(start + per_shard, len(pictures)))
            ],
        )


def write_photos(uri: str, pictures: list[bytes], per_shard: int) -> DataConfig:
    """A sealed data set of these pictures, `.jpg .txt .json` in its tars."""
    return write_dataset(uri, "pairs", shards(pictures, per_shard), suffixes={"image": "jpg"})


@contextlib.contextmanager
def store(folder: Path) -> Iterator[S3Server]:
    """A local S3 server that trainer.storage finds in the environment."""
    folder.mkdir(parents=True, exist_ok=True)
    before = dict(os.environ)
    with seaweedfs(folder) as server:
        os.environ.update(server.environment)
        try:
            yield server
        finally:
            os.environ.clear()
            os.environ.update(before)
