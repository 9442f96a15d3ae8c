"""The step `plan`: turn arms, seeds and sealed data into cells, with the configuration of every stage."""

from typing import TYPE_CHECKING

from pipelines.planning.lanes import Lane, Lanes, NoLanesError, read_lanes
from pipelines.planning.runs import sweep_leftovers
from pipelines.steps.notes import note
from pipelines.steps.running import Scene, open_scene, recorded, step
from trainer.errors import Corrupt
from trainer.storage import layout, open_store
from trainer.storage.manifest import as_data, require_manifest

if TYPE_CHECKING:
    from pipelines.planning import plan


@step
def make_plan(*, request: str, pairs: str, triplets: str) -> tuple[list[str], str]:
    """Write the plan of the experiment. Returns the names of the lanes to which its cells are dealt, and a Markdown page about them.

    Args:
        request: URI of the stored request.
        pairs: folder of the sealed pairs.
        triplets: folder of the sealed triplets.
    """
    from pipelines.planning.writing import write_plan  # here, like the next: slow to import

    scene = open_scene(request)
    open_store(scene.experiment).delete(layout.failure(scene.experiment))
    if scene.profile.backend != "local":  # there the run itself has done it
        sweep_leftovers(scene.root, scene.experiment)
    with recorded(scene.experiment, "plan"):
        experiment, cells = planned(scene, pairs, triplets)
        for line in write_plan(experiment, cells):
            note("plan", line)
        lanes = read_lanes(scene.experiment, scene.request.id).lanes
    for lane in lanes:
        note("plan", f"{lane.name}, {lane.slots} at once: {', '.join(lane.cells)}", detail=True)
    return [lane.name for lane in lanes], _page(lanes)


def lanes_of(scene: Scene, name: str) -> Lanes:
    """The lanes of the request. A plan that was damaged, or that another run rewrote without them, is rewritten from the request.

    Args:
        scene: scene of a step after `plan`.
        name: name of the step.

    Raises:
        NoLanesError: the plan lacks them, and it is not known either which data sets were staged.
        Corrupt: the plan is damaged, and it is not known either which data sets were staged.
    """
    try:
        return read_lanes(scene.experiment, scene.request.id)
    except (NoLanesError, Corrupt) as error:
        from pipelines.planning.writing import write_plan  # here, like the next: slow to import
        from pipelines.steps.sealed import staged_data

        staged = {what: staged_data(scene.experiment, what) for what in ("pairs", "triplets")}
        if not all(staged.values()):
            raise
        note(name, f"{error}; planned again from {scene.uri}")
        experiment, cells = planned(scene, **staged)
        for line in write_plan(experiment, cells):
            note(name, line)
        return read_lanes(scene.experiment, scene.request.id)


def _page(lanes: tuple[Lane, ...]) -> str:
    rows = [f"| `{lane.name}` | {lane.slots} | {', '.join(f'`{cell}`' for cell in lane.cells)} |" for lane in lanes]
    return "\n".join(["| lane | at once | its cells, in order |", "|---|--:|---|", *rows, ""])


def planned(scene: Scene, pairs: str, triplets: str) -> "tuple[plan.Experiment, list[plan.Cell]]":
    """The experiment and cells of the request, on these sealed data sets.

    Raises:
        InputError: an arm needs labels that these triplets cannot have, or a data set or tower is not sealed.
        Corrupt: a data set or tower is damaged.
    """
    from pipelines.planning import (  # here: reading YAML into configurations takes longer than all that the other steps import
        declared,
        plan,
        points,
    )

    asked = scene.request
    arms, recipe = asked.all_arms, asked.load_recipe()
    plan.require_judge(arms, require_manifest(triplets).judge, recipe)
    staged, sets = as_data(pairs), plan.read_sets(",".join(asked.eval_sets))
    at_points = points.Points(asked)
    experiment = plan.Experiment(
        root=scene.root,
        name=asked.experiment,
        recipe=recipe,
        pairs=staged,
        triplets=as_data(triplets),
        weights=plan.weights_of(arms),
        request=scene.uri,
        parallel_cells=scene.parallel_cells,
        sets=sets,
        **plan.represented(asked.representation, sets, staged, complete=True),
        axes=asked.vary,
        points=tuple(at_points.listed()),
        declared=declared.declaration(asked),
        asked_arms=tuple(arm.name for arm in arms),
        asked_seeds=asked.all_seeds,
    )
    return experiment, points.cells_of(experiment, at_points)
