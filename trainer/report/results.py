"""results.json: every figure of the page, and where it comes from. Its schema is results.schema.json."""

from collections.abc import Iterator, Sequence
from typing import Any

from trainer.arms import BASELINE, Arm, controls, registered
from trainer.config import Recipe
from trainer.configs.evaluation_sets import SETS
from trainer.errors import InputError
from trainer.labels import registered as kinds_of_labels
from trainer.report import axes, compare, course, families, trajectory
from trainer.report import items as per_item
from trainer.report.answer import answer
from trainer.report.experiment import Experiment
from trainer.report.pictures import attributions
from trainer.report.points import at_points
from trainer.report.representation import representation
from trainer.report.twins import twins
from trainer.storage.declarations import declared_endpoints

FORMAT_VERSION = 2
"""Format 2 is a document with a checksum (`storage.documents`) and records whether each left-out item is damaged."""


def subject_of(arms: Sequence[str]) -> str:
    """The arm that the page is about: perceptual, else the first that is not the baseline."""
    return next((arm for arm in ("perceptual", *arms) if arm in arms and arm != BASELINE), "perceptual")


def build(experiment: Experiment, others: Sequence[Experiment]) -> tuple[dict[str, Any], compare.Scores]:
    """All figures of one experiment, and of those set beside it."""
    whole, point = experiment, axes.reference(experiment)
    experiment = whole.at(point.cells)
    scores = compare.Scores(experiment)
    sets, named = compare.find_sets(scores), declared_endpoints(whole.plan.get("declared", []))
    endpoints = compare.declared_endpoints(sets, named)
    for name in named if sets else ():
        if name not in [endpoint.name for endpoint in endpoints] and not (name == "mean_zero_shot" and endpoints):
            experiment.exclude(f"endpoint {name}", "declared, but not measured")
    along = axes.Along(whole, endpoints)
    contrasts = compare.contrasts(scores, endpoints)
    set_rows = compare.per_set(scores, sets)
    followed = course.through_time(scores, endpoints)
    judge = experiment.triplets.judge if experiment.triplets else ""
    results = {
        "format_version": FORMAT_VERSION,
        "experiment": experiment.name,
        "uri": experiment.uri,
        "own_data": experiment.has_own_pairs,
        "recipe": ", ".join(dict.fromkeys(str(recipe.get("name", "")) for recipe in experiment.plan["recipes"].values())),
        "evaluation_version": experiment.version,
        "judge": judge,
        "answer": answer(contrasts, subject_of(experiment.arms), judge),
        "point": {"point": point.name, "at": dict(point.at), "cells": dict(point.cells)},
        "axes": along.curves(),
        "tests": along.tests(),
        "declared": axes.declared_of(whole),
        "arms": [{"arm": arm, "meaning": _meaning(experiment, arm), "seeds": scores.seeds(arm)} for arm in experiment.arms],
        "endpoints": [_endpoint(scores, endpoint) for endpoint in endpoints],
        "beside": {endpoint.name: _beside(scores, endpoint) for endpoint in endpoints},
        "test_sets": _test_sets(experiment),
        "scores": _scores(scores, endpoints),
        "contrasts": contrasts,
        "sets": set_rows,
        "metrics": _metrics(whole),
        "field_sets": _field_sets(sets),
        "families": families.families(scores, sets),
        "expectations": families.expectations(experiment, scores, sets),
        "sign_tests": compare.signs(set_rows),
        "two_afc": course.two_afc_rows(experiment),
        "twins": twins(experiment, sets),
        "representation": representation(scores, set_rows),
        "through_time": followed,
        "trajectory": trajectory.trajectory(scores, endpoints, followed),
        "at_points": at_points(whole, point, endpoints),
        "stages": course.stage_rows(whole),
        "efficiency": course.efficiency(scores, endpoints, followed),
        "comparison": _comparison(scores, endpoints, others),
        "missing": experiment.missing,
        "failures": experiment.failures,
        "excluded": experiment.excluded,
        "data": _data(experiment),
        "lineage": _lineage(whole),
        "attributions": attributions(experiment),
    }
    results |= {"as_of": "", "limits": limits(experiment, results)}  # the time is filled in by whoever writes the page
    results["summary"] = summary(results)
    return results, scores


