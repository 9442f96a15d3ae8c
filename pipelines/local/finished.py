"""Detect that a run has nothing left to do by making the steps' own checks, without kfp or a process per step.

Each check is the one the step itself makes first; if any of them finds something to do or to repair, the pipeline runs.
"""

from collections.abc import Iterator

from pipelines.planning.plan import Cell, entry_of
from pipelines.planning.request import Request, read_request
from pipelines.planning.runs import Run
from pipelines.planning.writing import is_planned
from pipelines.profile.profile import Profile
from pipelines.steps import cells, page
from pipelines.steps.planning import planned
from pipelines.steps.running import BY_HAND, Scene
from pipelines.steps.sizes import described
from pipelines.steps.staging import What, find_staged, prepare, staging_of
from trainer.config import recipe_hash
from trainer.errors import InputError, RunError
from trainer.storage import layout

Note = tuple[str, str]
"""A step, and what it reports."""


class _NotDone(Exception):
    """A step has something to do."""


def find_finished(asked: Request, profile: Profile) -> list[Note] | None:
    """What each step of the run would report, if all are done; None if any is not done or cannot tell.

    Args:
        asked: the resolved request, including its root.
        profile: the profile, with the request's backend applied.
    """
    uri = layout.experiment(asked.root, asked.experiment)
    scene = Scene(request=asked, uri=layout.request(uri, asked.id), root=asked.root, profile=profile, run=Run(asked.root, BY_HAND))
    try:
        _require(read_request(scene.uri) == asked)
        _require(page.is_current(uri, page.inputs_of(uri)))
        return list(_notes(scene))
    except (InputError, RunError, OSError, _NotDone):
        return None  # the step that hits the problem reports it


def _notes(scene: Scene) -> Iterator[Note]:
    found = {}
    both: tuple[What, ...] = ("triplets", "pairs")
    for what in both:
        staging = staging_of(what, scene)
        prepare(staging, scene.profile, scene.settings)
        found[what], damaged = find_staged(staging, scene)
        _require(bool(found[what]) and not damaged)
        yield f"stage {what}", f"already sealed: {described(found[what])}"
    experiment, planned_cells = planned(scene, found["pairs"], found["triplets"])
    _require(is_planned(experiment, planned_cells))
    yield from _stages(planned_cells)
    _require(len(cells.measured(map(entry_of, planned_cells))) == len(planned_cells))


def _stages(planned_cells: list[Cell]) -> Iterator[Note]:
    seen: dict[str, bool] = {}
    for cell in planned_cells:
        for stage in cell.stages():
            if stage.output not in seen:
                seen[stage.output], damaged = cells.look(stage.output, recipe_hash(stage))
                _require(seen[stage.output] and not damaged)
            yield f"{stage.stage} {cell.name}", "already done"


def _require(done: bool) -> None:
    if not done:
        raise _NotDone
