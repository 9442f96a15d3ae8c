"""Retrieval sets: Karpathy's dataset_*.json (COCO and Flickr30k), or COCO's own captions with a list of pictures."""

import json
from collections import defaultdict
from typing import Any

from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Converted, Copy, Row


def captions(copy: Copy) -> Converted:
    """Every test picture with all its captions.

    Karpathy's file has splits and is preferred; COCO's own (`images`, `annotations`) gives all its pictures, which --list
    narrows down.
    """
    places = [name for name in copy.names if name.endswith(".json")]
    for name in places:
        content = json.loads(copy.read(name))
        if isinstance(content, dict) and isinstance(content.get("images"), list) and content["images"]:
            if "sentences" in content["images"][0]:
                return Converted(rows=_karpathy(copy, content))
            if "annotations" in content:
                return Converted(rows=_coco(copy, content))
    raise InputError(f"{copy.uri}: no JSON of captions (dataset_….json by Karpathy, or COCO's own) among {places or 'none'}")


def _karpathy(copy: Copy, content: dict[str, Any]) -> list[Row]:
    entries = [entry for entry in content["images"] if entry.get("split") == "test"]
    return [_row(copy, entry["filename"], [sentence["raw"] for sentence in entry["sentences"]]) for entry in entries]


def _coco(copy: Copy, content: dict[str, Any]) -> list[Row]:
    captions_of: dict[int, list[str]] = defaultdict(list)
    for annotation in sorted(content["annotations"], key=lambda entry: int(entry["id"])):
        captions_of[annotation["image_id"]].append(annotation["caption"])
    return [
        _row(copy, entry["file_name"], captions_of[entry["id"]]) for entry in sorted(content["images"], key=lambda entry: int(entry["id"]))
    ]


def _row(copy: Copy, file: str, texts: list[str]) -> Row:
    name = copy.require(file)
    kept = tuple(" ".join(text.split()) for text in texts if text.strip())
    if not kept:
        raise InputError(f"{copy.uri}: {file} has no caption")
    return Row(name=name, image=copy.reader(name), captions=kept)