def require_comparable(experiment: Experiment, others: Sequence[Experiment]) -> None:
    """Reject experiments on different data or measured differently.

    Raises:
        InputError: naming what differs and where.
    """
    for other in others:
        for what in ("pairs", "triplets"):
            ours, theirs = experiment.plan[what]["identity"], other.plan[what]["identity"]
            if ours != theirs:
                rule = "runs on different data are not compared"
                raise InputError(f"{other.uri}: its {what} are {theirs[:12]}, but those of {experiment.name} are {ours[:12]}: {rule}")
        if experiment.version and other.version and experiment.version != other.version:
            raise InputError(
                f"{other.uri}: evaluation version {other.version}, but {experiment.name} has {experiment.version}: not compared"
            )
        identities = _identities(experiment)
        for key, identity in _identities(other).items():
            if identities.get(key, identity) != identity:
                raise InputError(
                    f"{other.uri}: {key[0]} is {identity[:12]} there and {identities[key][:12]} in {experiment.name}: not compared"
                )
    names = [e.name for e in (experiment, *others)]
    if len({e.uri for e in (experiment, *others)}) != len(names):
        raise InputError(f"report --compare must name different experiments, got {', '.join(names)}")


def _meaning(experiment: Experiment, arm: str) -> str:
    """What an arm is, in words; one that starts from a foreign tower names it; for one unknown to this version, what can be derived."""
    if arm in registered():
        return registered()[arm].meaning
    stages = next(cell for cell in experiment.cells if cell.arm == arm).stages
    start = stages["contrastive"].config.start
    if "posthoc" in stages:
        return f"fine-tuned after the contrastive stage on {_trained_on(stages['posthoc'].config.labels)}"
    if arm.startswith("from-") or "perceptual" not in stages:
        return f"the vision tower starts from {start.uri}" if start.kind == "tower" else f"starts from {start.kind} weights"
    how = "" if start.kind == "tower" else f"; stage 2 starts from it with method {start.kind!r}"
    return f"the vision tower was first trained on {_trained_on(stages['perceptual'].config.labels)}{how}"


def _trained_on(labels: str) -> str:
    known = kinds_of_labels().get(labels)
    return known.says if known else f"labels {labels!r}, which this version of firstsight does not know"


def _identities(experiment: Experiment) -> dict[tuple[str, str], str]:
    return {(r.dataset, r.task): str(r.facts["dataset_identity"]) for cell in experiment.cells for r in cell.results}


def _endpoint(scores: compare.Scores, endpoint: compare.Endpoint) -> dict[str, Any]:
    sets = [{"dataset": s.dataset, "task": s.task, "metric": s.metric, "num_items": s.num_items} for s in endpoint.sets]
    return {
        "name": endpoint.name,
        "label": endpoint.label,
        "chance": scores.chance(endpoint),
        "one_item": endpoint.resolution,
        "sets": sets,
    }


def _beside(scores: compare.Scores, endpoint: compare.Endpoint) -> dict[str, Any]:
    """What is needed to interpret an endpoint: sample sizes, the highest score any model can reach, baselines that need no training."""
    return {"n": endpoint.counted, "ceiling": scores.ceiling(endpoint), "baselines": scores.baselines(endpoint)}


def _test_sets(experiment: Experiment) -> dict[str, Any]:
    """The same for each set, keyed by `<dataset>_<task>` and metric."""
    found: dict[str, Any] = {}
    for result in (result for cell in experiment.cells for result in cell.results):
        sizes = per_item.sizes(result)
        found.setdefault(
            f"{result.dataset}_{result.task}",
            {
                "n": per_item.counted(sizes),
                "sizes": sizes,
                "ceiling": {name: per_item.ceiling(result, name) for name in result.metrics},
                "baselines": {name: per_item.baselines(result, name) for name in result.metrics},
            },
        )
    return found


def _scores(scores: compare.Scores, endpoints: Sequence[compare.Endpoint]) -> list[dict[str, Any]]:
    """Every finished cell on every endpoint; a cell that lacks a set is named, since its mean would be a different quantity."""
    rows = []
    for (arm, seed), finals in scores.results.items():
        for endpoint in endpoints:
            value = scores.value(arm, seed, endpoint)
            if value is None:
                lacking = ", ".join(s.dataset for s in endpoint.sets if s.key not in finals)
                scores.experiment.exclude(
                    f"{arm}, seed {seed}: {endpoint.label}", f"no figure on {lacking}, so it is left out of this endpoint"
                )
            else:
                rows.append({"arm": arm, "seed": seed, "endpoint": endpoint.name, "value": value})
    return rows


