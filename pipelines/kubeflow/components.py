"""The components: typed, thin functions that run in the pipelines image. What they do is in pipelines/steps.

A component's specification and command are repeated in six nodes of the Workflow, and for a lane's steps once per lane, while Argo keeps a
Workflow in one object of at most 1 MiB. The source is therefore read from the image (execute.py), and parameters are described here,
not in docstrings. `request` is the stored request's URI with the run's id (pipelines/steps/running.py), `lane` a name that `plan`
returned. `links`, which takes every parameter of a request, is in links_component.py, which `make generate` writes.
"""

import os
from collections.abc import Callable
from typing import Any

from kfp import dsl

from pipelines.kubeflow.execute import COMMAND

IMAGE = "firstsight.invalid/python-pipelines:placeholder"
"""Placeholder for the pipelines image in compiled YAML; replaced on submit and upload."""


def component(function: Callable[..., Any]) -> Any:
    """Turn a function into a KFP component; when a component is being run, return the function itself."""
    if os.environ.get("_KFP_RUNTIME") == "true":
        return function
    made = dsl.component(base_image=IMAGE, install_kfp_package=False)(function)
    made.component_spec.implementation.container.command = COMMAND
    return made


@component
def stage_triplets(request: str) -> str:
    """Seals the triplets, or finds them sealed; returns their folder."""
    from pipelines.steps import staging

    return staging.stage("triplets", request=request)


@component
def stage_pairs(request: str) -> str:
    """Seals the pairs and their evaluation sets, or finds them sealed; returns their folder."""
    from pipelines.steps import staging

    return staging.stage("pairs", request=request)


@component
def plan(request: str, pairs: str, triplets: str, lanes: dsl.Output[dsl.Markdown]) -> list[str]:
    """Writes every stage's configuration; returns the lanes among which the cells are distributed, such as `lane-1-of-3`."""
    from pipelines.steps import artifacts, planning

    names, page = planning.make_plan(request=request, pairs=pairs, triplets=triplets)
    artifacts.write(lanes.path, page)
    return names


@component
def perceptual(request: str, lane: str, cells: dsl.Output[dsl.Markdown]) -> None:
    """Stage 1 of all cells of a lane: trains the vision towers on human judgements."""
    from pipelines.steps import lanes

    lanes.work("perceptual", request=request, lane=lane, markdown=cells.path)


@component
def contrastive(request: str, lane: str, cells: dsl.Output[dsl.Markdown]) -> None:
    """Stage 2, on image-text pairs; all but the last cell are evaluated here too."""
    from pipelines.steps import lanes

    lanes.work("contrastive", request=request, lane=lane, markdown=cells.path)


@component
def posthoc(request: str, lane: str, cells: dsl.Output[dsl.Markdown]) -> None:
    """Perceptual fine-tuning after stage 2, of the lane's last cell."""
    from pipelines.steps import lanes

    lanes.work("posthoc", request=request, lane=lane, markdown=cells.path)


@component
def evaluate(request: str, lane: str, cells: dsl.Output[dsl.Markdown]) -> None:
    """Zero-shot, retrieval and 2AFC of the lane's last cell; fails if any cell failed."""
    from pipelines.steps import lanes

    lanes.work("evaluate", request=request, lane=lane, markdown=cells.path)


@component
def report(
    request: str,
    figures: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Compares the arms once every lane is done."""
    from pipelines.steps import artifacts, finish

    html, markdown, metrics = artifacts.read_report(finish.report(request=request))
    artifacts.write(page.path, html)
    artifacts.write(summary.path, markdown)
    for name, value in metrics.items():
        figures.log_metric(name, value)


@component
def finish(run: str, request: str, status: dsl.PipelineTaskFinalStatus, page: dsl.Output[dsl.HTML]) -> None:
    """Releases what the run holds; for a failed run, reports the cells that finished."""
    from pipelines.steps import artifacts, finish

    line, folder = finish.finish(run=run, request=request, root="", state=status.state)
    artifacts.write(page.path, artifacts.read_report(folder)[0] if folder else f"<p>{line}</p>")
