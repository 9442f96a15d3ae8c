"""Triplets where there are no judgements: pictures, distorted in two ways, judged by FLIP, as a folder in NIGHTS layout.

References are split before they are distorted. Triplets are chosen so that the plain pixel distance agrees with the
judge half of the time in each split: unselected, it agrees in four of five, and little would be left to learn.
"""

import csv
import hashlib
import itertools
import math
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer import logs
from trainer.bounds import Budget
from trainer.config import StagingConfig
from trainer.errors import InputError, RunError
from trainer.progress import check_stop, counted, progress
from trainer.staging.distortions import KINDS
from trainer.staging.images import BadImageError, encode_png, shared_budget, squash, use_budget
from trainer.staging.judge import flip_distance
from trainer.staging.rows import SPLITS, PairRow, Reject
from trainer.staging.samples import held, pixel_mse
from trainer.staging.sources import nights
from trainer.storage import MissingObject

VERSION = 1
"""Raised when what is made here changes, so that plan ids do."""
_VARIANTS = 5  # per reference: 10 pairs to choose from for 5 judgements
_TRIPLETS_A_REFERENCE = 3  # target; if fewer triplets are requested, fewer references are distorted
_MAX_WORKERS = 8


@dataclass(frozen=True, slots=True)
class _Reference:
    """A picture with its variants, judged."""

    key: str
    split: str
    prompt: str
    kinds: tuple[str, ...]
    flip: tuple[float, ...]
    mse: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Two variants of a reference whose FLIP distances differ enough; `left` and `right` are numbers of variants."""

    reference: _Reference
    left: int
    right: int

    @property
    def name(self) -> str:
        return f"{self.reference.key} {self.left} {self.right}"

    @property
    def mse_agrees(self) -> bool:
        flip, mse = self.reference.flip, self.reference.mse
        return (flip[self.left] < flip[self.right]) == (mse[self.left] < mse[self.right])


def write_folder(folder: str, rows: Sequence[PairRow], settings: StagingConfig, check: Callable[[list[Reject]], None]) -> None:
    """Write ref/, distort/ and data.csv.

    Args:
        folder: an empty local folder.
        rows: pictures, each with a split; a part of the training families becomes `val` where there is none.
        settings: side, number of triplets, least difference.
        check: called with all unreadable pictures so far, whenever another one is found; it may raise to stop.

    Raises:
        InputError: the pictures yield no usable triplet.
    """
    for part in ("ref", "distort"):
        (Path(folder) / part).mkdir()
    splits = _splits(rows, settings.heldout_fraction)
    references = _judge_all(folder, splits, settings, check)
    share = settings.demo_triplets / max(1, len(references))
    chosen = []
    for split in SPLITS:
        of_split = [reference for reference in references if reference.split == split]
        chosen += _balanced(of_split, round(share * len(of_split)), settings.flip_min_difference)
    if not chosen:
        raise InputError(
            f"no triplets could be made from {counted(len(rows), 'picture')}: the FLIP difference is below {settings.flip_min_difference} "
            "in each"
        )
    _write_table(Path(folder) / nights.NAME, chosen)


def most_triplets(rows: Sequence[PairRow], settings: StagingConfig) -> dict[str, int]:
    """The most triplets that `write_folder` can make for each split; fewer if FLIP cannot tell variants apart."""
    by_split = {split: len(found) for split, found in _splits(rows, settings.heldout_fraction).items()}
    pairs = math.comb(_VARIANTS, 2)
    share = settings.demo_triplets / max(1, len(rows))
    return {split: min(math.ceil(share * by_split.get(split, 0)) + 1, pairs * by_split.get(split, 0)) for split in SPLITS}


def _splits(rows: Sequence[PairRow], heldout_fraction: float) -> dict[str, list[PairRow]]:
    """Rows by split, in a fixed order; `val` takes families from `train` where the source has no `val`."""
    by_split: dict[str, list[PairRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: _digest(row.key)):
        by_split[row.split].append(row)
    if not by_split["val"]:
        families = sorted({row.family or row.key for row in by_split["train"]}, key=_digest)
        taken = set(families[: math.ceil(len(families) * heldout_fraction / 2)] if len(families) > 1 else ())
        for row in by_split.pop("train"):
            by_split["val" if (row.family or row.key) in taken else "train"].append(row)
    return by_split


def _judge_all(
    folder: str, splits: dict[str, list[PairRow]], settings: StagingConfig, check: Callable[[list[Reject]], None]
) -> list[_Reference]:
    """Distort and judge as many references of each split as the triplets asked for need."""
    wanted = settings.demo_triplets / _TRIPLETS_A_REFERENCE / sum(map(len, splits.values()))
    jobs = []
    for split in SPLITS:
        jobs += [(row, split) for row in splits[split][: math.ceil(wanted * len(splits[split]))]]
    rows, names = zip(*jobs, strict=True)
    references: list[_Reference] = []
    bad: list[Reject] = []
    context = multiprocessing.get_context("spawn")  # forking a process that has threads may hang
    try:
        workers, budget = min(os.cpu_count() or 1, _MAX_WORKERS), shared_budget(context)
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_judge, initargs=(budget, logs.spoken())) as pool:
            sides = itertools.repeat(settings.triplet_side)
            for count, judged in enumerate(pool.map(_judge, itertools.repeat(folder), rows, names, sides, chunksize=8), start=1):
                if isinstance(judged, Reject):
                    bad.append(judged)
                    check(bad)
                else:
                    references.append(judged)
                if count % 50 == 0 or count == len(jobs):
                    check_stop()
                    progress("judge triplets", count, len(jobs), "pictures")
    except BrokenProcessPool as error:
        raise RunError(f"a process that distorts pictures ended early (out of memory?): {error}") from error
    return references


def _begin_judge(budget: Budget, spoken: dict[str, Any]) -> None:
    """Initialise a judging process: share the parent's budget and log format."""
    use_budget(budget)
    logs.speak_as(spoken)


