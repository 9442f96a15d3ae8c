"""Representation: how similar models are layer by layer, how well they agree with given RDMs, and what probes can read out of them.

Evaluation keeps the features of each final model's layers; between models of two cells CKA is computed here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer import similarity
from trainer.errors import Corrupt, InputError, RunError
from trainer.report import items as per_item
from trainer.report.compare import Scores, find_probes, pairs_of_arms, per_set
from trainer.report.experiment import Cell, Experiment, Result
from trainer.report.trajectory import epoch_of, samples_seen
from trainer.representation import CKA_START, CKA_TOWER, FEATURES, LAYER, OUTPUT, RSA
from trainer.storage import arrays

Rows = list[dict[str, Any]]
Features = tuple[list[str], NDArray[Any]]
"""Keys of N pictures, and (N, W)."""
START, TOWER = "start", "tower"


def representation(scores: Scores, sets: Rows) -> dict[str, Any]:
    """All representation results as JSON.

    Args:
        scores: the experiment's scores.
        sets: pairs of arms on every set, to compare the probes with.

    Returns:
        similarity: [{dataset, layer, pictures, arm, to, seeds, values, mean}], CKA of an arm's final model to the start (the untrained
        model), to a stage-1 tower (`tower`, or `tower of <arm>` where the arm has none) and to other arms' final models.
        rsa: [{dataset, layer, pictures (of the RDM), rdm, model, seeds, values, mean}].
        probes: rows as in `compare.per_set`, preceded by the zero-shot rows for the same sets.
        probe_scores: [{dataset, task, metric, model, stage, seeds, score}], untrained models and towers too.
        through_time: [{dataset, layer, figure, arm, seed, epoch, samples, value}] of arms that were measured at several moments of
        stage 2: CKA to start (`cka_start`) and to the own tower (`cka_tower`), and `rsa:<rdm>`.
    """
    probes = find_probes(scores)
    probed = {probe.dataset for probe in probes}
    beside = [row for row in sets if row["dataset"] in probed and row["task"] == "zeroshot_classification"]
    rows = [*beside, *per_set(scores, probes)]
    return {
        "similarity": _similarity(scores.experiment),
        "rsa": _rsa(scores.experiment),
        "probes": sorted(rows, key=lambda row: row["dataset"]),
        "probe_scores": _probe_scores(scores),
        "through_time": _through_time(scores.experiment),
    }


# ------------------------------------------------------------------------------------------------------------------ layers


def _layers(experiment: Experiment) -> list[tuple[str, str]]:
    """(data set, layer) of every final model's layers, in order; the output last."""
    found = {(result.dataset, result.task) for cell in experiment.cells for result in cell.layers}
    return sorted(found, key=lambda key: (key[0], key[1] == OUTPUT, key[1]))


def _final(cell: Cell, stage: str, dataset: str, layer: str) -> Result | None:
    return next((r for r in cell.layers if (r.stage, r.step, r.dataset, r.task) == (stage, None, dataset, layer)), None)


class _Layer:
    """One layer of all final models on one set: reads features once and releases them when it is released."""

    def __init__(self, experiment: Experiment, dataset: str, layer: str) -> None:
        self.experiment, self.dataset, self.layer = experiment, dataset, layer
        self._read: dict[str, Features | None] = {}

    def result(self, arm: str, seed: int, stage: str = "") -> Result | None:
        """The result for an arm's final model, or for another stage's model."""
        cell = self.experiment.cell(arm, seed)
        return _final(cell, stage or cell.final_stage, self.dataset, self.layer) if cell else None

    def figure(self, arm: str, seed: int, metric: str) -> float | None:
        """A metric of an arm's final model, as measured."""
        found = self.result(arm, seed)
        return found.metrics.get(metric) if found else None

    def cka(self, one: Result | None, other: Result | None) -> float | None:
        """CKA between two models; None if one is missing, cannot be read (then it is named), or was measured on other pictures."""
        found = [self._features(result) if result else None for result in (one, other)]
        if found[0] is None or found[1] is None or found[0][0] != found[1][0]:
            return None
        return similarity.cka(found[0][1], found[1][1])

    def _features(self, result: Result) -> Features | None:
        if result.items_uri not in self._read:
            self._read[result.items_uri] = None
            try:
                read = arrays.read_arrays(result.items_uri, ("key", FEATURES), result.facts.get("items"))
                if not {"key", FEATURES} <= read.keys() or read[FEATURES].ndim != 2 or len(read["key"]) != len(read[FEATURES]):
                    raise Corrupt(f"{result.items_uri}: contains no features of this layer")
                self._read[result.items_uri] = read["key"].astype(str).tolist(), read[FEATURES]
            except (InputError, RunError) as error:
                why = f"{str(error).removeprefix(f'{result.items_uri}: ')}; so the model is not compared with others at this layer"
                self.experiment.exclude(result.items_uri, why, damaged=True)
        return self._read[result.items_uri]


