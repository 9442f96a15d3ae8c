"""A small experiment, written through the store's own codecs: figures with a known effect, and pictures to show."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.planning.declared import declaration
from pipelines.planning.request import merge
from tests.report import shards
from tests.report.stages import weights_of, write_stage
from trainer.arms import registered
from trainer.config import DataConfig, Recipe, StageConfig, StartConfig, recipe_hash
from trainer.configs import load_recipe
from trainer.storage import join, layout, write_json
from trainer.storage.declarations import listed
from trainer.storage.declarations import sealed as sealed_declaration
from trainer.storage.figures import untrained_hash, write_figures
from trainer.storage.manifest import Manifest, write_manifest

CHANCE = 0.125
CLASSES = 8


@dataclass(kw_only=True)
class Fabrication:
    """What to make; `effects` adds to an arm's share of right answers, `noise` is drawn separately for every model."""

    arms: Sequence[str] = ("random", "perceptual")
    seeds: Sequence[int] = (0,)
    effects: Mapping[str, float] = field(default_factory=lambda: {"perceptual": 0.08})
    noise: float = 0.01
    zero_shot_sets: int = 1
    set_names: Sequence[str] = ()
    items: int = 160
    checkpoints: Sequence[int] = ()
    judge: str = "FLIP"
    name: str = "demo"
    version: str = "1-exact-fp32"
    stream: int = 0
    own: bool = False
    """Whether the pairs are a person's own pictures, twins among them."""
    fractions: Sequence[float] = ()
    """Points of an axis `triplets`: arms with a tower have a cell at each, their effect times the fraction; 1 is the recipe's own."""
    tests: Mapping[str, Any] = field(default_factory=dict)
    """Declared beforehand, as a request writes them."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of arms that this version does not have: what their towers learned from."""


def fabricate(root: Path, what: Fabrication | None = None) -> str:
    """Write data sets and a finished experiment below `root`; the experiment's URI."""
    what = what or Fabrication()
    generator = np.random.default_rng(what.stream)
    recipe = load_recipe("smoke")
    data = _Data(str(root), what)
    uri = layout.experiment(str(root), what.name)
    cells = [_cell(uri, recipe, data, what, arm, seed, generator) for seed in what.seeds for arm in what.arms if _has_own(what, arm)]
    cells += [
        _cell(uri, recipe, data, what, arm, seed, generator, fraction)
        for seed in what.seeds
        for fraction in what.fractions
        for arm in what.arms
        if fraction != 1 and _varies(arm)
    ]
    plan = {
        "format_version": 2,
        "experiment": what.name,
        "root": str(root),
        "recipes": {"smoke": asdict(recipe)},
        "arms": list(what.arms),
        "seeds": list(what.seeds),
        "pairs": asdict(data.pairs),
        "triplets": asdict(data.triplets),
        "cells": cells,
        **(_varied(what) if what.fractions else {}),
    }
    write_json(join(uri, "plan.json"), plan)
    return uri


def _varies(arm: str) -> bool:
    """Whether the axis changes the arm."""
    return bool(registered()[arm].tower)


def _has_own(what: Fabrication, arm: str) -> bool:
    """Whether the arm has a cell with the recipe's own values."""
    return not what.fractions or 1 in what.fractions or not _varies(arm)


def _varied(what: Fabrication) -> dict[str, Any]:
    """Axes, points and declarations, as a plan has them."""
    asked = merge("", {"arms": list(what.arms), "seeds": ",".join(map(str, what.seeds)), "tests": dict(what.tests)})
    asked = replace(asked, vary={"triplets": {"perceptual.triplet_fraction": list(what.fractions)}})
    points = [
        {
            "point": f"triplets-{fraction:g}",
            "at": {"triplets": fraction},
            "cells": {arm: f"triplets-{fraction:g}" if _varies(arm) and fraction != 1 else "" for arm in what.arms},
        }
        for fraction in what.fractions
    ]
    more = {"arms": list(what.arms), "seeds": list(what.seeds), "after_results": False, "time": "2026-11-30T08:00:00Z", "request": "r"}
    declared = sealed_declaration(declaration(asked), **more)
    return {"axes": listed(asked.vary), "points": points, "declared": [declared]}


