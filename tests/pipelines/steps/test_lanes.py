"""The steps of a lane: which jobs they start, in which order and how many at once; what they do at the second start, and when stopped."""

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.jobs.base import JobSpec, LineSink, Outcome
from pipelines.planning import runs
from pipelines.steps import cells, finish, lanes, page, running
from pipelines.steps.planning import make_plan
from tests.pipelines import fake_trainer
from tests.pipelines.data import ask, commit, seal
from tests.pipelines.operator import eventually
from trainer import logs
from trainer.progress import STOP_VARIABLE
from trainer.storage import layout, write_json
from trainer.storage.documents import write_document
from trainer.storage.plans import read_plan


class Job:
    """A job that ends when it is told to, or at once."""

    def __init__(self, spec: JobSpec, end: Callable[[JobSpec], int], wait: threading.Event | None) -> None:
        self.spec, self.left = spec, False
        self._end, self._wait = end, wait

    def logs(self, sink: LineSink) -> None:
        sink(f"step 1 of 2 of {self.spec.folder.rpartition('/')[2]}")

    def watch(self) -> Outcome | None:
        if self._wait is not None and not self._wait.is_set():
            return None
        code = self._end(self.spec)
        return Outcome(exit_code=code, line="told to fail" if code else "")

    def cancel(self) -> None:
        self.leave()

    def leave(self) -> None:
        self.left = True


