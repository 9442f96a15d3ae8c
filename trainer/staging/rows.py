"""Rows of a source, before any picture is opened: a sample's name, the place of its bytes, and its split."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from trainer.bounds import MAX_REJECTED_ROWS
from trainer.errors import InputError
from trainer.redaction import without_signatures
from trainer.storage import open_store

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes of a source: a whole object, or (size >= 0) a range of one. `length`: size of a whole object, if a listing gave it."""

    uri: str
    offset: int = 0
    size: int = -1
    length: int = -1

    def read(self) -> bytes:
        """The bytes. A source has no checksums, so they are verified only as far as the store allows."""
        store = open_store(self.uri)
        return store.get(self.uri) if self.size < 0 else store.get_unsealed(self.uri, self.offset, self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """A picture with its captions.

    Attributes:
        key: unique in the data set, safe as a name in a tar.
        where: the picture's name in the source, for people.
        image: its bytes.
        captions: at least one, none empty.
        label: class name, or empty.
        split: train, val, test, or empty if the source does not say.
        family: pictures of one family share a split.
    """

    key: str
    where: str
    image: Blob
    captions: tuple[str, ...]
    label: str = ""
    split: str = ""
    family: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TripletRow:
    """A reference and two variants, with a judgement of which of the two is closer.

    Attributes:
        key: unique in the data set.
        where: name in the source, for people.
        ref: the reference's bytes.
        left: variant 0.
        right: variant 1.
        left_vote: votes (or fraction of them) for variant 0.
        right_vote: the same for variant 1.
        votes: how many people voted; 1 if a model judged.
        split: train, val or test.
        is_imagenet: whether the reference is of an ImageNet class.
        prompt: what NIGHTS' variants were generated from.
        reference: the same for all triplets of one reference picture; empty: the row's own.
        flip: FLIP distance of each variant from the reference, if the source has it.
    """

    key: str
    where: str
    ref: Blob
    left: Blob
    right: Blob
    left_vote: float
    right_vote: float
    votes: int
    split: str
    is_imagenet: bool = False
    prompt: str = ""
    reference: str = ""
    flip: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that does not become a sample. `counts`: whether it is a fault that --max-reject-fraction limits."""

    where: str
    cause: str
    detail: str
    counts: bool = True

    def __post_init__(self) -> None:
        """Remove signatures from URLs, since every reader of the data set can read a reject."""
        object.__setattr__(self, "detail", without_signatures(self.detail))


def check_rejected(rejects: Sequence[Reject], usable: int, uri: str) -> None:
    """Refuse lists made of rows that cannot be used, as soon as there are too many to keep.

    Args:
        rejects: of the source, so far.
        usable: rows of it, so far.
        uri: of the list that is read.

    Raises:
        InputError: more than MAX_REJECTED_ROWS, and more than are usable.
    """
    if len(rejects) <= max(MAX_REJECTED_ROWS, usable):
        return
    (cause, count), *_ = Counter(reject.cause for reject in rejects).most_common(1)
    first = next(reject for reject in rejects if reject.cause == cause)
    example = f"{first.where[:_SHOWN_CHARS]}: {first.detail[:_SHOWN_CHARS]}"
    raise InputError(
        f"{uri}: so far {len(rejects):,} rows cannot be used and {usable:,} can: {count:,} x {cause} (such as {example}): remove such rows "
        "from the list"
    )


RowT = TypeVar("RowT", PairRow, TripletRow)
_SHOWN_CHARS = 200
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def safe_key(name: str) -> str:
    """A name as a tar key: webdataset cuts keys at the first dot and ustar names end at 100 bytes.

    A changed name ends in a hash of the original, so different names stay different.
    """
    safe = _UNSAFE.sub("-", name)[:60].strip("-")
    return safe if safe == name else f"{safe}-{_digest(name)[:8]}"


def check_split(split: str, where: str) -> str:
    """`split` if it is one of train, val, test or empty; InputError naming `where` if not."""
    if split and split not in SPLITS:
        raise InputError(f"{where}: split must be train, val or test, got {split!r}")
    return split


def assign_splits(rows: Sequence[PairRow], heldout_fraction: float) -> list[PairRow]:
    """Give every row a split: the source's own, otherwise families of every label are held out.

    If a source has train and val but no test, its val becomes test.

    Args:
        rows: any order; the result does not depend on it.
        heldout_fraction: part of the pictures that become `test`, whole families at a time.
    """
    if any(row.split for row in rows):
        missing = next((row for row in rows if not row.split), None)
        if missing:
            raise InputError(f"{missing.where}: has no split, but other rows do: give a split to every row, or to none")
        if {row.split for row in rows} == {"train", "val"}:
            return [replace(row, split="test" if row.split == "val" else row.split) for row in rows]
        return list(rows)
    families: dict[str, list[PairRow]] = defaultdict(list)
    for row in rows:
        families[row.family or row.key].append(row)
    by_label: dict[str, list[str]] = defaultdict(list)
    for family, members in families.items():
        by_label[min(row.label for row in members)].append(family)
    heldout: set[str] = set()
    wanted, taken = 0.0, 0
    for label in sorted(by_label):  # the quota carries over, so that small classes contribute too
        wanted += heldout_fraction * sum(len(families[name]) for name in by_label[label])
        for name in sorted(by_label[label], key=lambda name: _digest(f"split {name}")):
            if taken + len(families[name]) / 2 <= wanted and len(heldout) < len(families) - 1:
                heldout.add(name)
                taken += len(families[name])
    if not heldout and len(families) > 1:
        heldout = {min(families, key=lambda name: (len(families[name]), _digest(f"split {name}")))}
    return [replace(row, split="test" if (row.family or row.key) in heldout else "train") for row in rows]


def in_order(rows: Iterable[RowT]) -> list[RowT]:
    """Rows in the order in which they are staged: a fixed permutation by key, so that any shard is a fair sample."""
    return sorted(rows, key=lambda row: _digest(f"order {row.key}"))


def check_unique(keys: Iterable[str], source: str) -> None:
    """InputError naming the first key that occurs twice."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise InputError(f"{source}: two samples are named {key!r}: names (without suffix) must be unique")
        seen.add(key)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
