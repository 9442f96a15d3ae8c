"""The summary printed at the end of a run, and the plan of what a run would do and need."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.planning import plan
from pipelines.planning.axes import Axes
from pipelines.planning.cost import Estimate, number, side_by_side
from pipelines.planning.declared import declaration
from pipelines.planning.points import Points, cells_of
from pipelines.planning.request import Request
from trainer.config import DataConfig, Recipe, StageConfig, recipe_hash
from trainer.configs import recipe_differences, sizes
from trainer.errors import Corrupt
from trainer.storage import join, layout, pages, read_json
from trainer.storage.base import MissingObject, read_field
from trainer.storage.committed import read_final
from trainer.storage.manifest import read_manifest, where_it_lies

WIDTH = 1000
"""Width of a printed plan, wherever it is shown, since a wrapped path cannot be copied."""
MOST_NAMES = 6
"""Number of names listed for runs with the same cost."""


def print_summary(console: Console, experiment_uri: str) -> bool:
    """The report's sentence, its short table and its path; nothing, and False, if there is no report."""
    try:
        results: dict[str, Any] = read_json(join(pages.folder_of(experiment_uri), "results.json"))
    except MissingObject:
        return False
    summary = results.get("summary", {})
    if summary.get("rows"):
        table = Table(*summary["columns"], box=None, header_style="bold", pad_edge=False)
        for row in summary["rows"]:
            table.add_row(*row)
        console.print(table)
    for line in (summary.get("sentence", ""), *summary.get("notes", [])):
        if line:
            console.print(line, markup=False, highlight=False)
    console.print(f"report: {join(layout.report(experiment_uri), 'index.html')}", markup=False, highlight=False, soft_wrap=True)
    return True


def read_beside(asked: Request) -> list[str]:
    """The S3 addresses that planning a request reads in addition to its root."""
    arms = (arm.source for arm in asked.all_arms)
    return list(dict.fromkeys(uri for uri in (asked.pairs, asked.triplets, *asked.eval_sets, *arms) if uri.startswith("s3://")))


def preview(asked: Request, root: str, *, unread: Collection[str] = ()) -> tuple[plan.Experiment, list[plan.Cell]]:
    """Plan a run with the experiment's data as far as they are staged, without writing anything.

    Args:
        asked: the resolved request.
        root: store URI.
        unread: the root and those of `read_beside` that this machine cannot read.
    """
    uri, arms, readable = layout.experiment(root, asked.experiment), asked.all_arms, root not in unread
    pairs = _staged(uri, "pairs") if readable else DataConfig()
    sets = plan.read_sets(",".join(one for one in asked.eval_sets if one not in unread))
    sets += tuple(DataConfig(uri=one) for one in asked.eval_sets if one in unread)
    lacking = {arm.name: "unknown" for arm in arms if arm.source in unread}
    at_points = Points(asked)
    experiment = plan.Experiment(
        root=root,
        name=asked.experiment,
        recipe=asked.load_recipe(),
        pairs=pairs,
        triplets=_staged(uri, "triplets") if readable else DataConfig(),
        unread=tuple(unread),
        weights=plan.weights_of(tuple(arm for arm in arms if arm.source not in unread)) | lacking,
        sets=sets,
        **(plan.represented(asked.representation, sets, pairs, complete=bool(pairs.uri)) if not unread else {}),
        axes=asked.vary,
        points=tuple(at_points.listed()),
        declared=declaration(asked),
        idle_axes=tuple(at_points.idle_axes()),
        asked_arms=tuple(arm.name for arm in arms),
        asked_seeds=asked.all_seeds,
    )
    return experiment, cells_of(experiment, at_points)


