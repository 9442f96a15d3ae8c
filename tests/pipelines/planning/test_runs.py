"""What a run's steps tell each other: failures of cells, starts, signs of life."""

import json
from pathlib import Path

import pytest

from pipelines.planning import runs
from pipelines.planning.runs import CellFailure, Run, Watch
from tests.damage import KINDS, damage
from tests.pipelines.operator import eventually
from trainer.errors import InputError
from trainer.storage import layout
from trainer.storage.documents import read_document

FAILURE = CellFailure(cell="random-seed0", stage="contrastive", exit_code=2, line="no")


def test_a_failed_cell_is_one_of_its_run_alone(tmp_path: Path):
    """A new run tries it again."""
    run, other = Run(str(tmp_path), "a"), Run(str(tmp_path), "b")
    run.fail(FAILURE)

    assert run.failed(["random-seed0", "perceptual-seed0"]) == {"random-seed0": FAILURE}
    assert other.failed(["random-seed0"]) == {}
    run.forget(["random-seed0", "perceptual-seed0"])
    assert run.failed(["random-seed0"]) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_record_of_a_failure_lets_the_cell_be_tried_again(tmp_path: Path, kind: str):
    run = Run(str(tmp_path), "a")
    run.fail(FAILURE)
    damage(Path(layout.run_failure(str(tmp_path), "a", "random-seed0")), kind)

    assert run.failed(["random-seed0"]) == {}


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path):
    path = Path(layout.run_failure(str(tmp_path), "a", "random-seed0"))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"format_version": 9}))
    with pytest.raises(InputError, match="newer"):
        Run(str(tmp_path), "a").failed(["random-seed0"])


def test_a_step_knows_whether_it_has_started_before(tmp_path: Path):
    run = Run(str(tmp_path), "a")

    assert [run.begin("lane-1-of-2", "evaluate") for _ in range(3)] == [True, False, False]
    assert run.begin("lane-2-of-2", "evaluate")
    assert run.begin("lane-1-of-2", "posthoc")


def test_a_lane_that_gives_signs_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs, "LIFE_SECONDS", 0.01)
    run = Run(str(tmp_path), "a")
    watch = Watch(run, "lane-1-of-2")
    monkeypatch.setattr(runs, "DEAD_SECONDS", -1.0)
    assert watch.is_dead()
    monkeypatch.setattr(runs, "DEAD_SECONDS", 600.0)
    path = Path(layout.run_life(str(tmp_path), "a", "lane-1-of-2"))
    with run.alive("lane-1-of-2"):
        eventually(path.exists)
        first = path.read_bytes()
        eventually(lambda: path.read_bytes() != first)
        before = watch._seen
        assert not watch.is_dead()
        assert watch._seen > before


def test_of_forty_cells_only_those_that_failed_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A step looks at all of its lane's cells before it does anything."""
    run, read, deleted = Run(str(tmp_path), "a"), [], []
    run.fail(FAILURE)
    store = runs.open_store("file:///")
    monkeypatch.setattr(runs, "read_document", lambda *arguments: read.append(arguments[0]) or read_document(*arguments))
    monkeypatch.setattr(type(store), "delete", lambda self, uri: deleted.append(uri))

    assert run.failed([f"random-seed{seed}" for seed in range(40)]) == {"random-seed0": FAILURE}
    run.forget([f"random-seed{seed}" for seed in range(40)])
    assert read == deleted == [layout.run_failure(str(tmp_path), "a", "random-seed0")]
