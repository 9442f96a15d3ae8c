"""Triplets from BAPPS 2AFC (Zhang et al., 2018): <split>/<distortion>/{ref,p0,p1}/<n>.png, judge/<n>.npy.

A judge file contains the fraction of human votes for p1. BAPPS has no test split: results are reported on its `val`, so
that becomes `test`, and a twentieth of `train` becomes `val`.
"""

import hashlib
import re
from collections.abc import Sequence

from trainer.bounds import check_size
from trainer.errors import InputError
from trainer.staging.foreign import number, read_npy
from trainer.staging.rows import Blob, Reject, TripletRow, safe_key
from trainer.staging.sources.listing import Rows, SourceFile

_JUDGE = re.compile(r"(?:.*/)?(?P<split>train|val)/(?P<distortion>[^/]+)/judge/(?P<number>[^/]+)\.npy")
_VOTES = {"train": 2, "val": 5}  # votes per triplet
_VAL_PART = 20
_MAX_JUDGE_BYTES = 1 << 16  # size of a judgement file, which holds one number


def is_bapps(files: Sequence[SourceFile]) -> bool:
    """Whether a folder has this layout."""
    return any(_JUDGE.fullmatch(file.name) for file in files)


def read(uri: str, files: Sequence[SourceFile], min_votes: int) -> Rows[TripletRow]:
    """Every judgement. `min_votes` does not apply: every triplet of BAPPS has two or five votes.

    Raises:
        InputError: there is no judgement.
    """
    by_name = {file.name: file for file in files}
    rows: list[TripletRow] = []
    rejects: list[Reject] = []
    for file in files:
        match = _JUDGE.fullmatch(file.name)
        if match:
            row = _row(file, match, by_name)
            (rejects if isinstance(row, Reject) else rows).append(row)  # type: ignore[arg-type]
    if not rows:
        raise InputError(f"{uri}: no BAPPS judgement (<split>/<distortion>/judge/*.npy) with all three pictures")
    return Rows(rows=rows, rejects=rejects, judge="people")


def _row(file: SourceFile, match: re.Match[str], by_name: dict[str, SourceFile]) -> TripletRow | Reject:
    folder = file.name.rsplit("/judge/", 1)[0]
    pictures = [by_name.get(f"{folder}/{part}/{match['number']}.png") for part in ("ref", "p0", "p1")]
    ref, left, right = pictures
    if ref is None or left is None or right is None:
        return Reject(file.name, "no such file", "ref, p0 or p1 is missing")
    try:
        check_size(file.size, _MAX_JUDGE_BYTES, file.name)
        judged = read_npy(Blob(file.uri).read(), file.name).reshape(-1)
        part = number(judged[0] if len(judged) else None, f"{file.name}: the share of human votes", 0, 1)
    except InputError as error:
        return Reject(file.name, "broken judgement", str(error))
    name = f"{match['split']}/{match['distortion']}/{match['number']}"
    votes = _VOTES[match["split"]]
    split = "test" if match["split"] == "val" else "val" if _hash(ref.name) % _VAL_PART == 0 else "train"
    return TripletRow(
        key=safe_key(name),
        where=name,
        ref=Blob(ref.uri, length=ref.size),
        left=Blob(left.uri, length=left.size),
        right=Blob(right.uri, length=right.size),
        left_vote=(1 - part) * votes,
        right_vote=part * votes,
        votes=votes,
        split=split,
        prompt=match["distortion"],
        reference=ref.name,
    )


def _hash(text: str) -> int:
    return int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16)
