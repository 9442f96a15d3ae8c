"""Retrieval sets: Karpathy's dataset_*.json (COCO and Flickr30k), or COCO's own captions with a list of pictures."""

from collections import defaultdict
from typing import Any

from trainer.bounds import MAX_CAPTIONS, parse_json
from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Converted, Copy, Row, Split
from trainer.staging.foreign import entry, whole, without_surrogates


def captions(copy: Copy, split: Split = "test") -> Converted:
    """Every test picture with all its captions.

    Karpathy's file has splits and is preferred; from COCO's own (`images`, `annotations`) all pictures are taken, unless --only
    selects some.
    """
    places = [name for name in copy.names if name.endswith(".json")]
    for name in places:
        where = f"{copy.uri}/{name}"
        content = parse_json(copy.read(name), where)
        if isinstance(content, dict) and isinstance(content.get("images"), list) and content["images"]:
            if isinstance(content["images"][0], dict) and "sentences" in content["images"][0]:
                return Converted(rows=_karpathy(copy, content, where))
            if "annotations" in content:
                return Converted(rows=_coco(copy, content, where))
    raise InputError(f"{copy.uri}: no JSON of captions (dataset_….json by Karpathy, or COCO's own) among {places or 'none'}")


def _karpathy(copy: Copy, content: dict[str, Any], where: str) -> list[Row]:
    rows = []
    for number, image in enumerate(content["images"]):
        place = f"{where}: images[{number}]"
        if isinstance(image, dict) and image.get("split") == "test":
            texts = [entry(sentence, "raw", str, f"{place}: sentences") for sentence in entry(image, "sentences", list, place)]
            rows.append(_row(copy, entry(image, "filename", str, place), texts))
    return rows


def _coco(copy: Copy, content: dict[str, Any], where: str) -> list[Row]:
    captions_of: dict[int, list[str]] = defaultdict(list)
    for annotation in _by_id(entry(content, "annotations", list, where), f"{where}: annotations"):
        place = f"{where}: annotation {annotation['id']}"
        captions_of[entry(annotation, "image_id", int, place)].append(entry(annotation, "caption", str, place))
    return [
        _row(
            copy, entry(image, "file_name", str, f"{where}: image {image['id']}"), captions_of[entry(image, "id", int, f"{where}: images")]
        )
        for image in _by_id(content["images"], f"{where}: images")
    ]


def _by_id(entries: list[Any], where: str) -> list[dict[str, Any]]:
    return sorted(entries, key=lambda one: whole(one.get("id") if isinstance(one, dict) else None, f"{where}: id"))


def _row(copy: Copy, file: str, texts: list[str]) -> Row:
    name = copy.require(file)
    kept = tuple(" ".join(without_surrogates(text).split()) for text in texts if text.strip())
    if not kept:
        raise InputError(f"{copy.uri}: {file} has no caption")
    if len(kept) > MAX_CAPTIONS:
        raise InputError(f"{copy.uri}: {file} has {len(kept)} captions, at most {MAX_CAPTIONS} are read")
    return Row(name=name, image=copy.reader(name), captions=kept)
