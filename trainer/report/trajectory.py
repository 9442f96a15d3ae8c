"""Stage 2 over training, from the weights kept per epoch: paired differences, onset, power laws, and how much of the prior remains.

Definitions are in docs/EVALUATION.md. Moments are paired by samples seen, so that arms are compared after the same work.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trainer.config import kept_epochs
from trainer.errors import Corrupt, InputError
from trainer.report import compare
from trainer.report import items as per_item
from trainer.report.experiment import Cell, Experiment
from trainer.report.statistics import paired_t
from trainer.storage import layout
from trainer.storage.committed import read_committed

MIN_POINTS = 3
"""Minimum number of points for a power law: any two points fit one exactly."""
Rows = list[dict[str, Any]]


def trajectory(scores: compare.Scores, endpoints: Sequence[compare.Endpoint], followed: Rows) -> dict[str, Rows]:
    """Everything the report says about moments of stage 2.

    Args:
        scores: the final models' scores.
        endpoints: the declared endpoints.
        followed: rows of `course.through_time`.

    Returns:
        JSON: "differences" (each arm minus another at each moment), "onsets", "power_laws", "survival", "lacking" (epochs whose
        weights should have been kept and measured, and were not); each empty if there is nothing to say.
    """
    differences = _differences(scores, endpoints)
    return {
        "differences": differences,
        "onsets": _onsets(differences),
        "power_laws": _power_laws(followed, endpoints),
        "survival": _survival(scores, endpoints, followed),
        "lacking": _lacking(scores.experiment),
    }


def samples_seen(cell: Cell, step: int | None) -> int:
    """Pairs that the contrastive stage has seen after a step; None: after its last."""
    run = cell.stages["contrastive"]
    assert run.config.contrastive is not None, "a contrastive stage has its settings"
    return run.config.contrastive.global_batch_size * (run.committed.step if step is None else step)


def epoch_of(cell: Cell, step: int | None) -> float:
    """Epoch of the contrastive stage after a step; None: its last."""
    run = cell.stages["contrastive"]
    return run.epochs * (1.0 if step is None else step / run.committed.step)


# ------------------------------------------------------------------------------------------------- differences


def _differences(scores: compare.Scores, endpoints: Sequence[compare.Endpoint]) -> Rows:
    """Every pair of arms on every endpoint at each moment that both have, with a 95 % interval over seeds, or with one seed, over items."""
    rows: Rows = []
    moments: dict[int, compare.Scores] = {}
    epochs: dict[int, float] = {}
    for cell in scores.experiment.cells:
        for result in cell.results:
            if result.stage == "contrastive":
                samples = samples_seen(cell, result.step)
                epochs.setdefault(samples, epoch_of(cell, result.step))
                moment = moments.setdefault(samples, scores.without_results())
                moment.results.setdefault((cell.arm, cell.seed), {})[result.dataset, result.task] = result
    for arm, against in compare.pairs_of_arms(scores.experiment.arms):
        for endpoint in endpoints:
            found = []
            for samples, moment in sorted(moments.items()):
                row = compare.contrast(moment, arm, against, endpoint, items_too=False)
                if row is not None:
                    kept = ("arm", "against", "endpoint", "label", "seeds", "differences", "mean", "low", "high", "over", "no_interval")
                    found.append({**{key: row[key] for key in kept}, "epoch": epochs[samples], "samples": samples})
            rows += found if len(found) > 1 else []
    return rows


# ------------------------------------------------------------------------------------------------------- onset


def _onsets(differences: Rows) -> Rows:
    groups: dict[tuple[str, str, str], Rows] = defaultdict(list)
    for row in differences:
        groups[row["arm"], row["against"], row["endpoint"]].append(row)
    return [
        {**{key: found[0][key] for key in ("arm", "against", "endpoint", "label", "over", "seeds")}, **onset(found)}
        for found in groups.values()
    ]


def onset(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The earliest moment after which the mean difference stays above 0 until the end.

    Args:
        rows: rows of one pair and endpoint, by samples seen: mean, low and high of the difference, epoch, samples.

    Returns:
        Its "epoch" and "samples" (None: not reached); "after": epoch of the preceding moment, at which it was not reached; "low" and
        "high": the interval of the epoch, from the earliest at which the upper end of the difference's interval stays above 0 to the
        earliest at which its lower end does (None: not reached).
    """
    at = _first_to_stay(rows, lambda row: bool(row["mean"] > 0))
    low = _first_to_stay(rows, lambda row: row["high"] is None or row["high"] > 0)
    high = _first_to_stay(rows, lambda row: row["low"] is not None and row["low"] > 0)
    return {
        "epoch": None if at is None else rows[at]["epoch"],
        "samples": None if at is None else rows[at]["samples"],
        "after": rows[at - 1]["epoch"] if at else None,
        "low": None if low is None else rows[low]["epoch"],
        "high": None if high is None else rows[high]["epoch"],
    }


