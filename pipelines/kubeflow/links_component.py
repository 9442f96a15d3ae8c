"""The pipeline's first step. Written by scripts/request_files.py from pipelines/planning/request.py: do not edit."""

from kfp import dsl

from pipelines.kubeflow.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
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
    page: dsl.Output[dsl.Markdown],
) -> str:
    """Checks what was asked for before anything is made, stores it, and links to where a run can be watched.

    Args:
        run: Id of the run.
        profile: Name of the run profile.
        request: A request file's URI, or its YAML; the other parameters are those of pipelines/planning/request.py with a `form`.
        page: Links to dashboard, logs and bucket, shown in the run.

    Returns:
        URI of the stored request.
    """
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
    )
    artifacts.write(page.path, markdown)
    return stored
