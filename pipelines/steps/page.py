"""Rebuild the report's page if it does not match the experiment's current results.

made.json names the current page (trainer/storage/pages.py), and contains a hash over its inputs: the files in the experiment's folder
(by their stamps), the manifests of its data sets, and the code that writes the page.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.jobs.base import JobSpec
from pipelines.steps.notes import note
from pipelines.steps.running import Scene, recorded, run_job
from trainer.config import canonical_hash
from trainer.errors import Corrupt, InputError
from trainer.storage import checked, join, layout, manifest, open_store, pages
from trainer.storage.documents import checksum
from trainer.storage.manifest import read_manifest, staged_sets
from trainer.storage.plans import NAME as PLAN
from trainer.storage.plans import Plan, read_plan

FILES = ("index.html", "results.json", "results.csv", "report.md")
_NOT_READ = ("report/", "requests/", "staging/", "declared/", PLAN)
"""Files in the experiment's folder that the page does not read, and plan.json, which is hashed by content."""
_NOT_READ_NAMES = (layout.LOG, checked.NAME)


def inputs_of(experiment_uri: str) -> str:
    """A hash of all inputs of the page; empty if it cannot be determined, in which case the page must be rebuilt.

    Raises:
        RunError: the store failed.
    """
    try:
        plan = read_plan(experiment_uri)
        stamps = list(_stamps(experiment_uri, plan)) if plan is not None else []
    except (InputError, Corrupt):
        return ""
    if plan is None or not all(stamp for _, stamp in stamps):
        return ""
    return canonical_hash([checksum(plan), _code(), *stamps])


def is_current(experiment_uri: str, inputs: str) -> bool:
    """Whether the page is intact and was built from these inputs.

    Raises:
        InputError: a newer firstsight made it.
        RunError: the store failed.
    """
    try:
        made = pages.read_page(experiment_uri)
    except Corrupt:
        return False
    current = bool(inputs) and made.inputs == inputs and made.generation > 0 and made.files.keys() == set(FILES)
    return current and not pages.find_damaged(experiment_uri, made)


def publish(scene: Scene) -> bool:
    """Bring the page up to date. Returns whether it had to be rebuilt."""
    folder = layout.report(scene.experiment)
    with recorded(folder, "report"):
        inputs = inputs_of(scene.experiment)
        if is_current(scene.experiment, inputs):
            open_store(folder).delete(layout.failure(folder))
            note("report", "made before", detail=True)
            return False
        # Always in this process: it needs no torch, and the jobs' machines may be gone.
        arguments = ("report", "--experiment", scene.experiment, *(("--made-from", inputs) if inputs else ()))
        run_job(scene, JobSpec(name="report", arguments=arguments, folder=folder), attempts=1)
        return True


def _stamps(experiment_uri: str, plan: Plan) -> Iterator[tuple[str, str]]:
    for info in open_store(experiment_uri).list(experiment_uri):
        name = info.uri.removeprefix(f"{experiment_uri}/")
        last = name.rpartition("/")[2]
        weights = "/checkpoints/" in name or f"/{layout.TRAJECTORY}/" in name
        if not (name.startswith(_NOT_READ) or last in _NOT_READ_NAMES or last.endswith(".lock") or weights):
            yield name, info.stamp
    for uri in dict.fromkeys(_manifests(plan)):
        head = open_store(uri).head(uri)
        yield uri, head.stamp if head is not None else "missing"


def _manifests(plan: Plan) -> Iterator[str]:
    data: list[dict[str, Any]] = [plan["pairs"], plan["triplets"], *plan["sets"]]
    for part in data:
        yield join(part["uri"], manifest.NAME)
    pairs = read_manifest(plan["pairs"]["uri"])
    for place in staged_sets(plan["pairs"]["uri"], pairs) if pairs is not None else ():
        yield join(place.uri, manifest.NAME)


def _code() -> str:
    """A hash of the package that writes the page."""
    spec = importlib.util.find_spec("trainer.report")
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    files = sorted(path for folder in folders for path in folder.iterdir() if path.is_file())
    return canonical_hash([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files])
