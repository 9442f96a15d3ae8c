"""Collect everything of an experiment from the store, and refuse by name what cannot be compared.

What an arm *is* stands in the resolved configuration of its stages (start, labels, data), whose hash the
lineage repeats; a folder's name says nothing. Whatever is unreadable, half-written or does not belong
(another model's hash, another data identity, another evaluation version, a NaN) is left out and named.
"""

import collections
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from trainer import arms
from trainer.config import recipe_hash
from trainer.errors import InputError, RunError
from trainer.report.experiment import Cell, Experiment, Result, StageRun
from trainer.storage import join, layout, open_store, read_bytes, read_json
from trainer.storage.base import MissingObject
from trainer.storage.committed import read_committed
from trainer.storage.failures import read_failure
from trainer.storage.manifest import read_manifest
from trainer.storage.plans import NAME, read_plan
from trainer.storage.recipes import read_stage, what_differs


def read_experiment(uri: str) -> Experiment:
    """Everything of the experiment at `uri`.

    Raises:
        InputError: there is no plan.json, or it is none.
    """
    experiment = Experiment(uri=uri.rstrip("/"), plan=_read_plan(uri))
    _read_data(experiment)
    for entry in experiment.plan["cells"]:
        try:
            cell = _read_cell(experiment, entry)
        except (InputError, RunError) as error:
            experiment.missing.append({"cell": entry["cell"], "why": _why(experiment, entry, str(error))})
            continue
        if experiment.cell(cell.arm, cell.seed):
            experiment.missing.append(
                {"cell": entry["cell"], "why": f"its configuration is that of {cell.arm}, seed {cell.seed}, once more"}
            )
            continue
        if cell.declared != cell.arm:
            experiment.exclude(
                entry["cell"], f"called {cell.declared!r} in the plan; by its configuration it is {cell.arm!r}, and shown as that"
            )
        experiment.cells.append(cell)
    _one_version(experiment)
    return experiment


def _read_plan(uri: str) -> dict[str, Any]:
    place = join(uri, NAME)
    try:
        plan = read_plan(uri)
    except RunError as error:
        raise InputError(str(error)) from error
    if plan is None:
        raise InputError(f"{place}: no plan here, so this is no experiment's folder (or nothing was planned yet)")
    lacking = [key for key in ("experiment", "root", "arms", "seeds", "pairs", "triplets") if key not in plan]
    if lacking:
        raise InputError(f"{place}: not an experiment's plan: {', '.join(lacking)} missing")
    return plan


def _read_data(experiment: Experiment) -> None:
    """The manifests that the plan names. One that is gone costs pictures and attribution, not the comparison."""
    for name in ("pairs", "triplets"):
        place = experiment.plan[name]
        try:
            manifest = read_manifest(place["uri"])
            if manifest is None:
                raise InputError("no sealed data set here any more")
            if manifest.identity != place["identity"]:
                raise InputError(f"identity {manifest.identity[:12]} is not the planned {place['identity'][:12]}")
        except (InputError, RunError) as error:
            experiment.exclude(place["uri"], str(error))
            continue
        setattr(experiment, name, manifest)
    for entry in experiment.pairs.evaluation if experiment.pairs else []:
        folder = join(experiment.plan["root"], entry["uri"])
        try:
            manifest = read_manifest(folder)
        except (InputError, RunError) as error:
            experiment.exclude(folder, str(error))
            continue
        if manifest is not None and manifest.identity == entry["identity"]:
            experiment.evaluation_sets[entry["name"]] = (folder, manifest)


