"""Every object of a data set damaged, alone and in pairs, sealed or not: staging again gives back the very bytes, or refuses by name."""

import dataclasses
import functools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import old_store
from tests.staging.conftest import picture
from tests.staging.hostile import copies
from tests.staging.hostile.copies import write
from trainer.config import Recipe
from trainer.configs import load_recipe, read_stored
from trainer.errors import RunError
from trainer.staging.plans import read_plan, write_plan
from trainer.staging.sealed import find_intact
from trainer.staging.stage import stage_pairs, stage_triplets
from trainer.storage import read_json
from trainer.storage.manifest import as_data, require_manifest

DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda data: None,
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "flipped": lambda data: data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 1]) + data[len(data) // 3 + 1 :] if data else b"x",
    "flipped at its end": lambda data: data[:-6] + bytes([data[-6] ^ 64]) + data[-5:] if len(data) > 6 else data + b"x",
    "grown": lambda data: data + b"\0" * 512,
}


def small(recipe: Recipe) -> Recipe:
    """Three samples per shard, so that there are several."""
    return dataclasses.replace(recipe, staging=dataclasses.replace(recipe.staging, shard_samples=3))


@pytest.fixture(scope="module")
def stage_again(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[[], tuple[str, str]]]:
    """A root with staged pairs (two evaluation sets, one reject), and what stages them."""
    folder = tmp_path_factory.mktemp("damage")
    source, root, recipe = folder / "photos", folder / "root", small(load_recipe("smoke"))
    source.mkdir()
    for number in range(20):
        (source / f"p{number:02d}.png").write_bytes(picture(number))
        (source / f"p{number:02d}.json").write_text(f'{{"caption": "thing {number}", "label": "{"ab"[number % 2]}"}}', encoding="utf-8")
    (source / "p05.png").write_bytes(b"no picture")

    def run() -> tuple[str, str]:
        return stage_pairs(root=str(root), source=str(source), recipe=recipe, max_reject_fraction=0.2)

    run()
    return root, run


def objects(root: Path) -> dict[Path, bytes]:
    """Everything under a root, except what may differ from run to run."""
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file() and path.name != "CHECKED.json"}


def hurt(path: Path, damage: str) -> None:
    """Damage one object; a damage that changes nothing is none."""
    before = path.read_bytes() if path.exists() else b""
    after = DAMAGES[damage](before)
    if after is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(after)


