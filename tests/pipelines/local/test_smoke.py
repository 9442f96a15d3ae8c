"""The real thing: `python -m pipelines run` with the smoke recipe, every stage and arm that a laptop can carry."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_first_run import screens, shape
from trainer.storage.committed import read_committed

REPOSITORY = Path(__file__).parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(root: Path) -> "subprocess.CompletedProcess[str]":
    """The command behind `make pipeline-run RECIPE=smoke`."""
    command = [sys.executable, "-m", "pipelines", "run", "--root", str(root), "--recipe", "smoke", "--arms", "random,perceptual,posthoc"]
    return subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished experiment, and what its run printed."""
    root = tmp_path_factory.mktemp("root")
    result = run(root)
    assert result.returncode == 0, result.stdout + result.stderr
    return root / "experiments" / "smoke", result.stdout


def test_the_run_ends_with_the_answer_and_the_path_of_the_report(finished: tuple[Path, str]):
    """The page opens from disk, and the judge of the triplets is named."""
    folder, printed = finished

    assert printed.splitlines()[-1] == f"report: {folder}/report/index.html"
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    assert "FLIP" in printed


def test_every_cell_is_in_the_results(finished: tuple[Path, str]):
    """The answer's table has a row for each."""
    results = json.loads((finished[0] / "report" / "results.json").read_text())

    assert sorted(row[0] for row in results["summary"]["rows"]) == ["perceptual", "posthoc", "random"]
    assert results["missing"] == []


def test_every_stage_has_said_how_far_it_is(finished: tuple[Path, str]):
    """A line at the end of each, with what is done."""
    for name in ("perceptual perceptual-seed0", "contrastive random-seed0", "posthoc posthoc-seed0"):
        assert any(line.startswith(name) and "100 %" in line for line in finished[1].splitlines()), name


def test_the_recorded_first_run_printed_the_same(finished: tuple[Path, str]):
    """Each line of docs/first-run.txt that ends a job or notes something is one of this run's, except for numbers."""
    ours = {shape(line) for line in finished[1].splitlines()}
    recorded = [line for line in screens()[-1][1] if any(words in line for words in ("  100 %  ", ": sealed", ": an epoch takes"))]
    assert len(recorded) >= 12
    assert not {shape(line) for line in recorded} - ours


def test_a_second_run_trains_nothing(finished: tuple[Path, str]):
    """Every seal is the one of the first run, and every stage says that it was done."""
    folder, _ = finished
    seals = {path: path.stat().st_mtime_ns for path in folder.rglob("COMMITTED.json")}

    result = run(folder.parents[1])

    assert result.returncode == 0
    assert result.stdout.count("already done") == 5  # the posthoc cell starts from the random one's model
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("COMMITTED.json")} == seals


def test_the_final_model_says_where_its_weights_are_from(finished: tuple[Path, str]):
    """The perceptual arm's start is the tower that stage 1 sealed."""
    (tower,) = (finished[0] / "towers").iterdir()
    lineage = json.loads((finished[0] / "perceptual-seed0" / "contrastive" / "lineage.json").read_text())
    sealed = read_committed(str(tower / "final"))

    assert sealed is not None
    assert lineage["start"]["recipe_hash"] == sealed.recipe_hash
