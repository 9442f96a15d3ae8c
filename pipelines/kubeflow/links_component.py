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
    eval_sets: str,
    max_reject_fraction: str,
    root: str,
    experiment: str,
    backend: str,
    nodes: str,
    gpus_per_node: str,
    image: str,
    queue: str,
    resume: str,
    placement: str,
    page: dsl.Output[dsl.Markdown],
) -> str:
    """Checks what was asked for before anything is made, stores it, and links to where a run can be watched.

    Args:
        run: Id of the run.
        profile: Name of the run profile.
        request: A request file's URI, or its YAML.
        recipe: Smoke, demo, paper, paper-3m, the URI of a YAML file, or in a request file the recipe itself.
        set: What differs from the recipe, such as contrastive.epochs=16.
        arms: What the vision tower starts from; see docs/RECIPES.md for each arm.
        seeds: Whole numbers; each arm is run once with each.
        pairs: Captioned pictures: a folder, WebDataset tars, or a list of URLs.
        triplets: Judged triplets: a folder in the NIGHTS layout, or a list.
        eval_sets: URIs of further evaluation sets.
        max_reject_fraction: Staging stops when a larger share of the samples is bad.
        root: Store URI for everything a run keeps: a folder, or s3://bucket/prefix.
        experiment: Runs of one name share work and are compared.
        backend: Local, or a kind of job on a cluster, such as pytorchjob; docs/ARCHITECTURE.md lists them.
        nodes: Machines of the contrastive job.
        gpus_per_node: GPUs on each machine, one process for each; 0: CPU.
        image: The trainer's image, with tag or digest.
        queue: The queue that admits the jobs, such as a Kueue LocalQueue.
        resume: Auto (from the last checkpoint), never (begin anew), or the URI of a checkpoint.
        placement: How a stage runs, such as loader_workers=8; see docs/REQUEST.md.
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
        eval_sets=eval_sets,
        max_reject_fraction=max_reject_fraction,
        root=root,
        experiment=experiment,
        backend=backend,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        image=image,
        queue=queue,
        resume=resume,
        placement=placement,
    )
    artifacts.write(page.path, markdown)
    return stored