def _field_sets(sets: Sequence[compare.TestSet]) -> dict[str, Any]:
    """Which of the 29 zero-shot sets that the paper reports were measured, and which were not staged."""
    measured = {test_set.dataset for test_set in sets}
    counted = [known for known in SETS if known.counted]
    return {
        "counted": len(counted),
        "measured": [known.title for known in counted if known.name in measured],
        "not_staged": [known.title for known in counted if known.name not in measured],
    }


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The short table that the command line prints verbatim: every finished cell on every endpoint."""
    columns = ["Arm", "Seed"]
    for endpoint in results["endpoints"]:
        chance = "" if endpoint["chance"] is None else f", chance {100 * endpoint['chance']:.1f} %"
        columns.append(f"{endpoint['label']} ({results['beside'][endpoint['name']]['n']}{chance})")
    rows = []
    for arm in results["arms"]:
        for seed in arm["seeds"]:
            found = {row["endpoint"]: row["value"] for row in results["scores"] if (row["arm"], row["seed"]) == (arm["arm"], seed)}
            rows.append(
                [arm["arm"], str(seed), *(f"{100 * found[e['name']]:.1f} %" if e["name"] in found else "–" for e in results["endpoints"])]
            )
    notes = [f"The page is {results['as_of']}."] if results["as_of"] else []
    for endpoint in results["endpoints"]:
        found = results["beside"][endpoint["name"]]["baselines"]
        if endpoint["name"] == "2afc" and found:
            beside = ", ".join(f"{name} {100 * value:.1f} %" for name, value in found.items())
            notes.append(f"2AFC of baselines without training: {beside}.")
    notes += [f"Declared test {line}." for line in axes.said(results["tests"])]
    notes += [row["says"] for row in results["twins"].values() if row["says"]]
    if results["judge"] == "FLIP":
        notes.append("The triplets were judged by FLIP, a model of human vision, not by people.")
    notes += [f"missing: {row['cell']}: {row['why']}" for row in results["missing"]]
    notes += [f"left out, damaged: {row['what']}: {row['why']}" for row in results["excluded"] if row["damaged"]]
    return {"sentence": results["answer"]["sentence"], "columns": columns, "rows": rows, "notes": notes}


def _metrics(experiment: Experiment) -> list[dict[str, Any]]:
    """Every metric of every evaluation, with its chance level."""
    rows = []
    for cell in experiment.cells:
        for result in cell.results:
            for name, value in result.metrics.items():
                rows.append(
                    {
                        "arm": cell.arm,
                        "point": cell.point,
                        "seed": cell.seed,
                        "stage": result.stage,
                        "step": result.step,
                        "dataset": result.dataset,
                        "task": result.task,
                        "metric": name,
                        "value": value,
                        "chance": per_item.chance(result, name),
                        "num_items": result.facts.get("num_items"),
                        "final": result.stage == cell.final_stage and result.step is None,
                    }
                )
    return rows


def _comparison(scores: compare.Scores, endpoints: Sequence[compare.Endpoint], others: Sequence[Experiment]) -> list[dict[str, Any]]:
    """Each further experiment's arms minus the same arms of this one, paired by seed."""
    rows = []
    names = [experiment.name for experiment in (scores.experiment, *others)]
    for other in others:
        called = other.name if names.count(other.name) == 1 else other.uri
        both = compare.Scores(scores.experiment)
        theirs = compare.Scores(other.at(axes.reference(other).cells))
        for (arm, seed), finals in theirs.results.items():
            both.results[f"{arm} in {called}", seed] = finals
        for arm in dict.fromkeys(arm for arm, _ in theirs.results):
            for endpoint in endpoints:
                row = compare.contrast(both, f"{arm} in {called}", arm, endpoint)
                if row:
                    rows.append({**row, "experiment": called})
    return rows


def _data(experiment: Experiment) -> list[dict[str, Any]]:
    named: list[tuple[str, str, Any]] = [
        (what, experiment.plan[what]["uri"], manifest)
        for what, manifest in (("pairs", experiment.pairs), ("triplets", experiment.triplets))
    ]
    named += [("evaluation set", folder, manifest) for folder, manifest in experiment.evaluation_sets.values()]
    rows = []
    for what, uri, manifest in named:
        if manifest is None:
            rows.append(
                {
                    "what": what,
                    "name": "",
                    "uri": uri,
                    "identity": experiment.plan[what]["identity"],
                    "judge": "",
                    "shards": [],
                    "rows": {},
                    "plan_id": "",
                }
            )
            continue
        shards = [
            {"name": s.name, "split": s.split, "num_samples": s.num_samples, "size": s.size, "sha256": s.sha256} for s in manifest.shards
        ]
        rows.append(
            {
                "what": what,
                "name": manifest.name,
                "uri": uri,
                "identity": manifest.identity,
                "plan_id": manifest.plan_id,
                "judge": manifest.judge,
                "rows": manifest.rows,
                "shards": shards,
            }
        )
    return rows


