"""The jobs of one cell, from its entry in plan.json: what the steps run, and what a dry run shows. Light to import."""

from collections.abc import Mapping
from typing import Any

from pipelines.cluster.names import Identity
from pipelines.jobs.base import JobSpec
from pipelines.planning.request import Request
from trainer.config import canonical_hash
from trainer.storage import layout


def train_spec(
    root: str, entry: Mapping[str, Any], stage: str, request: Request, placement: Mapping[str, Any], *, suspended: bool = False
) -> JobSpec:
    """One stage of a cell. A stage that cells share has the labels that it was planned with, whichever cell asks for it first.

    Args:
        root: store URI.
        entry: of the cell in plan.json.
        stage: of the cell.
        request: of the run.
        placement: how it runs.
        suspended: whether a queue is to admit it.
    """
    folder = entry[stage]
    return JobSpec(
        name=f"{stage} {entry['cell']}",
        arguments=("train", stage, "--config", layout.config(folder)),
        folder=folder,
        purpose="train",
        identity=Identity(
            root=root, output=folder, experiment=request.experiment, seed=entry["seed"], stage=stage, **entry["stage_labels"][stage]
        ),
        recipe_hash=entry["recipe_hashes"][stage],
        final=layout.final(folder),
        placement=placement,
        resume=request.resume if request.resume != "auto" else str(placement.get("resume", "auto")),
        suspended=suspended,
    )


def evaluate_spec(
    root: str, entry: Mapping[str, Any], request: Request, placement: Mapping[str, Any], *, suspended: bool = False
) -> JobSpec:
    """All measurements of a cell's models; arguments as of `train_spec`."""
    folder = entry["evaluation"]
    labels = {name: entry[name] for name in ("cell", "arm", "point")}
    arguments = ("evaluate", "--config", layout.config(folder))
    return JobSpec(
        name=f"evaluate {entry['cell']}",
        arguments=arguments,
        folder=folder,
        purpose="evaluate",
        identity=Identity(root=root, output=folder, experiment=request.experiment, seed=entry["seed"], stage="evaluate", **labels),
        recipe_hash=canonical_hash([*arguments, entry["recipe_hashes"]]),
        placement=placement,
        suspended=suspended,
    )
