"""The shape of the pipeline in the simulator of Argo, with its real steps: failures, Retry, Terminate, and how long the Workflow gets."""

from pathlib import Path

import pytest

from tests.pipelines.kubeflow.argo import FAILED, RUNNING, SUCCEEDED, Pod, Workflow
from tests.pipelines.kubeflow.argo_size import workflow_size
from tests.pipelines.kubeflow.simulated import Simulated, compiled, is_whole

LANE_STEPS = ("perceptual", "contrastive", "posthoc", "evaluate")
BEFORE = ("links", "stage-pairs", "stage-triplets", "plan")
PLACES = [*((step, ()) for step in BEFORE), *((step, (lane,)) for lane in range(3) for step in LANE_STEPS), ("report", ())]
QUICK = [("plan", ()), ("contrastive", (0,)), ("evaluate", (1,)), ("posthoc", (2,)), ("report", ())]
EACH = [pytest.param(*place, marks=() if place in QUICK else pytest.mark.slow) for place in PLACES]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulated:
    """A run of four cells on three lanes."""
    return Simulated(tmp_path / "root", monkeypatch)


def _at(step: str, iterations: tuple[int, ...], what: str, runs: int) -> object:
    """An order: `what` is done to this step in the first `runs` runs."""
    return lambda run, pod: what if (pod.step, pod.iterations) == (step, iterations) and pod.run < runs else "run"


def test_a_run_of_three_lanes_ends_well(run: Simulated) -> None:
    assert run.argo.go() == SUCCEEDED
    assert run.lanes == ["lane-1-of-3", "lane-2-of-3", "lane-3-of-3"]
    assert is_whole(run)


@pytest.mark.parametrize(("step", "iterations"), EACH)
@pytest.mark.parametrize("how", ["kill", pytest.param("late", marks=pytest.mark.slow)])
def test_a_step_that_is_killed_twice_is_made_up_for_by_two_retries(
    run: Simulated, step: str, iterations: tuple[int, ...], how: str
) -> None:
    run.order = _at(step, iterations, how, 2)  # type: ignore[assignment]
    assert run.argo.go() == FAILED
    assert run.argo.retry() == FAILED
    assert run.argo.retry() == SUCCEEDED
    assert is_whole(run)


JOBS = ("contrastive perceptual-seed0", "evaluate permuted-seed0", "contrastive permuted-seed0", "posthoc posthoc-seed0",
        "evaluate random-seed0", "evaluate perceptual-seed0", "evaluate posthoc-seed0")  # fmt: skip


@pytest.mark.parametrize("job", [*JOBS[:2], *(pytest.param(job, marks=pytest.mark.slow) for job in JOBS[2:])])
def test_a_job_that_fails_twice_is_made_up_for_by_two_retries(run: Simulated, job: str) -> None:
    run.broken = {job}
    assert run.argo.go() == FAILED
    assert run.page() == "<p>fake: 3 of 4 cells</p>"
    assert run.argo.retry() == FAILED
    run.broken = set()
    assert run.argo.retry() == SUCCEEDED
    assert is_whole(run)


@pytest.mark.parametrize(("step", "iterations"), EACH)
def test_a_run_that_is_terminated_is_completed_by_retry(run: Simulated, step: str, iterations: tuple[int, ...]) -> None:
    run.order = _at(step, iterations, "wait", 1)  # type: ignore[assignment]
    assert run.argo.go() == RUNNING
    assert run.argo.terminate() == FAILED
    assert run.argo.retry() == SUCCEEDED
    assert is_whole(run)


def test_a_stage_whose_owner_failed_is_taken_over_by_the_lane_that_waits(run: Simulated) -> None:
    """Lane 1 makes the model that posthoc starts from, and its cell fails before: lane 3 makes it, and lane 1 finds it on Retry."""
    broken = {"contrastive random-seed0"}  # by this cell's name; posthoc asks for the same folder under its own
    run.broken = broken
    run.argo.go()

    assert [entry for entry in run.ended if entry[2] == FAILED] == [("evaluate", (0,), FAILED)]
    assert run.well[f"{run.folder}/random-seed0/contrastive", "train"] == 1
    assert run.argo.retry() == SUCCEEDED
    assert is_whole(run)


