"""By which rules pairs are staged: today's, unless an older version has begun a data set of the same source."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.staging.conftest import facts, photo_folder, samples
from trainer.errors import InputError
from trainer.staging import stage as staging
from trainer.staging.plans import plan_id
from trainer.storage import layout
from trainer.storage.manifest import Manifest

Stage = Callable[..., tuple[str, Manifest]]


@pytest.fixture
def old(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], tuple[str, Manifest]]:
    """Stages as version 1 did."""

    def run(source: object) -> tuple[str, Manifest]:
        with monkeypatch.context() as before:
            before.setattr(
                staging, "pairs_target", lambda root, name, found, options: (layout.dataset(root, name, plan_id(found, options)), options)
            )
            before.setattr(staging, "_resumes", lambda target, plan: True)
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
    """Where its rows are those that are read now; else the source is staged by the rules of today, and nothing is mixed."""
    folder = photo_folder(tmp_path / "photos", 6)
    uri, manifest = old(folder)
    (Path(uri) / "manifest.json").unlink()
    (Path(uri) / "slices" / "slice-00000.json").unlink()
    assert stage(folder) == (uri, manifest)
    (Path(uri) / "manifest.json").unlink()
    (folder / "p001.json").write_text('{"label": "x"}')
    uri, manifest = old(folder)
    (Path(uri) / "manifest.json").unlink()
    plan = staging.read_plan(uri)
    assert plan is not None
    (Path(uri) / "plan.json").unlink()
    staging.write_plan(uri, staging.Plan(**{**vars(plan), "rows_read": plan.rows_read + 1}))
    other, manifest = stage(folder)
    assert other != uri
    assert manifest.options["rules"] == 2


def test_what_was_begun_with_other_rows_is_not_mixed(tmp_path: Path, stage: Stage) -> None:
    """By the same rules, in a version that read the source differently: a line says what to do; what is sealed stays as it is."""
    folder = photo_folder(tmp_path / "photos", 6)
    uri, manifest = stage(folder)
    plan = staging.read_plan(uri)
    assert plan is not None
    (Path(uri) / "plan.json").unlink()
    staging.write_plan(uri, staging.Plan(**{**vars(plan), "rows_read": plan.rows_read + 1}))
    assert stage(folder) == (uri, manifest)
    (Path(uri) / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"was begun with 7 samples of this source, of which 6 are read now: delete it and stage anew"):
        stage(folder)
    (Path(uri) / "plan.json").write_bytes(b"damaged")
    assert stage(folder) == (uri, manifest)


def _evaluation(tmp_path: Path, uri: str) -> list[tuple[bytes, ...]]:
    from trainer.storage.manifest import require_manifest

    folder = str(tmp_path / "root" / uri)
    manifest = require_manifest(folder)
    return list(samples(folder, manifest).values()) if manifest.facts["task"] == "zeroshot_retrieval" else []


def _test_keys(uri: str, manifest: Manifest) -> set[str]:
    from trainer.staging.shards import read_shard

    return {key for shard in manifest.split("test") for key, _ in read_shard(uri, shard)}
