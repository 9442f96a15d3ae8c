"""The figures of one model on one set: `<dataset>_<task>.json` with CLIP_benchmark's keys, and `<dataset>_<task>.items.npz`.

CLIP_benchmark's tools read the file too, so firstsight's own fields are in its block `firstsight`: the format version, size and
checksum of the items, and the checksum of the whole file (`documents.checksum`, without itself). Format 1 has none of the three.
"""

from collections.abc import Mapping
from typing import Any

from trainer.config import ModelConfig, canonical_hash, recipe_fields
from trainer.errors import Corrupt, InputError
from trainer.storage.base import read_json, write_bytes, write_json
from trainer.storage.checked import describe, is_description
from trainer.storage.documents import CHECKSUM, checksum

FORMAT_VERSION = 2
BLOCK, ITEMS = "firstsight", "items"


def untrained_hash(model: ModelConfig, seed: int) -> str:
    """The substitute for a recipe hash of an untrained model, from its sizes and its seed."""
    return canonical_hash({"untrained": recipe_fields(model), "seed": seed})


def items_uri(uri: str) -> str:
    """The URI of the items that belong to the figures at `uri`."""
    return uri.removesuffix(".json") + ".items.npz"


def write_figures(uri: str, value: Mapping[str, Any], items: bytes) -> None:
    """Write the items, then the figures, which contain the items' checksum.

    Args:
        uri: URI of the figures.
        value: CLIP_benchmark's keys, and the block.
        items: the .npz file.
    """
    block = {**value[BLOCK], "format_version": FORMAT_VERSION, ITEMS: describe(items)}
    write_bytes(items_uri(uri), items)
    write_json(uri, {**value, BLOCK: {**block, CHECKSUM: checksum({**value, BLOCK: block})}})


def read_figures(uri: str) -> dict[str, Any]:
    """The figures at `uri`; their block has `items` ({"size", "sha256"}) from format 2 on.

    Raises:
        MissingObject: there are none.
        InputError: a newer firstsight wrote them.
        Corrupt: they are something else, or were damaged.
    """
    value = read_json(uri)
    block = value.get(BLOCK) if isinstance(value, dict) else None
    if not isinstance(block, dict) or not isinstance(value.get("metrics"), dict):
        raise Corrupt(f"{uri}: not a firstsight evaluation")
    version, stored = block.get("format_version", 1), block.pop(CHECKSUM, None)
    checked = stored is not None or ITEMS in block or version != 1
    if checked and stored != checksum(value):  # before the version is trusted
        raise Corrupt(f"{uri}: its checksum does not match its content: it was damaged or edited by hand")
    if type(version) is not int or version > FORMAT_VERSION:
        raise InputError(f"{uri}: format {version!r} is newer than this firstsight can read ({FORMAT_VERSION})")
    if checked and not is_description(block.get(ITEMS)):
        raise Corrupt(f"{uri}: not a firstsight evaluation: it does not describe its items")
    return dict(value)
