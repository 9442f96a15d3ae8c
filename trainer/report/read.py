"""Collect everything about an experiment from the store, and exclude, by name, what cannot be compared.

What an arm *is* follows from the resolved configuration of its stages (start, labels, data), whose hash is
also in the lineage; a folder's name proves nothing. Whatever is unreadable, damaged or does not belong (another model's
hash, another data identity, another evaluation version, a NaN) is left out and named, and damaged items are marked as such.
"""

import collections
import hashlib
import math
from dataclasses import replace
from typing import Any

from trainer import arms
from trainer.errors import Corrupt, InputError, RunError
from trainer.report.experiment import Cell, Experiment, Result, StageRun
from trainer.report.runs import STAGES, read_run
from trainer.representation import LAYER
from trainer.storage import join, layout, open_store
from trainer.storage.base import MissingObject
from trainer.storage.committed import read_committed
from trainer.storage.failures import read_failure
from trainer.storage.figures import items_uri, read_figures, untrained_hash
from trainer.storage.manifest import Manifest, require_manifest, staged_sets
from trainer.storage.plans import NAME, read_plan

_BASIS = {"dataset_identity": "data set", "prompts": "class names and templates", "basis": "pictures, RDMs or training pictures"}
"""What the results of one set must share to be comparable, besides the evaluation version."""


def read_experiment(uri: str) -> Experiment:
    """Read everything about the experiment at `uri`.

    Raises:
        InputError: there is no plan.json, or it is incomplete.
        Corrupt: plan.json is damaged.
    """
    experiment = Experiment(uri=uri.rstrip("/"), plan=require_plan(uri))
    _read_data(experiment)
    for entry in experiment.plan["cells"]:
        try:
            cell = _read_cell(experiment, entry)
        except (InputError, RunError) as error:
            failed = _failure(experiment, entry)
            experiment.mark_missing(entry["cell"], failed or str(error), damaged=not failed and isinstance(error, RunError))
            continue
        if experiment.cell(cell.arm, cell.seed, cell.point):
            experiment.mark_missing(entry["cell"], f"its configuration duplicates that of {cell.arm}, seed {cell.seed}")
            continue
        if cell.declared != cell.arm:
            experiment.exclude(
                entry["cell"], f"called {cell.declared!r} in the plan; its configuration says {cell.arm!r}, and it is shown as such"
            )
        experiment.cells.append(cell)
    _one_version(experiment)
    return experiment


def require_plan(uri: str) -> dict[str, Any]:
    """plan.json of the experiment at `uri`; raises the same errors as `read_experiment`."""
    place = join(uri, NAME)
    plan = read_plan(uri)
    if plan is None:
        raise InputError(f"{place}: no plan here, so this is not an experiment folder (or nothing has been planned yet)")
    lacking = [key for key in ("experiment", "root", "arms", "seeds", "pairs", "triplets") if key not in plan]
    if lacking:
        raise InputError(f"{place}: not an experiment's plan: {', '.join(lacking)} missing")
    return plan


def _read_data(experiment: Experiment) -> None:
    """The manifests that the plan names. If one is missing, the page loses pictures and attribution, but not the comparison."""
    for name in ("pairs", "triplets"):
        place = experiment.plan[name]
        setattr(experiment, name, _manifest(experiment, place["uri"], place["identity"], place.get("manifest_sha256", "")))
    if experiment.pairs is None:
        return
    planned = experiment.plan["pairs"]
    places = staged_sets(planned["uri"], experiment.pairs, tuple(planned.get("evaluation_sha256", ())))
    for entry, data in zip(experiment.pairs.evaluation, places, strict=True):
        manifest = _manifest(experiment, data.uri, data.identity, data.manifest_sha256)
        if manifest is not None:
            experiment.evaluation_sets[entry["name"]] = (data.uri, manifest)


def _manifest(experiment: Experiment, uri: str, identity: str, pin: str) -> Manifest | None:
    try:
        return require_manifest(uri, identity, pin)
    except (InputError, RunError) as error:
        experiment.exclude(uri, str(error).removeprefix(f"{uri}: ").removeprefix(f"{uri}/"), damaged=True)
        return None


