"""Manifest, COMMITTED.json and layout: what is sealed counts, what is damaged, newer or changed by hand does not."""

import itertools
from pathlib import Path

import pytest

from trainer.errors import Corrupt, InputError, RunError
from trainer.storage import committed, exists, join, layout, read_json, write_bytes, write_json
from trainer.storage.committed import Committed, read_committed, write_committed
from trainer.storage.documents import write_document
from trainer.storage.manifest import Manifest, Shard, read_manifest, require_manifest, write_manifest


def make_manifest(**changes: object) -> Manifest:
    """A manifest of two shards."""
    shards = [
        Shard(name=f"shard-0-{k}.tar", split=split, num_samples=4, size=10240, sha256=str(k) * 64, crc32c=k, index_crc32c=k)
        for k, split in enumerate(("train", "test"))
    ]
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


def test_identity_is_plan_and_bytes() -> None:
    """Identity depends on plan id, names and checksums, and on nothing that is for people."""
    identity = make_manifest().identity
    assert make_manifest(name="y", source={"uri": "elsewhere"}, attribution="CC").identity == identity
    assert make_manifest(plan_id="q").identity != identity
    assert make_manifest(shards=make_manifest().shards[::-1]).identity != identity


def test_manifest_changed_by_hand(tmp_path: object) -> None:
    """A manifest whose identity is not that of its shards is refused."""
    root = str(tmp_path)
    write_manifest(root, make_manifest())
    value = read_json(join(root, "manifest.json"))
    value["shards"].pop()
    write_json(join(root, "manifest.json"), value)
    with pytest.raises(RunError, match=r"manifest\.json: identity .* changed by hand"):
        read_manifest(root)


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
        ({"format_version": 9}, InputError, r"format 9 is newer than this firstsight reads \(\d\)"),
        ({"format_version": 1}, RunError, "not a (manifest|seal) of firstsight"),
        ({"format_version": 1, "shards": 3}, RunError, "not a (manifest|seal) of firstsight"),
        ({"format_version": "1"}, RunError, "no format_version"),
        ([], RunError, "no format_version"),
    ],
)
def test_what_is_no_seal(tmp_path: object, name: str, read: object, value: object, kind: type[Exception], rule: str) -> None:
    """A newer format is refused by name, anything else in one line."""
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


def test_no_flipped_bit_of_a_seal_is_read_as_another_value(tmp_path: Path) -> None:
    """Nor is one that says by it to be of an older or a newer format: any bit of any byte."""
    seal = Committed(recipe_hash="r" * 8, attempt=2, step=7, files={"a": {"size": 1, "sha256": "5e"}}, facts={"seconds": 1.5})
    write_committed(str(tmp_path), seal)
    path = tmp_path / "COMMITTED.json"
    whole = path.read_bytes()
    for position, bit in itertools.product(range(len(whole)), range(8)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            found = read_committed(str(tmp_path))
        except Corrupt:
            continue
        assert found == seal, (position, bit)  # white space


def test_a_seal_that_the_store_does_not_give_back_is_no_seal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is read again before anyone relies on it."""
    seal = Committed(recipe_hash="r", attempt=0, step=7, files={}, facts={})
    monkeypatch.setattr(committed, "write_document", lambda uri, value: write_document(uri, {**value, "step": 6}))
    with pytest.raises(Corrupt, match="does not give back the seal"):
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
