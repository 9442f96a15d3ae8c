"""Estimate the cost of an evaluation before it starts: pictures, models and hours, and the trajectory's part of them.

As in cost.py, every factor is printed and assumptions are marked. Pictures are decoded once for a group of models, while the towers
run; texts (prompts and captions) are counted as a fraction of the pictures.
"""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipelines.planning.cost import CORE_GFLOPS, PEAK_TFLOPS, UTILISATION, Estimate, Machines, number
from pipelines.planning.plan import Cell, Experiment
from pipelines.planning.represented import Represented, represented
from pipelines.planning.request import Request
from pipelines.planning.sources import DEMO_HELD_OUT, NIGHTS_HELD_OUT, is_demo
from pipelines.planning.summary import MOST_NAMES
from trainer.config import kept_epochs
from trainer.configs import sizes
from trainer.configs.evaluation_sets import SETS, find_set
from trainer.errors import InputError
from trainer.storage.manifest import Manifest, read_manifest, staged_sets

MODELS_AT_ONCE = 4
"""Models that share a pass over the pictures; a test compares it with the evaluation's own."""
DECODED = 150.0
"""Pictures of 500 px per second that a core decodes with the exact decoder: assumed (row U of docs/BENCHMARKS.md: PIL, 206)."""
FP32_SHARE = 1 / 16
"""Rate of a GPU in fp32 without TF32 as a fraction of its bf16 rate, from the data sheets of A100 and H100."""
TEXTS = 0.25
"""Prompts and captions encoded per picture: assumed (80,000 prompts for the 150,000 pictures of the ImageNet family)."""
LIMIT = 0.10
"""Fraction of training's GPU-hours below which a trajectory's evaluation is meant to stay."""
_UNKNOWN_SET = 10_000


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures that each model is run on.

    Attributes:
        sets: pictures of the zero-shot and retrieval sets.
        triplets: pictures of the held-out triplets.
        said: the origin of the figures.
        known: whether all of them were counted.
    """

    sets: int
    triplets: int
    said: str
    known: bool


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """The estimated cost of evaluating one cell.

    Attributes:
        cell: name of the cell.
        epochs: epochs of stage 2 at which weights are kept and measured in addition to the final model.
        whole: number of models measured on everything: untrained and final ones.
        towers: number of models measured on triplets alone.
        pictures: pictures on which they are run.
        machines: one GPU, or the CPU.
        forward: pictures per second through one model, texts included.
        training: device-hours of the stages that the cell trains.
        beside: work that `representation` requests for a model; probes only for final models.
    """

    cell: Cell
    epochs: Sequence[int]
    whole: int
    towers: int
    pictures: Pictures
    machines: Machines
    forward: float
    training: float
    beside: Represented = Represented()

    @property
    def each(self) -> int:
        """Pictures on which a model of the contrastive stage is run."""
        return self.pictures.sets + self.pictures.triplets

    @property
    def per_model(self) -> float:
        """Seconds per picture: the time of the towers, or of its part of the decoding if that is longer."""
        return max(1 / self.forward, 1 / (DECODED * self.machines.cores * MODELS_AT_ONCE))

    @property
    def trajectory_hours(self) -> float:
        """Hours for the models at kept epochs, including their layers."""
        return len(self.epochs) * (self.each * self.per_model + self._layers) / 3600

    @property
    def other_hours(self) -> float:
        """Of all other models."""
        figures = (self.whole * self.each + self.towers * self.pictures.triplets) * self.per_model
        return figures / 3600 + self.beside_hours

    @property
    def _layers(self) -> float:
        """Seconds per model to run its layers and compute their CKA and RSA."""
        return self.beside.layer_pictures * self.per_model + self.beside.layer_seconds

    @property
    def beside_hours(self) -> float:
        """Hours for representation, without kept epochs."""
        probes = self.beside.probe_pictures * self.per_model + self.beside.probe_seconds / self.machines.cores
        return (self.whole + self.towers) * (self._layers + probes) / 3600

    @property
    def share(self) -> float:
        """The trajectory's evaluation as a fraction of training's device-hours."""
        return self.trajectory_hours / self.training if self.training else 0.0

    def basis(self) -> list[str]:
        """The assumptions behind the figures, one per line; the same for all cells with one model on one machine."""
        mark = "counted" if self.pictures.known else "assumed"
        return [
            f"{self.pictures.sets:,} pictures + {self.pictures.triplets:,} of triplets a model ({self.pictures.said}) [{mark}]",
            f"rate: {number(self.forward)} pictures/s a model, {number(DECODED * self.machines.cores)} decoded, once for {MODELS_AT_ONCE} "
            "models [assumed]",
        ]

    def takes(self) -> str:
        """The cost of the cell's evaluation, with every factor."""
        unit = "GPU" if self.machines.gpus_per_node else "process"
        trajectory = ""
        if self.epochs:
            over = f" (more than {LIMIT:.0%}: use fewer epochs, evaluation.every_epochs or fewer sets)" if self.share > LIMIT else ""
            trajectory = (
                f"trajectory: {len(self.epochs)} models at epochs {', '.join(map(str, self.epochs))} x {self.each:,} pictures "
                f"= {number(self.trajectory_hours)} {unit}-hours, {self.share:.1%} of the {number(self.training)} of training{over}; "
            )
        towers = f" and {self.towers} tower on triplets" if self.towers else ""
        others = f"{self.whole} other models{towers}{self._beside()}: {number(self.other_hours)}"
        total = number(self.other_hours + self.trajectory_hours)
        return f"{trajectory}{others}; in all {total} {unit}-hours a cell [assumed]"

    def _beside(self) -> str:
        """The cost that representation adds to a model, and in total without kept epochs."""
        asked, parts = self.beside, []
        if asked.layer_pictures:
            parts.append(f"{asked.layer_pictures:,} pictures through the layers, CKA and RSA {number(asked.layer_seconds)} CPU-seconds")
        if asked.probe_pictures:
            parts.append(f"{asked.probe_pictures:,} pictures for probes, their fits {number(asked.probe_seconds)} CPU-seconds")
        return f", with {number(self.beside_hours)} of representation (a model: {'; '.join(parts)})" if parts else ""


