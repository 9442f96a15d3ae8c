"""A whole experiment by its steps, in this process, with a trainer that only pretends."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from pipelines.jobs.base import JobSpec, LineSink, Outcome, placement_arguments
from pipelines.jobs.local import LocalBackend
from pipelines.local import finished
from pipelines.planning.request import Request, merge
from pipelines.planning.resolving import resolve
from pipelines.profile.profile import Profile
from pipelines.steps import cells, finish, lanes, links, planning, staging
from tests.pipelines import fake_trainer

ARMS = "random,perceptual,posthoc"


class Done:
    """A job that ran while it was submitted, in this process.

    Args:
        spec: of the job.
        main: the trainer's, real or pretended.
    """

    def __init__(self, spec: JobSpec, main: Callable[[list[str]], int]) -> None:
        said = io.StringIO()
        with redirect_stderr(said), redirect_stdout(said):
            placement = dict(spec.placement) | ({"resume": spec.resume} if spec.resume != "auto" else {})
            code = main([*spec.arguments, *placement_arguments(placement)])
        self._lines = said.getvalue().splitlines()
        self._outcome = Outcome(exit_code=code, line=self._lines[-1] if code else "")

    def logs(self, sink: LineSink) -> None:
        for line in self._lines:
            sink(line)

    def watch(self) -> Outcome:
        return self._outcome

    def leave(self) -> None:
        """It has ended."""


class Whole:
    """An experiment named smoke under a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "experiments" / "smoke"
        self.jobs: list[str] = []

    def asked(self, arms: str = ARMS) -> Request:
        """The request as it is stored."""
        return resolve(merge("", {"recipe": "smoke", "root": str(self.root), "arms": arms}))

    def run(self, arms: str = ARMS) -> list[str]:
        """Every step once; the names of the jobs that it took. A step that fails ends it with SystemExit."""
        before = len(self.jobs)
        request, _ = links.accept(request="", profile="", run="a-run", root=str(self.root), recipe="smoke", arms=arms)
        triplets, pairs = (staging.stage(what, request=request) for what in ("triplets", "pairs"))  # type: ignore[arg-type]
        for lane in planning.make_plan(request=request, pairs=pairs, triplets=triplets)[0]:
            for name in lanes.STEPS:
                lanes.work(name, request=request, lane=lane)
        finish.report(request=request)
        finish.finish(run="a-run", request="", root=str(self.root), state="SUCCEEDED")
        return self.jobs[before:]

    def is_finished(self, arms: str = ARMS) -> bool:
        """Whether a run would find all done without starting a step."""
        return finished.find_finished(self.asked(arms), Profile()) is not None


def pretend(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let its steps run the pretended trainer in this process."""
    submit: Callable[[LocalBackend, JobSpec], Done] = lambda _, spec: whole.jobs.append(spec.name) or Done(spec, fake_trainer.main)  # noqa: E731
    monkeypatch.setattr(LocalBackend, "submit", submit)
    monkeypatch.setattr(cells, "count_missing", fake_trainer.count_missing)
