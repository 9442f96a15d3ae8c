"""Run the stages and the evaluation of one cell, except those that are done."""

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.jobs.base import JobSpec
from pipelines.jobs.local import COMMAND
from pipelines.jobs.specs import evaluate_spec, train_spec
from pipelines.steps.notes import note
from pipelines.steps.running import ATTEMPTS, Scene, recorded, run_job
from trainer.logs import FORMAT_VARIABLE
from trainer.storage import join, layout, open_store
from trainer.storage.committed import NAME as COMMITTED
from trainer.storage.committed import read_final
from trainer.storage.documents import write_document

Entry = Mapping[str, Any]
"""A cell's entry in plan.json."""
BEGUN_VERSION = 1
LOOKS_AT_ONCE = 8
"""Number of cells checked at the same time, since a check mostly waits for the store."""


def train(scene: Scene, entry: Entry, stage: str, *, speaker: str = "", quiet: bool = False) -> None:
    """Run one stage that a cell has, unless its final model is committed.

    Args:
        scene: the step's scene.
        entry: entry of the cell in plan.json.
        stage: perceptual, contrastive or posthoc.
        speaker: prefix of the job's lines if several jobs run at once.
        quiet: report a finished stage only as a detail, since an earlier step of the run has trained or reported it.
    """
    title, folder = f"{stage} {entry['cell']}", entry[stage]
    with recorded(folder, title):
        done, damaged = look(folder, entry["recipe_hashes"][stage])
        for line in damaged:
            note(title, f"{line}; rebuilding it")
        if done:
            open_store(folder).delete(layout.failure(folder))
            note(title, "already done", detail=quiet)
            return
        spec = _begun_once(scene, train_spec(scene.root, entry, stage, scene.request, scene.placement, suspended=scene.parallel_cells == 0))
        run_job(scene, spec, attempts=ATTEMPTS, speaker=speaker)


def evaluate(scene: Scene, entry: Entry, *, speaker: str = "") -> None:
    """Measure the models of a cell."""
    spec = evaluate_spec(scene.root, entry, scene.request, scene.placement, suspended=scene.parallel_cells == 0)
    run_job(scene, spec, attempts=ATTEMPTS, speaker=speaker)


def look(folder: str, recipe_hash: str) -> tuple[bool, list[str]]:
    """Whether the stage in `folder` is finished with this recipe, and which of its files differ from the seal, one per line.

    Raises:
        InputError: a newer firstsight sealed it.
        RunError: the store failed.
    """
    seal, damage = read_final(folder)
    done = seal is not None and seal.recipe_hash == recipe_hash and not damage
    return done, [f"{uri}: {why}" for uri, why in damage.items()]


def is_trained(entry: Entry, stages: Iterable[str]) -> bool:
    """Whether those of these stages that the cell has are done."""
    return all(look(entry[stage], entry["recipe_hashes"][stage])[0] for stage in stages if entry.get(stage))


def measured(entries: Iterable[Entry]) -> set[str]:
    """The names of the cells that need no further evaluation, as determined by the trainer in one process for all cells."""
    configs = {layout.config(entry["evaluation"]): entry["cell"] for entry in entries}
    missing = count_missing(list(configs)) if configs else {}
    return {cell for uri, cell in configs.items() if missing.get(uri) == 0}


def count_missing(configs: list[str]) -> dict[str, int]:
    """Number of missing results by the URI of a cell's evaluation/config.yaml; empty if it cannot be determined."""
    command, environment = [*COMMAND, "evaluate", "--dry-run", "--config", *configs], {**os.environ, FORMAT_VARIABLE: "text"}
    looked = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    try:
        found: Any = json.loads(looked.stdout.splitlines()[-1])["cells"] if looked.returncode == 0 else {}
        return {uri: int(one["missing"]) for uri, one in found.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def _begun_once(scene: Scene, spec: JobSpec) -> JobSpec:
    """Apply `resume: never` or a checkpoint's URI only once per request: later starts resume from the result."""
    if spec.resume == "auto":
        return spec
    uri = layout.request_begun(scene.experiment, scene.request.id, spec.folder)
    begun = open_store(uri).head(uri)
    if begun is None:
        write_document(uri, {"format_version": BEGUN_VERSION, "stage": spec.folder, "resume": spec.resume})
        return spec
    found = open_store(spec.folder).list(join(spec.folder, "checkpoints"))
    later = any(info.modified >= begun.modified for info in found if info.uri.endswith(f"/{COMMITTED}"))
    return dataclasses.replace(spec, resume="auto") if later else spec