def _read_cell(experiment: Experiment, entry: dict[str, Any]) -> Cell:
    """One cell of the plan; an error says why it cannot be compared."""
    stages = {name: read_run(experiment, entry, name) for name in STAGES if entry.get(name)}
    if "contrastive" not in stages:
        raise InputError("its plan has no contrastive stage")
    data = stages["contrastive"].config.data.identity
    if data != experiment.plan["pairs"]["identity"]:
        raise InputError(f"trained on pairs {data[:12]}, but the plan says {experiment.plan['pairs']['identity'][:12]}: rejected")
    seeds = {run.config.seed for run in stages.values()}
    if seeds != {entry["seed"]}:
        raise InputError(f"its stages have seeds {sorted(seeds)}, but the plan says {entry['seed']}: rejected")
    arm, point = _arm_of(stages, entry["arm"]), entry.get("point", "")
    cell = Cell(arm=arm, declared=entry["arm"], seed=entry["seed"], point=point, stages=stages, results=[])
    below = _read_results(experiment, cell, entry["evaluation"])
    figures = [result for result in cell.results if not result.task.startswith(LAYER)]
    final = [result for result in figures if result.stage == cell.final_stage and result.step is None]
    if not final:
        raise InputError(f"its {cell.final_stage} model is finished but has no evaluation that can be compared")
    _name_lacking(experiment, cell, entry["evaluation"], below)
    return cell


def _arm_of(stages: dict[str, StageRun], declared: str) -> str:
    """What the configuration says the arm is: its start, and the labels its tower learnt from.

    A combination that this version has no arm for keeps the name that the plan gives it, unless that name belongs to another arm.
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


def _read_results(experiment: Experiment, cell: Cell, folder: str) -> set[str]:
    """Every evaluation below the cell's folder that belongs to its models; returns the names of everything found there."""
    try:
        below = {info.uri.removeprefix(folder.rstrip("/") + "/") for info in open_store(folder).list(folder)}
    except MissingObject:
        below = set()
    for name in sorted(below):
        if not name.endswith(".json") or name.count("/") != 1:
            continue  # results are in <stage>-<when>/; anything outside those folders is not a result
        place = join(folder, name)
        try:
            cell.results.append(_result(experiment, cell, place, read_figures(place)))
        except (InputError, RunError) as error:
            experiment.exclude(place, str(error).removeprefix(f"{place}: "), damaged=isinstance(error, RunError))
    return below


def _result(experiment: Experiment, cell: Cell, uri: str, value: dict[str, Any]) -> Result:
    """Figures as a result of the cell. InputError: they match nothing in the cell; Corrupt: not what should be here."""
    facts = value["firstsight"]
    try:
        result = Result(
            arm=cell.arm,
            seed=int(facts["seed"]),
            stage=str(facts["stage"]),
            step=None if facts["step"] in ("final", None) else int(facts["step"]),
            dataset=str(value["dataset"]),
            task=str(value["task"]),
            metrics=_numbers(value["metrics"]),
            facts={**facts, **{key: _numbers(facts.get(key) or {}) for key in ("chance", "baselines")}},
            items_uri=items_uri(uri),
        )
        belongs = (facts["arm"], facts["seed"]) == (cell.declared, cell.seed)
        identity, _, _ = facts["dataset_identity"], facts["evaluation_version"], int(facts.get("num_items") or 0)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise Corrupt(f"not a firstsight evaluation: {type(error).__name__} {error}") from error
    if result.stage != "untrained" and result.stage not in cell.stages:
        raise InputError(f"this cell has no {result.stage} stage")
    if not belongs:
        raise Corrupt(f"it measures {facts['arm']} seed {facts['seed']}, which is not this cell")
    when = "final" if result.step is None else result.step
    if not uri.endswith(own := f"/{result.stage}-{when}/{result.dataset}_{result.task}.json"):
        raise Corrupt(f"it is a copy of a file that belongs at {own.removeprefix('/')}")
    broken = [name for name, figure in result.metrics.items() if figure is not None and not math.isfinite(figure)]
    if broken or not any(figure is not None for figure in result.metrics.values()):
        raise Corrupt(f"{', '.join(broken) or 'no metric'} is not a finite number")
    _check_model(cell, result)
    planned = _planned_identity(experiment, result)
    if planned and identity != planned:
        raise Corrupt(f"measured on data set {str(identity)[:12]}, but the plan says {planned[:12]}")
    return result


def _numbers(figures: dict[str, Any]) -> dict[str, float | None]:
    return {name: None if figure is None else float(figure) for name, figure in figures.items()}