class _Data:
    """The data sets: pairs, triplets, zero-shot sets and one retrieval set."""

    def __init__(self, root: str, what: Fabrication) -> None:
        self.sets: dict[str, tuple[str, str, list[str]]] = {}
        staged = []
        for name in what.set_names or ["demo-categories", *(f"set-{n}" for n in range(1, what.zero_shot_sets))]:
            samples = [shards.sample(f"{name}-{n:04d}", n, {"cls": str(n % CLASSES).encode()}) for n in range(what.items)]
            staged.append(self._write(root, name, "evaluation", {"test": samples}, ("image", "cls"), what, "zeroshot_classification"))
        captions = [shards.sample(f"pic-{n:04d}", n, {"txt": f"a picture of number {n}\nnumber {n}".encode()}) for n in range(60)]
        staged.append(self._write(root, "demo-retrieval", "evaluation", {"test": captions}, ("image", "txt"), what, "zeroshot_retrieval"))
        evaluation = [
            {"name": name, "task": task, "uri": uri.removeprefix(root + "/"), "identity": identity} for name, task, uri, identity in staged
        ]
        train = [shards.sample(f"train-{n}", n, {"txt": b"one", "json": b"{}"}) for n in range(8)]
        _, _, uri, identity = self._write(root, "demo-pairs", "pairs", {"train": train}, ("image", "txt", "json"), what, "", evaluation)
        self.pairs = DataConfig(uri=uri, identity=identity)
        splits = {split: [shards.triplet(f"{split}-{n:03d}", n) for n in range(what.items)] for split in ("val", "test")}
        columns = ("ref.png", "0.png", "1.png", "json")
        _, _, uri, identity = self._write(root, "demo-triplets", "triplets", splits, columns, what, "2afc")
        self.triplets = DataConfig(uri=uri, identity=identity)
        self.sets["demo-triplets"] = ("2afc", identity, [])

    def _write(
        self,
        root: str,
        name: str,
        kind: Any,
        splits: Mapping[str, list[dict[str, bytes]]],
        columns: tuple[str, ...],
        what: Fabrication,
        task: str,
        evaluation: list[dict[str, Any]] | None = None,
    ) -> tuple[str, str, str, str]:
        plan_id = hashlib.sha256(f"{name}{what.items}".encode()).hexdigest()
        folder = layout.dataset(root, name, plan_id)
        written = [
            shards.shard(folder, "test/0.tar" if kind == "evaluation" else f"shard-{split}-0.tar", split, samples, columns)
            for split, samples in splits.items()
        ]
        count = sum(map(len, splits.values()))
        manifest = Manifest(
            kind=kind,
            name=name,
            plan_id=plan_id,
            source={"uri": "/home/me/pictures"} if what.own else {},
            options={},
            rows={"read": count + 2, "written": count, "lost": {"truncated": 2}},
            shards=written,
            judge=what.judge if kind == "triplets" else "",
            attribution="Pictures: OpenMoji, CC BY-SA 4.0",
            evaluation=evaluation or [],
            facts={"twins": shards.TWINS_OF_PAIRS} if what.own and kind == "pairs" else {},
        )
        write_manifest(folder, manifest)
        if kind == "evaluation":
            self.sets[name] = (task, manifest.identity, [sample["__key__"].decode() for sample in splits["test"]])
        return name, task, folder, manifest.identity


