"""The steps of a cell: `perceptual`, `contrastive`, `posthoc` and `evaluate`. What is done returns at once."""

from typing import Any

from pipelines.jobs.specs import evaluate_spec, train_spec
from pipelines.planning.cells import find_cell
from pipelines.steps.notes import note
from pipelines.steps.running import ATTEMPTS, Scene, open_scene, recorded, run_job, step
from trainer.storage import layout, open_store
from trainer.storage.committed import read_final


@step
def train(name: str, *, request: str, cell: str) -> None:
    """Run one stage of one cell, unless the cell has none or its final model is committed.

    Args:
        name: of the stage: perceptual, contrastive or posthoc.
        request: URI of the stored request.
        cell: name of the cell in the plan.
    """
    scene = open_scene(request)
    entry = _planned(scene, cell)
    title = f"{name} {cell}"
    folder = entry[name]
    if not folder:
        note(title, "not needed by this arm", detail=True)
        return
    with recorded(folder, title):
        done, damaged = look(folder, entry["recipe_hashes"][name])
        for line in damaged:
            note(title, f"{line}; made again")
        if done:
            open_store(folder).delete(layout.failure(folder))
            note(title, "done before")
            return
        run_job(scene, train_spec(scene.root, entry, name, scene.request, scene.placement), attempts=ATTEMPTS)


def look(folder: str, recipe_hash: str) -> tuple[bool, list[str]]:
    """Whether the stage in `folder` is finished by this recipe, and what of it is not as it was sealed: a line each.

    Raises:
        InputError: a newer firstsight sealed it.
        RunError: the store failed.
    """
    seal, damage = read_final(folder)
    done = seal is not None and seal.recipe_hash == recipe_hash and not damage
    return done, [f"{uri}: {why}" for uri, why in damage.items()]


def _planned(scene: Scene, cell: str) -> dict[str, Any]:
    """The cell's entry in the plan."""
    with recorded(scene.experiment, "plan"):
        return find_cell(scene.experiment, cell)


@step
def evaluate(*, request: str, cell: str) -> None:
    """Measure the models of one cell.

    Args:
        request: URI of the stored request.
        cell: name of the cell in the plan.
    """
    scene = open_scene(request)
    entry = _planned(scene, cell)
    run_job(scene, evaluate_spec(scene.root, entry, scene.request, scene.placement), attempts=ATTEMPTS)
