"""Twins: pictures of a source with the same normalised caption, or with equal bytes. They share a split.

A held-out picture whose twin is in training would measure memorisation. Only pictures of equal size are read to compare their bytes.
A perceptual hash, computed when pictures are decoded anyway, finds copies that were scaled or re-encoded; it is too imprecise to act
on, so these are only counted.
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.progress import check_stop
from trainer.staging.rows import PairRow, assign_splits
from trainer.staging.samples import blob_digest
from trainer.staging.tokens import Tokenizer

Groups = list[NDArray[np.int64]]
_THREADS = 4
_AT_ONCE = 1024


class Twins:
    """The twins among the rows of a source.

    Args:
        rows: all rows; pictures of equal size are read.
    """

    def __init__(self, rows: Sequence[PairRow]) -> None:
        self._rows = rows
        self.by_caption = _same_captions(rows)
        self.by_bytes = _same_bytes(rows)

    def joined(self) -> list[PairRow]:
        """The rows, with one family for all rows connected by captions, bytes or the source's own families."""
        parent = list(range(len(self._rows)))

        def root(row: int) -> int:
            while parent[row] != row:
                parent[row] = parent[parent[row]]
                row = parent[row]
            return row

        first_of: dict[str, int] = {}
        named = [np.array([first_of.setdefault(row.family, n), n]) for n, row in enumerate(self._rows) if row.family]
        for group in (*named, *self.by_caption, *self.by_bytes):
            for row in group.tolist():
                one, other = sorted((root(int(group[0])), root(row)))
                parent[other] = one
        members: dict[int, list[int]] = {}
        for row in range(len(parent)):
            if root(row) != row:
                members.setdefault(root(row), [root(row)]).append(row)
        rows = list(self._rows)
        for alike in members.values():
            if len({rows[n].family or rows[n].key for n in alike}) > 1:
                name = f"twins {min(rows[n].key for n in alike)}"
                for n in alike:
                    rows[n] = replace(rows[n], family=name)
        return rows

    def counts(self, rows: Sequence[PairRow]) -> dict[str, int]:
        """What was found, for the manifest.

        Args:
            rows: the same rows in the same order, each with its split.

        Returns:
            Counts of pictures that share a caption or are identical to another, of test pictures, of those that share a caption
            with a training picture (`test_captions`) or are identical to one, and of labels that no training picture has.
        """
        train = np.array([row.split == "train" for row in rows], bool)
        test = np.array([row.split == "test" for row in rows], bool)
        found = {"captions": _size(self.by_caption), "identical": _size(self.by_bytes), "test": int(test.sum())}
        for name, groups in (("test_captions", self.by_caption), ("test_identical", self.by_bytes)):
            across = [group[test[group]] for group in groups if train[group].any()]
            found[name] = _size(across)
        trained = {row.label for row in rows if row.split == "train"}
        found["unseen_labels"] = len({row.label for row in rows if row.label and row.split == "test"} - trained)
        return found


def split_pairs(rows: Sequence[PairRow], heldout_fraction: float, keep_twins: bool) -> tuple[list[PairRow], dict[str, int]]:
    """Give every row a split.

    Args:
        rows: a source's rows.
        heldout_fraction: see `assign_splits`.
        keep_twins: whether twins share a split. Ignored if all pictures are connected, so that none could be held out.

    Returns:
        The rows, and the counts of twins; empty if twins were not searched for.
    """
    if not keep_twins:
        return assign_splits(rows, heldout_fraction), {}
    twins = Twins(rows)
    split = assign_splits(twins.joined(), heldout_fraction)
    if not any(row.split == "test" for row in split):
        split = assign_splits(rows, heldout_fraction)
    return split, twins.counts(split)


def count_look_alikes(train: Sequence[int], test: Sequence[int]) -> int:
    """How many of the `test` perceptual hashes differ from one of `train` in at most one bit."""
    wanted, known = np.array(test, np.uint64), np.unique(np.array(train, np.uint64))
    found = np.isin(wanted, known)
    for bit in range(64):
        found |= np.isin(wanted ^ np.uint64(1 << bit), known)
    return int(found.sum())


def _same_captions(rows: Sequence[PairRow]) -> Groups:
    """Rows grouped by shared caption, normalised as the tokenizer reads it."""
    clean = Tokenizer().clean
    keys, owners = array("Q"), array("q")
    for number, row in enumerate(rows):
        for text in {clean(caption) for caption in row.captions}:
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            keys.append(int.from_bytes(digest, "little"))
            owners.append(number)
    return _groups(np.array(keys, np.uint64), np.array(owners, np.int64))


def _same_bytes(rows: Sequence[PairRow]) -> Groups:
    """Rows grouped by equal bytes."""
    sizes = np.array([max(row.image.size, row.image.length) for row in rows], np.int64)
    values, counts = np.unique(sizes, return_counts=True)
    several = np.flatnonzero(np.isin(sizes, values[(counts > 1) | (values < 0)]))
    keys, owners = array("Q"), array("q")
    for number, digest in _digests(rows, several):
        keys.append(digest)
        owners.append(number)
    return _groups(np.array(keys, np.uint64), np.array(owners, np.int64))


def _digests(rows: Sequence[PairRow], numbers: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Number and digest of each of these rows' pictures; an unreadable one is skipped, since staging will report it."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(numbers), _AT_ONCE):
            check_stop()
            part = numbers[start : start + _AT_ONCE].tolist()
            for number, digest in zip(part, pool.map(lambda n: blob_digest(rows[n].image), part), strict=True):
                if digest:
                    yield number, int.from_bytes(digest, "little")


def _groups(keys: NDArray[np.uint64], owners: NDArray[np.int64]) -> Groups:
    """Owners grouped by each key that several of them have."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order][:1] + np.uint64(1))) if len(keys) else np.empty(0, np.int64)
    groups: Any = np.split(owners[order], starts[1:]) if len(starts) else []
    return [group for group in groups if len(group) > 1]


def _size(groups: Groups) -> int:
    return len(np.unique(np.concatenate(groups))) if groups else 0