def _first_to_stay(rows: Sequence[dict[str, Any]], holds: Callable[[dict[str, Any]], bool]) -> int | None:
    """Index of the first row from which all rows satisfy `holds`; None if the last one does not."""
    first = None
    for number in range(len(rows) - 1, -1, -1):
        if not holds(rows[number]):
            break
        first = number
    return first


# -------------------------------------------------------------------------------------------------- power laws


def _power_laws(followed: Rows, endpoints: Sequence[compare.Endpoint]) -> Rows:
    """Accuracy = a · samples^b, by arm; not for 2AFC, where an untrained tower already scores high."""
    rows = []
    for endpoint in endpoints:
        if endpoint.name == "2afc":
            continue
        own = [row for row in followed if row["endpoint"] == endpoint.name]
        for arm in dict.fromkeys(row["arm"] for row in own):
            fits, points = [], 0
            for seed in sorted({row["seed"] for row in own if row["arm"] == arm}):
                curve = [(r["samples"], r["value"]) for r in own if (r["arm"], r["seed"]) == (arm, seed)]
                fit = power_law([x for x, _ in curve], [y for _, y in curve])
                if fit is not None:
                    fits.append((seed, *fit))
                    points = max(points, sum(x > 0 and y > 0 for x, y in curve))
            if not fits:
                continue
            exponents = [fit[2] for fit in fits]
            interval = paired_t(exponents) if len(fits) > 1 else None
            rows.append(
                {
                    "endpoint": endpoint.name,
                    "label": endpoint.label,
                    "arm": arm,
                    "seeds": [fit[0] for fit in fits],
                    "points": points,
                    "scale": float(np.exp(np.mean([np.log(fit[1]) for fit in fits]))),
                    "exponents": exponents,
                    "exponent": float(np.mean(exponents)),
                    "low": interval.low if interval else None,
                    "high": interval.high if interval else None,
                    "r_squared": float(np.mean([fit[3] for fit in fits])),
                }
            )
    return rows


def power_law(samples: Sequence[float], values: Sequence[float]) -> tuple[float, float, float] | None:
    """A and b of value = a · samples^b, and R² of the fit: least squares on the logarithms of points where both are above 0.

    None if fewer than MIN_POINTS are left.
    """
    kept = [(x, y) for x, y in zip(samples, values, strict=True) if x > 0 and y > 0]
    if len(kept) < MIN_POINTS:
        return None
    x, y = np.log(np.array(kept, np.float64)).T
    slope, offset = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    left = float(((y - (slope * x + offset)) ** 2).sum())
    return float(np.exp(offset)), float(slope), 1.0 if spread == 0.0 else 1.0 - left / spread


# ---------------------------------------------------------------------------------------------------- survival


