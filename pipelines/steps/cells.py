"""The steps of a cell: `perceptual`, `contrastive`, `posthoc` and `evaluate`. What is done returns at once."""

from pipelines.jobs.specs import evaluate_spec, train_spec
from pipelines.planning.cells import find_cell
from pipelines.steps.notes import note
from pipelines.steps.running import ATTEMPTS, open_scene, run_job, step
from trainer.storage import layout, open_store
from trainer.storage.committed import read_committed


@step
def train(name: str, *, request: str, cell: str) -> None:
    """Run one stage of one cell, unless the cell has none or its final model is committed.

    Args:
        name: of the stage: perceptual, contrastive or posthoc.
        request: URI of the stored request.
        cell: name of the cell in the plan.
    """
    scene = open_scene(request)
    entry = find_cell(scene.experiment, cell)
    title = f"{name} {cell}"
    folder = entry[name]
    if not folder:
        note(title, "not needed by this arm", detail=True)
        return
    final = read_committed(layout.final(folder))
    if final is not None and final.recipe_hash == entry["recipe_hashes"][name]:
        open_store(folder).delete(layout.failure(folder))
        note(title, "done before")
        return
    run_job(scene, train_spec(scene.root, entry, name, scene.request, scene.placement), attempts=ATTEMPTS)


@step
def evaluate(*, request: str, cell: str) -> None:
    """Measure the models of one cell.

    Args:
        request: URI of the stored request.
        cell: name of the cell in the plan.
    """
    scene = open_scene(request)
    entry = find_cell(scene.experiment, cell)
    run_job(scene, evaluate_spec(scene.root, entry, scene.request, scene.placement), attempts=ATTEMPTS)
