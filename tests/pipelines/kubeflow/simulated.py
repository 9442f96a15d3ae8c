"""A run of the compiled pipeline as Argo would run it, whose pods call the real steps, in this process, with a pretended trainer."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.jobs.base import JobSpec
from pipelines.kubeflow.compiled import FOLDER
from pipelines.planning import runs
from pipelines.steps import cells, finish, lanes, links, planning, running, staging
from tests.pipelines import fake_trainer
from tests.pipelines.kubeflow.argo import FAILED, RUNNING, SUCCEEDED, Pod, Workflow
from tests.pipelines.whole import Done
from trainer.storage import pages, read_text
from trainer.storage.plans import read_plan

ARMS = "random,perceptual,posthoc,permuted"
"""On three lanes: random and permuted on the first, with a tower that the second shares and a model that the third starts from."""
Order = Callable[["Simulated", Pod], str]
"""What is done to a pod: `run` it, `kill` it before it does anything, kill it `late` when it has done all, or let it `wait`."""


def compiled() -> list[dict[str, Any]]:
    """The pipeline as it is shipped."""
    return list(yaml.load_all((FOLDER / "firstsight.yaml").read_text(), Loader=yaml.CSafeLoader))


class Simulated:
    """A run, on a cluster whose jobs run while they are submitted.

    Attributes:
        argo: the Workflow.
        order: what is done to each pod.
        broken: names of jobs that fail, such as `contrastive random-seed0`.
        well: folder and purpose of each job that ended well, and how often.
        ended: steps that ended, in order: name, lane and how.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, run_id: str = "a-run", **given: str) -> None:
        self.root, self.run_id = root, run_id
        self.given = {"recipe": "smoke", "arms": ARMS, "backend": "pytorchjob", "parallel_cells": "3", **given}
        self.folder = f"{root}/experiments/smoke"
        self.order: Order = lambda run, pod: "run"
        self.broken: set[str] = set()
        self.well: Counter[tuple[str, str]] = Counter()
        self.ended: list[tuple[str, tuple[int, ...], str]] = []
        self.request, self.data, self.lanes = "", {}, []  # type: ignore[var-annotated]
        self.argo = Workflow(compiled(), self._outcome, lambda loop, iterations: len(self.lanes))
        patch.setattr(links, "_require_cluster", lambda *_: None)  # it has no API server to ask
        patch.setattr(running, "backend_for", lambda *_: self)
        patch.setattr(runs, "DEAD_SECONDS", -1.0)  # lanes run one after another: one that is waited for has ended
        patch.setattr(finish, "_release", lambda scene: None)
        patch.setattr(cells, "count_missing", fake_trainer.count_missing)

    def submit(self, spec: JobSpec) -> Done:
        """Run a job, as a backend."""
        job = Done(spec, fake_trainer.main if spec.name not in self.broken else _break)
        self.well[spec.folder, spec.purpose] += job.watch().exit_code == 0
        return job

    def page(self) -> str:
        """The page that counts."""
        return read_text(f"{pages.folder_of(self.folder)}/index.html")

    def _outcome(self, pod: Pod) -> str:
        if pod.step.endswith("-driver"):
            return SUCCEEDED
        order = self.order(self, pod)
        if order in ("kill", "wait"):
            return self._end(pod, FAILED) if order == "kill" else RUNNING
        try:
            self._step(pod)
        except SystemExit:
            return self._end(pod, FAILED)
        return self._end(pod, SUCCEEDED if order == "run" else FAILED)

    def _end(self, pod: Pod, how: str) -> str:
        self.ended.append((pod.step, pod.iterations, how))
        return how

    def _step(self, pod: Pod) -> None:
        match pod.step:
            case "links":
                self.request, _ = links.accept(request="", profile="", run=self.run_id, root=str(self.root), **self.given)
            case "stage-pairs" | "stage-triplets":
                what: Any = pod.step.removeprefix("stage-")
                self.data[what] = staging.stage(what, request=self.request)
            case "plan":
                self.lanes, _ = planning.make_plan(request=self.request, **self.data)
            case "report":
                finish.report(request=self.request)
            case "finish":
                state = "FAILED" if FAILED in [how for _, _, how in self.ended] else "COMPLETE"
                finish.finish(run=self.run_id, request="", root=str(self.root), state=state)
            case step:
                lanes.work(step, request=self.request, lane=self.lanes[pod.iterations[0]])


def is_whole(run: Simulated) -> bool:
    """Whether the run succeeded, its page shows every cell, and each finished stage and evaluation was made once."""
    plan = read_plan(run.folder)
    assert plan is not None
    count = len(plan["cells"])
    stages = {entry[stage] for entry in plan["cells"] for stage in ("perceptual", "contrastive", "posthoc") if entry[stage]}
    made = {key: number for key, number in run.well.items() if key[1] in ("train", "evaluate")}
    wanted = {(folder, "train"): 1 for folder in stages} | {(entry["evaluation"], "evaluate"): 1 for entry in plan["cells"]}
    assert run.argo.phase == SUCCEEDED
    assert run.page() == f"<p>fake: {count} of {count} cells</p>"
    assert read_text(f"{run.folder}/report/index.html") == run.page()
    assert made == wanted
    return True


def _break(arguments: list[str]) -> int:
    print(f"trainer {arguments[0]}: told to fail")
    return 1
