"""The components: typed, thin functions that run in the pipelines image. What they do is in pipelines/steps/steps.py.

KFP ships a component's source without the module around it, so each imports what it calls.
"""

from kfp import dsl

IMAGE = "firstsight.invalid/python-pipelines:placeholder"
"""Stands for the pipelines image in compiled YAML; put in at submit and at upload."""


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def links(
    profile: str,
    experiment: str,
    recipe: str,
    arms: str,
    seeds: str,
    pairs: str,
    triplets: str,
    eval_sets: str,
    nodes: int,
    gpus_per_node: int,
    image: str,
    queue: str,
    resume: str,
    root: str,
    max_reject_fraction: float,
    page: dsl.Output[dsl.Markdown],
) -> None:
    """Checks what was asked for before anything is made, and says where to look while the run goes on.

    Args:
        profile: Name of the run profile.
        experiment: Name of the experiment.
        recipe: Shipped recipe, or URI of a YAML file.
        arms: Comma-separated arms.
        seeds: Comma-separated seeds.
        pairs: Source of the pairs.
        triplets: Source of the triplets.
        eval_sets: Comma-separated URIs of further evaluation sets.
        nodes: Machines of the contrastive job; 0: the profile's.
        gpus_per_node: GPUs on each machine; -1: the profile's.
        image: The trainer's image; empty: the profile's.
        queue: Queue that admits the jobs; empty: the profile's.
        resume: auto, never, or the URI of a checkpoint.
        root: Store URI under which everything lies; empty: the profile's.
        max_reject_fraction: More bad samples than this stop staging.
        page: Links to dashboard, logs and bucket, shown in the run.
    """
    from pipelines.steps import artifacts
    from pipelines.steps.links import check_and_link

    markdown = check_and_link(
        profile=profile,
        experiment=experiment,
        recipe=recipe,
        arms=arms,
        seeds=seeds,
        pairs=pairs,
        triplets=triplets,
        eval_sets=eval_sets,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        image=image,
        queue=queue,
        resume=resume,
        root=root,
        max_reject_fraction=max_reject_fraction,
    )
    artifacts.write(page.path, markdown)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stage_triplets(
    root: str, experiment: str, pairs: str, triplets: str, recipe: str, max_reject_fraction: float, image: str, queue: str
) -> str:
    """Seals the triplets, or finds them sealed.

    Args:
        root: Store URI under which everything lies; empty: the profile's.
        experiment: Name of the experiment.
        pairs: Source of the pairs; triplets are made from it where `triplets` is empty and this is not.
        triplets: Source of the triplets (a folder in the NIGHTS layout).
        recipe: Shipped recipe, or URI of a YAML file.
        max_reject_fraction: More bad samples than this stop staging.
        image: The trainer's image; empty: the profile's.
        queue: Queue that admits the job; empty: the profile's.

    Returns:
        The data set's folder.
    """
    from pipelines.steps import steps

    return steps.stage(
        "triplets",
        root=root,
        experiment=experiment,
        pairs=pairs,
        triplets=triplets,
        recipe=recipe,
        max_reject_fraction=max_reject_fraction,
        image=image,
        queue=queue,
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stage_pairs(root: str, experiment: str, pairs: str, recipe: str, max_reject_fraction: float, image: str, queue: str) -> str:
    """Seals the pairs and their evaluation sets, or finds them sealed.

    Args:
        root: Store URI under which everything lies; empty: the profile's.
        experiment: Name of the experiment.
        pairs: Source of the pairs; empty: the demo's.
        recipe: Shipped recipe, or URI of a YAML file.
        max_reject_fraction: More bad samples than this stop staging.
        image: The trainer's image; empty: the profile's.
        queue: Queue that admits the job; empty: the profile's.

    Returns:
        The data set's folder.
    """
    from pipelines.steps import steps

    return steps.stage(
        "pairs",
        root=root,
        experiment=experiment,
        pairs=pairs,
        triplets="",
        recipe=recipe,
        max_reject_fraction=max_reject_fraction,
        image=image,
        queue=queue,
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(root: str, experiment: str, arms: str, seeds: str, recipe: str, pairs: str, triplets: str, eval_sets: str) -> list[str]:
    """Validates arms and seeds, and writes every stage's configuration.

    Args:
        root: Store URI under which everything lies; empty: the profile's.
        experiment: Name of the experiment.
        arms: Comma-separated arms.
        seeds: Comma-separated seeds.
        recipe: Shipped recipe, or URI of a YAML file.
        pairs: Folder of the sealed pairs.
        triplets: Folder of the sealed triplets.
        eval_sets: Comma-separated URIs of further evaluation sets.

    Returns:
        The cells to run, `<arm>-seed<k>`.
    """
    from pipelines.steps import steps

    return steps.make_plan(
        root=root, experiment=experiment, arms=arms, seeds=seeds, recipe=recipe, pairs=pairs, triplets=triplets, eval_sets=eval_sets
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def perceptual(root: str, experiment: str, cell: str, nodes: int, gpus_per_node: int, image: str, queue: str, resume: str) -> None:
    """Stage 1: the vision tower on human judgements. Returns at once for an arm without one, or when it is done.

    Args:
        root: Store URI under which everything lies; empty: the profile's.
        experiment: Name of the experiment.
        cell: `<arm>-seed<k>`.
        nodes: Machines of the contrastive job; 0: the profile's.
        gpus_per_node: GPUs on each machine; -1: the profile's.
        image: The trainer's image; empty: the profile's.
        queue: Queue that admits the job; empty: the profile's.
        resume: auto, never, or the URI of a checkpoint.
    """
    from pipelines.steps import steps

    steps.train(
        "perceptual",
        root=root,
        experiment=experiment,
        cell=cell,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        image=image,
        queue=queue,
        resume=resume,
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def contrastive(root: str, experiment: str, cell: str, nodes: int, gpus_per_node: int, image: str, queue: str, resume: str) -> None:
    """Stage 2: both towers on image-text pairs. Returns at once when it is done.

    Args:
        root: Store URI under which everything lies; empty: the profile's.
        experiment: Name of the experiment.
        cell: `<arm>-seed<k>`.
        nodes: Machines of the contrastive job; 0: the profile's.
        gpus_per_node: GPUs on each machine; -1: the profile's.
        image: The trainer's image; empty: the profile's.
        queue: Queue that admits the job; empty: the profile's.
        resume: auto, never, or the URI of a checkpoint.
    """
    from pipelines.steps import steps

    steps.train(
        "contrastive",
        root=root,
        experiment=experiment,
        cell=cell,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        image=image,
        queue=queue,
        resume=resume,
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def posthoc(root: str, experiment: str, cell: str, nodes: int, gpus_per_node: int, image: str, queue: str, resume: str) -> None:
    """Perceptual fine-tuning after stage 2. Returns at once for an arm without it, or when it is done.

    Args:
        root: Store URI under which everything lies; empty: the profile's.
        experiment: Name of the experiment.
        cell: `<arm>-seed<k>`.
        nodes: Machines of the contrastive job; 0: the profile's.
        gpus_per_node: GPUs on each machine; -1: the profile's.
        image: The trainer's image; empty: the profile's.
        queue: Queue that admits the job; empty: the profile's.
        resume: auto, never, or the URI of a checkpoint.
    """
    from pipelines.steps import steps

    steps.train(
        "posthoc",
        root=root,
        experiment=experiment,
        cell=cell,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        image=image,
        queue=queue,
        resume=resume,
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(root: str, experiment: str, cell: str, image: str, queue: str) -> None:
    """Zero-shot, retrieval and 2AFC of the cell's models.

    Args:
        root: Store URI under which everything lies; empty: the profile's.
        experiment: Name of the experiment.
        cell: `<arm>-seed<k>`.
        image: The trainer's image; empty: the profile's.
        queue: Queue that admits the job; empty: the profile's.
    """
    from pipelines.steps import steps

    steps.evaluate(root=root, experiment=experiment, cell=cell, image=image, queue=queue)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(
    root: str,
    experiment: str,
    status: dsl.PipelineTaskFinalStatus,
    figures: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Reports the finished cells and names the missing ones, however the run ended.

    Args:
        root: Store URI under which everything lies; empty: the profile's.
        experiment: Name of the experiment.
        status: How the run ended; KFP puts it in.
        figures: Each arm's score on each declared endpoint, and the differences.
        report: The page, shown in the run.
        summary: Its tables as Markdown.
    """
    from pipelines.steps import artifacts, steps

    page = steps.finish(root=root, experiment=experiment, state=status.state)
    html, markdown, metrics = artifacts.read_report(page, status.state)
    artifacts.write(report.path, html)
    artifacts.write(summary.path, markdown)
    for name, value in metrics.items():
        figures.log_metric(name, value)
