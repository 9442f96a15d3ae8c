"""The components: typed, thin functions that run in the pipelines image. What they do is in pipelines/steps.py.

KFP ships a component's source without the module around it, so each imports what it calls.
"""

from kfp import dsl

IMAGE = "firstsight.invalid/python-pipelines:placeholder"
"""Stands for the pipelines image in compiled YAML; put in at submit and at upload."""


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stage_triplets(root: str, experiment: str, pairs: str, triplets: str, recipe: str, max_reject_fraction: float) -> str:
    """Seals the triplets, or finds them sealed.

    Args:
        root: Store URI under which everything lies.
        experiment: Name of the experiment.
        pairs: Source of the pairs; triplets are made from it where `triplets` is empty and this is not.
        triplets: Source of the triplets (a folder in the NIGHTS layout).
        recipe: Shipped recipe, or URI of a YAML file.
        max_reject_fraction: More bad samples than this stop staging.

    Returns:
        The data set's folder.
    """
    from pipelines import steps

    return steps.stage(
        "triplets",
        root=root,
        experiment=experiment,
        pairs=pairs,
        triplets=triplets,
        recipe=recipe,
        max_reject_fraction=max_reject_fraction,
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stage_pairs(root: str, experiment: str, pairs: str, recipe: str, max_reject_fraction: float) -> str:
    """Seals the pairs and their evaluation sets, or finds them sealed.

    Args:
        root: Store URI under which everything lies.
        experiment: Name of the experiment.
        pairs: Source of the pairs; empty: the demo's.
        recipe: Shipped recipe, or URI of a YAML file.
        max_reject_fraction: More bad samples than this stop staging.

    Returns:
        The data set's folder.
    """
    from pipelines import steps

    return steps.stage(
        "pairs", root=root, experiment=experiment, pairs=pairs, triplets="", recipe=recipe, max_reject_fraction=max_reject_fraction
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(root: str, experiment: str, arms: str, seeds: str, recipe: str, pairs: str, triplets: str, eval_sets: str) -> list[str]:
    """Validates arms and seeds, and writes every stage's configuration.

    Args:
        root: Store URI under which everything lies.
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
    from pipelines import steps

    return steps.make_plan(
        root=root, experiment=experiment, arms=arms, seeds=seeds, recipe=recipe, pairs=pairs, triplets=triplets, eval_sets=eval_sets
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def perceptual(root: str, experiment: str, cell: str) -> None:
    """Stage 1: the vision tower on human judgements. Returns at once for an arm without one, or when it is done.

    Args:
        root: Store URI under which everything lies.
        experiment: Name of the experiment.
        cell: `<arm>-seed<k>`.
    """
    from pipelines import steps

    steps.train("perceptual", root=root, experiment=experiment, cell=cell)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def contrastive(root: str, experiment: str, cell: str) -> None:
    """Stage 2: both towers on image-text pairs. Returns at once when it is done.

    Args:
        root: Store URI under which everything lies.
        experiment: Name of the experiment.
        cell: `<arm>-seed<k>`.
    """
    from pipelines import steps

    steps.train("contrastive", root=root, experiment=experiment, cell=cell)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def posthoc(root: str, experiment: str, cell: str) -> None:
    """Perceptual fine-tuning after stage 2. Returns at once for an arm without it, or when it is done.

    Args:
        root: Store URI under which everything lies.
        experiment: Name of the experiment.
        cell: `<arm>-seed<k>`.
    """
    from pipelines import steps

    steps.train("posthoc", root=root, experiment=experiment, cell=cell)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(root: str, experiment: str, cell: str) -> None:
    """Zero-shot, retrieval and 2AFC of the cell's models.

    Args:
        root: Store URI under which everything lies.
        experiment: Name of the experiment.
        cell: `<arm>-seed<k>`.
    """
    from pipelines import steps

    steps.evaluate(root=root, experiment=experiment, cell=cell)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(root: str, experiment: str, status: dsl.PipelineTaskFinalStatus, report: dsl.Output[dsl.HTML]) -> None:
    """Reports the finished cells and names the missing ones, however the run ended.

    Args:
        root: Store URI under which everything lies.
        experiment: Name of the experiment.
        status: How the run ended; KFP puts it in.
        report: The page, shown in the run.
    """
    from pipelines import steps
    from trainer.storage import read_bytes

    page = steps.finish(root=root, experiment=experiment, state=status.state)
    with open(report.path, "wb") as stream:
        stream.write(read_bytes(page) if page else b"<p>Nothing to report: the run ended before it was planned.</p>")
