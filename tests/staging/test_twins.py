"""Twins in a person's pictures: one side of the split, counted in the manifest, and what a resumed run finds is the same."""

import io
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.staging.conftest import picture
from tests.staging.test_sources import write_csv, write_tar
from trainer.staging import stage as staging
from trainer.staging.images import look_of
from trainer.staging.rows import Blob, PairRow
from trainer.staging.shards import read_shard
from trainer.staging.slices import record_name
from trainer.staging.twins import Twins, count_look_alikes, split_pairs
from trainer.storage import join
from trainer.storage.manifest import Manifest

Stage = Callable[..., tuple[str, Manifest]]


def as_folder(place: Path, pictures: list[bytes], captions: list[str]) -> Path:
    for number, (data, caption) in enumerate(zip(pictures, captions, strict=True)):
        (place / f"p{number:03d}.png").write_bytes(data)
        (place / f"p{number:03d}.txt").write_text(caption, encoding="utf-8")
    return place


def as_list(place: Path, pictures: list[bytes], captions: list[str]) -> Path:
    for number, data in enumerate(pictures):
        (place / f"p{number:03d}.png").write_bytes(data)
    return write_csv(place, ["file", "caption"], [[f"p{number:03d}.png", caption] for number, caption in enumerate(captions)])


def as_tar(place: Path, pictures: list[bytes], captions: list[str]) -> Path:
    members = []
    for number, (data, caption) in enumerate(zip(pictures, captions, strict=True)):
        members += [(f"p{number:03d}.png", data), (f"p{number:03d}.txt", caption.encode())]
    write_tar(place / "a.tar", members)
    return place


@pytest.mark.parametrize("kind", [as_folder, as_list, as_tar])
def test_twins_never_stand_on_both_sides(tmp_path: Path, stage: Stage, kind: Callable[..., Path]) -> None:
    """Captions that read the same, whatever their case, blanks and entities; pictures of the same bytes under other names."""
    pictures = [picture(number % 30) for number in range(40)]  # the last ten are the first ten again
    spelled = ("a dog &amp; a cat {}", "A dog & a  cat {}", "  a Dog & a cat {} ")
    captions = [spelled[number % 3].format(number // 3) if number < 30 else f"only {number}" for number in range(40)]
    (tmp_path / "source").mkdir()
    uri, manifest = stage(kind(tmp_path / "source", pictures, captions))
    sides = defaultdict(set)
    for shard in manifest.shards:
        for _, (image, _, about) in read_shard(uri, shard):
            sides[" ".join(json.loads(about)["captions"][0].lower().replace("&amp;", "&").split())].add(shard.split)
            sides[image].add(shard.split)
    assert {split for found in sides.values() for split in found} == {"train", "test"}
    assert not [what for what, found in sides.items() if len(found) > 1]
    found = manifest.facts["twins"]
    assert {name: found[name] for name in ("captions", "identical", "test_captions", "test_identical")} == {
        "captions": 30, "identical": 20, "test_captions": 0, "test_identical": 0
    }  # fmt: skip


def test_splits_of_the_source_are_obeyed_and_what_crosses_them_is_counted(tmp_path: Path, stage: Stage) -> None:
    """One test picture shares its caption with training, one its bytes, one looks like a training picture and has a class of its own."""
    pictures = [picture(number, (120, 90)) for number in range(8)]
    pictures[6] = pictures[0]
    with Image.open(io.BytesIO(pictures[1])) as image:
        stream = io.BytesIO()
        image.resize((80, 60)).save(stream, "PNG")
    pictures[7] = stream.getvalue()
    for number, data in enumerate(pictures):
        (tmp_path / f"p{number}.png").write_bytes(data)
    rows = [
        [f"p{n}.png", "same" if n in (2, 5) else f"caption {n}", "test" if n > 4 else "train", "cat" if n < 7 else "dog"] for n in range(8)
    ]
    _, manifest = stage(write_csv(tmp_path, ["file", "caption", "split", "label"], rows))
    assert manifest.facts["splits"] == {"train": 5, "test": 3}
    assert manifest.facts["twins"] == {
        "captions": 2, "identical": 2, "test": 3, "test_captions": 1, "test_identical": 1, "unseen_labels": 1, "test_alike": 2
    }  # fmt: skip


def test_a_data_set_that_is_made_again_says_the_same(tmp_path: Path, stage: Stage) -> None:
    """The manifest is lost, then a slice as well: what is counted does not depend on who made which slice."""
    (tmp_path / "source").mkdir()
    source = as_folder(tmp_path / "source", [picture(number % 15) for number in range(20)], [f"c {n % 9}" for n in range(20)])
    uri, manifest = stage(source)
    Path(uri, "manifest.json").unlink()
    assert stage(source)[1] == manifest
    Path(uri, "manifest.json").unlink()
    Path(join(uri, record_name(0))).unlink()
    assert stage(source)[1] == manifest


def row(key: str, caption: str, family: str = "", label: str = "") -> PairRow:
    return PairRow(key=key, where=key, image=Blob("x", length=len(key)), captions=(caption,), family=family, label=label)


def test_a_chain_is_one_family_and_the_sources_own_families_hold() -> None:
    """a-b share a caption, b-c the source's family; d is alone and keeps what it is."""
    rows = [row("a", "one"), row("bb", "one", "f"), row("ccc", "two", "f"), row("dddd", "three")]
    families = [one.family for one in Twins(rows).joined()]
    assert families[:3] == ["twins a"] * 3
    assert families[3] == ""
    assert [one.family for one in Twins([row("a", "x", "f"), row("bb", "y", "f")]).joined()] == ["f", "f"]


def test_where_all_hangs_together_some_is_held_out_all_the_same_and_said() -> None:
    """One caption on all pictures: without a test split there would be nothing to measure."""
    rows = [row("k" * (number + 1), "a picture") for number in range(10)]
    split, found = split_pairs(rows, 0.2, True)
    held_out = sum(one.split == "test" for one in split)
    assert held_out == found["test_captions"] == found["test"] > 0
    assert [one.split for one in split_pairs(rows, 0.2, False)[0]] == [one.split for one in split]


def test_a_look_survives_scaling_and_encoding_but_tells_pictures_apart() -> None:
    """Of 40 smooth pictures nearly all copies at half the size and JPEG quality 75 are found, and no other picture is."""
    originals, copies = [], []
    for seed in range(40):
        image = Image.open(io.BytesIO(picture(seed, (320, 240))))
        stream = io.BytesIO()
        image.resize((160, 120), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=75)
        originals.append(look_of(image))
        copies.append(look_of(Image.open(stream)))
    assert count_look_alikes(originals, copies) >= 34
    assert not count_look_alikes(originals[:20], originals[20:])
    assert look_of(Image.new("RGB", (64, 64), "red")) is None
    assert look_of(Image.open(io.BytesIO(picture(1, (7, 7))))) is None


def test_the_demo_keeps_its_own_families(tmp_path: Path) -> None:
    """Its identity is pinned; what is staged of it says nothing of twins either (test_demo.py)."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(picture(1))
    for source, kept in (("demo", False), (str(photos), True)):
        assert staging._keeps_twins(staging._find(source, str(tmp_path)), {"rules": 2}) is kept
