"""Manifest, COMMITTED.json and layout: what is sealed counts, what is damaged, newer or changed by hand does not."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from tests import old_store
from tests.damage import rewrite
from trainer.errors import Corrupt, InputError, RunError
from trainer.storage import committed, exists, join, layout, read_bytes, read_json, write_bytes, write_json
from trainer.storage.committed import Committed, read_committed, write_committed
from trainer.storage.documents import write_document
from trainer.storage.manifest import Manifest, Shard, as_data, read_manifest, require_manifest, staged_sets, write_manifest


def make_manifest(**changes: object) -> Manifest:
    """A manifest of two shards."""
    shards = [
        Shard(
            name=f"shard-0-{k}.tar", split=split, num_samples=4, size=10240, sha256=str(k) * 64, crc32c=k, index_crc32c=k,
            index_size=100, index_sha256=str(k) * 64,
        )
        for k, split in enumerate(("train", "test"))
    ]  # fmt: skip
    if changes.get("format_version") == 1:
        shards = [dataclasses.replace(shard, index_size=0, index_sha256="") for shard in shards]
    values = {"kind": "pairs", "name": "x", "plan_id": "p", "source": {}, "options": {}, "rows": {"read": 8, "written": 8, "lost": {}}}
    return Manifest(**{**values, "shards": shards, **changes})  # type: ignore[arg-type]


def test_manifest_round_trip(root: str) -> None:
    """A sealed data set is read as it was written; an unsealed one is None."""
    assert read_manifest(root) is None
    manifest = make_manifest(judge="FLIP", facts={"classnames": ["é"]})
    write_manifest(root, manifest)
    assert read_manifest(root) == manifest
    assert require_manifest(root, manifest.identity) == manifest
    assert [shard.name for shard in manifest.split("test")] == ["shard-0-1.tar"]
    assert manifest.shards[0].index_name == "shard-0-0.index"


OTHER = {
    "kind": "triplets", "name": "y", "plan_id": "q", "options": {"a": 1}, "rows": {"read": 9, "written": 8, "lost": {"x": 1}},
    "judge": "people", "evaluation": [{"name": "e"}], "facts": {"classnames": ["a"]}, "files": {"f": {"size": 1, "sha256": "0"}},
    "shards": make_manifest().shards[::-1],
}  # fmt: skip


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(Manifest)])
def test_identity_is_all_that_is_acted_on(name: str) -> None:
    """Every field but those for people; a field that nobody thought of fails here."""
    if name in ("source", "attribution", "account", "format_version", "pin"):
        assert name not in OTHER
        assert (
            make_manifest(source={"uri": "elsewhere"}, attribution="CC", pin="p", account=OTHER["files"]).identity
            == make_manifest().identity
        )
    else:
        assert make_manifest(**{name: OTHER[name]}).identity != make_manifest().identity


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(Shard)])
def test_identity_is_every_field_of_a_shard(name: str) -> None:
    first, second = make_manifest().shards
    value = getattr(first, name)
    changed = dataclasses.replace(first, **{name: value + 1 if isinstance(value, int) else f"{value}x"})
    assert make_manifest(shards=[changed, second]).identity != make_manifest().identity


def test_identity_of_format_1_is_plan_and_bytes() -> None:
    """For ever: plan id, names and checksums of the tars, as ad127be had it."""
    identity = make_manifest(format_version=1).identity
    assert identity == "36b429e322ff14a63e16b3a8dadfd0ad0cc4f61b8ce7c01380d03da90a5f57b4"
    assert make_manifest(format_version=1, name="y", source={"uri": "elsewhere"}, judge="FLIP").identity == identity
    assert make_manifest(format_version=1, plan_id="q").identity != identity


def test_a_manifest_of_format_1_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    """Byte for byte those of the store that ad127be wrote."""
    manifests = sorted(old_store.unpack(tmp_path).glob("datasets/*/*/manifest.json"))
    assert len(manifests) >= 3
    for path in manifests:
        before = path.read_bytes()
        manifest = require_manifest(str(path.parent), json.loads(before)["identity"])
        assert manifest.format_version == 1
        write_manifest(str(path.parent), manifest)
        assert path.read_bytes() == before


def flips(data: bytes) -> list[bytes]:
    """Every byte changed, by one bit and by many, and the file cut short after it."""
    changed = [bytes([*data[:at], data[at] ^ mask, *data[at + 1 :]]) for at in range(len(data)) for mask in (1, 4, 16, 64, 255)]
    return [*changed, *(data[:at] for at in range(len(data)))]


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.campaign)])
def test_a_changed_byte_of_a_manifest_is_refused_or_changes_nothing(tmp_path: Path, stride: int) -> None:
    """Whatever byte it is: another data set is never read."""
    manifest = make_manifest(judge="FLIP", attribution="é", evaluation=[{"name": "e", "uri": "datasets/e/1", "identity": "0", "task": "t"}])
    write_manifest(str(tmp_path), manifest)
    data = read_bytes(str(tmp_path / "manifest.json"))
    refused = 0
    for changed in itertools.islice(flips(data), 0, None, stride):
        rewrite(tmp_path / "manifest.json", changed)
        try:
            assert read_manifest(str(tmp_path)) == manifest
        except Corrupt:
            refused += 1
    assert refused > len(data) / stride


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.campaign)])
def test_a_changed_byte_of_a_pinned_manifest_of_format_1_is_refused(tmp_path: Path, stride: int) -> None:
    """Its identity does not cover its fields; the SHA-256 that the experiment pinned covers each byte."""
    root = str(tmp_path)
    manifest = make_manifest(judge="FLIP", format_version=1)
    write_manifest(root, manifest)
    data, pinned = read_bytes(join(root, "manifest.json")), as_data(root)
    assert pinned.manifest_sha256
    assert require_manifest(root, pinned.identity, pinned.manifest_sha256) == manifest
    for changed in itertools.islice(flips(data), 0, None, stride):
        rewrite(tmp_path / "manifest.json", changed)
        with pytest.raises((Corrupt, InputError)):
            require_manifest(root, pinned.identity, pinned.manifest_sha256)
    (tmp_path / "manifest.json").write_bytes(data.replace(b"FLIP", b"FLAP"))
    assert require_manifest(root, pinned.identity).judge == "FLAP"  # why it is pinned


@pytest.mark.parametrize(
    ("key", "value"),
    [("split", "traim"), ("num_samples", 5), ("num_samples", -1), ("num_samples", True), ("size", "1"), ("index_sha256", ""), ("more", 1)],
)
def test_an_impossible_manifest_of_format_1_is_refused_before_it_is_pinned(tmp_path: Path, key: str, value: object) -> None:
    """What can be told from the file alone: an unknown split, samples that do not add up, another type."""
    root = str(tmp_path)
    write_manifest(root, make_manifest(format_version=1))
    changed = read_json(join(root, "manifest.json"))
    changed["shards"][0][key] = value
    write_json(join(root, "manifest.json"), changed)
    with pytest.raises(Corrupt, match=r"by hand|not as firstsight writes it"):
        read_manifest(root)


@pytest.mark.parametrize("facts", [3, {"a": 1}, {"a": {"size": 1}}, {"a": {"sha256": "0"}}, {"a": {"size": "1", "sha256": "0"}}])
@pytest.mark.parametrize("key", ["files", "account"])
def test_a_manifest_says_size_and_checksum_of_each_file(tmp_path: Path, key: str, facts: object) -> None:
    """One that does not is refused, whatever its checksum."""
    write_manifest(str(tmp_path), make_manifest(**{key: facts}))
    with pytest.raises(Corrupt, match=rf"Manifest\.{key} has an impossible value"):
        read_manifest(str(tmp_path))


def test_pins_of_another_number_of_evaluation_sets_are_refused() -> None:
    """In one line that names the manifest."""
    with pytest.raises(Corrupt, match=r"d/manifest\.json: names 1 evaluation sets, but 2 were pinned"):
        staged_sets("d", make_manifest(evaluation=[{"uri": "e", "identity": "i"}]), ("a", "b"))


def test_a_manifest_of_format_2_needs_no_pin(tmp_path: Path) -> None:
    """Its identity says it all."""
    write_manifest(str(tmp_path), make_manifest())
    assert as_data(str(tmp_path)).manifest_sha256 == ""
    assert as_data(str(tmp_path)).evaluation_sha256 == ()


def test_evaluation_sets_staged_with_pairs_are_pinned_with_them(tmp_path: Path) -> None:
    """A set of format 1 is named by a manifest that says its identity, which does not cover its class names."""
    root, pairs = str(tmp_path), str(tmp_path / "datasets" / "x" / "p")
    sets = [make_manifest(kind="evaluation", name="e", format_version=1), make_manifest(kind="evaluation", name="f", format_version=1)]
    for found in sets:
        write_manifest(join(root, "datasets", found.name, "p"), found)
    entries = [{"name": s.name, "task": "t", "uri": f"datasets/{s.name}/p", "identity": s.identity} for s in sets]
    write_manifest(pairs, make_manifest(format_version=1, evaluation=entries))
    data = as_data(pairs)
    places = staged_sets(pairs, require_manifest(pairs), data.evaluation_sha256)
    assert [place.uri for place in places] == [join(root, "datasets", name, "p") for name in "ef"]
    for place, found in zip(places, sets, strict=True):
        assert require_manifest(place.uri, place.identity, place.manifest_sha256) == found
        write_manifest(place.uri, dataclasses.replace(found, facts={"classnames": ["other"]}))
        with pytest.raises(Corrupt, match="not the file that this run was planned with"):
            require_manifest(place.uri, place.identity, place.manifest_sha256)


def test_other_identity(tmp_path: object) -> None:
    """A data set that is not the one a run was planned with is refused, and so is an unsealed one."""
    root = str(tmp_path)
    with pytest.raises(InputError, match="no sealed data set"):
        require_manifest(root)
    write_manifest(root, make_manifest())
    with pytest.raises(InputError, match="not the one this run was planned with"):
        require_manifest(root, "0" * 64)


@pytest.mark.parametrize(
    ("name", "read"), [("manifest.json", read_manifest), ("COMMITTED.json", read_committed)], ids=["manifest", "committed"]
)
@pytest.mark.parametrize(
    ("value", "kind", "rule"),
    [
        ({"format_version": 9}, InputError, r"format 9 is newer than this firstsight can read \(\d\)"),
        ({"format_version": 1}, RunError, "not a firstsight (manifest|seal)"),
        ({"format_version": 1, "shards": 3}, RunError, "not a firstsight (manifest|seal)"),
        ({"format_version": "1"}, RunError, "no format_version"),
        ([], RunError, "no format_version"),
    ],
)
def test_what_is_no_seal(tmp_path: object, name: str, read: object, value: object, kind: type[Exception], rule: str) -> None:
    """A newer format is refused with its number, anything else in one line."""
    uri = join(str(tmp_path), name)
    write_json(uri, value)
    with pytest.raises(kind, match=rule) as raised:
        read(str(tmp_path))  # type: ignore[operator]
    assert str(raised.value).startswith(uri)
    write_bytes(uri, b"{")
    with pytest.raises(RunError, match="not JSON"):
        read(str(tmp_path))  # type: ignore[operator]


def test_committed_round_trip(root: str) -> None:
    """A seal is read as it was written; none is None."""
    assert read_committed(root) is None
    seal = Committed(recipe_hash="r", attempt=2, step=7, files={"a": {"size": 1, "sha256": "s"}}, facts={"world_size": 2})
    write_committed(root, seal)
    assert exists(join(root, "COMMITTED.json"))
    assert read_committed(root) == seal


def test_a_seal_of_format_1_is_read_without_a_checksum(tmp_path: Path) -> None:
    """As commit ad127be wrote it."""
    old = {"recipe_hash": "r", "attempt": 0, "step": 7, "files": {}, "facts": {"world_size": 1}, "format_version": 1}
    write_json(str(tmp_path / "COMMITTED.json"), old)
    assert read_committed(str(tmp_path)) == Committed(**old)


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.campaign)])
def test_no_flipped_bit_of_a_seal_is_read_as_another_value(tmp_path: Path, stride: int) -> None:
    """Nor is one that says by it to be of an older or a newer format: any bit of any byte."""
    seal = Committed(recipe_hash="r" * 8, attempt=2, step=7, files={"a": {"size": 1, "sha256": "5e"}}, facts={"seconds": 1.5})
    write_committed(str(tmp_path), seal)
    path = tmp_path / "COMMITTED.json"
    whole = path.read_bytes()
    for position, bit in itertools.islice(itertools.product(range(len(whole)), range(8)), 0, None, stride):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        rewrite(path, damaged)
        try:
            found = read_committed(str(tmp_path))
        except Corrupt:
            continue
        assert found == seal, (position, bit)  # white space


def test_a_seal_that_the_store_does_not_give_back_is_no_seal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is read again before anyone relies on it."""
    seal = Committed(recipe_hash="r", attempt=0, step=7, files={}, facts={})
    monkeypatch.setattr(committed, "write_document", lambda uri, value: write_document(uri, {**value, "step": 6}))
    with pytest.raises(Corrupt, match="did not return the seal"):
        write_committed(str(tmp_path), seal)