def _similarity(experiment: Experiment) -> Rows:
    seeds = sorted({cell.seed for cell in experiment.cells})
    rows: Rows = []
    for dataset, layer in _layers(experiment):
        for seed in seeds:
            at = _Layer(experiment, dataset, layer)  # features of one seed at a time
            towers = [arm for arm in ("perceptual", *experiment.arms) if at.result(arm, seed, "perceptual")]
            for arm in experiment.arms:
                _add(rows, at, seed, arm, START, at.figure(arm, seed, CKA_START))
                own = at.figure(arm, seed, CKA_TOWER)
                if own is not None:
                    _add(rows, at, seed, arm, TOWER, own)
                elif towers:
                    value = at.cka(at.result(arm, seed), at.result(towers[0], seed, "perceptual"))
                    _add(rows, at, seed, arm, f"{TOWER} of {towers[0]}", value)
            for arm, against in pairs_of_arms(experiment.arms):
                _add(rows, at, seed, arm, against, at.cka(at.result(arm, seed), at.result(against, seed)))
    return [_averaged(row) for row in rows]


def _add(rows: Rows, at: _Layer, seed: int, arm: str, to: str, value: float | None) -> None:
    """Add a seed's value to its row; nothing if the value is unknown."""
    result = at.result(arm, seed)
    if value is not None and result is not None:
        said = {"dataset": at.dataset, "layer": at.layer.removeprefix(LAYER), "pictures": int(result.facts.get("num_items") or 0)}
        _append(rows, {**said, "arm": arm, "to": to}, seed, value)


def _rsa(experiment: Experiment) -> Rows:
    """RSA of every final model, and once per seed of the untrained model and of each arm's tower."""
    rows: Rows = []
    for dataset, layer in _layers(experiment):
        seen: set[tuple[int, str]] = set()
        for cell in sorted(experiment.cells, key=lambda cell: (experiment.arms.index(cell.arm), cell.seed)):
            for stage, model in (("untrained", "untrained"), ("perceptual", f"{TOWER} of {cell.arm}"), (cell.final_stage, cell.arm)):
                result = _final(cell, stage, dataset, layer)
                if result is None or (cell.seed, model) in seen:
                    continue
                seen.add((cell.seed, model))
                compared = (result.facts.get("about") or {}).get("rdms") or {}
                for metric, value in result.metrics.items():
                    if metric.startswith(RSA) and value is not None:
                        name = metric.removeprefix(RSA)
                        said = {"dataset": dataset, "layer": layer.removeprefix(LAYER), "pictures": int(compared.get(name) or 0)}
                        _append(rows, {**said, "rdm": name, "model": model}, cell.seed, value)
    return [_averaged(row) for row in rows]


def _through_time(experiment: Experiment) -> Rows:
    """Every figure of every layer at each moment of stage 2, of cells that have more than one."""
    rows: Rows = []
    for cell in experiment.cells:
        found = [result for result in cell.layers if result.stage == "contrastive"]
        if len({result.step for result in found}) < 2:
            continue
        for result in sorted(found, key=lambda r: (r.dataset, r.task == OUTPUT, r.task, samples_seen(cell, r.step))):
            said = {"dataset": result.dataset, "layer": result.task.removeprefix(LAYER), "arm": cell.arm, "seed": cell.seed}
            at = {"epoch": epoch_of(cell, result.step), "samples": samples_seen(cell, result.step)}
            rows += [{**said, "figure": name, **at, "value": value} for name, value in result.metrics.items() if value is not None]
    return rows


def _append(rows: Rows, said: dict[str, Any], seed: int, value: float) -> None:
    row = next((row for row in rows if said.items() <= row.items()), None)
    if row is None:
        rows.append(row := {**said, "seeds": [], "values": []})
    row["seeds"].append(seed)
    row["values"].append(value)


def _averaged(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "mean": float(np.mean(row["values"]))}


# ------------------------------------------------------------------------------------------------------------------ probes


def _probe_scores(scores: Scores) -> Rows:
    """What each probe reads from each kind of model, means over seeds; what arms share is listed once."""
    experiment, rows = scores.experiment, list[dict[str, Any]]()
    for probe in find_probes(scores):
        seen: set[tuple[int, str]] = set()
        for cell in sorted(experiment.cells, key=lambda cell: (experiment.arms.index(cell.arm), cell.seed)):
            for stage, model in (("untrained", "untrained"), ("perceptual", f"{TOWER} of {cell.arm}"), (cell.final_stage, cell.arm)):
                found = [r for r in cell.results if (r.stage, r.step, r.dataset, r.task) == (stage, None, *probe.key)]
                value = per_item.score(found[0], probe.metric) if found and (cell.seed, model) not in seen else None
                if value is not None:
                    seen.add((cell.seed, model))
                    said = {"dataset": probe.dataset, "task": probe.task, "metric": probe.metric, "model": model, "stage": stage}
                    _append(rows, said, cell.seed, value)
    return [{**{key: row[key] for key in row if key != "values"}, "score": float(np.mean(row["values"]))} for row in rows]


def by_layer(rows: Sequence[dict[str, Any]], *columns: str) -> Rows:
    """Rows of one set as a table: one line per layer, one column per combination of `columns`.

    Returns:
        [{"dataset", "pictures", "columns": names, "rows": [{"layer", "values"}]}], one table per set.
    """
    tables = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset]
        names = list(dict.fromkeys(tuple(row[column] for column in columns) for row in own))
        found = {(row["layer"], *(row[column] for column in columns)): row["mean"] for row in own}
        lines = [
            {"layer": layer, "values": [found.get((layer, *name)) for name in names]} for layer in dict.fromkeys(r["layer"] for r in own)
        ]
        tables.append({"dataset": dataset, "pictures": own[0]["pictures"], "columns": names, "rows": lines})
    return tables
