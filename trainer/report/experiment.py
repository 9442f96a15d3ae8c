"""What the report knows of an experiment: stage runs, evaluations, cells. Filled by read.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.arms import BASELINE
from trainer.config import StageConfig
from trainer.storage.committed import Committed
from trainer.storage.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One stage of one cell: its configuration, lineage, seal and course.

    Attributes:
        uri: the stage's folder.
        config: resolved configuration.
        lineage: lineage.json.
        committed: seal of final/, or None if it never finished.
        progress: lines of progress.jsonl, one per step, in step order.
    """

    uri: str
    config: StageConfig
    lineage: dict[str, Any]
    committed: Committed
    progress: list[dict[str, Any]]

    @property
    def epochs(self) -> float:
        """Total number of epochs; if `samples_seen` fixes the steps, as recorded in progress.jsonl."""
        settings = self.config.perceptual or self.config.contrastive or self.config.posthoc
        assert settings is not None, "a stage has its settings"
        last = self.progress[-1] if settings.samples_seen and self.progress else {}
        return last["epoch"] * self.committed.step / last["step"] if last.get("epoch") else float(settings.epochs)

    @property
    def weights(self) -> set[str]:
        """The hashes by which an evaluation may name this stage's final weights."""
        facts = self.committed.facts
        return {facts[name] for name in ("weights_sha256", "vision_sha256") if facts.get(name)}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model measured on one set.

    Attributes:
        arm: the model's arm, as derived from its configuration.
        seed: the model's seed.
        stage: untrained, perceptual, contrastive or posthoc.
        step: None for the final model, else the checkpoint's step.
        dataset: name of the set.
        task: zeroshot_classification, zeroshot_retrieval or 2afc; a probe, or a layer (`trainer/representation.py`).
        metrics: name -> figure in [0, 1], None if undefined.
        facts: the file's `firstsight` block.
        items_uri: the per-item outputs.
    """

    arm: str
    seed: int
    stage: str
    step: int | None
    dataset: str
    task: str
    metrics: dict[str, float | None]
    facts: dict[str, Any]
    items_uri: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm with one seed, finished.

    Attributes:
        arm: what its configuration says it is.
        declared: what the plan called it.
        seed: the seed of every stage.
        point: the point in its name, if the experiment varies its recipe; empty for the recipe's own values.
        stages: perceptual, contrastive, posthoc -> the run, where the arm has it.
        results: its evaluations that can be compared.
        layers: what was measured of its models layer by layer, one result per layer.
    """

    arm: str
    declared: str
    seed: int
    stages: dict[str, StageRun]
    results: list[Result]
    layers: list[Result] = field(default_factory=list)
    point: str = ""

    @property
    def final_stage(self) -> str:
        """The stage whose model the arm is judged by."""
        return "posthoc" if "posthoc" in self.stages else "contrastive"


@dataclass(kw_only=True)
class Experiment:
    """All that the report knows.

    Attributes:
        uri: the experiment's folder.
        plan: plan.json.
        cells: the finished ones.
        pairs: manifest of the pairs, or None if it is missing.
        triplets: manifest of the triplets, or None.
        evaluation_sets: dataset name -> (folder, manifest) of the sets staged with the pairs.
        missing: [{"cell", "why", "damaged"}] of planned cells that have no comparable model.
        excluded: [{"what", "why", "damaged"}] of individual files left out; damaged: they should be present and intact, but are not.
        failures: [{"cell", "stage", "line", "exit_code", "time"}] not followed by a successful attempt.
        version: the evaluation version of every result.
    """

    uri: str
    plan: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)
    pairs: Manifest | None = None
    triplets: Manifest | None = None
    evaluation_sets: dict[str, tuple[str, Manifest]] = field(default_factory=dict)
    missing: list[dict[str, Any]] = field(default_factory=list)
    excluded: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    version: str = ""

    @property
    def name(self) -> str:
        """The experiment's name, from its plan."""
        return str(self.plan["experiment"])

    @property
    def arms(self) -> list[str]:
        """The arms that have a finished cell: the baseline, then in the plan's order."""
        names = list(dict.fromkeys(cell.arm for cell in self.cells))
        return sorted(names, key=lambda name: name != BASELINE)

    @property
    def has_own_pairs(self) -> bool:
        """Whether the pairs are a person's own pictures: neither the demo's nor a standard data set."""
        source = str(self.pairs.source.get("uri", "")) if self.pairs else ""
        return self.pairs is not None and source not in ("", "demo") and not self.pairs.name.startswith("yfcc15m")

    def cell(self, arm: str, seed: int, point: str | None = None) -> Cell | None:
        """The finished cell of an arm and a seed at a point; None: at whichever there is, for experiments with a single point."""
        found = (cell for cell in self.cells if (cell.arm, cell.seed) == (arm, seed))
        return next((cell for cell in found if point in (None, cell.point)), None)

    def at(self, cells: Mapping[str, str]) -> "Experiment":
        """The experiment at one point of its axes, with one cell per arm and seed.

        The two share their lists of what was left out.

        Args:
            cells: arm -> the point in the name of its cell; the other arms use their cell without a point.
        """
        return replace(self, cells=[cell for cell in self.cells if cell.point == cells.get(cell.declared, "")])

    def exclude(self, what: str, why: str, damaged: bool = False) -> None:
        """Leave a file out, and say so on the page; once, however many cells share it."""
        row = {"what": what.removeprefix(self.uri + "/"), "why": why, "damaged": damaged}
        if row not in self.excluded:
            self.excluded.append(row)

    def mark_missing(self, cell: str, why: str, damaged: bool = False) -> None:
        """Leave a planned cell out, and say so on the page."""
        self.missing.append({"cell": cell, "why": why, "damaged": damaged})

    @property
    def damaged(self) -> list[str]:
        """What was left out because it is damaged, one line each."""
        return [f"{row.get('what') or row.get('cell')}: {row['why']}" for row in (*self.missing, *self.excluded) if row["damaged"]]
