"""What is printed at a run's end, and what a run would do."""

from typing import Any

from rich.console import Console
from rich.table import Column, Table

from pipelines.planning import plan
from pipelines.planning.request import Request
from trainer.config import DataConfig, StageConfig, recipe_hash
from trainer.storage import join, layout, read_json
from trainer.storage.base import MissingObject
from trainer.storage.committed import read_committed
from trainer.storage.manifest import read_manifest


def print_summary(console: Console, experiment_uri: str) -> None:
    """The report's sentence, its short table and its path; nothing where there is no report."""
    folder = layout.report(experiment_uri)
    try:
        results: dict[str, Any] = read_json(join(folder, "results.json"))
    except MissingObject:
        return
    summary = results.get("summary", {})
    if summary.get("rows"):
        table = Table(*summary["columns"], box=None, header_style="bold", pad_edge=False)
        for row in summary["rows"]:
            table.add_row(*row)
        console.print(table)
    for line in (summary.get("sentence", ""), *summary.get("notes", [])):
        if line:
            console.print(line, markup=False, highlight=False)
    console.print(f"report: {join(folder, 'index.html')}", markup=False, highlight=False, soft_wrap=True)


def preview(asked: Request, root: str) -> tuple[plan.Experiment, list[plan.Cell]]:
    """What a run would plan, with the data of the experiment as far as it is staged; nothing is written."""
    uri, arms = layout.experiment(root, asked.experiment), asked.all_arms
    request = plan.Experiment(
        root=root,
        experiment=asked.experiment,
        recipe=asked.load_recipe(),
        pairs=_staged(uri, "pairs"),
        triplets=_staged(uri, "triplets"),
        weights=plan.weights_of(arms),
        sets=plan.read_sets(",".join(asked.eval_sets)),
    )
    return request, [plan.resolve(request, arm, seed) for seed in asked.all_seeds for arm in arms]


def print_plan(asked: Request, root: str) -> None:
    """Every cell's stages, where they lie, and which are done."""
    console = Console(highlight=False)
    request, cells = preview(asked, root)
    staged = bool(request.pairs.identity and request.triplets.identity)
    table = Table("Cell", "Stage", "State", Column("Folder", overflow="fold"), box=None, header_style="bold", pad_edge=False)
    for cell in cells:
        for stage in cell.stages():
            state = "done" if staged and _is_done(stage) else "to do"
            table.add_row(cell.name, stage.stage, state, stage.output if staged else "known once the data is staged")
    for what, part in (("pairs", request.pairs), ("triplets", request.triplets)):
        console.print(f"{what}: {part.uri or 'to be staged'}", soft_wrap=True)
    console.print(table)


def _staged(experiment_uri: str, what: str) -> DataConfig:
    try:
        uri = str(read_json(join(experiment_uri, "staging", what, "result.json"))["uri"])
    except MissingObject:
        return DataConfig()
    manifest = read_manifest(uri)
    return DataConfig(uri=uri, identity=manifest.identity) if manifest else DataConfig()


def _is_done(stage: StageConfig) -> bool:
    committed = read_committed(layout.final(stage.output))
    return committed is not None and committed.recipe_hash == recipe_hash(stage)
