"""Pairs from a folder: each picture beside a `.txt` (captions, one a line) or `.json` of the same name."""

from collections import defaultdict
from collections.abc import Sequence

from trainer.errors import InputError
from trainer.staging import kinds
from trainer.staging.captions import CAPTION_SUFFIXES, BadCaptionError, Facts, check_caption_size, read_facts
from trainer.staging.rows import Blob, PairRow, Reject, check_split, check_unique, safe_key
from trainer.staging.sources.listing import Rows, SourceFile


def read(uri: str, files: Sequence[SourceFile]) -> Rows[PairRow]:
    """Every picture of the folder and of those below it.

    Raises:
        InputError: there is no picture, or two have one name.
    """
    by_stem: dict[str, dict[str, SourceFile]] = defaultdict(dict)
    images = []
    for file in files:
        stem, dot, suffix = file.name.rpartition(".")
        if dot and f".{suffix.lower()}" in kinds.READ:
            images.append((stem, file))
        elif dot:
            by_stem[stem].setdefault(suffix.lower(), file)
    if not images:
        raise InputError(f"{uri}: no pictures among {len(files)} files (looked for {', '.join(kinds.READ)}, captions.csv and .tar)")
    check_unique((stem for stem, _ in images), uri)
    rows: list[PairRow] = []
    rejects: list[Reject] = []
    for stem, image in images:
        beside = by_stem.pop(stem, {})
        try:
            facts = _facts(beside, stem)
        except BadCaptionError as error:
            rejects.append(Reject(image.name, error.cause, error.detail))
            continue
        split = check_split(facts.split, image.name)
        rows.append(
            PairRow(
                key=safe_key(stem),
                where=image.name,
                image=Blob(image.uri, length=image.size),
                captions=facts.captions,
                label=facts.label,
                split=split,
                family=facts.family,
            )
        )
    for stem, beside in sorted(by_stem.items()):
        if "txt" in beside:
            rejects.append(Reject(f"{stem}.txt", "caption without picture", "no picture of this name", counts=False))
    return Rows(rows=rows, rejects=rejects)


def _facts(beside: dict[str, SourceFile], stem: str) -> Facts:
    """Captions, label, split and family from the files beside a picture."""
    return read_facts({suffix: _read_small(file) for suffix, file in beside.items() if suffix in ("json", *CAPTION_SUFFIXES)}, stem)


def _read_small(file: SourceFile) -> bytes:
    check_caption_size(file.size, file.name)
    return Blob(file.uri).read()