class Lab:
    """A planned request, whose jobs are made here."""

    def __init__(self, root: Path, **given: str) -> None:
        pairs, triplets = seal(str(root), "pairs"), seal(str(root), "triplets", judge="people")
        self.uri = ask(str(root), experiment="e", backend="pytorchjob", **given)
        self.names, _ = make_plan(request=self.uri, pairs=pairs, triplets=triplets)
        self.folder = f"{root}/experiments/e"
        self.jobs: list[Job] = []
        self.broken: set[str] = set()
        self.wait: threading.Event | None = None

    def submit(self, spec: JobSpec) -> Job:
        """As a backend."""
        self.jobs.append(Job(spec, self._run, self.wait))
        return self.jobs[-1]

    def step(self, name: str, lane: int = 0, run: str = "a", markdown: str = "") -> list[str]:
        """One step of a lane; the names of the jobs that it started."""
        before = len(self.jobs)
        lanes.work(name, request=running.in_run(self.uri, run), lane=self.names[lane], markdown=markdown)
        return [job.spec.name for job in self.jobs[before:]]

    def finish_all(self) -> None:
        """Every stage and every evaluation, as other runs left them."""
        plan = read_plan(self.folder)
        assert plan is not None
        for entry in plan["cells"]:
            for stage, recipe in entry["recipe_hashes"].items():
                commit(entry[stage], recipe)
            write_json(f"{entry['evaluation']}/{fake_trainer.MEASURED}", {})

    def _run(self, spec: JobSpec) -> int:
        if spec.name in self.broken:
            return 1
        if spec.purpose == "train":
            commit(spec.folder, spec.recipe_hash)
        elif spec.purpose == "evaluate":
            write_json(f"{spec.folder}/{fake_trainer.MEASURED}", {})
        return 0


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lab]:
    """A maker of labs."""

    def make(**given: str) -> Lab:
        made = Lab(tmp_path, **given)
        monkeypatch.setattr(running, "backend_for", lambda *_: made)
        return made

    monkeypatch.setattr(cells, "count_missing", fake_trainer.count_missing)
    monkeypatch.setattr(lanes, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(page, "publish", lambda scene: False)
    return make


def test_a_cell_is_evaluated_before_its_slot_takes_the_next(lab: Callable[..., Lab]):
    """And what follows the last cell's contrastive stage is left to the steps of that name."""
    made = lab(arms="random,perceptual,posthoc")

    assert made.step("perceptual") == ["perceptual perceptual-seed0"]
    assert made.step("contrastive") == [
        "contrastive random-seed0",
        "evaluate random-seed0",
        "contrastive perceptual-seed0",
        "evaluate perceptual-seed0",
    ]
    assert made.step("posthoc") == ["posthoc posthoc-seed0"]
    assert made.step("evaluate") == ["evaluate posthoc-seed0"]


def test_each_step_first_does_what_an_earlier_one_should_have_left_done(lab: Callable[..., Lab]):
    """As where a pod was killed in mid-step."""
    made = lab(arms="perceptual,posthoc")

    assert made.step("evaluate") == [
        "perceptual perceptual-seed0",
        "contrastive perceptual-seed0",
        "evaluate perceptual-seed0",
        "contrastive posthoc-seed0",
        "posthoc posthoc-seed0",
        "evaluate posthoc-seed0",
    ]


def test_a_done_lane_of_forty_cells_asks_once_what_is_measured_and_starts_nothing(
    lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    made = lab(arms="random", seeds=",".join(map(str, range(40))))
    made.finish_all()
    asked: list[int] = []

    def count(configs: list[str]) -> dict[str, int]:
        asked.append(len(configs))
        return fake_trainer.count_missing(configs)

    monkeypatch.setattr(cells, "count_missing", count)

    assert [made.step(name) for name in lanes.STEPS] == [[]] * 4
    assert asked == [39, 39, 40]
    assert capsys.readouterr().out.count("already done") == 3 * 40 - 40  # no arm with a post-hoc stage, nor with a tower


def test_what_an_earlier_step_of_the_run_made_is_a_detail(lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch):
    """A first run does not say of its own work that it was already done; a second one says it once for each."""
    said: list[str] = []

    def note(step: str, text: str, *, detail: bool = False) -> None:
        if text == "already done" and not detail:
            said.append(step)

    for module in (cells, lanes):
        monkeypatch.setattr(module, "note", note)
    made = lab(arms="random,perceptual", seeds="0")
    for name in lanes.STEPS:
        made.step(name)
    assert said == []
    for name in lanes.STEPS:
        made.step(name)
    assert said == ["perceptual perceptual-seed0", "contrastive random-seed0", "contrastive perceptual-seed0", "evaluate perceptual-seed0"]


def test_slots_run_cells_at_once_and_their_lines_name_them(lab: Callable[..., Lab], capsys: pytest.CaptureFixture[str]):
    """Six at once, on three lanes, are two slots each."""
    made = lab(arms="random", seeds="0,1,2,3,4,5", parallel_cells="6")
    made.wait = threading.Event()
    threading.Thread(target=lambda: eventually(lambda: len(made.jobs) == 2) and made.wait.set()).start()  # type: ignore[union-attr]

    started = made.step("contrastive")

    assert sorted(started[:2]) == ["contrastive random-seed0", "contrastive random-seed3"]
    assert sorted(started) == ["contrastive random-seed0", "contrastive random-seed3", "evaluate random-seed0"]
    said = capsys.readouterr().out
    assert "random-seed0: step 1 of 2 of contrastive\n" in said
    assert "random-seed3: step 1 of 2 of contrastive\n" in said
    assert "contrastive: lane-1-of-3: random-seed0, random-seed3\n" in said


def test_cells_of_a_lane_that_run_at_once_make_a_shared_stage_once(lab: Callable[..., Lab]):
    made = lab(arms="perceptual,random,shuffled,permuted", parallel_cells="6")  # permuted has perceptual's tower and lane

    (started,) = made.step("perceptual")
    assert started in ("perceptual perceptual-seed0", "perceptual permuted-seed0")  # whichever came first


def test_a_fault_of_firstsights_own_is_one_record_with_its_traceback(
    lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    made = lab(arms="random")
    monkeypatch.setattr(cells, "train", lambda *_, **__: {}["x"])
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    with logs.speaking("launcher"), pytest.raises(SystemExit):
        made.step("contrastive")

    said = [record for line in capfd.readouterr().err.splitlines() if (record := logs.record_of(line))]
    (fault,) = [record for record in said if "KeyError: 'x'" in str(record.get("traceback"))]
    assert fault["message"] == "contrastive random-seed0: failed because of a bug in firstsight"
    assert not [record for record in said if "Traceback" in str(record["message"])]


def test_a_step_fails_where_none_of_its_cells_can_go_on(lab: Callable[..., Lab], capsys: pytest.CaptureFixture[str]):
    """With one cell left the next steps go on, and only the last one says that the lane is not whole."""
    made = lab(arms="random,perceptual")
    made.broken = {"contrastive random-seed0"}
    made.step("perceptual")
    assert made.step("contrastive") == ["contrastive random-seed0", "contrastive perceptual-seed0"]
    assert made.step("posthoc") == []
    with pytest.raises(SystemExit) as ended:
        made.step("evaluate")

    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "evaluate: 1 of 2 cells failed; contrastive random-seed0: told to fail"
    assert "evaluate random-seed0: skipped: contrastive failed in this run" in said.out

    made.broken |= {"contrastive perceptual-seed0"}
    with pytest.raises(SystemExit):
        _forget_stage(made, "perceptual-seed0").step("contrastive", run="b")


def test_each_step_names_its_cells_in_markdown_and_what_became_of_them(lab: Callable[..., Lab], tmp_path: Path):
    """Also the one that fails, for Kubeflow may keep what it wrote."""
    made = lab(arms="random,perceptual,posthoc")
    made.broken = {"contrastive perceptual-seed0"}
    shown = {}
    for name in lanes.STEPS:
        with contextlib.suppress(SystemExit):
            made.step(name, markdown=str(tmp_path / "cells"))
        title, _, _, _, *rows = (tmp_path / "cells").read_text().splitlines()
        assert title == f"`{name}` of lane-1-of-1"
        shown[name] = dict(row.strip("| ").split(" | ") for row in rows)

    failed, none = "contrastive failed: told to fail", "has no perceptual stage"
    cells_of_lane = ("`random-seed0`", "`perceptual-seed0`", "`posthoc-seed0`")
    assert {name: [became[cell] for cell in cells_of_lane] for name, became in shown.items()} == {
        "perceptual": [none, "perceptual done", none],
        "contrastive": ["evaluated", failed, "contrastive done"],
        "posthoc": ["evaluated", failed, "posthoc done"],
        "evaluate": ["evaluated", failed, "evaluated"],
    }


def test_a_step_that_starts_again_in_its_run_tries_the_failed_cells(lab: Callable[..., Lab]):
    """Retry runs failed steps: `evaluate` makes up for all."""
    made = lab(arms="random,perceptual")
    made.broken = {"contrastive random-seed0"}
    for name in lanes.STEPS[:3]:
        made.step(name)
    with pytest.raises(SystemExit):
        made.step("evaluate")
    made.broken = set()

    assert made.step("evaluate") == ["contrastive random-seed0", "evaluate random-seed0"]


def test_another_lane_waits_for_the_owner_of_a_stage_and_takes_over_where_its_cell_failed(
    lab: Callable[..., Lab], capsys: pytest.CaptureFixture[str]
):
    made = lab(arms="random,perceptual,posthoc", parallel_cells="3")
    said: list[str] = []
    waiting = threading.Thread(target=_in_thread, args=(made,))
    waiting.start()
    wanted = "contrastive posthoc-seed0: waiting for lane-1-of-3, which is producing it for random-seed0"
    eventually(lambda: said.append(capsys.readouterr().out) or wanted in "".join(said))  # type: ignore[func-returns-value]
    assert made.jobs == []
    runs.Run(str(Path(made.folder).parents[1]), "a").fail(runs.CellFailure(cell="random-seed0", stage="perceptual", exit_code=1, line="x"))
    waiting.join(30)

    assert [job.spec.name for job in made.jobs] == ["contrastive posthoc-seed0"]
    assert "taken over from lane-1-of-3, where random-seed0 failed" in "".join([*said, capsys.readouterr().out])


def test_a_stage_that_its_owner_finished_is_not_waited_for(lab: Callable[..., Lab]):
    made = lab(arms="random,perceptual,posthoc", parallel_cells="3")
    made.step("contrastive", lane=0)

    assert made.step("contrastive", lane=2) == []
    assert made.step("posthoc", lane=2) == ["posthoc posthoc-seed0"]


def _forget_stage(made: Lab, cell: str) -> Lab:
    """Its contrastive stage was never made."""
    Path(made.folder, cell, "contrastive/final/COMMITTED.json").unlink()
    return made


def _in_thread(made: Lab) -> None:
    """The third lane's step without the signals that only a main thread may have."""
    lanes._work("contrastive", running.in_run(made.uri, "a"), made.names[2])


def test_a_stopped_step_leaves_every_job_and_records_no_failure(lab: Callable[..., Lab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = lab(arms="random", seeds="0,1,2,3,4,5", parallel_cells="6")
    made.wait = threading.Event()
    stop = tmp_path / "stop"
    monkeypatch.setenv(STOP_VARIABLE, str(stop))
    threading.Thread(target=lambda: eventually(lambda: len(made.jobs) == 2) and stop.touch()).start()
    with pytest.raises(SystemExit) as ended:
        made.step("contrastive")

    assert ended.value.code == 1
    assert [job.left for job in made.jobs] == [True, True]
    assert not Path(layout.run_failure(str(tmp_path), "a", "random-seed0")).exists()


def test_resume_never_has_its_effect_once_a_request(lab: Callable[..., Lab]):
    """A start that committed nothing had none; from then on the stage goes on."""
    made = lab(arms="random", resume="never")
    made.broken = {"contrastive random-seed0"}
    stage = f"{made.folder}/random-seed0/contrastive"
    for _ in range(2):
        with pytest.raises(SystemExit):
            made.step("contrastive")
    write_json(f"{stage}/checkpoints/step-000000002/COMMITTED.json", {})
    with pytest.raises(SystemExit):
        made.step("contrastive", run="b")

    assert [job.spec.resume for job in made.jobs] == ["never", "never", "auto"]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_plan_that_lost_the_request_is_written_again_from_it(
    lab: Callable[..., Lab], tmp_path: Path, capsys: pytest.CaptureFixture[str], damaged: bool
):
    """It was damaged, or another request's step `plan` found it so and wrote it from that request; both runs go on."""
    made = lab(arms="random,perceptual", parallel_cells="2")
    wanted = read_plan(made.folder)
    plan = Path(made.folder, "plan.json")
    for what, other in (("pairs", wanted["pairs"]), ("triplets", wanted["triplets"])):
        write_json(f"{made.folder}/staging/{what}/result.json", {"uri": other["uri"], "identity": other["identity"]})
    plan.write_bytes(plan.read_bytes()[:-9])
    if not damaged:
        Lab(tmp_path, arms="shuffled")
    assert made.step("perceptual", 1) == ["perceptual perceptual-seed0"]
    assert f"planned again from {made.uri}" in capsys.readouterr().out
    found = read_plan(made.folder)
    assert found["lanes"].items() >= wanted["lanes"].items()
    assert {entry["cell"] for entry in found["cells"]} == {"random-seed0", "perceptual-seed0", *([] if damaged else ["shuffled-seed0"])}
    plan.write_bytes(b"")
    finish.report(request=running.in_run(made.uri, "a"))
    assert read_plan(made.folder)["lanes"] == wanted["lanes"]


def test_a_plan_of_a_newer_version_is_not_written_again(lab: Callable[..., Lab]):
    made = lab(arms="random")
    plan = Path(made.folder, "plan.json")
    value = json.loads(plan.read_bytes()) | {"format_version": 99}
    del value["sha256"]
    write_document(str(plan), value)
    before = plan.read_bytes()
    with pytest.raises(SystemExit):
        made.step("contrastive")
    assert plan.read_bytes() == before