@pytest.mark.parametrize("name", ["", "Upper", "a b", "-a", "a-", "a/b", "..", "é", "a" * 64])
def test_names_that_are_refused(name: str) -> None:
    """A name that is unsafe in a URI, a label or a file is refused, with the rule."""
    with pytest.raises(InputError, match=r"experiment .* must be 1 to 63 of a-z"):
        layout.experiment("runs", name)


def test_layout() -> None:
    """The folders under a root are those of the design."""
    experiment = layout.experiment("s3://b/root", "demo")
    cell = layout.cell(experiment, "random", 3)
    stage = layout.stage(cell, "contrastive")
    assert layout.checkpoint(stage, 10) == "s3://b/root/experiments/demo/random-seed3/contrastive/checkpoints/step-000000010"
    assert layout.cell(experiment, "random", 3, "dose-10") == "s3://b/root/experiments/demo/random-dose-10-seed3"
    assert layout.config(stage) == f"{stage}/config.yaml"
    assert layout.failure(stage) == f"{stage}/failure.json"
    assert layout.final(stage) == "s3://b/root/experiments/demo/random-seed3/contrastive/final"
    assert layout.tower(experiment, "abc") == "s3://b/root/experiments/demo/towers/abc"
    assert layout.evaluation(cell, "contrastive", "final") == "s3://b/root/experiments/demo/random-seed3/evaluation/contrastive-final"
    assert layout.report(experiment) == "s3://b/root/experiments/demo/report"
    assert layout.dataset("s3://b/root", "demo-pairs", "p") == "s3://b/root/datasets/demo-pairs/p"
