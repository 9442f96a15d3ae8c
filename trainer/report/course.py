"""How training went and what it cost: curves, throughput, 2AFC by stage, scores over training, efficiency."""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

from trainer.arms import BASELINE
from trainer.report import items as per_item
from trainer.report.compare import Endpoint, Scores
from trainer.report.experiment import Cell, Experiment, Result, StageRun
from trainer.report.figures import Curve

STAGES = ("untrained", "perceptual", "contrastive", "posthoc")


def own_stages(experiment: Experiment) -> list[tuple[Cell, str, StageRun]]:
    """Every stage run, listed once under the first arm that has it (arms share towers; posthoc shares the baseline's model)."""
    seen: set[str] = set()
    runs = []
    for cell in sorted(
        experiment.cells, key=lambda cell: (cell.final_stage == "posthoc", cell.stages["contrastive"].config.start.kind == "permuted")
    ):
        for name, run in cell.stages.items():
            if run.uri not in seen:
                seen.add(run.uri)
                runs.append((cell, name, run))
    return sorted(runs, key=lambda entry: (STAGES.index(entry[1]), experiment.arms.index(entry[0].arm), entry[0].seed))


def stage_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """Throughput and cost of every stage run: JSON, with None if a run recorded nothing."""
    rows = []
    for cell, name, run in own_stages(experiment):
        facts, last = run.committed.facts, run.progress[-1] if run.progress else {}
        rows.append(
            {
                "stage": name,
                "arm": cell.arm,
                "point": cell.point,
                "seed": cell.seed,
                "device": run.lineage.get("device"),
                "world_size": run.lineage.get("world_size"),
                "threads": run.lineage.get("threads"),
                "steps": run.committed.step,
                "seconds": _first(facts.get("seconds"), run.lineage.get("seconds")),
                "samples_per_second": _first(facts.get("samples_per_second"), _median(run, "samples_per_second")),
                "data_wait_fraction": _wait(run),
                "final_loss": last.get("loss"),
                "flops": facts.get("flops"),
                "feature_rank": facts.get("feature_rank"),
            }
        )
    return rows


def loss_curves(experiment: Experiment, stage: str, figure: str) -> dict[str, list[Curve]]:
    """Arm -> one curve per seed: a value from progress.jsonl against the epoch."""
    series: dict[str, list[Curve]] = defaultdict(list)
    for cell, name, run in own_stages(experiment):
        if name != stage:
            continue
        points = [
            (run.epochs * p["step"] / (p.get("steps") or run.committed.step), p[figure]) for p in run.progress if _number(p.get(figure))
        ]
        if points:
            series[cell.arm].append(([x for x, _ in points], [y for _, y in points]))
    return dict(series)


def two_afc_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """2AFC of every final model, tower and untrained model, with the scores of chance and pixel MSE on the same triplets."""
    rows = []
    for cell in experiment.cells:
        for result in cell.results:
            if result.task != "2afc" or result.step is not None:
                continue
            figure = result.metrics.get("accuracy")
            if figure is None:
                continue
            rows.append(
                {
                    "arm": cell.arm,
                    "seed": cell.seed,
                    "stage": result.stage,
                    "dataset": result.dataset,
                    "accuracy": figure,
                    "groups": {
                        name.removeprefix("accuracy_"): value for name, value in result.metrics.items() if name.startswith("accuracy_")
                    },
                    "chance": per_item.chance(result, "accuracy"),
                    "pixel_mse": (result.facts.get("baselines") or {}).get("pixel_mse"),
                    "judge": result.facts.get("judge") or "",
                    "feature_rank": result.facts.get("feature_rank"),
                }
            )
    order = experiment.arms
    return sorted(
        rows, key=lambda r: (not r["dataset"].endswith("-test"), r["dataset"], STAGES.index(r["stage"]), order.index(r["arm"]), r["seed"])
    )


def through_time(scores: Scores, endpoints: Sequence[Endpoint]) -> list[dict[str, Any]]:
    """Endpoints at every evaluated checkpoint of the contrastive stage, and at its end; [] where no checkpoint was evaluated."""
    rows = []
    for cell in scores.experiment.cells:
        run = cell.stages["contrastive"]
        settings = run.config.contrastive
        by_step: dict[int, dict[tuple[str, str], Result]] = defaultdict(dict)
        for result in cell.results:
            if result.stage == "contrastive":
                by_step[run.committed.step if result.step is None else result.step][result.dataset, result.task] = result
        if len(by_step) < 2 or settings is None:
            continue
        for step, results in sorted(by_step.items()):
            for endpoint in endpoints:
                figures = [per_item.score(results[s.key], s.metric) for s in endpoint.sets if s.key in results]
                known = [figure for figure in figures if figure is not None]
                if len(known) == len(endpoint.sets):
                    epoch = run.epochs * step / run.committed.step
                    whose = {"endpoint": endpoint.name, "arm": cell.arm, "seed": cell.seed}
                    seen = settings.global_batch_size * step
                    rows.append({**whose, "step": step, "epoch": epoch, "samples": seen, "value": sum(known) / len(known)})
    return rows


def efficiency(scores: Scores, endpoints: Sequence[Endpoint], course: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each arm cost, and how long it took to reach the baseline's final score on the first endpoint.

    Device-hours are wall hours times ranks, stage 1 included. Nothing is interpolated between two evaluated
    checkpoints: the first one at or above the baseline's final figure counts.
    """
    rows = []
    for cell in scores.experiment.cells:
        contrastive = cell.stages["contrastive"]
        first = sum(_device_hours(cell.stages[name]) or 0.0 for name in ("perceptual",) if name in cell.stages)
        second = _device_hours(contrastive)
        flops = {name: float(run.committed.facts.get("flops") or 0) for name, run in cell.stages.items()}
        share = None
        if cell.final_stage == "contrastive" and "perceptual" in flops and all(flops.values()):
            share = flops["perceptual"] / sum(flops.values())
        target = scores.value(BASELINE, cell.seed, endpoints[0]) if endpoints else None
        points = [r for r in course if (r["arm"], r["seed"]) == (cell.arm, cell.seed) and r["endpoint"] == endpoints[0].name]
        reached = next((r for r in points if target is not None and r["value"] >= target), None)
        hours = first + second * reached["step"] / contrastive.committed.step if reached and second is not None else None
        rows.append(
            {
                "arm": cell.arm,
                "seed": cell.seed,
                "stage_1_device_hours": first,
                "stage_2_device_hours": second,
                "stage_1_share_of_flops": share,
                "endpoint": endpoints[0].name if endpoints else None,
                "baseline_final": target,
                "followed_through_time": bool(points),
                "device_hours_to_baseline_final": hours,
                "epoch_of_baseline_final": reached["epoch"] if reached else None,
            }
        )
    return rows


def _device_hours(run: StageRun) -> float | None:
    seconds = _first(run.committed.facts.get("seconds"), run.lineage.get("seconds"))
    return None if seconds is None else seconds * int(run.lineage.get("world_size") or 1) / 3600


def _wait(run: StageRun) -> float | None:
    pairs = [
        (p["data_wait_seconds"], p["step_seconds"])
        for p in run.progress
        if _number(p.get("data_wait_seconds")) and _number(p.get("step_seconds"))
    ]
    total = sum(step for _, step in pairs)
    return sum(wait for wait, _ in pairs) / total if total else None


def _median(run: StageRun, name: str) -> float | None:
    values = [p[name] for p in run.progress if _number(p.get(name))]
    return median(values) if values else None


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