def _check_model(cell: Cell, result: Result) -> None:
    """The model that was measured must be the one that the stage sealed; the untrained one has the cell's sizes and seed."""
    recipe = str(result.facts.get("recipe_hash"))
    if result.stage == "untrained":
        if recipe != untrained_hash(cell.stages["contrastive"].config.model, cell.seed):
            raise Corrupt(f"recipe {recipe[:12]} is not that of the untrained model")
        return
    run = cell.stages[result.stage]
    if recipe != run.committed.recipe_hash:
        raise Corrupt(f"recipe {recipe[:12]} is not that of the {result.stage} stage")
    weights = str(result.facts.get("weights_sha256"))
    if result.step is None and run.weights and weights not in run.weights:
        raise Corrupt(f"model {weights[:12]} is not the {result.stage} stage's final one")


def _planned_identity(experiment: Experiment, result: Result) -> str:
    if result.task == "2afc":
        return str(experiment.plan["triplets"]["identity"])
    staged = experiment.pairs.evaluation if experiment.pairs else []
    return next((str(entry["identity"]) for entry in staged if entry["name"] == result.dataset), "")


def _name_lacking(experiment: Experiment, cell: Cell, folder: str, below: set[str]) -> None:
    """Name the results missing for the cell's models: its final model, and every other model that has some results."""
    staged = [(str(entry["name"]), str(entry["task"])) for entry in (experiment.pairs.evaluation if experiment.pairs else [])]
    triplets = experiment.triplets
    staged += [(f"{triplets.name}-{split}", "2afc") for split in ("val", "test") if triplets.split(split)] if triplets else []
    models = {name.partition("/")[0] for name in below if name.count("/") == 1} | {f"{cell.final_stage}-final"}
    for model in sorted(models):
        for dataset, task in staged:
            name = f"{model}/{dataset}_{task}.json"
            if name not in below and (task == "2afc" or not model.startswith("perceptual-")):  # a tower reads no text
                experiment.exclude(join(folder, name), "missing: not measured, or lost")


def _one_version(experiment: Experiment) -> None:
    """Keep results of one evaluation version and, set by set, of one identity, whichever is most common, and name the others."""
    results = [result for cell in experiment.cells for result in cell.results]
    if not results:
        return
    version = _most_common([str(result.facts["evaluation_version"]) for result in results])
    identities: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
    for result in results:
        for what in _BASIS:
            identities[result.dataset, result.task, what].append(str(result.facts.get(what, "")))
    common = {key: _most_common(values) for key, values in identities.items()}
    kept = []
    for cell in experiment.cells:
        good = []
        for result in cell.results:
            if str(result.facts["evaluation_version"]) != version:
                why = f"evaluation version {result.facts['evaluation_version']}, but the others have {version}"
                experiment.exclude(result.items_uri.replace(".items.npz", ".json"), why)
            elif differing := [
                f"{words} {found[:12]}, but the others have {usual[:12]}"
                for what, words in _BASIS.items()
                if (found := str(result.facts.get(what, ""))) != (usual := common[result.dataset, result.task, what])
            ]:
                experiment.exclude(result.items_uri.replace(".items.npz", ".json"), differing[0])
            else:
                good.append(result)
        layers = [result for result in good if result.task.startswith(LAYER)]
        kept.append(replace(cell, results=[result for result in good if result not in layers], layers=layers))
    experiment.cells, experiment.version = kept, version


def _most_common(values: list[str]) -> str:
    return collections.Counter(values).most_common(1)[0][0]


def _failure(experiment: Experiment, entry: dict[str, Any]) -> str:
    """The failure that a missing cell's stages left, which is listed too; empty if there is none."""
    for name in (*STAGES, "evaluation"):
        failure = read_failure(entry[name]) if entry.get(name) else None
        if failure is None or (name != "evaluation" and _is_sealed(entry[name])):
            continue  # no failure, or a later attempt finished it
        record = {"cell": entry["cell"], "stage": name, "line": failure.line, "exit_code": failure.exit_code, "time": failure.time}
        if record not in experiment.failures:
            experiment.failures.append(record)
        return f"{name} failed: {failure.line}"
    return ""


def _is_sealed(uri: str) -> bool:
    try:
        return read_committed(layout.final(uri)) is not None
    except (InputError, RunError):
        return True  # or it was: the problem with the seal has already been reported
