"""The pipeline's first step. Written by scripts/request_files.py from pipelines/planning/request.py: do not edit."""

from kfp import dsl

from pipelines.kubeflow.components import component


@component
def links(
    run: str,
    profile: str,
    request: str,
    recipe: str,
    set: str,
    arms: str,
    seeds: str,
    pairs: str,
    triplets: str,
    eval_sets: str,
    max_reject_fraction: str,
    root: str,
    experiment: str,
    backend: str,
    nodes: str,
    gpus_per_node: str,
    image: str,
    queue: str,
    parallel_cells: str,
    resume: str,
    placement: str,
    page: dsl.Output[dsl.Markdown],
) -> str:
    """Checks what was asked for before anything is made, stores it, and links to where a run can be watched."""
    from pipelines.steps import artifacts, links

    stored, markdown = links.accept(
        run=run,
        profile=profile,
        request=request,
        recipe=recipe,
        set=set,
        arms=arms,
        seeds=seeds,
        pairs=pairs,
        triplets=triplets,
        eval_sets=eval_sets,
        max_reject_fraction=max_reject_fraction,
        root=root,
        experiment=experiment,
        backend=backend,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        image=image,
        queue=queue,
        parallel_cells=parallel_cells,
        resume=resume,
        placement=placement,
    )
    artifacts.write(page.path, markdown)
    return stored
