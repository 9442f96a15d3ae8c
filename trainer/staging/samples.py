"""Turn rows into samples, the bytes of each member of a shard. Runs in threads, one row at a time, without a model."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.bounds import MAX_PICTURE_BYTES, MAX_PICTURE_BYTES_IN_FLIGHT, Budget
from trainer.errors import InputError, RunError
from trainer.staging.images import BadImageError, encode_png, is_plain_png, normalise, squash
from trainer.staging.judge import flip_distance
from trainer.staging.plans import PAIRS_RULES
from trainer.staging.rows import Blob, PairRow, Reject, TripletRow
from trainer.storage import MissingObject

_TEXT = "txt"
_OF_PICTURES = ("height", "width", "mse_0", "mse_1", "flip_0", "flip_1")


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample on its way to a shard.

    Attributes:
        key: unique in its data set.
        members: by column (suffix, bytes).
        captions: captions that still have to be tokenised.
        look: perceptual features of the picture (images.look_of).
        note: what was ignored about the row, in a few words.
    """

    key: str
    members: dict[str, tuple[str, bytes]]
    captions: Sequence[str] = field(default=())
    look: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class PairMaker:
    """Makes samples of pairs under an image policy and a version of the rules (plans.PAIRS_RULES), with their looks if requested."""

    image_policy: str
    rules: int = PAIRS_RULES
    looks: bool = False

    def __call__(self, row: PairRow) -> Sample | Reject:
        """The sample, or why there is none."""
        try:
            with held(row.image) as data:
                picture = normalise(data, self.image_policy, self.rules, looks=self.looks)
        except BadImageError as error:
            return Reject(row.where, error.cause, error.detail)
        facts = self.said(row)
        text = facts.pop(_TEXT)
        members = {
            "image": (picture.suffix, picture.data),
            "txt": ("txt", text.encode("utf-8", "replace")),
            "json": ("json", as_json({**facts, "height": picture.height, "width": picture.width})),
        }
        return Sample(row.key, members, _on_lines(row), look=picture.look, note=picture.note)

    def said(self, row: PairRow) -> dict[str, Any]:
        """The metadata of the sample: facts, and the text under `txt`."""
        captions = _on_lines(row)
        facts: dict[str, Any] = {"source": row.where, **({"label": row.label} if row.label else {})}
        if self.rules > 1:
            return {**facts, "captions": captions, _TEXT: captions[0]}
        return {**facts, _TEXT: "\n".join(captions)}


@dataclass(frozen=True, slots=True)
class TripletMaker:
    """Makes samples of triplets, resized to `side` and stored losslessly; with `flip`, FLIP judges triplets that have no judgement."""

    side: int
    flip: bool = False

    def __call__(self, row: TripletRow) -> Sample | Reject:
        """The sample, or why there is none."""
        pictures = []
        for name, blob in (("reference", row.ref), ("left", row.left), ("right", row.right)):
            try:
                pictures.append(self._squash(blob))
            except BadImageError as error:
                return Reject(row.where, error.cause, f"{name}: {error.detail}")
        ref, left, right = (pixels for pixels, _, _ in pictures)
        note = next((note for _, _, note in pictures if note), "")
        facts = {**self.said(row), "mse_0": pixel_mse(ref, left), "mse_1": pixel_mse(ref, right)}
        if row.flip or self.flip:
            facts["flip_0"], facts["flip_1"] = row.flip or (flip_distance(ref, left), flip_distance(ref, right))
        names = ("ref.png", "0.png", "1.png")
        members = {name: (name, png) for name, (_, png, _) in zip(names, pictures, strict=True)}
        return Sample(row.key, {**members, "json": ("json", as_json(facts))}, note=note)

    def said(self, row: TripletRow) -> dict[str, Any]:
        """The metadata of the sample, apart from its pictures and their distances."""
        return {
            "id": row.where, "reference": row.reference or row.where,
            "left_vote": row.left_vote, "right_vote": row.right_vote, "votes": row.votes,
            "target": row.right_vote / (row.left_vote + row.right_vote), "split": row.split, "is_imagenet": row.is_imagenet,
            "prompt": row.prompt,
        }  # fmt: skip

    def _squash(self, blob: Blob) -> tuple[NDArray[np.uint8], bytes, str]:
        """Pixels, PNG, and what was ignored. A plain PNG of the right size, as our own generator writes, is not encoded again."""
        with held(blob) as data:
            pixels, note = squash(data, self.side)
            plain = data if is_plain_png(data, self.side) else b""
        return pixels, plain or encode_png(Image.fromarray(pixels)), note


_IN_FLIGHT = Budget(MAX_PICTURE_BYTES_IN_FLIGHT)


@contextmanager
def held(blob: Blob) -> Iterator[bytes]:
    """The bytes of a picture for the duration of the block, once there is memory for them. BadImageError if they are too many."""
    size = max(blob.size, blob.length)
    if size > MAX_PICTURE_BYTES:
        raise BadImageError("too many bytes", f"{size:,}, at most {MAX_PICTURE_BYTES:,}")
    with _IN_FLIGHT.taken(max(size, 0)):
        try:
            data = blob.read()
        except MissingObject as error:  # no reject, which would stay: all files were there when the source was listed
            raise RunError(
                f"{blob.uri}: it was listed, but is gone: was it removed, or its file system unmounted? Run the same command again"
            ) from error
        yield data


def blob_digest(blob: Blob) -> bytes:
    """An 8-byte digest of a picture; empty if the picture is too large or has no bytes."""
    try:
        with held(blob) as data:
            return hashlib.blake2b(data, digest_size=8).digest()
    except (BadImageError, InputError):
        return b""


def pixel_mse(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean squared difference of two pictures of the same size, on a scale from 0 to 1."""
    difference = a.astype(np.float64) - b
    return float(np.mean(difference * difference)) / 255**2


def picture_suffix(data: bytes) -> str:
    """`jpg` or `png`, from the bytes of a staged picture."""
    return "jpg" if data[:2] == b"\xff\xd8" else "png"


def captions_of(text: bytes, facts: Mapping[str, Any]) -> list[str]:
    """The captions of a staged pair, from its .txt and .json, whatever rules it was staged with."""
    return list(facts["captions"]) if "captions" in facts else text.decode().split("\n")


def said_by(members: Sequence[bytes]) -> dict[str, Any]:
    """The metadata of a staged pair or triplet, as its maker's `said` returns it. `members`: the members listed in its index."""
    facts: dict[str, Any] = {name: value for name, value in json.loads(members[-1]).items() if name not in _OF_PICTURES}
    return facts if len(members) > 3 else {**facts, _TEXT: members[1].decode()}


def _on_lines(row: PairRow) -> list[str]:
    """The captions, each on one line."""
    return [" ".join(caption.splitlines()) for caption in row.captions]


def as_json(value: object) -> bytes:
    """Equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")