def _cell(
    uri: str, recipe: Recipe, data: _Data, what: Fabrication, arm: str, seed: int, generator: np.random.Generator, fraction: float = 1.0
) -> dict[str, Any]:
    """One arm with one seed: stages, then evaluations."""
    point = "" if fraction == 1 else f"triplets-{fraction:g}"
    recipe = replace(recipe, perceptual=replace(recipe.perceptual, triplet_fraction=fraction))
    cell = layout.cell(uri, arm, seed, point)
    common: dict[str, Any] = {"experiment": what.name, "seed": seed, "model": recipe.model}
    tower = None
    known = registered().get(arm)
    labels = what.labels.get(arm) or (known.labels if known and known.tower else None)
    if labels:
        tower = StageConfig(
            stage="perceptual", arm=arm, output=uri, data=data.triplets, labels=labels, perceptual=recipe.perceptual, **common
        )
        tower = replace(tower, output=layout.tower(uri, recipe_hash(tower)))
        write_stage(tower, steps=round(40 * fraction), generator=generator)
    start = StartConfig()
    if tower:
        start = StartConfig(kind=known.start if known else "tower", uri=layout.final(tower.output), recipe_hash=recipe_hash(tower))
    base = "random" if arm == "posthoc" else arm
    place = layout.stage(layout.cell(uri, base, seed, point if base == arm else ""), "contrastive")
    contrastive = StageConfig(
        stage="contrastive", arm=base, output=place, data=data.pairs, start=start, contrastive=recipe.contrastive, **common
    )
    write_stage(contrastive, steps=100, generator=generator)
    stages: dict[str, StageConfig | None] = {"perceptual": tower, "contrastive": contrastive, "posthoc": None}
    if arm == "posthoc":
        start = StartConfig(kind="model", uri=layout.final(place), recipe_hash=recipe_hash(contrastive))
        own = layout.stage(cell, "posthoc")
        posthoc = StageConfig(stage="posthoc", arm=arm, output=own, data=data.triplets, start=start, posthoc=recipe.posthoc, **common)
        write_stage(posthoc, steps=20, generator=generator)
        stages["posthoc"] = posthoc
    final = "posthoc" if arm == "posthoc" else "contrastive"
    skill = what.effects.get(arm, 0.0) * fraction + what.noise * float(generator.standard_normal())
    models = [("untrained", "final", None, -0.2), (final, "final", stages[final], skill)]
    models += [("perceptual", "final", tower, skill + 0.1)] if tower and start.kind == "tower" else []
    models += [("contrastive", str(step), contrastive, skill - 0.3 * (1 - step / 100)) for step in what.checkpoints]
    for stage, when, config, level in models:
        evaluate(cell, what, data, arm, seed, (stage, when, config), level, generator)
    found = {name: config for name, config in stages.items() if config}
    return {
        "cell": layout.cell_name(arm, seed, point),
        "arm": arm,
        "point": point,
        "seed": seed,
        "recipe": "smoke",
        **{name: config.output if config else "" for name, config in stages.items()},
        "evaluation": join(cell, "evaluation"),
        "recipe_hashes": {name: recipe_hash(config) for name, config in found.items()},
    }


def evaluate(
    cell: str,
    what: Fabrication,
    data: _Data,
    arm: str,
    seed: int,
    model: tuple[str, str, StageConfig | None],
    level: float,
    generator: np.random.Generator,
) -> None:
    """Every set measured with one model whose share of right answers is shifted by `level`."""
    stage, when, config = model
    folder = layout.evaluation(cell, stage, when)
    block = {
        "experiment": what.name,
        "arm": arm,
        "seed": seed,
        "stage": stage,
        "step": "final" if when == "final" else int(when),
        "recipe_hash": recipe_hash(config) if config else untrained_hash(load_recipe("smoke").model, seed),
        "weights_sha256": weights_of(config) if config else "",
        "judge": "",
        "attribution": "",
        "evaluation_version": what.version,
        "baselines": {},
        "main_metric": "",
    }
    for name, (task, identity, keys) in data.sets.items():
        if task == "zeroshot_classification" and stage != "perceptual":
            metrics, items = _classification(name, level, keys, generator)
            chance: dict[str, float] = {"acc1": CHANCE, "mean_per_class_recall": CHANCE}
            write_result(
                folder, name, task, metrics, {**block, "dataset_identity": identity, "num_items": len(keys), "chance": chance}, items
            )
        elif task == "zeroshot_retrieval" and stage != "perceptual":
            metrics, items = _retrieval(level, keys, generator)
            chance = {f"{way}_retrieval_recall@{k}": k / 60 for way in ("image", "text") for k in (1, 5, 10)}
            facts = {**block, "dataset_identity": identity, "num_items": len(keys), "chance": chance}
            if what.own:
                facts |= shards.any_twin(metrics, items, chance)
            write_result(folder, name, task, metrics, facts, items)
        elif task == "2afc":
            for split in ("val", "test"):
                keys = [f"{split}-{n:03d}" for n in range(what.items)]
                score = _right(0.80 + level / 2, _fixed(split, what.items), generator).astype(np.float32)
                target = np.arange(what.items) % 2
                choice = np.where(score == 1, target, 1 - target).astype(np.float32)
                items = {"key": np.array(keys), "clusters": np.array([key[:-1] for key in keys]), "correct": score, "choice": choice}
                own = {
                    **block,
                    "dataset_identity": identity,
                    "num_items": what.items,
                    "judge": what.judge,
                    "feature_rank": 9.5,
                    "chance": {"accuracy": 0.5},
                    "baselines": {"pixel_mse": 0.5},
                }
                write_result(folder, f"demo-triplets-{split}", task, {"accuracy": float(score.mean(dtype=np.float64))}, own, items)