def print_plan(experiment: plan.Experiment, cells: list[plan.Cell], lines: Sequence[str]) -> None:
    """The stages of every cell, their folders, and which are done; then `lines` with their cost."""
    console = Console(highlight=False, soft_wrap=True, width=WIDTH)
    staged = bool(experiment.pairs.identity and experiment.triplets.identity)
    table = Table("Cell", "Stage", "State", "Folder", box=None, header_style="bold", pad_edge=False)
    done = {stage.output: staged and _is_done(stage) for cell in cells for stage in cell.stages()}
    for cell in cells:
        for stage in cell.stages():
            state = "done" if done[stage.output] else "to do"
            table.add_row(cell.name, stage.stage, state, stage.output if staged else "known once the data have been staged")
    for what, part in (("pairs", experiment.pairs), ("triplets", experiment.triplets)):
        console.print(f"{what}: {part.uri or 'to be staged'}", markup=False)
    console.print(table)
    for line in lines:
        console.print(line, markup=False)


def outline(
    recipe: Recipe, estimates: Mapping[str, Estimate], base: Recipe, done: Collection[str] = (), axes: Axes | None = None
) -> list[str]:
    """Recipe, model, and the cost of each kind of run: every number with its factors, marked as measured or assumed.

    Args:
        recipe: recipe of the experiment.
        estimates: estimate of each stage by its folder; runs with the same cost are listed once.
        base: the recipe to compare with.
        done: folders of the stages that are finished.
        axes: along which the recipe varies.
    """
    size = sizes.sizes(recipe.model)
    lines = [
        *_differences(recipe, base),
        *_axes(axes),
        f"model: {size.parameters / 1e6:,.1f} M parameters (vision {size.vision.parameters / 1e6:,.1f} M, text "
        f"{size.text.parameters / 1e6:,.1f} M), forward {size.vision.flops(size.vision.tokens) / 1e9:,.3g} + "
        f"{size.text.flops(size.text.tokens) / 1e9:,.3g} GFLOP per picture and caption",
    ]
    alike: dict[tuple[str, ...], list[Estimate]] = {}
    for estimate in estimates.values():
        alike.setdefault((estimate.stage.stage, *estimate.lines()), []).append(estimate)
    for (stage, *said), runs in alike.items():
        names = [layout.cell_name(run.stage.arm, run.stage.seed, run.stage.point) for run in runs]
        shown = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
        lines += [f"{stage}: {len(runs)} x ({shown})", *(f"  {line}" for line in (*said, side_by_side(runs)) if line)]
    left = [estimate for folder, estimate in estimates.items() if folder not in done]
    totals = f"in all: {_total(list(estimates.values()))}" + (f"; excluding the {len(done)} already done: {_total(left)}" if done else "")
    return [*lines, f"{totals}, not including staging and evaluation"]


def _axes(axes: Axes | None) -> list[str]:
    """Every axis with its fields and their values."""
    lines = []
    for axis, fields in (axes or {}).items():
        said = (f"{field} {', '.join(map(str, values))}" for field, values in fields.items())
        lines.append(f"axis {axis}: {'; '.join(said)}")
    return lines


def _total(estimates: Sequence[Estimate]) -> str:
    hours, gpu_hours, disk = (sum(getattr(estimate, what) for estimate in estimates) for what in ("hours", "gpu_hours", "disk"))
    unit = "GPU" if any(estimate.machines.gpus_per_node for estimate in estimates) else "process"
    return f"{number(hours)} hours one after another, {number(gpu_hours)} {unit}-hours, {disk / 1e9:,.1f} GB of checkpoints and models"


def _differences(recipe: Recipe, base: Recipe) -> list[str]:
    differing = recipe_differences(recipe, base)
    said = f"the built-in {base.name}, unchanged" if not differing else f"differs from {base.name} in"
    return [f"recipe {recipe.name}: {said}", *(f"  {line}" for line in differing)]


def _staged(experiment_uri: str, what: str) -> DataConfig:
    """The data set that an earlier run staged; none if its record or manifest is damaged, which the step `stage` reports."""
    try:
        uri = where_it_lies(experiment_uri, read_field(join(experiment_uri, "staging", what, "result.json"), "uri"))
        manifest = read_manifest(uri)
    except (MissingObject, Corrupt):
        return DataConfig()
    return DataConfig(uri=uri, identity=manifest.identity) if manifest else DataConfig()


def _is_done(stage: StageConfig) -> bool:
    seal, damage = read_final(stage.output)
    return seal is not None and seal.recipe_hash == recipe_hash(stage) and not damage
