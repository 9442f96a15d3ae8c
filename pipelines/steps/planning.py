"""The step `plan`: arms, seeds and sealed data become cells with every stage's configuration."""

from pipelines.jobs.base import Outcome
from pipelines.steps.notes import note
from pipelines.steps.running import open_scene, record_failure, step
from trainer.config import DataConfig
from trainer.errors import InputError, RunError
from trainer.storage import layout, open_store
from trainer.storage.manifest import require_manifest


@step
def make_plan(*, request: str, pairs: str, triplets: str) -> list[str]:
    """Write the plan of the experiment; the names of the cells to run.

    Args:
        request: URI of the stored request.
        pairs: folder of the sealed pairs.
        triplets: folder of the sealed triplets.
    """
    from pipelines.planning import plan  # here: reading YAML into configurations takes longer than all that the other steps import
    from pipelines.planning.writing import write_plan

    scene = open_scene(request)
    asked, uri = scene.request, scene.experiment
    open_store(uri).delete(layout.failure(uri))
    try:
        arms = asked.all_arms
        manifest = require_manifest(triplets)
        recipe = asked.load_recipe()
        plan.require_judge(arms, manifest.judge, recipe)
        experiment = plan.Experiment(
            root=scene.root,
            name=asked.experiment,
            recipe=recipe,
            pairs=DataConfig(uri=pairs, identity=require_manifest(pairs).identity),
            triplets=DataConfig(uri=triplets, identity=manifest.identity),
            weights=plan.weights_of(arms),
            request=scene.uri,
            sets=plan.read_sets(",".join(asked.eval_sets)),
        )
        cells = [plan.resolve(experiment, arm, seed) for seed in asked.all_seeds for arm in arms]
        for line in write_plan(experiment, cells):
            note("plan", line)
    except (InputError, RunError) as error:
        record_failure(uri, "plan", Outcome(exit_code=error.exit_code, line=str(error)))
        raise
    return [cell.name for cell in cells]