def _classification(
    name: str, level: float, keys: Sequence[str], generator: np.random.Generator
) -> tuple[dict[str, float | None], dict[str, NDArray[Any]]]:
    """Metrics and items of a zero-shot set."""
    difficulty = _fixed(name, len(keys))
    labels = np.arange(len(keys)) % CLASSES
    correct = _right(0.45 + level, difficulty, generator)
    metrics: dict[str, float | None] = {"acc1": float(correct.mean()), "acc5": None, "mean_per_class_recall": _per_class(correct, labels)}
    items = {
        "key": np.array(keys),
        "clusters": np.array(keys),
        "label": labels,
        "prediction": np.where(correct, labels, (labels + 1) % CLASSES),
        "correct": correct,
    }
    return metrics, items


def write_result(
    folder: str, name: str, task: str, metrics: Mapping[str, float | None], block: Mapping[str, Any], items: Mapping[str, NDArray[Any]]
) -> None:
    """One evaluation's two files."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **items)
    figures = {
        "dataset": name,
        "model": "m",
        "pretrained": "p",
        "task": task,
        "metrics": dict(metrics),
        "language": "en",
        "firstsight": dict(block),
    }
    write_figures(join(folder, f"{name}_{task}.json"), figures, buffer.getvalue())


def _retrieval(level: float, keys: list[str], generator: np.random.Generator) -> tuple[dict[str, float | None], dict[str, NDArray[Any]]]:
    images, owner = len(keys), np.repeat(np.arange(len(keys)), 2)
    image_rank = generator.geometric(max(0.05, 0.2 + level), size=len(owner)).clip(1, images) - 1
    text_rank = generator.geometric(max(0.05, 0.2 + level), size=images).clip(1, 2 * images) - 1
    top = np.array([[(n + offset) % images for offset in range(1, 6)] for n in owner])
    for caption, rank in enumerate(image_rank):
        if rank < 5:
            top[caption, rank] = owner[caption]
    metrics: dict[str, float | None] = {f"image_retrieval_recall@{k}": float((image_rank < k).mean()) for k in (1, 5, 10)}
    metrics |= {f"text_retrieval_recall@{k}": float((text_rank < k).mean()) for k in (1, 5, 10)}
    arrays = {
        "key": np.array(keys),
        "clusters": np.array(keys),
        "text_image": owner,
        "image_rank": image_rank,
        "text_rank": text_rank,
        "top": top,
    }
    return metrics, arrays


def _fixed(name: str, count: int) -> NDArray[np.float64]:
    """How hard each item of a set is, the same for every model."""
    return np.random.default_rng(list(name.encode())).uniform(size=count)


def _right(share: float, difficulty: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.bool_]:
    """Right answers: half of the luck is the item's, half the model's."""
    own = generator.uniform(size=len(difficulty))
    return np.where(generator.uniform(size=len(difficulty)) < 0.5, difficulty, own) < share


def _per_class(correct: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    return float(np.mean([correct[labels == label].mean() for label in range(CLASSES)]))
