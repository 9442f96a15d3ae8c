"""The pipeline: triplets, pairs -> plan -> one flat loop over cells -> `finish`, which reports however the run ended."""

from kfp import dsl

from pipelines import components

NAME = "firstsight"


@dsl.pipeline(name=NAME, description="Perceptual Initialization for CLIP: see first, then read, then report whether it helped.")
def firstsight(
    root: str,
    experiment: str = "demo",
    pairs: str = "",
    triplets: str = "",
    arms: str = "random,perceptual",
    seeds: str = "0",
    recipe: str = "demo",
    eval_sets: str = "",
    max_reject_fraction: float = 0.01,
) -> None:
    """Wires the components; the store is the hand-off between them.

    Args:
        root: Store URI under which everything lies: s3://bucket/prefix, or an absolute path.
        experiment: Name of the experiment; the same name goes on where it was.
        pairs: Source of image-text pairs: a folder with captions, or WebDataset tars. Empty: the demo's pictures.
        triplets: Source of judged triplets: a folder in the NIGHTS layout. Empty: made from the pairs, judged by FLIP.
        arms: Comma-separated: random, perceptual, permuted, posthoc, judged, instance, shuffled, from:<uri>.
        seeds: Comma-separated whole numbers; every arm is run with each.
        recipe: smoke, demo, paper, paper-3m, or the URI of a YAML file.
        eval_sets: Comma-separated URIs of further evaluation sets, in CLIP_benchmark's layout or made by `trainer stage eval`.
        max_reject_fraction: More bad samples than this stop staging.
    """
    exit_task = components.finish(root=root, experiment=experiment)
    exit_task.set_caching_options(False)
    with dsl.ExitHandler(exit_task, name="experiment"):
        staged_triplets = components.stage_triplets(
            root=root, experiment=experiment, pairs=pairs, triplets=triplets, recipe=recipe, max_reject_fraction=max_reject_fraction
        )
        staged_pairs = components.stage_pairs(
            root=root, experiment=experiment, pairs=pairs, recipe=recipe, max_reject_fraction=max_reject_fraction
        )
        planned = components.plan(
            root=root,
            experiment=experiment,
            arms=arms,
            seeds=seeds,
            recipe=recipe,
            pairs=staged_pairs.output,
            triplets=staged_triplets.output,
            eval_sets=eval_sets,
        )
        for task in (staged_triplets, staged_pairs, planned):
            task.set_caching_options(False)
        with dsl.ParallelFor(planned.output, name="cells", parallelism=1) as cell:
            before = None
            for component in (components.perceptual, components.contrastive, components.posthoc, components.evaluate):
                task = component(root=root, experiment=experiment, cell=cell)
                task.set_caching_options(False)
                if before is not None:
                    task.after(before)
                before = task