def measuring(experiment: Experiment, request: Request, cell: Cell, estimates: Sequence[Estimate], machines: Machines) -> Measuring:
    """Estimate the cost of evaluating a cell.

    Args:
        experiment: with its data as far as they are staged.
        request: the resolved request.
        cell: a cell of the experiment.
        estimates: estimates of the stages that the cell trains.
        machines: machines on which the evaluation runs; it uses one GPU of a node.
    """
    models = [asked.stage for asked in cell.evaluation.models]
    recipe = cell.recipe
    epochs = next((estimate.epochs for estimate in estimates if estimate.stage.stage == "contrastive"), 0)
    kept = kept_epochs(epochs, trajectory=recipe.evaluation.trajectory, every=recipe.evaluation.every_epochs)
    one = dataclasses.replace(machines, nodes=1, gpus_per_node=min(machines.gpus_per_node, 1), processes_per_node=1)
    return Measuring(
        cell=cell,
        epochs=kept if "contrastive" in models else [],
        whole=len(models) - models.count("perceptual"),
        towers=models.count("perceptual"),
        pictures=pictures_of(experiment, request),
        machines=one,
        forward=_forward(cell, one),
        training=sum(estimate.gpu_hours for estimate in estimates),
        beside=represented(experiment, request),
    )


def pictures_of(experiment: Experiment, request: Request) -> Pictures:
    """The pictures to measure on: counted if they are staged, otherwise assumed; without given sets, those that the field uses."""
    pairs, triplets = (read_manifest(data.uri) if data.uri else None for data in (experiment.pairs, experiment.triplets))
    sets = [read_manifest(place.uri) for place in staged_sets(experiment.pairs.uri, pairs)] if pairs else []
    own = sum(_samples(manifest, "test") for manifest in sets if manifest)
    given, all_known = _given(request.eval_sets, experiment.unread)
    of_triplets = 3 * sum(_samples(triplets, split) for split in ("val", "test")) if triplets else 0
    said, known = f"{len(sets) + len(request.eval_sets)} sets", all_known and pairs is not None and triplets is not None
    demo = is_demo(request.pairs, experiment.recipe)
    if pairs is None and demo:
        own, said = 2 * DEMO_HELD_OUT, "the demo's"
    if triplets is None:
        of_triplets = 3 * (int(0.28 * experiment.recipe.staging.demo_triplets) if demo else NIGHTS_HELD_OUT)
    if not own + given:
        given = sum(known_set.test_size for known_set in SETS if known_set.counted or known_set.task == "zeroshot_retrieval")
        said, known = "no sets given: the 29 zero-shot and 2 retrieval sets of the field", False
    return Pictures(sets=own + given, triplets=of_triplets, said=said, known=known)


def _given(uris: Sequence[str], unread: Collection[str]) -> tuple[int, bool]:
    """Number of pictures of evaluation sets by URI, and whether all were counted; for sets in CLIP_benchmark's layout, by name."""
    total, known = 0, True
    for uri in uris:
        manifest = None if uri in unread else read_manifest(uri)
        known = known and manifest is not None
        total += _samples(manifest, "test") if manifest else _by_name(uri.rstrip("/").rpartition("/")[2])
    return total, known


def _by_name(name: str) -> int:
    try:
        return find_set(name).test_size
    except InputError:
        return _UNKNOWN_SET


def _samples(manifest: Manifest, split: str) -> int:
    return sum(shard.num_samples for shard in manifest.split(split))


def _forward(cell: Cell, machines: Machines) -> float:
    size = sizes.sizes(cell.recipe.model)
    flops = size.vision.flops(size.vision.tokens) + TEXTS * size.text.flops(size.text.tokens)
    if not machines.gpus_per_node:
        return machines.cores * CORE_GFLOPS * 1e9 / flops
    known = next((name for name in sizes.PEAK_FLOPS if name in machines.gpu), "H100")
    share = FP32_SHARE if cell.recipe.evaluation.precision == "fp32" else 1.0
    return PEAK_TFLOPS * 1e12 * sizes.PEAK_FLOPS[known] / sizes.PEAK_FLOPS["H100"] * UTILISATION * share / flops


def evaluation_lines(found: Sequence[Measuring]) -> list[str]:
    """The cost of an experiment's evaluations; lines that cells have in common are printed once."""
    alike: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for one in found:
        alike.setdefault(tuple(one.basis()), {}).setdefault(one.takes(), []).append(one.cell.name)
    lines = []
    for (pictures, rate), groups in alike.items():
        lines += [f"evaluation: {pictures}", f"  {rate}"]
        for takes, names in groups.items():
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            lines.append(f"  {len(names)} x ({', '.join(names[:MOST_NAMES])}{more}): {takes}")
    return lines
