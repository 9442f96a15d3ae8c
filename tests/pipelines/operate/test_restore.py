"""An experiment that was copied away, lost and copied back somewhere else is the same one, and goes on."""

import shutil
from pathlib import Path

import pytest

from pipelines.operate.disk import measure
from pipelines.operate.experiments import survey_root
from pipelines.operate.verify import verify
from pipelines.steps.sealed import staged_data
from tests.pipelines.whole import Whole, pretend
from trainer.storage import join, open_store, read_bytes, read_json, write_bytes
from trainer.storage.manifest import where_it_lies
from trainer.storage.plans import read_plan


def copy(source: str, target: str) -> None:
    """Every object of one root into another, byte by byte."""
    for info in open_store(source).list(source):
        write_bytes(join(target, info.uri.removeprefix(f"{source}/")), read_bytes(info.uri))


def wrong(root: str) -> list[str]:
    """What of it is not as it was sealed, relative to the root; a pretended data set's shard never is."""
    walk = verify(root, "smoke")
    assert walk.unfinished == []
    return [found.uri.removeprefix(f"{root}/") for found in walk.found]


PRETENDED = [f"datasets/demo-{what}/p/shard-00000-0.{ending}" for what in ("pairs", "triplets") for ending in ("tar", "index")]


def hashes(root: str) -> list[dict[str, str]]:
    """The recipe hashes of each cell of the plan."""
    plan = read_plan(join(root, "experiments/smoke"))
    assert plan is not None
    return [entry["recipe_hashes"] for entry in plan["cells"]]


@pytest.fixture
def elsewhere(whole: Whole, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Whole:
    """A root into which a backup of a whole experiment was restored; the first root is lost. The backup is `s3_root`."""
    whole.run()
    copy(str(whole.root), s3_root)
    shutil.rmtree(whole.root)
    copy(s3_root, str(tmp_path / "new/place"))
    found = Whole(tmp_path / "new/place")
    pretend(found, monkeypatch)
    return found


def test_a_copy_is_looked_at_where_it_lies(whole: Whole, elsewhere: Whole, s3_root: str):
    """Before any run writes there: nothing of it is sought in the root that is lost, on files and on S3."""
    for root in (s3_root, str(elsewhere.root)):
        assert wrong(root) == PRETENDED
        assert {row.state for row in survey_root(root)} == {"Done"}
        (taken,) = measure(root).experiments.values()
        assert taken.data
        assert all(uri.startswith(f"{root}/datasets/") for uri in taken.data)
        plan = read_plan(join(root, "experiments/smoke"))
        assert plan is not None
        assert plan["root"] == str(whole.root)
        places = [plan["request"], *(plan[what]["uri"] for what in ("pairs", "triplets"))]
        folders = ("perceptual", "contrastive", "posthoc", "evaluation")
        places += [entry[stage] for entry in plan["cells"] for stage in folders if entry[stage]]
        assert all(place.startswith(f"{root}/") for place in places)


def test_a_restored_experiment_is_finished_and_grows(elsewhere: Whole):
    """A run of the same request trains nothing; another arm is added, and the cells that this one does not ask for stay in the plan."""
    before = hashes(str(elsewhere.root))

    jobs = elsewhere.run()

    assert [job for job in jobs if not job.startswith("report")] == []
    assert hashes(str(elsewhere.root)) == before
    assert elsewhere.is_finished()
    assert elsewhere.run(arms="permuted")
    plan = read_plan(str(elsewhere.folder))
    assert plan is not None
    assert plan["root"] == str(elsewhere.root)
    assert {entry["cell"] for entry in plan["cells"]} == {f"{arm}-seed0" for arm in ("random", "perceptual", "posthoc", "permuted")}
    assert all(Path(entry["contrastive"]).is_dir() for entry in plan["cells"])


def test_the_data_that_staging_recorded_are_found_where_they_lie_now(elsewhere: Whole, whole: Whole):
    """Without the plan, too; a data set of another root stays where it is."""
    (elsewhere.folder / "plan.json").unlink()
    recorded = read_json(str(elsewhere.folder / "staging/pairs/result.json"))["uri"]
    assert recorded.startswith(f"{whole.root}/")

    assert staged_data(str(elsewhere.folder), "pairs") == f"{elsewhere.root}/datasets/demo-pairs/p"
    assert where_it_lies(str(elsewhere.folder), "s3://shared/datasets/other/p") == "s3://shared/datasets/other/p"
    assert where_it_lies(str(elsewhere.folder), "s3://shared/datasets/demo-pairs/p") == f"{elsewhere.root}/datasets/demo-pairs/p"


def test_cells_that_the_next_run_does_not_ask_for_are_found_too(elsewhere: Whole):
    """The first run after the restore asks for another arm alone."""
    elsewhere.run(arms="permuted")

    assert wrong(str(elsewhere.root)) == PRETENDED
    plan = read_plan(str(elsewhere.folder))
    assert plan is not None
    assert len(plan["cells"]) == 4
    assert all(entry["evaluation"].startswith(f"{elsewhere.folder}/") for entry in plan["cells"])


def test_what_was_lost_on_the_way_is_named(elsewhere: Whole):
    """A copy that lacks an object."""
    (elsewhere.folder / "random-seed0/contrastive/final/model.bin").unlink()

    assert wrong(str(elsewhere.root)) == ["experiments/smoke/random-seed0/contrastive/final/model.bin", *PRETENDED]