def _judge(folder: str, row: PairRow, split: str, side: int) -> _Reference | Reject:
    """Write a reference and its variants, and measure them; returns a reject if the picture is bad."""
    try:
        with held(row.image) as data:
            pixels, _ = squash(data, side)
    except BadImageError as error:
        return Reject(row.where, error.cause, error.detail)
    except MissingObject as error:
        return Reject(row.where, "no such file", str(error))
    random = np.random.default_rng(int(_digest(f"distort {row.key}")[:16], 16))
    kinds = tuple(str(kind) for kind in random.choice(sorted(KINDS), _VARIANTS, replace=False))
    flip, mse = [], []
    (Path(folder) / "ref" / f"{row.key}.png").write_bytes(encode_png(Image.fromarray(pixels)))
    for number, kind in enumerate(kinds):
        variant = KINDS[kind](pixels, random)
        flip.append(flip_distance(pixels, variant))
        mse.append(pixel_mse(pixels, variant))
        (Path(folder) / "distort" / f"{row.key}_{number}.png").write_bytes(encode_png(Image.fromarray(variant)))
    return _Reference(row.key, split, row.captions[0], kinds, tuple(flip), tuple(mse))


def _balanced(references: Sequence[_Reference], wanted: int, min_difference: float) -> list[_Candidate]:
    """Up to `wanted` candidates, on half of which the pixel distance agrees with the judge."""
    sides: dict[bool, list[_Candidate]] = {True: [], False: []}
    for reference in references:
        for pair in itertools.combinations(range(_VARIANTS), 2):
            swap = int(_digest(f"side {reference.key} {pair}")[0], 16) % 2
            candidate = _Candidate(reference, *(pair[::-1] if swap else pair))
            if abs(reference.flip[pair[0]] - reference.flip[pair[1]]) >= min_difference:
                sides[candidate.mse_agrees].append(candidate)
    half = min(len(sides[True]), len(sides[False]), (wanted + 1) // 2)
    return [candidate for side in sides.values() for candidate in sorted(side, key=lambda c: _digest(c.name))[:half]]


def _write_table(path: Path, chosen: Sequence[_Candidate]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow((*nights.COLUMNS, "judge", "flip_left", "flip_right", "kind_left", "kind_right"))
        for number, candidate in enumerate(sorted(chosen, key=lambda c: _digest(f"row {c.name}"))):
            reference, left, right = candidate.reference, candidate.left, candidate.right
            right_is_closer = int(reference.flip[right] < reference.flip[left])
            paths = (f"ref/{reference.key}.png", f"distort/{reference.key}_{left}.png", f"distort/{reference.key}_{right}.png")
            table.writerow(
                (number, 1 - right_is_closer, right_is_closer, 1, *paths, reference.split, False, reference.prompt, "FLIP",
                 reference.flip[left], reference.flip[right], reference.kinds[left], reference.kinds[right])
            )  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
