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
    experiment: str,
    nodes: str,
    parallel_cells: str,
    page: dsl.Output[dsl.Markdown],
) -> str:
    """Checks the request before anything is created, stores it, and links to the places where the run can be watched."""
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
        experiment=experiment,
        nodes=nodes,
        parallel_cells=parallel_cells,
    )
    artifacts.write(page.path, markdown)
    return stored