def test_a_failed_cell_is_passed_over_in_its_run_and_tried_by_the_next_one(
    run: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same request submitted again while the first run lives joins it: it makes what failed, and what is done stays done."""
    run.broken = {"contrastive permuted-seed0"}
    run.argo.go()
    assert "evaluate permuted-seed0: skipped: contrastive failed in this run" in capsys.readouterr().out

    other = Simulated(tmp_path / "root", monkeypatch, "b-run")
    other.well = run.well
    assert other.argo.go() == SUCCEEDED
    assert is_whole(other)
    assert other.page() == run.page()


@pytest.mark.parametrize("damaged", [False, True])
def test_another_request_that_comes_while_a_run_lives_loses_none_of_its_cells(
    run: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """The second runs from end to end while the first is about to train; both pages show what both asked for.

    Where the plan is damaged meanwhile, the second rewrites it without the first one's cells, and the first one's next step adds them.
    """
    other = Simulated(tmp_path / "root", monkeypatch, "b-run", arms="random,shuffled", seeds="1")
    other.well = run.well
    pages: list[str] = []

    def interrupt(run: Simulated, pod: Pod) -> str:
        if pod.step == "perceptual" and not pages:
            if damaged:
                Path(run.folder, "plan.json").write_bytes(b"{")
            assert other.argo.go() == SUCCEEDED
            pages.append(other.page())
        return "run"

    run.order = interrupt
    assert run.argo.go() == SUCCEEDED
    assert pages == ["<p>fake: 2 of 2 cells</p>" if damaged else "<p>fake: 2 of 6 cells</p>"]
    assert is_whole(run)


def test_what_a_terminated_lane_finished_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One lane of four cells, ended when the last cell's contrastive stage was to begin: three cells are on the page."""
    run = Simulated(tmp_path / "root", monkeypatch, parallel_cells="1")
    run.broken = {"contrastive permuted-seed0"}
    run.order = _at("posthoc", (0,), "wait", 1)  # type: ignore[assignment]
    run.argo.go()

    evaluated = [folder.split("/")[-2] for folder, purpose in run.well if purpose == "evaluate"]
    assert evaluated == ["random-seed0", "perceptual-seed0", "posthoc-seed0"]


def test_a_lane_of_one_cell_looks_like_four_plain_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Simulated(tmp_path / "root", monkeypatch, arms="posthoc")
    made: dict[str, list[str]] = {step: [] for step in LANE_STEPS}

    def follow(run: Simulated, pod: Pod) -> str:
        if pod.step in made:
            made[pod.step] = [purpose for _, purpose in run.well]
        return "run"

    run.order = follow
    run.argo.go()
    assert [made[step].count("train") for step in LANE_STEPS] == [0, 0, 1, 2]
    assert made["evaluate"].count("evaluate") == 0
    assert is_whole(run)


def test_a_failed_step_names_its_lane_s_first_failure_last(run: Simulated, capsys: pytest.CaptureFixture[str]) -> None:
    run.broken = {"contrastive permuted-seed0"}
    run.argo.go()

    said = capsys.readouterr()
    assert "evaluate: 1 of 2 cells failed; contrastive permuted-seed0: " in said.err
    assert "contrastive: lane-1-of-3: random-seed0, permuted-seed0\n" in said.out


def test_with_a_limit_on_the_loop_retry_would_hang() -> None:
    documents = compiled()
    loop = documents[0]["components"]["comp-exit-handler-1"]["dag"]["tasks"]["for-loop-2"]
    assert "iteratorPolicy" not in loop
    loop["iteratorPolicy"] = {"parallelismLimit": 1}
    run = Workflow(documents, lambda pod: FAILED if pod.step == "contrastive" and pod.run == 0 else SUCCEEDED, lambda loop, iterations: 3)
    run.go()
    run.retry()
    assert run.hangs


def test_the_workflow_stays_small_enough_for_retry() -> None:
    """Three lanes are the most, and how many cells they have changes nothing; two Retries neither."""
    run = Workflow(compiled(), lambda pod: FAILED if pod.step == "evaluate" and pod.run < 2 else SUCCEEDED, lambda loop, iterations: 3)
    sizes = []
    for go in (run.go, run.retry, run.retry):
        go()
        sizes.append(workflow_size(run))
    assert run.phase == SUCCEEDED
    assert max(sizes) <= 700_000
