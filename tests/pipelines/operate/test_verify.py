"""`python -m pipelines verify`: every sealed byte is hashed, and what is not as sealed is named with what to do."""

from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.operate.verify import verify
from tests import old_store
from tests.damage import KINDS, damage
from tests.pipelines.whole import Whole
from trainer.storage.checked import find_damaged
from trainer.storage.committed import read_committed
from trainer.storage.states import kind_of

STAGE = "experiments/smoke/random-seed0/contrastive"


def named(root: Path, experiment: str) -> list[str]:
    """The objects that are not as they were sealed, relative to the root."""
    return [found.uri.removeprefix(f"{root}/") for found in verify(str(root), experiment).found]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root that an older version wrote, with real data, seals and figures."""
    return old_store.unpack(tmp_path_factory.mktemp("old"))


def test_a_store_of_an_older_version_is_as_it_was_sealed(sealed: Path):
    walk = verify(str(sealed), "tiny")

    assert walk.found == []
    assert walk.unknown == []
    assert walk.size > 1_000_000


@pytest.mark.parametrize(
    "name",
    [
        "datasets/*/*/shard-*.tar",
        "datasets/*/*/shard-*.index",
        "experiments/tiny/*/contrastive/final/*.safetensors",
        "experiments/tiny/*/contrastive/checkpoints/*/model.safetensors",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_object_is_named_alone(sealed: Path, name: str, kind: str):
    """Though it is put back, the next case starts from it."""
    path = sorted(sealed.glob(name))[0]
    before = path.read_bytes()
    damage(path, kind)
    try:
        assert named(sealed, "tiny") == [str(path.relative_to(sealed))]
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_seal_is_named_and_a_missing_one_noted(whole: Whole, kind: str):
    """A stage without a seal is one that is not finished."""
    whole.run("random")
    damage(whole.root / STAGE / "final/COMMITTED.json", kind)
    walk = verify(str(whole.root), "smoke")

    named = [found.uri for found in walk.found if "/datasets/" not in found.uri]
    assert named == ([] if kind == "missing" else [f"{whole.root}/{STAGE}/final/COMMITTED.json"])
    assert walk.unfinished == ([f"{whole.root}/{STAGE}"] if kind == "missing" else [])


def test_a_record_of_an_earlier_check_is_not_believed(whole: Whole):
    """It holds stamps, which say only that nothing was written since."""
    whole.run("random")
    path = whole.root / STAGE / "final/model.bin"
    damage(path, "flipped")
    seal = read_committed(str(path.parent))
    assert seal is not None
    record = path.parents[1] / "CHECKED.json"
    damaged = {name: {**sealed, "sha256": "0" * 64} for name, sealed in seal.files.items()}
    find_damaged(str(path.parent), damaged)
    record.write_bytes((path.parent / "CHECKED.json").read_bytes() if (path.parent / "CHECKED.json").exists() else b"{}")

    assert f"{STAGE}/final/model.bin" in named(whole.root, "smoke")


@pytest.mark.parametrize(
    "name", ["plan.json", "requests/*.json", "report/index.html", "report/generation-*/index.html", "random-seed0/contrastive/config.yaml"]
)
def test_what_the_pipeline_wrote_is_checked_too(whole: Whole, name: str):
    whole.run("random")
    (path,) = whole.folder.glob(name)
    damage(path, "flipped")

    assert str(path.relative_to(whole.root)) in named(whole.root, "smoke")


def test_a_line_says_what_is_wrong_and_what_to_do(sealed: Path, capsys: pytest.CaptureFixture[str]):
    """The last one says how much was looked at; the exit code is 1."""
    path = sorted(sealed.glob("experiments/tiny/*/contrastive/final/open_clip_model.safetensors"))[0]
    before = path.read_bytes()
    damage(path, "flipped")
    stranger = sealed / "experiments/tiny/notes.txt"
    stranger.write_text("mine")
    try:
        code = main(["verify", "--root", str(sealed), "--experiment", "tiny", "--recipe", "smoke"])
    finally:
        path.write_bytes(before)
        stranger.unlink()
    first, second, *_, last = capsys.readouterr().out.splitlines()

    assert code == 1
    assert first.startswith(f"{path}: its checksum does not match the sealed one (file of a final model); run the experiment again: ")
    assert second == f"note: {stranger}: firstsight writes no file with this name"
    assert last.endswith("hashed: 1 differ from what was sealed")


def test_an_experiment_as_sealed_ends_in_0_and_one_that_is_not_there_in_2(sealed: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", "--root", str(sealed), "--experiment", "tiny", "--recipe", "smoke"]) == 0
    assert main(["verify", "--root", str(sealed), "--experiment", "none", "--recipe", "smoke"]) == 2
    assert capsys.readouterr().err == f"pipelines verify: {sealed}/experiments/none: no experiment here\n"


def test_every_object_of_a_whole_experiment_has_a_row(whole: Whole):
    """What no row of the table names, nobody heals."""
    whole.run()
    files = [path for path in whole.root.rglob("*") if path.is_file() and path.name != "starts.txt"]

    assert [str(path) for path in files if kind_of(str(whole.root), str(path)) is None] == []
