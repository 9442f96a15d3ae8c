"""Pairs from a folder: each picture beside a `.txt` (captions, one a line) or `.json` of the same name."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from trainer.bounds import MAX_CAPTION_BYTES, MAX_CAPTIONS, parse_json
from trainer.errors import InputError
from trainer.staging.foreign import without_surrogates
from trainer.staging.rows import Blob, PairRow, Reject, check_split, check_unique, safe_key
from trainer.staging.sources.listing import Rows, SourceFile

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_CAPTION_KEYS = ("captions", "caption", "text")


class BadCaptionError(ValueError):
    """A caption file that cannot be used; `cause` is what rejects are counted by."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


def read(uri: str, files: Sequence[SourceFile]) -> Rows[PairRow]:
    """Every picture of the folder and of those below it.

    Raises:
        InputError: there is no picture, or two have one name.
    """
    by_stem: dict[str, dict[str, SourceFile]] = defaultdict(dict)
    images = []
    for file in files:
        stem, dot, suffix = file.name.rpartition(".")
        if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES:
            images.append((stem, file))
        elif dot:
            by_stem[stem].setdefault(suffix.lower(), file)
    if not images:
        raise InputError(f"{uri}: no pictures among {len(files)} files (looked for {', '.join(IMAGE_SUFFIXES)}, captions.csv and .tar)")
    check_unique((stem for stem, _ in images), uri)
    rows: list[PairRow] = []
    rejects: list[Reject] = []
    for stem, image in images:
        beside = by_stem.pop(stem, {})
        try:
            facts = _facts(beside)
        except BadCaptionError as error:
            rejects.append(Reject(image.name, error.cause, error.detail))
            continue
        split = check_split(facts.get("split", ""), image.name)
        rows.append(
            PairRow(
                key=safe_key(stem),
                where=image.name,
                image=Blob(image.uri, length=image.size),
                captions=facts["captions"],
                label=facts.get("label", ""),
                split=split,
                family=facts.get("family", ""),
            )
        )
    for stem, beside in sorted(by_stem.items()):
        if "txt" in beside:
            rejects.append(Reject(f"{stem}.txt", "caption without picture", "no picture of this name", counts=False))
    return Rows(rows=rows, rejects=rejects)


def _facts(beside: dict[str, SourceFile]) -> dict[str, Any]:
    """Captions, label, split and family from the files beside a picture; `.txt` has the last word on captions."""
    facts: dict[str, Any] = {}
    if "json" in beside:
        facts = parse_facts(_read_small(beside["json"]), beside["json"].name)
    if "txt" in beside:
        facts["captions"] = parse_text(_read_small(beside["txt"]), beside["txt"].name)
    if "captions" not in facts:
        raise BadCaptionError("no caption", "no .txt and no caption in a .json of the same name")
    return facts


def _read_small(file: SourceFile) -> bytes:
    check_caption_size(file.size, file.name)
    return Blob(file.uri).read()


def check_caption_size(size: int, where: str) -> None:
    """BadCaptionError where a sample's text or facts have more bytes than are read."""
    if size > MAX_CAPTION_BYTES:
        raise BadCaptionError("too many bytes", f"{where}: {size:,}, at most {MAX_CAPTION_BYTES:,}")


def parse_text(data: bytes, where: str) -> tuple[str, ...]:
    """Captions of a text file in UTF-8, one a line; empty lines do not count."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadCaptionError("caption not UTF-8", f"{where} has byte {data[error.start]:#04x} at {error.start}") from error
    return clean_captions(text.splitlines(), where)


def clean_captions(captions: Sequence[object], where: str) -> tuple[str, ...]:
    """Captions without white space around them and without the empty ones; none left is an error."""
    clean = tuple(text for text in (str(caption).strip() for caption in captions if caption is not None) if text)
    if not clean:
        raise BadCaptionError("empty caption", where)
    if len(clean) > MAX_CAPTIONS:
        raise BadCaptionError("too many captions", f"{where}: {len(clean)}, at most {MAX_CAPTIONS}")
    return clean


def parse_facts(data: bytes, where: str) -> dict[str, Any]:
    """Facts of a JSON caption: a string, a list of strings, or an object with caption(s)/text, label, split, family."""
    try:
        value = parse_json(data.decode("utf-8-sig"), where)
    except UnicodeDecodeError as error:
        raise BadCaptionError("caption not JSON", f"{where}: {error}") from error
    except InputError as error:
        raise BadCaptionError("caption not JSON", str(error)) from error
    if isinstance(value, str | list):
        value = {"captions": value}
    if not isinstance(value, dict):
        raise BadCaptionError("caption not JSON", f"{where}: expected an object, a string or a list, got {type(value).__name__}")
    facts: dict[str, Any] = {
        key: without_surrogates(str(value[key])) for key in ("label", "split", "family") if value.get(key) not in (None, "")
    }
    found = next((value[key] for key in _CAPTION_KEYS if value.get(key) is not None), None)
    if found is not None:
        facts["captions"] = clean_captions(found if isinstance(found, list) else [found], where)
    return facts
