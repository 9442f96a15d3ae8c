"""Figures come back as they were written, or not at all."""

import copy
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import Corrupt, InputError
from trainer.storage import read_json, write_json
from trainer.storage.documents import checksum
from trainer.storage.figures import items_uri, read_figures, write_figures

VALUE: dict[str, Any] = {
    "dataset": "colours",
    "task": "zeroshot_classification",
    "metrics": {"acc1": 0.4166666666666667, "acc5": None},
    "firstsight": {"arm": "random", "seed": 0, "chance": {"acc1": 1 / 3}},
}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    place = str(tmp_path / "colours_zeroshot_classification.json")
    write_figures(place, VALUE, b"items")
    return place


def test_they_come_back_with_what_their_items_are(uri: str) -> None:
    """And the items lie beside them."""
    found = read_figures(uri)
    assert found["metrics"] == VALUE["metrics"]
    assert found["firstsight"]["items"]["size"] == 5
    assert Path(items_uri(uri)).read_bytes() == b"items"


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.campaign)])
def test_every_flipped_bit_is_found(uri: str, stride: int) -> None:
    """Each one, of numbers, names, version and checksum alike: the same figures, or Corrupt."""
    path, whole = Path(uri), read_figures(uri)
    data, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(data), stride):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert read_figures(uri) == whole, bit
        except Corrupt:
            refused += 1
    assert refused > 7 * len(data) / stride


@pytest.mark.parametrize("key", ["sha256", "items", "format_version"])
def test_what_a_version_brought_cannot_be_taken_away(uri: str, key: str) -> None:
    """Figures of today do not pass for older ones."""
    value = read_json(uri)
    del value["firstsight"][key]
    write_json(uri, value)
    with pytest.raises(Corrupt, match="its checksum does not match its content"):
        read_figures(uri)


def test_older_figures_are_read_and_newer_ones_refused(uri: str) -> None:
    """Version 1 said nothing of itself; a newer one has a right checksum."""
    write_json(uri, VALUE)
    assert read_figures(uri) == VALUE
    newer = copy.deepcopy(VALUE)
    newer["firstsight"]["format_version"] = 3
    write_json(uri, {**newer, "firstsight": {**newer["firstsight"], "sha256": checksum(newer)}})
    with pytest.raises(InputError, match="format 3 is newer than this firstsight can read"):
        read_figures(uri)


@pytest.mark.parametrize("value", [[], 1, {}, {"firstsight": []}, {"firstsight": {}}, {"firstsight": {}, "metrics": []}])
def test_other_json_is_refused(uri: str, value: object) -> None:
    """Whatever lies there."""
    write_json(uri, value)
    with pytest.raises(Corrupt, match="not a firstsight evaluation"):
        read_figures(uri)
