"""Sets that come as arrays: CIFAR's binary version, MNIST's idx, STL-10's binary, SVHN's .mat. Pickles are not opened."""

import math
import struct
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Converted, Copy, Row, Split, encode_png
from trainer.staging.evaluation_sets.matlab import read_mat


def cifar_10(copy: Copy, split: Split = "test") -> Converted:
    """cifar-10-batches-bin/test_batch.bin, or data_batch_1.bin … 5: a label byte, then 3 x 32 x 32 bytes, red first."""
    _refuse_pickle(copy, "test_batch.bin", "cifar-10-batches-py/test_batch", "cifar-10-binary.tar.gz")
    files = ["test_batch.bin"] if split == "test" else [f"data_batch_{number}.bin" for number in range(1, 6)]
    records = np.concatenate([_records(copy, file, 1 + 3072) for file in files])
    return Converted(rows=_rows(_planes(records[:, 1:], 32), records[:, 0]), classnames=tuple(copy.lines("batches.meta.txt")))


def cifar_100(copy: Copy, split: Split = "test") -> Converted:
    """cifar-100-binary/test.bin or train.bin: a coarse and a fine label byte, then 3 x 32 x 32 bytes."""
    _refuse_pickle(copy, "test.bin", "cifar-100-python/test", "cifar-100-binary.tar.gz")
    records = _records(copy, f"{split}.bin", 2 + 3072)
    names = tuple(line.replace("_", " ") for line in copy.lines("fine_label_names.txt"))
    return Converted(rows=_rows(_planes(records[:, 2:], 32), records[:, 1]), classnames=names)


def mnist(copy: Copy, split: Split = "test") -> Converted:
    """t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (train-…), gzipped or not; a dot may stand for the last dash."""
    stem = "t10k" if split == "test" else "train"
    pixels, labels = _idx(copy, f"{stem}-images", "idx3-ubyte"), _idx(copy, f"{stem}-labels", "idx1-ubyte")
    return Converted(rows=_rows(pixels, labels), classnames=tuple("0123456789"))


def stl_10(copy: Copy, split: Split = "test") -> Converted:
    """test_X.bin or train_X.bin (3 x 96 x 96 bytes an image, column by column), test_y.bin (1 to 10), class_names.txt."""
    records = _records(copy, f"{split}_X.bin", 3 * 96 * 96)
    labels = np.frombuffer(copy.read(copy.require(f"{split}_y.bin")), np.uint8)
    pixels = _planes(records, 96).transpose(0, 2, 1, 3)
    return Converted(rows=_rows(pixels, labels.astype(np.int64) - 1), classnames=tuple(copy.lines("class_names.txt")))


def svhn(copy: Copy, split: Split = "test") -> Converted:
    """test_32x32.mat or train_32x32.mat: X (32, 32, 3, N), y with 10 for the digit 0."""
    pixels, labels = read_mat(copy, f"{split}_32x32.mat", "X", "y", squeeze=False)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[2] != 3 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{copy.uri}: {split}_32x32.mat must hold X of 8 bits, (32, 32, 3, N), and y, got {pixels.dtype} of {pixels.shape}"
        )
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return Converted(rows=_rows(pixels.transpose(3, 0, 1, 2), labels.astype(np.int64).flatten() % 10), classnames=names)


def _refuse_pickle(copy: Copy, wanted: str, pickled: str, archive: str) -> None:
    if copy.find(wanted) is None and copy.find(pickled) is not None:
        raise InputError(f"{copy.uri}: this is the Python version, a pickle, which is not opened; take the binary version ({archive})")


def _records(copy: Copy, ending: str, size: int) -> NDArray[np.uint8]:
    """A file as (N, size) bytes."""
    name = copy.require(ending)
    data = copy.read(name)
    if not data or len(data) % size:
        raise InputError(f"{copy.uri}/{name}: {len(data)} bytes are not whole records of {size}: cut short?")
    return np.frombuffer(data, np.uint8).reshape(-1, size)


def _planes(records: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(N, 3 * side * side), colour planes -> (N, side, side, 3)."""
    return records.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)


def _idx(copy: Copy, stem: str, kind: str) -> NDArray[np.uint8]:
    name = copy.find(f"{stem}-{kind}") or copy.find(f"{stem}.{kind}") or copy.require(f"{stem}-{kind}")
    data = copy.read(name)
    dimensions = data[3] if len(data) > 4 else 0
    if data[:3] != b"\0\0\x08" or dimensions != (3 if kind == "idx3-ubyte" else 1):
        raise InputError(f"{copy.uri}/{name}: not an idx file of unsigned bytes")
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise InputError(f"{copy.uri}/{name}: {len(data)} bytes, its header alone has {start}: cut short?")
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    if len(data) - start != math.prod(shape) or not all(shape):
        raise InputError(f"{copy.uri}/{name}: {len(data) - start} bytes of data, its header says {math.prod(shape)}: cut short?")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _rows(pixels: NDArray[np.uint8], labels: NDArray[np.integer]) -> Iterator[Row]:
    """Rows named by number."""
    if len(pixels) != len(labels):
        raise InputError(f"{len(pixels)} images but {len(labels)} labels")
    for number, label in enumerate(labels.tolist()):
        yield Row(name=f"{number:06d}", image=partial(encode_png, np.ascontiguousarray(pixels[number])), label=label)