def _read_cell(experiment: Experiment, entry: dict[str, Any]) -> Cell:
    """One cell of the plan; an error says why it cannot be compared."""
    hashes = entry.get("recipe_hashes", {})
    stages = {}
    for name in ("perceptual", "contrastive", "posthoc"):
        if entry.get(name):
            stages[name] = _read_stage(entry[name], name, hashes.get(name, ""))
    if "contrastive" not in stages:
        raise InputError("its plan has no contrastive stage")
    data = stages["contrastive"].config.data.identity
    if data != experiment.plan["pairs"]["identity"]:
        raise InputError(f"trained on pairs {data[:12]}, the plan says {experiment.plan['pairs']['identity'][:12]}: refused")
    seeds = {run.config.seed for run in stages.values()}
    if seeds != {entry["seed"]}:
        raise InputError(f"its stages have seeds {sorted(seeds)}, the plan says {entry['seed']}: refused")
    cell = Cell(arm=_arm_of(stages, entry["arm"]), declared=entry["arm"], seed=entry["seed"], stages=stages, results=[])
    _read_results(experiment, cell, entry["evaluation"])
    final = [result for result in cell.results if result.stage == cell.final_stage and result.step is None]
    if not final:
        raise InputError(f"its {cell.final_stage} model is finished but has no evaluation that can be compared")
    return cell


def _read_stage(uri: str, name: str, planned_hash: str) -> StageRun:
    committed = read_committed(layout.final(uri))
    if committed is None:
        raise InputError(f"{name} is not finished")
    config = read_stage(layout.config(uri))
    lineage = read_json(layout.lineage(uri))
    own = recipe_hash(config)
    for source, value in (
        ("the plan", planned_hash or own),
        ("lineage.json", lineage.get("recipe_hash")),
        ("its seal", committed.recipe_hash),
    ):
        if value != own:
            raise InputError(f"{name}: {source} says another recipe than config.yaml{what_differs(uri, str(value), config)}: refused")
    run = StageRun(uri=uri, config=config, lineage=lineage, committed=committed, progress=list(_progress(uri)))
    recorded = {lineage[key] for key in ("weights_sha256", "vision_sha256") if lineage.get(key)}
    if run.weights and recorded and not run.weights & recorded:
        raise InputError(f"{name}: the weights that were sealed are not those that its lineage names: refused")
    return run


def _arm_of(stages: dict[str, StageRun], declared: str) -> str:
    """What the configuration says the arm is: its start, and the labels its tower learnt from.

    A combination that this version has no arm for keeps the name that the plan gives it, unless that is another arm's.
    """
    finetuned = "posthoc" in stages
    last, tower = stages["posthoc" if finetuned else "contrastive"], stages.get("perceptual")
    start = last.config.start
    labels = last.config.labels if finetuned else None
    if not finetuned and start.kind != "random":
        if tower is None or start.recipe_hash not in tower.weights | {tower.committed.recipe_hash}:
            return f"from-{hashlib.sha256(start.uri.encode()).hexdigest()[:8]}"
        labels = tower.config.labels
    found = arms.find(finetuned=finetuned, start=start.kind, labels=labels)
    if found is not None:
        return found.name
    return declared if declared not in arms.registered() else f"{start.kind} {labels}"


def _progress(uri: str) -> Iterator[dict[str, Any]]:
    """Lines of progress.jsonl by step. A resumed run repeats some: the last line of a step counts. A torn last line is dropped."""
    try:
        text = read_bytes(layout.progress(uri)).decode(errors="replace")
    except MissingObject:
        return
    by_step: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            record = json.loads(line)
            by_step[int(record["step"])] = record
        except (ValueError, KeyError, TypeError):
            continue
    for step in sorted(by_step):
        yield by_step[step]


def _read_results(experiment: Experiment, cell: Cell, folder: str) -> None:
    """Every evaluation below the cell's folder that belongs to its models."""
    try:
        below = [info.uri for info in open_store(folder).list(folder)]
    except MissingObject:
        below = []
    for place in below:
        if not place.endswith(".json") or place.removeprefix(folder.rstrip("/") + "/").count("/") != 1:
            continue  # figures lie in <stage>-<when>/; what lies beside those folders is no figure
        try:
            cell.results.append(_result(experiment, cell, place, read_json(place)))
        except (InputError, RunError) as error:
            experiment.exclude(place, str(error).removeprefix(f"{place}: "))


