"""The components: typed, thin functions that run in the pipelines image. What they do is in pipelines/steps.

KFP ships a component's source without the module around it, so each imports what it calls. `links`, which takes every
parameter of a request, is in links_component.py, which `make generate` writes.
"""

from kfp import dsl

IMAGE = "firstsight.invalid/python-pipelines:placeholder"
"""Stands for the pipelines image in compiled YAML; put in at submit and at upload."""


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stage_triplets(request: str) -> str:
    """Seals the triplets, or finds them sealed; returns their folder.

    Args:
        request: URI of the stored request.
    """
    from pipelines.steps import staging

    return staging.stage("triplets", request=request)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stage_pairs(request: str) -> str:
    """Seals the pairs and their evaluation sets, or finds them sealed; returns their folder.

    Args:
        request: URI of the stored request.
    """
    from pipelines.steps import staging

    return staging.stage("pairs", request=request)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(request: str, pairs: str, triplets: str) -> list[str]:
    """Writes every stage's configuration; returns the cells to run, `<arm>-seed<k>`.

    Args:
        request: URI of the stored request.
        pairs: Folder of the sealed pairs.
        triplets: Folder of the sealed triplets.
    """
    from pipelines.steps import planning

    return planning.make_plan(request=request, pairs=pairs, triplets=triplets)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def perceptual(request: str, cell: str) -> None:
    """Stage 1: the vision tower on human judgements. Returns at once for an arm without one, or when it is done.

    Args:
        request: URI of the stored request.
        cell: `<arm>-seed<k>`.
    """
    from pipelines.steps import cells

    cells.train("perceptual", request=request, cell=cell)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def contrastive(request: str, cell: str) -> None:
    """Stage 2: both towers on image-text pairs. Returns at once when it is done.

    Args:
        request: URI of the stored request.
        cell: `<arm>-seed<k>`.
    """
    from pipelines.steps import cells

    cells.train("contrastive", request=request, cell=cell)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def posthoc(request: str, cell: str) -> None:
    """Perceptual fine-tuning after stage 2. Returns at once for an arm without it, or when it is done.

    Args:
        request: URI of the stored request.
        cell: `<arm>-seed<k>`.
    """
    from pipelines.steps import cells

    cells.train("posthoc", request=request, cell=cell)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(request: str, cell: str) -> None:
    """Zero-shot, retrieval and 2AFC of the cell's models.

    Args:
        request: URI of the stored request.
        cell: `<arm>-seed<k>`.
    """
    from pipelines.steps import cells

    cells.evaluate(request=request, cell=cell)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(
    run: str,
    request: str,
    status: dsl.PipelineTaskFinalStatus,
    figures: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Reports the finished cells and names the missing ones, however the run ended.

    Args:
        run: Id of the run, by which it finds the stored request.
        request: The pipeline's parameter: it may name the root.
        status: How the run ended; KFP puts it in.
        figures: Each arm's score on each declared endpoint, and the differences.
        report: The page, shown in the run.
        summary: Its tables as Markdown.
    """
    from pipelines.steps import artifacts, finish

    page = finish.finish(run=run, request=request, root="", state=status.state)
    html, markdown, metrics = artifacts.read_report(page, status.state)
    artifacts.write(report.path, html)
    artifacts.write(summary.path, markdown)
    for name, value in metrics.items():
        figures.log_metric(name, value)
