"""A copy that is in CLIP_benchmark's layout already: its shards are read, and written again with index and manifest."""

import io
from collections.abc import Iterator
from functools import partial

import numpy as np

from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Converted, Copy, Row

SUFFIXES = ("webp", "png", "jpg", "jpeg")


def is_layout(copy: Copy) -> bool:
    """Whether the copy has test/nshards.txt."""
    return "test/nshards.txt" in copy.names


def read_layout(copy: Copy) -> Converted:
    """Rows in the order of the shards; class names and templates are the copy's own."""
    num_shards = int(copy.lines("test/nshards.txt")[0])
    kind = copy.lines("dataset_type.txt")[0].lower() if "dataset_type.txt" in copy.names else "classification"
    label = {"retrieval": "txt", "multilabel": "npy"}.get(kind, "cls")
    texts = [_text(copy, name) for name in ("classnames.txt", "zeroshot_classification_templates.txt")]
    return Converted(rows=_rows(copy, num_shards, label), classnames=texts[0], templates=texts[1])


def _text(copy: Copy, name: str) -> tuple[str, ...]:
    """All lines, empty ones too: CLEVR's fourth distance has an empty name."""
    return tuple(line.strip() for line in copy.read(name).decode().splitlines()) if name in copy.names else ()


def _rows(copy: Copy, num_shards: int, label: str) -> Iterator[Row]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    for number in range(num_shards):
        name = copy.require(f"test/{number}.tar")
        for sample in group_by_keys(tar_file_expander([{"url": name, "stream": io.BytesIO(copy.read(name))}])):
            key = sample["__key__"]
            image = next((sample[suffix] for suffix in SUFFIXES if suffix in sample), None)
            if image is None or label not in sample:
                raise InputError(f"{copy.uri}/{name}: sample {key} has no picture, or no .{label}")
            row = partial(Row, name=key, image=partial(bytes, image))
            if label == "txt":
                yield row(captions=tuple(sample["txt"].decode().splitlines()))
            elif label == "npy":
                yield row(targets=np.load(io.BytesIO(sample["npy"]), allow_pickle=False).astype(np.int64))
            else:
                yield row(label=int(sample["cls"]))