def _result(experiment: Experiment, cell: Cell, uri: str, value: Any) -> Result:
    try:
        facts, metrics = value["firstsight"], value["metrics"]
        result = Result(
            arm=cell.arm,
            seed=int(facts["seed"]),
            stage=facts["stage"],
            step=None if facts["step"] in ("final", None) else int(facts["step"]),
            dataset=value["dataset"],
            task=value["task"],
            metrics={name: None if figure is None else float(figure) for name, figure in metrics.items()},
            facts=facts,
            items_uri=uri.removesuffix(".json") + ".items.npz",
        )
        belongs = (facts["arm"], facts["seed"]) == (cell.declared, cell.seed)
        identity, _ = facts["dataset_identity"], facts["evaluation_version"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"not an evaluation of firstsight: {type(error).__name__} {error}") from error
    if not belongs:
        raise InputError(f"it measures {facts['arm']} seed {facts['seed']}, which is not this cell")
    broken = [name for name, figure in result.metrics.items() if figure is not None and not math.isfinite(figure)]
    if broken or not any(figure is not None for figure in result.metrics.values()):
        raise InputError(f"{', '.join(broken) or 'no metric'} is not a number")
    _check_model(cell, result)
    planned = _planned_identity(experiment, result)
    if planned and identity != planned:
        raise InputError(f"measured on data set {str(identity)[:12]}, the plan says {planned[:12]}")
    return result


def _check_model(cell: Cell, result: Result) -> None:
    """The model that was measured must be the one that the stage sealed."""
    if result.stage == "untrained":
        return
    run = cell.stages.get(result.stage)
    if run is None:
        raise InputError(f"this cell has no {result.stage} stage")
    if result.facts.get("recipe_hash") != run.committed.recipe_hash:
        raise InputError(f"recipe {str(result.facts.get('recipe_hash'))[:12]} is not that of the {result.stage} stage")
    if result.step is None and run.weights and result.facts.get("weights_sha256") not in run.weights:
        raise InputError(f"model {str(result.facts.get('weights_sha256'))[:12]} is not the {result.stage} stage's final one")


def _planned_identity(experiment: Experiment, result: Result) -> str:
    if result.task == "2afc":
        return str(experiment.plan["triplets"]["identity"])
    staged = experiment.pairs.evaluation if experiment.pairs else []
    return next((str(entry["identity"]) for entry in staged if entry["name"] == result.dataset), "")


def _one_version(experiment: Experiment) -> None:
    """Keep results of one evaluation version and, set by set, of one identity: the most common. Name the others."""
    results = [result for cell in experiment.cells for result in cell.results]
    if not results:
        return
    version = _most_common([str(result.facts["evaluation_version"]) for result in results])
    identities: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for result in results:
        identities[result.dataset, result.task].append(str(result.facts["dataset_identity"]))
    identity = {key: _most_common(values) for key, values in identities.items()}
    kept = []
    for cell in experiment.cells:
        good = []
        for result in cell.results:
            if str(result.facts["evaluation_version"]) != version:
                why = f"evaluation version {result.facts['evaluation_version']}, the others have {version}"
                experiment.exclude(result.items_uri.replace(".items.npz", ".json"), why)
            elif str(result.facts["dataset_identity"]) != identity[result.dataset, result.task]:
                why = f"data set {str(result.facts['dataset_identity'])[:12]}, the others have {identity[result.dataset, result.task][:12]}"
                experiment.exclude(result.items_uri.replace(".items.npz", ".json"), why)
            else:
                good.append(result)
        kept.append(replace(cell, results=good))
    experiment.cells, experiment.version = kept, version


def _most_common(values: list[str]) -> str:
    return collections.Counter(values).most_common(1)[0][0]


def _why(experiment: Experiment, entry: dict[str, Any], why: str) -> str:
    """Why a cell is missing: the failure that its stages left, if any, else what the reader met."""
    for name in ("perceptual", "contrastive", "posthoc", "evaluation"):
        if not entry.get(name):
            continue
        try:
            failure = read_failure(entry[name])
            if failure is None or (name != "evaluation" and read_committed(layout.final(entry[name])) is not None):
                continue  # none, or a later attempt finished it
        except RunError:
            continue
        record = {"cell": entry["cell"], "stage": name, "line": failure.line, "exit_code": failure.exit_code, "time": failure.time}
        if record not in experiment.failures:
            experiment.failures.append(record)
        return f"{name} failed: {failure.line}"
    return why
