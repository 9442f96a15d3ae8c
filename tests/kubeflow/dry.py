"""The stand-in server with pretended steps: they write a log and a page, and a cell trains until somebody breaks or stops it."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.kubeflow import follow
from pipelines.kubeflow.client import Kubeflow
from pipelines.kubeflow.endpoint import Endpoint
from pipelines.kubeflow.upload import NAME, register
from tests.pipelines.kubeflow.argo import FAILED, RUNNING, SUCCEEDED, Pod
from tests.pipelines.kubeflow_server import KubeflowServer, kubeflow_server
from trainer.storage import layout, pages

REPOSITORY = Path(__file__).parents[2]
_SUBMIT = """
import sys
sys.path.insert(0, sys.argv[1])
from pipelines.__main__ import main
from pipelines.kubeflow import follow
follow.POLL_SECONDS = 0.02
sys.exit(main(["submit", *sys.argv[2:]]))
"""
MOST_LANES = 3


@dataclass
class Steps:
    """A run's steps.

    Attributes:
        server: whose logs they write.
        request: of the run.
        root: where the experiment lies.
        held: cells of an experiment that train until they are broken or their run is stopped.
    """

    server: KubeflowServer
    request: dict[str, Any]
    root: str
    held: bool
    broken: set[str] = field(default_factory=set)
    training: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    attempt: int = 0

    def __post_init__(self) -> None:
        """Cells are dealt onto lanes as `plan` does."""
        asked = self.request
        self.cells = [layout.cell_name(arm, int(seed)) for seed in asked["seeds"] for arm in asked["arms"]]
        given = asked["parallel_cells"]
        lanes = min(1 if given is None else given or len(self.cells), MOST_LANES, len(self.cells))
        self.lanes = [self.cells[lane::lanes] for lane in range(lanes)]
        self.uri = layout.experiment(self.root, asked["experiment"])

    def end(self, pod: Pod) -> str:
        """How a pod ends, at each look."""
        if pod.run > self.attempt:  # a Retry tries again what failed
            self.attempt, self.held, self.failed, self.broken = pod.run, False, [], set()
        if pod.step == "links":
            self._say("links", f"- everything: `{self.uri}`")
            return self._stage_sees() if "no-such-bucket" in self.request["pairs"] else SUCCEEDED
        if pod.step == "contrastive":
            return self._train(self.lanes[pod.iterations[0]])
        if pod.step == "evaluate":  # does first what earlier steps should have left done
            lane = self.lanes[pod.iterations[0]]
            return RUNNING if self._train(lane) == RUNNING else FAILED if set(lane) & set(self.failed) else SUCCEEDED
        if pod.step in ("report", "finish") and self.training:
            self._report()
        return SUCCEEDED

    def _stage_sees(self) -> str:
        self._say("links", "links: no such bucket\nF1129 18:48:45.611529      15 main.go:59] failed to execute component: exit status 2")
        return FAILED

    def _train(self, lane: list[str]) -> str:
        for cell in lane:
            if cell in self.broken and cell in self.training and cell not in self.failed:
                self.failed.append(cell)
                self._say("contrastive", f"contrastive {cell}: its job was deleted")
            if cell in self.done or cell in self.failed:
                continue
            if cell not in self.training:
                self.training.append(cell)
                self._say("contrastive", f"contrastive {cell}: step 10 of 23, loss 4.1740")
            elif not self._holds(cell):
                self.done.append(cell)
                self._say("contrastive", f"contrastive {cell}: final model committed")
                continue
            return RUNNING
        return FAILED if set(lane) <= set(self.failed) else SUCCEEDED

    def _holds(self, cell: str) -> bool:
        """A run that is to be stopped, or whose one cell is to be broken, waits for that."""
        return self.held and cell == (self.cells[0] if "stopped" in self.uri or len(self.cells) == 1 else self.cells[1])

    def _report(self) -> None:
        missing = [{"cell": cell, "why": "it failed"} for cell in self.cells if cell not in self.done]
        as_of = f"as of now, {len(self.done)} of {len(self.cells)} cells" if missing else ""
        results = {"missing": missing, "as_of": as_of, "summary": {}}
        pages.publish(self.uri, pages.claim(self.uri), {"results.json": json.dumps(results).encode()})

    def _say(self, step: str, text: str) -> None:
        self.server.logs[step] = f"{self.server.logs.get(step, '')}{text}\n"


class Dry:
    """The stand-in, as a world of the campaign."""

    name, seconds = "the stand-in", 120.0

    def __init__(self, standing: KubeflowServer, root: Path) -> None:
        self._standing, self._root = standing, root
        self.steps: dict[str, Steps] = {}
        standing.of_run = self._steps_of
        self.server = Kubeflow(Endpoint(host=standing.url))
        register(self.server, NAME, "a/pipelines:1")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", _SUBMIT, str(REPOSITORY), "--endpoint", self._standing.url, *arguments]

    def break_job(self, experiment: str, cell: str) -> str:
        self.steps[experiment].broken.add(cell)
        return ""

    def jobs(self, experiment: str) -> list[str] | None:
        return []

    def uninstall(self) -> str:
        return ""

    def _steps_of(self, body: dict[str, Any]) -> tuple[Any, Any]:
        request = json.loads(body["runtime_config"]["parameters"]["request"])
        name = str(request["experiment"])
        self._standing.logs.clear()
        before = self.steps.get(name)
        steps = Steps(self._standing, request, str(self._root), held=before is None and ("failed" in name or "stopped" in name))
        steps.done = before.done if before else []
        self.steps[name] = steps
        return steps.end, lambda loop, iterations: len(steps.lanes)


@contextlib.contextmanager
def dry_world(root: Path) -> Iterator[Dry]:
    """The stand-in, looked at without pauses; what is written lies below `root`."""
    pause, follow.POLL_SECONDS = follow.POLL_SECONDS, 0.02
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("KFP_", "KF_", "FIRSTSIGHT_PROFILE", "KUBE"))}
    try:
        with kubeflow_server() as standing:
            yield Dry(standing, root)
    finally:
        follow.POLL_SECONDS = pause
        os.environ.update(hidden)
