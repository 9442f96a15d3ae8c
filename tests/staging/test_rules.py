"""By which rules pairs are staged: today's, unless an older version has begun a data set of the same source."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.staging.conftest import facts, photo_folder, samples
from tests.staging.test_triplets import nights_folder
from trainer.staging import plans, resuming
from trainer.staging import stage as staging
from trainer.staging.plans import plan_id
from trainer.staging.shards import read_shard
from trainer.staging.slices import record_name
from trainer.staging.writer import COLUMNS, SliceWriter
from trainer.storage import join, layout
from trainer.storage.manifest import Manifest, require_manifest

Stage = Callable[..., tuple[str, Manifest]]


@pytest.fixture
def old(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], tuple[str, Manifest]]:
    """Stages as version 1 did."""

    def run(source: object) -> tuple[str, Manifest]:
        with monkeypatch.context() as before:
            before.setattr(
                staging, "pairs_target", lambda root, name, found, options: (layout.dataset(root, name, plan_id(found, options)), options)
            )
            before.setattr(staging, "changed_slices", lambda *args: [])
            return stage(source)

    return run


def test_new_sets_say_their_rules(tmp_path: Path, stage: Stage) -> None:
    """The option is part of the plan id, and so of the identity."""
    _, manifest = stage(photo_folder(tmp_path / "photos", 6))
    assert manifest.options["rules"] == 2
    options = {key: value for key, value in manifest.options.items() if key != "rules"}
    assert manifest.plan_id != plan_id(manifest.source["fingerprint"], options)


def test_what_an_older_version_sealed_is_kept(tmp_path: Path, stage: Stage, old: Stage) -> None:
    """With all captions in .txt, and none in .json; evaluation sets have all captions by either rules."""
    folder = photo_folder(tmp_path / "photos", 6)
    uri, manifest = old(folder)
    assert "rules" not in manifest.options
    assert stage(folder) == (uri, manifest)
    members = samples(uri, manifest)["p001"]
    assert members[1] == b"picture number 1\nanother caption of 1"
    assert "captions" not in facts(members)
    (Path(uri) / "slices" / "slice-00000.json").unlink()
    assert stage(folder)[1].identity == manifest.identity
    texts = {members[1] for entry in manifest.evaluation for members in _evaluation(tmp_path, entry["uri"])}
    assert texts == {f"picture number {n}\nanother caption of {n}".encode() for n in range(6) if f"p{n:03d}" in _test_keys(uri, manifest)}


def test_what_an_older_version_began_is_resumed_by_its_rules(tmp_path: Path, stage: Stage, old: Stage) -> None:
    """Where its slices say what is read now; else the source is staged by the rules of today, and nothing is mixed."""
    folder = photo_folder(tmp_path / "photos", 6)
    uri, manifest = old(folder)
    _forget(uri)
    (Path(uri) / "slices" / "slice-00000.json").unlink()
    assert stage(folder) == (uri, manifest)
    read_by_another(uri, b"picture number 1", b"picture number I")
    other, manifest = stage(folder)
    assert other != uri
    assert manifest.options["rules"] == 2


@pytest.mark.parametrize("damaged", [False, True])
def test_slices_that_say_what_is_read_no_more_are_made_again(
    tmp_path: Path, stage: Stage, capsys: pytest.CaptureFixture[str], damaged: bool
) -> None:
    """By the same rules, in a version that read the source differently, or whose plan is lost; the others are kept as they are."""
    folder = photo_folder(tmp_path / "photos", 20)
    uri, manifest = stage(folder)
    read_by_another(uri, b"picture number 19", b"picture number XIX")
    if damaged:
        (Path(uri) / "plan.json").write_bytes(b"damaged")
    records = {path: path.stat().st_mtime_ns for path in Path(uri, "slices").iterdir()}
    assert stage(folder) == (uri, manifest)
    assert "another version of firstsight read this source differently, so these slices are rebuilt: " in capsys.readouterr().err
    assert len(records) == 2
    assert len([path for path, before in records.items() if path.stat().st_mtime_ns != before]) == 1
    assert b"XIX" not in b"".join(member for members in samples(uri, manifest).values() for member in members)


def test_slices_of_triplets_are_compared_too(tmp_path: Path, stage_three: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """Votes decide what is learned."""
    nights = nights_folder(tmp_path / "nights", [(0, 1, 8), (1, 0, 8), (2, 6, 8), (0, 1, 8), (1, 0, 8)])
    uri, manifest = stage_three(nights)
    read_by_another(uri, b'"votes": 8', b'"votes": 9')
    assert stage_three(nights) == (uri, manifest)
    assert "so these slices are rebuilt: 0, 1, 2" in capsys.readouterr().err


def test_a_sealed_set_stays_and_the_digest_spares_reading(tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What today's version has begun is known by its digest, wherever its source lies now."""
    folder = photo_folder(tmp_path / "photos", 6)
    uri, manifest = stage(folder)
    monkeypatch.setattr(resuming, "read_shard", lambda *args: pytest.fail("a shard was read"))
    _forget(uri)
    moved = folder.rename(tmp_path / "elsewhere").rename(tmp_path / "photos")
    assert stage(moved) == (uri, manifest)


def _forget(uri: str) -> None:
    (Path(uri) / "manifest.json").unlink()


def read_by_another(uri: str, now: bytes, then: bytes) -> None:
    """Leave the data set as a version left it that read `then` where `now` is read, and was killed before it sealed."""
    plan = plans.read_plan(uri)
    assert plan is not None
    manifest = require_manifest(uri)
    _forget(uri)
    (Path(uri) / "plan.json").unlink()
    (Path(uri) / "CHECKED.json").unlink(missing_ok=True)
    plans.write_plan(uri, dataclasses.replace(plan, source={key: plan.source[key] for key in ("uri", "fingerprint")}))
    for shard in manifest.shards:
        found = list(read_shard(uri, shard))
        if not any(now in member for _, members in found for member in members):
            continue
        number = int(shard.name.split("-")[1])
        Path(join(uri, record_name(number))).unlink()
        columns = COLUMNS[plan.columns]
        suffixes = ("png" if column == "image" else column for column in columns)
        names = list(zip(columns, suffixes, strict=True))
        with SliceWriter(uri, plan, number) as writer:
            for key, members in found:
                parts = {column: (suffix, data.replace(now, then)) for (column, suffix), data in zip(names, members, strict=True)}
                writer.add(key, parts, [[1]])


def _evaluation(tmp_path: Path, uri: str) -> list[tuple[bytes, ...]]:
    from trainer.storage.manifest import require_manifest

    folder = str(tmp_path / "root" / uri)
    manifest = require_manifest(folder)
    return list(samples(folder, manifest).values()) if manifest.facts["task"] == "zeroshot_retrieval" else []


def _test_keys(uri: str, manifest: Manifest) -> set[str]:
    from trainer.staging.shards import read_shard

    return {key for shard in manifest.split("test") for key, _ in read_shard(uri, shard)}
