"""A copy already in CLIP_benchmark's layout: its shards are read, and rewritten with index and manifest."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from trainer.bounds import MAX_CAPTION_BYTES, MAX_CAPTIONS, MAX_PICTURE_BYTES, MAX_SET_SHARDS, check_size
from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Converted, Copy, Row
from trainer.staging.foreign import lines_of, read_npy, shown, text_of, whole
from trainer.staging.rows import Blob
from trainer.staging.sources.listing import SourceFile
from trainer.staging.sources.tars import walk
from trainer.storage.tarfiles import Member, by_sample

SUFFIXES = ("webp", "png", "jpg", "jpeg")


def is_layout(copy: Copy, split: str = "test") -> bool:
    """Whether the copy has a split's nshards.txt."""
    return f"{split}/nshards.txt" in copy.names


def read_layout(copy: Copy, split: str = "test") -> Converted:
    """Rows of a split in the order of its shards; class names and templates are the copy's own."""
    listed = f"{split}/nshards.txt"
    num_shards = whole(_first_line(copy, listed), f"{copy.uri}/{listed}", 0, MAX_SET_SHARDS)
    kind = _first_line(copy, "dataset_type.txt").lower() if "dataset_type.txt" in copy.names else "classification"
    label = {"retrieval": "txt", "multilabel": "npy"}.get(kind, "cls")
    texts = [_text(copy, name) for name in ("classnames.txt", "zeroshot_classification_templates.txt")]
    return Converted(rows=_rows(copy, split, num_shards, label), classnames=texts[0], templates=texts[1])


def _first_line(copy: Copy, name: str) -> str:
    return next(iter(copy.lines(name)), "")


def _text(copy: Copy, name: str) -> tuple[str, ...]:
    """All lines, empty ones too: CLEVR's fourth distance has an empty name."""
    lines = lines_of(text_of(copy.read(name), f"{copy.uri}/{name}")) if name in copy.names else []
    return tuple(line.strip() for line in lines)


def _rows(copy: Copy, split: str, num_shards: int, label: str) -> Iterator[Row]:
    for number in range(num_shards):
        name = copy.require(f"{split}/{number}.tar")
        file = copy.file(name)
        for key, sample in by_sample(walk(file), f"{copy.uri}/{name}"):
            where = f"{copy.uri}/{name}: sample {key}"
            suffix = next((suffix for suffix in SUFFIXES if suffix in sample), None)
            if suffix is None or label not in sample:
                raise InputError(f"{where} has no picture, or no .{label}")
            for member in (sample[suffix], sample[label]):
                if member.fault:
                    raise InputError(f"{where}: {member.fault}")
            row = partial(Row, name=key, image=partial(_bytes, file, sample[suffix], MAX_PICTURE_BYTES, where))
            value = _bytes(file, sample[label], MAX_CAPTION_BYTES, f"{where}: .{label}")
            if label == "txt":
                captions = tuple(line for line in lines_of(text_of(value, where)) if line.strip())
                if len(captions) > MAX_CAPTIONS:
                    raise InputError(f"{where} has {len(captions)} captions, at most {MAX_CAPTIONS} are read")
                yield row(captions=captions)
            elif label == "npy":
                targets = read_npy(value, where)
                if targets.ndim != 1 or not np.isin(targets, (0, 1)).all():
                    raise InputError(f"{where}: its targets must be one row of 0 and 1, got {shown(targets.tolist())}")
                yield row(targets=targets.astype(np.int64))
            else:
                yield row(label=whole(text_of(value, where), f"{where}: class"))


def _bytes(file: SourceFile, member: Member, most: int, where: str) -> bytes:
    check_size(member.size, most, where)
    return member.data if member.data or not member.size else Blob(file.uri, member.offset, member.size).read()
