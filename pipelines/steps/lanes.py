"""The steps of a lane: `perceptual`, `contrastive`, `posthoc` and `evaluate`, each over the lane's cells, skipping what is done.

`perceptual` trains the towers of all cells. In `contrastive` a slot finishes a cell, including its evaluation, before it takes the next
one, so a run that ends after k cells has k evaluated cells. The stages after the last cell's contrastive stage are left to the later
steps, so that a lane of one cell looks like four plain steps. Each step first completes what an earlier one should have done.

A cell that fails is recorded for the run, and later steps of the run skip it. A step that has started before in this run was restarted
by Kubeflow's Retry, and tries the lane's failed cells again. A step fails if none of its cells can continue, and the last step if any
cell failed. Retry, which runs only failed and omitted steps, therefore completes what is missing.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipelines.planning.lanes import STAGES, Lane, Lanes
from pipelines.planning.runs import CellFailure, Watch
from pipelines.steps import artifacts, cells, page
from pipelines.steps.notes import as_text, note
from pipelines.steps.planning import lanes_of
from pipelines.steps.running import CallerGone, Scene, check_caller, one_line_of, open_scene, recorded, step
from trainer import logs
from trainer.errors import InputError, RunError

STEPS = (*STAGES, "evaluate")
WAIT_SECONDS = 5.0
"""Seconds between two checks of a stage that another lane trains."""


def work(name: str, *, request: str, lane: str, markdown: str = "") -> None:
    """Run one step of a lane.

    Args:
        name: perceptual, contrastive, posthoc or evaluate.
        request: URI of the stored request, with the run's id.
        lane: name of the lane in the plan.
        markdown: file for a table of the lane's cells and their outcomes; empty: none.

    Raises:
        InputError: none of its cells can continue (in `evaluate`: a cell failed), always because of wrong input.
        RunError: the same for any other cause.
    """

    def run() -> None:
        _work(name, request, lane, markdown)

    run.__name__ = name  # the last line of a failed step begins with it
    step(run)()


def _work(name: str, request: str, lane: str, markdown: str = "") -> None:
    scene = open_scene(request)
    with recorded(scene.experiment, "plan"):
        lanes = lanes_of(scene, name)
        mine = lanes.find(lane)
    note(name, f"{lane}: {', '.join(mine.cells)}", detail=True)
    if not scene.run.begin(lane, name):
        scene.run.forget(mine.cells)
    worker = _Worker(scene=scene, lanes=lanes, lane=mine, name=name, failed=scene.run.failed(mine.cells))
    with scene.run.alive(lane) if len(lanes.lanes) > 1 else contextlib.nullcontext():
        worker.work()
        if name == "evaluate" and len(lanes.lanes) > 1:
            _publish(scene)
    if markdown:
        artifacts.write(markdown, worker.as_markdown())
    worker.judge()


@dataclass(kw_only=True)
class _Worker:
    """A running step.

    Attributes:
        scene: the step's scene.
        lanes: the lanes of the request.
        lane: the lane of the step.
        name: name of the step.
        failed: cells that failed in this run, by name.
        locks: locks by folder of a stage, since two cells of this lane must not train the same stage at once.
    """

    scene: Scene
    lanes: Lanes
    lane: Lane
    name: str
    failed: dict[str, CellFailure]
    locks: dict[str, threading.Lock] = field(default_factory=dict)

    def work(self) -> None:
        """Complete this step's part of every cell that has not failed."""
        for cell, failure in self.failed.items():
            note(f"{self.name} {cell}", f"skipped: {failure.stage} failed in this run")
        todo = [cell for cell in self.lane.cells if cell not in self.failed]
        self.locks = {self.lanes.entries[cell].get(stage, ""): threading.Lock() for cell in todo for stage in STAGES}
        done = self._find_done(todo)
        for cell in sorted(done, key=todo.index):
            needed = self.name not in STAGES or self.lanes.entries[cell].get(self.name)
            by_contrastive = self.name in ("posthoc", "evaluate") and cell != self.lane.cells[-1]
            note(f"{self.name} {cell}", "already done" if needed else "not needed by this arm", detail=not needed or by_contrastive)
        _at_once([cell for cell in todo if cell not in done], self.lane.slots, self._bring, self.scene.halt)

    def judge(self) -> None:
        """Fail if none of the lane's cells can continue; in the last step, if any cell failed."""
        failures = list(self.failed.values())
        if not failures or (self.name != "evaluate" and len(failures) < len(self.lane.cells)):
            return
        first = failures[0]
        said = f"{first.stage} {first.cell}: {first.line}"
        if len(self.lane.cells) > 1:
            said = f"{len(failures)} of {len(self.lane.cells)} cells failed; {said}"
        raise (InputError if all(failure.exit_code == InputError.exit_code for failure in failures) else RunError)(said)

    def as_markdown(self) -> str:
        """The lane's cells and their outcomes, as Markdown."""
        rows = [f"| `{cell}` | {self._became(cell)} |" for cell in self.lane.cells]
        return "\n".join([f"`{self.name}` of {self.lane.name}", "", "| cell | |", "|---|---|", *rows, ""])

    def _became(self, cell: str) -> str:
        if cell in self.failed:
            failure = self.failed[cell]
            return f"{failure.stage} failed: {as_text(failure.line)}"
        until = self._until(cell)
        if until in STAGES and not self.lanes.entries[cell].get(until):
            return f"has no {until} stage"
        return "evaluated" if until == "evaluate" else f"{until} done"

    def _find_done(self, todo: list[str]) -> set[str]:
        """The cells for which this step has nothing to do."""
        with ThreadPoolExecutor(cells.LOOKS_AT_ONCE) as pool:
            trained = {cell for cell, done in zip(todo, pool.map(self._is_trained, todo), strict=True) if done}
        wanted = [cell for cell in trained if self._until(cell) == "evaluate"]
        return trained.difference(wanted) | cells.measured(self.lanes.entries[cell] for cell in wanted)

    def _is_trained(self, cell: str) -> bool:
        try:
            return cells.is_trained(self.lanes.entries[cell], _stages(self._until(cell)))
        except Exception:  # the stage that hits the problem reports it, and only its cell fails
            return False

    def _until(self, cell: str) -> str:
        """The last stage that this step completes for a cell."""
        last = cell == self.lane.cells[-1]
        return self.name if last or self.name == "perceptual" else "evaluate"

    def _bring(self, cell: str) -> None:
        """Complete this step's part of a cell, recording a failure."""
        stage = STEPS[0]
        speaker = cell if self.lane.slots > 1 else ""
        try:
            for stage in STEPS[: STEPS.index(self._until(cell)) + 1]:
                check_caller(self.scene.halt)
                self._run(cell, stage, speaker)
        except CallerGone:
            raise
        except Exception as error:
            if not isinstance(error, InputError | RunError | OSError):
                logs.say(f"{stage} {cell}: failed because of a bug in firstsight", "error", error)
            self.failed[cell] = CellFailure(cell=cell, stage=stage, exit_code=getattr(error, "exit_code", 1), line=one_line_of(error))
            try:
                self.scene.run.fail(self.failed[cell])
            except (InputError, RunError, OSError) as second:
                note(f"{stage} {cell}", f"its failure could not be recorded: {second}")

    def _run(self, cell: str, stage: str, speaker: str) -> None:
        entry = self.lanes.entries[cell]
        if stage == "evaluate":
            cells.evaluate(self.scene, entry, speaker=speaker)
        elif entry.get(stage):
            with self.locks[entry[stage]]:
                self._await_owner(entry, stage)
                cells.train(self.scene, entry, stage, speaker=speaker, quiet=stage != self.name)

    def _await_owner(self, entry: cells.Entry, stage: str) -> None:
        """Wait for the lane that owns a stage, until the stage is done, its cells have failed, or the lane's heartbeat expired."""
        folder, owner = entry[stage], self.lanes.owner(entry[stage])
        if owner is None or owner.name == self.lane.name:
            return
        title, theirs = f"{stage} {entry['cell']}", [cell for cell in owner.cells if folder == self.lanes.entries[cell].get(stage)]
        watch, said = Watch(self.scene.run, owner.name), False
        while not cells.look(folder, entry["recipe_hashes"][stage])[0]:
            if len(self.scene.run.failed(theirs)) == len(theirs):
                note(title, f"taken over from {owner.name}, where {', '.join(theirs)} failed")
                return
            if watch.is_dead():
                note(title, f"taken over from {owner.name}, which has not been heard from for a while")
                return
            if not said:
                note(title, f"waiting for {owner.name}, which is producing it for {', '.join(theirs)}")
                said = True
            self._pause()

    def _pause(self) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            check_caller(self.scene.halt)
            time.sleep(0.1)


def _stages(until: str) -> tuple[str, ...]:
    """The stages up to one."""
    return STAGES[: (STEPS.index(until) + 1)]


def _at_once(names: Iterable[str], slots: int, bring: Callable[[str], None], halt: threading.Event) -> None:
    """Process all cells in order, as many at a time as there are slots; with one slot in this thread, whose end would end local jobs."""
    if slots == 1:
        for name in names:
            bring(name)
        return
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        todo.put(name)
    errors: list[BaseException] = []
    threads = [threading.Thread(target=_slot, args=(todo, bring, errors), name=f"slot {number}", daemon=True) for number in range(slots)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # short, so that this thread handles signals
    except BaseException:
        halt.set()
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]


def _slot(todo: "queue.SimpleQueue[str]", bring: Callable[[str], None], errors: list[BaseException]) -> None:
    try:
        while not errors:
            bring(todo.get_nowait())
    except queue.Empty:
        return
    except BaseException as error:
        errors.append(error)


def _publish(scene: Scene) -> None:
    """Bring the page up to date; a failure must not hide the lane's own result."""
    try:
        page.publish(scene)
    except (InputError, RunError, OSError) as error:
        note("report", f"could not be updated: {error}")