@pytest.mark.parametrize(
    ("damage", "stride"), [("flipped", 3), ("missing", 7), *(pytest.param(name, 1, marks=pytest.mark.campaign) for name in sorted(DAMAGES))]
)
def test_every_object_of_a_sealed_set_is_given_back(
    stage_again: tuple[Path, Callable[[], tuple[str, str]]], damage: str, stride: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after another, said in a line; afterwards the very same objects lie there, and nothing is looked into again."""
    root, run = stage_again
    sealed, whole = run(), objects(root)
    assert len(whole) > 30
    for path in list(whole)[::stride]:
        capsys.readouterr()
        hurt(path, damage)
        assert run() == sealed
        said = capsys.readouterr().err
        assert path.name in said or (path.name, damage) == ("manifest.json", "missing"), path  # of the pairs: they are just not sealed
        assert objects(root) == whole, path
        assert run() == sealed
        assert capsys.readouterr().err == ""


def test_a_record_of_checks_is_never_needed(stage_again: tuple[Path, Callable[[], tuple[str, str]]]) -> None:
    """CHECKED.json only saves reading: damaged, or of another state, it decides nothing."""
    root, run = stage_again
    sealed, whole = run(), objects(root)
    for damage in ("missing", "cut short", "flipped"):
        for path in root.rglob("CHECKED.json"):
            hurt(path, damage)
            victim = next(other for other in whole if other.suffix == ".tar" and path.parent in other.parents)
            hurt(victim, "flipped")
            assert run() == sealed
            assert objects(root) == whole


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in range(1, 12))])
def test_pairs_of_objects(stage_again: tuple[Path, Callable[[], tuple[str, str]]], seed: int) -> None:
    """Two or three at once, whatever they are: the manifest with a record, a shard with its index."""
    root, run = stage_again
    sealed, whole = run(), objects(root)
    dice = random.Random(seed)
    for _ in range(6):
        for path in dice.sample(sorted(whole), dice.choice((2, 2, 3))):
            hurt(path, dice.choice(sorted(DAMAGES)))
        assert run() == sealed
        assert objects(root) == whole


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.campaign)])
def test_a_set_without_its_manifest_is_sealed_to_the_same(stage_again: tuple[Path, Callable[[], tuple[str, str]]], stride: int) -> None:
    """Half-staged: no manifest anywhere, and one more object damaged."""
    root, run = stage_again
    sealed, whole = run(), objects(root)
    for path in list(whole)[::stride]:
        for manifest in root.rglob("manifest.json"):
            manifest.unlink()
        hurt(path, "flipped")
        assert run() == sealed
        assert objects(root) == whole, path


def test_only_what_is_damaged_is_made_again(
    stage_again: tuple[Path, Callable[[], tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing manifest costs no picture, a damaged shard its slice; what is whole is not even read."""
    _, run = stage_again
    sealed = run()
    made: list[int] = []
    monkeypatch.setattr("trainer.staging.stage.SliceWriter.__enter__", lambda writer: made.append(writer._slice) or writer)
    read: list[str] = []
    from trainer.storage import checked

    original = checked.file_sha256
    monkeypatch.setattr(checked, "file_sha256", lambda uri, *rest: read.append(uri.rsplit("/", 1)[-1]) or original(uri, *rest))
    (Path(sealed[0]) / "manifest.json").unlink()
    run()
    assert made == []
    assert [name for name in read if name.endswith(".tar")] == []
    shard = require_manifest(sealed[0]).split("test")[0]
    hurt(Path(sealed[0]) / shard.name, "flipped")
    run()
    assert made == [int(shard.name.split("-")[1])]


def test_a_source_that_gives_other_bytes_is_refused(
    stage_again: tuple[Path, Callable[[], tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity never changes under a seal: what cannot be given back is named, with what to do; what is whole stays."""
    root, run = stage_again
    sealed, whole = run(), objects(root)
    shard = Path(sealed[0]) / require_manifest(sealed[0]).shards[0].name
    with monkeypatch.context() as patch:
        patch.setattr("trainer.staging.samples._json", lambda **values: b"{}", raising=False)
        patch.setattr("trainer.staging.stage.Tokenizer", lambda: lambda captions: [[1, 2]] * len(captions))
        for path in (shard.with_suffix(".index"), shard):
            hurt(path, "missing")
            with pytest.raises(RunError, match=rf"{path.name}: missing; slice 0 was rebuilt, but its source no longer yields the sealed"):
                run()
            assert not path.exists()
            path.write_bytes(whole[path])
    assert run() == sealed
    assert objects(root) == whole


def test_leftovers_of_the_dead_are_swept(stage_again: tuple[Path, Callable[[], tuple[str, str]]]) -> None:
    """Attempts, partial files, shards that no record names."""
    root, run = stage_again
    sealed, whole = run(), objects(root)
    folder = Path(sealed[0])
    for name in ("attempts/slice-00000-00/shard-00000-00000.tar", "attempts/x/.y.tar.1-2.partial"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"x")
    run()
    assert objects(root) == whole
    assert not (folder / "attempts").exists()
    for name in ("shard-00000-00077.tar", "shard-00000-00077.index", "rejects/slice-00077.jsonl", "slices/.slice-0.json.3-4.partial"):
        (folder / name).write_bytes(b"x")
    (folder / "manifest.json").unlink()
    run()
    assert objects(root) == whole


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, Callable[[], list[tuple[str, str]]]]:
    """The store of ad127be, and what stages its data sets."""
    root = old_store.unpack(tmp_path)
    recipe = read_stored(Recipe, read_json(str(root / "experiments/tiny/plan.json"))["recipe"], "plan.json")

    def run() -> list[tuple[str, str]]:
        pairs = stage_pairs(root=str(root), source=str(tmp_path / "source/shapes"), recipe=recipe, max_reject_fraction=0.0)
        votes = str(tmp_path / "source/votes")
        return [pairs, stage_triplets(root=str(root), source=votes, recipe=recipe, max_reject_fraction=0.0, from_pairs="")]

    return root, run


@pytest.mark.parametrize(
    ("damage", "stride"),
    [("flipped", 3), *(pytest.param(damage, 1, marks=pytest.mark.campaign) for damage in ("flipped", "missing", "cut short"))],
)
def test_every_object_of_a_set_of_format_1_is_given_back(
    old: tuple[Path, Callable[[], list[tuple[str, str]]]], damage: str, stride: int
) -> None:
    """It keeps format and identity, and its manifests the bytes that experiments pin."""
    root, run = old
    whole = objects(root / "datasets")
    sealed = [(path, as_data(path)) for path, _ in run()]
    for path, data in list(whole.items())[::stride]:
        hurt(path, damage)
        run()
        after = objects(root / "datasets")
        assert after.keys() == whole.keys(), path
        changed = {other for other in whole if after[other] != whole[other]}
        assert all(other == path or other.parent.name == "slices" for other in changed), path  # a rebuilt slice has today's record
        if path.name == "manifest.json":
            assert after[path] == data
        for other in changed:
            other.write_bytes(whole[other])
    assert [(path, as_data(path)) for path, _ in run()] == sealed


def test_what_format_1_does_not_cover_is_compared_with_plan_and_records(old: tuple[Path, Callable[[], list[tuple[str, str]]]]) -> None:
    """A changed judge of an unpinned manifest is found, since plan.json says another."""
    _, run = old
    folder = Path(run()[1][0])
    data = (folder / "manifest.json").read_bytes()
    assert b'"judge": "people"' in data
    (folder / "manifest.json").write_bytes(data.replace(b'"judge": "people"', b'"judge": "peopld"'))
    assert find_intact(str(folder)) is None
    run()
    assert (folder / "manifest.json").read_bytes() == data
    assert read_plan(str(folder)).format_version == 1  # type: ignore[union-attr]


def test_an_unfinished_set_of_format_1_is_finished_in_it(old: tuple[Path, Callable[[], list[tuple[str, str]]]]) -> None:
    """One slice and the manifests are missing, as ad127be left them when it was killed: the same identities come out."""
    root, run = old
    before = run()
    manifests = {path: path.read_bytes() for path in root.glob("datasets/*/*/manifest.json")}
    for path in [*manifests, *root.glob("datasets/*/*/slices/slice-00000.json"), *root.glob("datasets/*/*/CHECKED.json")]:
        path.unlink()
    assert run() == before
    assert {path: path.read_bytes() for path in manifests} == manifests
    shutil.rmtree(root)


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_a_source_that_is_unmounted_meanwhile_leaves_no_rejects(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures were there when it was listed: the same command seals what it would have sealed."""
    recipe, source = small(load_recipe("smoke")), tmp_path / "source"
    files = {f"p{number}.{end}": picture(number) if end == "png" else b"a thing" for number in range(8) for end in ("png", "txt")}
    write(source, copies.nights() if kind == "triplets" else files)
    stage = functools.partial(stage_triplets, from_pairs="") if kind == "triplets" else stage_pairs

    def run(root: str) -> str:
        return stage(root=str(tmp_path / root), source=str(source), recipe=recipe, max_reject_fraction=0.9)[1]

    def unmount(*arguments: Any) -> Any:
        source.rename(tmp_path / "away")
        return write_plan(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("trainer.staging.stage.write_plan", unmount)
        with pytest.raises(RunError, match="it was listed, but is gone: was it removed, or its file system"):
            run("root")
    (tmp_path / "away").rename(source)
    assert run("root") == run("undisturbed")