def _survival(scores: compare.Scores, endpoints: Sequence[compare.Endpoint], followed: Rows) -> Rows:
    """Cell by cell and moment by moment: 2AFC, how much of stage 1's gain remains, and how similar the tower is to its start."""
    endpoint = next((one for one in endpoints if one.name == "2afc"), None)
    if endpoint is None:
        return []
    rows = []
    for cell in scores.experiment.cells:
        untrained, tower = (_mean(scores.experiment, cell, endpoint, stage) for stage in ("untrained", "perceptual"))
        cosines = {
            samples_seen(cell, result.step): result.facts["start_cosine"]
            for result in cell.results
            if result.stage == "contrastive" and result.facts.get("start_cosine") is not None
        }
        for row in followed:
            if (row["arm"], row["seed"], row["endpoint"]) == (cell.arm, cell.seed, endpoint.name):
                kept = {key: row[key] for key in ("arm", "seed", "step", "epoch", "samples")}
                figures = {"accuracy": row["value"], "untrained": untrained, "tower": tower}
                left = retained(row["value"], untrained, tower)
                rows.append({**kept, **figures, "retained": left, "start_cosine": cosines.get(row["samples"])})
    return rows


def retained(accuracy: float | None, untrained: float | None, tower: float | None) -> float | None:
    """The share of stage 1's gain in 2AFC over the untrained tower that a model retains; None if there was no gain, or it is unknown."""
    if accuracy is None or untrained is None or tower is None or tower <= untrained:
        return None
    return (accuracy - untrained) / (tower - untrained)


def _mean(experiment: Experiment, cell: Cell, endpoint: compare.Endpoint, stage: str) -> float | None:
    """The endpoint of a stage's final model; for the untrained model, any cell of the seed has it."""
    cells = [cell, *(other for other in experiment.cells if other.seed == cell.seed and stage == "untrained")]
    for one in cells:
        found = {(r.dataset, r.task): r for r in one.results if r.stage == stage and r.step is None}
        figures = [per_item.score(found[s.key], s.metric) for s in endpoint.sets if s.key in found]
        known = [figure for figure in figures if figure is not None]
        if len(known) == len(endpoint.sets):
            return sum(known) / len(known)
    return None


# ----------------------------------------------------------------------------------------------------- lacking


def _lacking(experiment: Experiment) -> Rows:
    """Epochs of finished cells whose weights the recipe requests but that have no results, and why."""
    rows = []
    for cell in experiment.cells:
        entry = next(
            (e for e in experiment.plan["cells"] if (e["arm"], e["seed"], e.get("point", "")) == (cell.declared, cell.seed, cell.point)),
            None,
        )
        run = cell.stages["contrastive"]
        recipe = (experiment.plan.get("recipes") or {}).get((entry or {}).get("recipe"), {})
        asked = recipe.get("evaluation", {})
        fixed = run.config.contrastive is not None and run.config.contrastive.samples_seen
        if cell.final_stage != "contrastive" or (fixed and not run.progress):  # the length of an epoch is then unknown
            continue
        per_epoch = max(round(run.committed.step / run.epochs), 1)
        epochs = run.committed.step // per_epoch  # complete epochs, as training counts them
        measured = {result.step for result in cell.results if result.stage == "contrastive"}
        why: dict[str, list[int]] = defaultdict(list)
        for epoch in kept_epochs(epochs, trajectory=bool(asked.get("trajectory")), every=int(asked.get("every_epochs") or 0)):
            step = epoch * per_epoch
            if step not in measured:
                why[_why_lacking(run.uri, step)].append(epoch)
        rows += [{"arm": cell.arm, "seed": cell.seed, "epochs": lacked, "why": reason} for reason, lacked in why.items()]
    return rows


def _why_lacking(stage_uri: str, step: int) -> str:
    try:
        seal = read_committed(layout.kept(stage_uri, step))
    except (InputError, Corrupt):
        return "damaged"
    return "not kept" if seal is None else "not measured"