def _lineage(experiment: Experiment) -> list[dict[str, Any]]:
    rows = []
    for cell, name, run in course.own_stages(experiment):
        lineage = run.lineage
        rows.append(
            {
                "arm": cell.arm,
                "point": cell.point,
                "seed": cell.seed,
                "stage": name,
                "uri": run.uri,
                "request": lineage.get("request") or "",
                "recipe_hash": run.committed.recipe_hash,
                "start": {**(lineage.get("start") or {}), "kind": run.config.start.kind},
                "labels": run.config.labels if name != "contrastive" else "",
                "data": lineage.get("data") or {},
                "weights_sha256": lineage.get("weights_sha256"),
                "vision_sha256": lineage.get("vision_sha256"),
                "code": lineage.get("code") or {},
                "image_digest": lineage.get("image_digest") or "",
                "torch": lineage.get("torch"),
                "created": lineage.get("created"),
                "files": {file: facts.get("sha256") for file, facts in run.committed.files.items()},
            }
        )
    return rows


def limits(experiment: Experiment, results: dict[str, Any]) -> list[str]:
    """What the numbers do not show, given what was and was not run."""
    subject = results["answer"]["subject"]
    counts = [len(row["seeds"]) for row in results["contrasts"] if row["arm"] == subject and row["against"] == BASELINE]
    said = []
    if counts and max(counts) == 1:
        said.append(
            "One seed: the intervals cover the sampling of test items only. Two runs that differ only in their random start "
            "would differ too, and a single pair cannot tell such a difference from an effect. Run SEEDS=0,1,2 for a test."
        )
    elif counts:
        said.append(
            f"{max(counts)} seeds: the intervals over seeds cover the variation between seeds on these test items; those over items "
            "cover the sampling of items for these models. Neither covers both. A few seeds can show only large effects: 'not shown' is "
            "not 'absent'."
        )
    if experiment.triplets and experiment.triplets.judge == "FLIP":
        said.append(
            "The triplets were judged by FLIP, a model of human vision, and not by people. Agreement with FLIP is not agreement with "
            "people; pixel MSE and the untrained tower are given with every 2AFC score because both already agree with FLIP to some degree."
        )
    lacking = [f"{arm.name} ({arm.control})" for arm in _possible_controls(results["judge"]) if arm.name not in experiment.arms]
    if subject == "perceptual" and lacking:
        said.append(
            f"Controls not run: {'; '.join(lacking)}. Without them 'perceptual beats random' is not yet 'perception beats any warm-up'."
        )
    said += _small_model(experiment)
    plain = [name for name, (_, manifest) in experiment.evaluation_sets.items() if manifest.facts.get("prompts") == "plain"]
    if plain:
        said.append(f"Plain prompts were used on {', '.join(plain)}: these figures are not comparable with published ones.")
    if results["sets"]:
        said.append("Intervals for single sets are descriptive: sets are correlated, and only the declared endpoints are adjusted (Holm).")
    shares = [row["stage_1_share_of_flops"] for row in results["efficiency"] if row["stage_1_share_of_flops"] is not None]
    extra = f" ({100 * max(shares):.1f} % of its arm's training FLOPs)" if shares else ""
    if counts:
        said.append(
            f"The arms share their hyperparameters, which were tuned for none of them. Stage 1 is extra compute{extra} that the baseline "
            "does not get."
        )
    if experiment.missing:
        number = len(experiment.missing)
        which = "1 planned cell is missing" if number == 1 else f"{number} planned cells are missing"
        said.append(f"{which} (listed above); their results are unknown.")
    return said


def _possible_controls(judge: str) -> Iterator[Arm]:
    """All controls except those whose labels cannot be made from these triplets."""
    return (arm for arm in controls() if not arm.labels or not kinds_of_labels()[arm.labels].refusal(judge))


def _small_model(experiment: Experiment) -> list[str]:
    models = {cell.stages["contrastive"].config.model for cell in experiment.cells}
    largest, paper = max(models, key=lambda model: model.vision_width, default=Recipe().model), Recipe().model
    if any(model.open_clip_name for model in models) or largest.vision_width >= paper.vision_width:
        return []
    return [
        f"The model is small (vision width {largest.vision_width}, {largest.image_size} px; the paper's is {paper.vision_width} wide at "
        f"{paper.image_size} px), and so are the data: these results need not hold for ViT-B/32 on YFCC15M, nor the reverse."
    ]
