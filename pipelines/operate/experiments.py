"""What lies in a root, as `status` shows it where there is no cluster: the experiments, their stages, and how far each is."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import Corrupt, InputError, RunError
from trainer.progress import read_record
from trainer.storage import join, layout, open_store
from trainer.storage.base import MIN_RANGE_BYTES, MissingObject
from trainer.storage.committed import read_final
from trainer.storage.failures import read_failure
from trainer.storage.plans import NAME, read_plan

SILENT_SECONDS = 300.0
"""A stage that has recorded nothing for so long does not run any more."""
STAGES = ("perceptual", "contrastive", "posthoc")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One stage of an experiment.

    Attributes:
        experiment: its name.
        cell: those that have this stage, with commas.
        stage: perceptual, contrastive, posthoc, evaluate or report.
        state: Done, Running, Stopped, Failed or To do.
        why: of a failure, its line.
        step: optimiser steps done; None if nothing was recorded.
        steps: in all.
        samples_per_second: of the last logged steps.
    """

    experiment: str
    cell: str
    stage: str
    state: str
    why: str = ""
    step: int | None = None
    steps: int | None = None
    samples_per_second: float | None = None


def survey_root(root: str, experiment: str = "") -> list[Progress]:
    """A row for each stage of each planned cell, for each cell's evaluation, and for the report.

    Args:
        root: store URI.
        experiment: of this one only; empty: of all.

    Raises:
        InputError: no such experiment is planned there.
    """
    if experiment:
        names = [layout.check_name("experiment", experiment)]
    else:
        folder = join(root, "experiments")
        found = (info.uri.removeprefix(f"{folder}/") for info in open_store(root).list(folder))
        names = sorted({name.partition("/")[0] for name in found if name.endswith(f"/{NAME}") and name.count("/") == 1})
    rows = [row for name in names for row in _rows(layout.experiment(root, name), name)]
    if experiment and not rows:
        raise InputError(f"{layout.experiment(root, experiment)}: no plan.json: nothing is planned there")
    return rows


def _rows(uri: str, name: str) -> Iterator[Progress]:
    try:
        plan = read_plan(uri)
    except (InputError, RunError) as error:
        yield Progress(experiment=name, cell="", stage="plan", state="Failed", why=str(error))
        return
    cells: list[dict[str, Any]] = plan["cells"] if plan else []
    shared: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        for stage in STAGES:
            if cell.get(stage):
                shared.setdefault((stage, cell[stage]), []).append(cell["cell"])
    for (stage, folder), names in shared.items():
        yield _stage(name, ", ".join(names), stage, folder)
    for cell in cells:
        figures = [info.uri for info in _listed(cell["evaluation"]) if info.uri.endswith(".items.npz")]
        failure = read_failure(cell["evaluation"])
        state = "Failed" if failure else "Done" if figures else "To do"
        yield Progress(experiment=name, cell=cell["cell"], stage="evaluate", state=state, why=failure.line if failure else "")
    if cells:
        page = open_store(uri).head(join(layout.report(uri), "index.html"))
        yield Progress(experiment=name, cell="", stage="report", state="Done" if page else "To do")


def _listed(folder: str) -> list[Any]:
    try:
        return list(open_store(folder).list(folder))
    except MissingObject:
        return []


def _stage(experiment: str, cell: str, stage: str, folder: str) -> Progress:
    try:
        seal, damage = read_final(folder)
    except (InputError, RunError) as error:
        return Progress(experiment=experiment, cell=cell, stage=stage, state="Failed", why=str(error))
    record, modified = last_record(layout.progress(folder))
    about: dict[str, Any] = {
        "experiment": experiment, "cell": cell, "stage": stage, "step": record.get("step"), "steps": record.get("steps"),
        "samples_per_second": record.get("samples_per_second"),
    }  # fmt: skip
    if seal is not None and not damage:
        return Progress(**about | {"step": seal.step, "steps": seal.step}, state="Done")
    failure = read_failure(folder)
    if failure is not None:
        return Progress(**about, state="Failed", why=failure.line)
    if not record:
        return Progress(**about, state="To do")
    return Progress(**about, state="Running" if time.time() - modified < SILENT_SECONDS else "Stopped")


def last_record(uri: str) -> tuple[Mapping[str, Any], float]:
    """The last line of a progress.jsonl and when it was written; ({}, 0) where there is none, or none that can be read."""
    store = open_store(uri)
    try:
        info = store.head(uri)
        if info is None or not info.size:
            return {}, 0.0
        length = min(info.size, MIN_RANGE_BYTES)
        record = read_record(store.get_range(uri, info.size - length, length).splitlines()[-1])
    except (InputError, Corrupt):
        return {}, 0.0
    return (record, info.modified) if record is not None else ({}, 0.0)
