"""A run that finds all done: what the steps look at, without kfp, without a process for each step.

Each look is the one that the step itself takes first; where any of them finds something to do, or to heal, the pipeline runs.
"""

import json
import subprocess
from collections.abc import Iterator

from pipelines.jobs.local import COMMAND
from pipelines.planning.plan import Cell
from pipelines.planning.request import Request, read_request
from pipelines.planning.writing import is_planned
from pipelines.profile.profile import Profile
from pipelines.steps import cells, page
from pipelines.steps.planning import planned
from pipelines.steps.running import Scene
from pipelines.steps.sizes import described
from pipelines.steps.staging import What, find_staged, prepare, staging_of
from trainer.config import recipe_hash
from trainer.errors import InputError, RunError
from trainer.storage import layout

Note = tuple[str, str]
"""A step, and what it says."""


class _NotDone(Exception):
    """A step has something to do."""


def find_finished(asked: Request, profile: Profile) -> list[Note] | None:
    """What each step of the run would say of itself, where all of them are done; None where one is not, or cannot tell.

    Args:
        asked: resolved, with its root.
        profile: with the request's backend laid over it.
    """
    uri = layout.experiment(asked.root, asked.experiment)
    scene = Scene(request=asked, uri=layout.request(uri, asked.id), root=asked.root, profile=profile)
    try:
        _require(read_request(scene.uri) == asked)
        _require(page.is_current(uri, page.inputs_of(uri)))
        return list(_notes(scene))
    except (InputError, RunError, OSError, _NotDone):
        return None  # what is wrong, the step says that meets it


def _notes(scene: Scene) -> Iterator[Note]:
    found = {}
    both: tuple[What, ...] = ("triplets", "pairs")
    for what in both:
        staging = staging_of(what, scene)
        prepare(staging, scene.profile, scene.settings)
        found[what], damaged = find_staged(staging, scene)
        _require(bool(found[what]) and not damaged)
        yield f"stage {what}", f"sealed before: {described(found[what])}"
    experiment, planned_cells = planned(scene, found["pairs"], found["triplets"])
    _require(is_planned(experiment, planned_cells))
    yield from _stages(planned_cells)
    _require(_is_measured(planned_cells))


def _stages(planned_cells: list[Cell]) -> Iterator[Note]:
    seen: dict[str, bool] = {}
    for cell in planned_cells:
        for stage in cell.stages():
            if stage.output not in seen:
                seen[stage.output], damaged = cells.look(stage.output, recipe_hash(stage))
                _require(seen[stage.output] and not damaged)
            yield f"{stage.stage} {cell.name}", "done before"


def _is_measured(planned_cells: list[Cell]) -> bool:
    """Whether nothing is left to measure, as the trainer sees it, in one process for all cells."""
    configs = [layout.config(cell.evaluation.output) for cell in planned_cells]
    looked = subprocess.run([*COMMAND, "evaluate", "--dry-run", "--config", *configs], capture_output=True, text=True, check=False)
    if looked.returncode:
        return False
    try:
        return bool(json.loads(looked.stdout.splitlines()[-1])["missing"] == 0)
    except (ValueError, LookupError, TypeError):
        return False


def _require(done: bool) -> None:
    if not done:
        raise _NotDone
