"""Write a plan into an experiment: each stage's config.yaml, each cell's evaluation/config.yaml, and plan.json.

A different recipe for a planned cell, and different data for any cell, are refused. Damaged files are rewritten: plan.json from
the request and the configurations of the stages, and a configuration if the folder's other records name the planned recipe.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pipelines.planning import lanes
from pipelines.planning.plan import Cell, Experiment, entry, entry_of
from pipelines.planning.varied import find_lost, varied
from trainer.config import (
    EVALUATION_VERSION,
    EvaluateConfig,
    Placement,
    Recipe,
    StageConfig,
    differing_keys,
    recipe_fields,
    recipe_hash,
    require,
)
from trainer.configs import parse_config, read_stored
from trainer.errors import Corrupt, InputError
from trainer.storage import join, layout, open_store, plans
from trainer.storage.base import MissingObject, exists
from trainer.storage.documents import checksum, write_document
from trainer.storage.plans import NAME, Plan, read_plan, recipe_key
from trainer.storage.recipes import find_fields, read_config_values, read_stage, recorded_fields, shown, write_config_file

ConfigT = TypeVar("ConfigT", StageConfig, EvaluateConfig)
LanesByRequest = dict[str, list[dict[str, Any]]]
_FOR_PEOPLE = ("cell", "point", "request")
_IN_CELL = re.compile(
    r"(?P<cell>[^/]+)/((?P<configured>contrastive|posthoc)/config\.yaml|(contrastive|posthoc)/final/COMMITTED\.json|evaluation/[^/]+/[^/]+\.json)"
)
"""Paths below an experiment's folder which show that a cell exists, and how far it got."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The files to be written.

    Attributes:
        plan: content of plan.json.
        configs: configurations of stages and evaluations that are not yet in their place.
        said: what was found damaged, and what is done about it, one per line.
        earlier: checksum of the plan.json on which it is based.
    """

    plan: Plan
    configs: list[StageConfig | EvaluateConfig]
    said: list[str]
    earlier: str

    @property
    def is_written(self) -> bool:
        """Whether plan.json already has this content."""
        return self.earlier == checksum({**self.plan, "format_version": plans.FORMAT_VERSION})


def write_plan(experiment: Experiment, cells: list[Cell]) -> list[str]:
    """Write the configurations and plan.json, keeping the cells that earlier runs finished and those that other requests wait for.

    Returns:
        What was found damaged, and what was done about it: one per line.

    Raises:
        InputError: one of the cells was planned with a different recipe, or the experiment with different data; nothing is written.
        Corrupt: the manifest of a data set is not the one that the experiment was planned with; nothing is written.
    """
    said: list[str] = []
    while True:
        draft = draft_plan(experiment, cells)
        said += [line for line in draft.said if line not in said]
        for config in draft.configs:
            write_config_file(layout.config(config.output), config)
        for uri, document in find_lost(experiment, draft.plan).items():
            write_document(uri, document)
        if draft.is_written and not draft.said:
            return said
        if checksum(_read_earlier(experiment, [])) == draft.earlier:  # otherwise another run planned meanwhile
            plans.write_plan(experiment.uri, draft.plan)
            return said


def is_planned(experiment: Experiment, cells: list[Cell]) -> bool:
    """Whether everything is as `write_plan` would write it; same errors as `write_plan`."""
    draft = draft_plan(experiment, cells)
    return not draft.configs and not draft.said and draft.is_written and not find_lost(experiment, draft.plan)


def draft_plan(experiment: Experiment, cells: list[Cell]) -> Draft:
    """The files that `write_plan` would write; same errors as `write_plan`."""
    said: list[str] = []
    earlier = _read_earlier(experiment, said)
    evaluation_version = _evaluation_version(experiment, earlier, cells)
    cells = [
        dataclasses.replace(cell, evaluation=dataclasses.replace(cell.evaluation, evaluation_version=evaluation_version)) for cell in cells
    ]
    beside = varied(experiment, earlier)
    _refuse_what_differs(experiment, cells, earlier)
    _refuse_other_manifests(experiment, earlier)
    planned = {one[stage]: key for one in earlier["cells"] for stage, key in one["recipe_hashes"].items()}
    stages = list({stage.output: stage for cell in cells for stage in cell.stages()}.values())
    written = [_written_stage(stage, planned.get(stage.output, ""), said) for stage in stages]
    for stage, before in zip(stages, written, strict=True):
        if before is not None:
            differing = list(differing_keys(recipe_fields(before, complete=True), recipe_fields(stage, complete=True)))
            _refuse(f"experiment {experiment.name} ({layout.config(stage.output)})", differing)
    lanes_of_others = _lanes_of_others(experiment, earlier)
    kept, recipes = _kept(experiment, {cell.name for cell in cells}, earlier, lanes_of_others, said)
    evaluations = [cell.evaluation for cell in cells]
    measured = [_written_evaluation(evaluation, said) for evaluation in evaluations]
    configs: list[StageConfig | EvaluateConfig] = [one for before, one in zip(written, stages, strict=True) if _says_more(before, one)]
    configs += [one for before, one in zip(measured, evaluations, strict=True) if _says_more(before, one)]
    entries = [*kept, *map(entry_of, cells)]
    recipes |= {recipe_key(recipe): recipe for recipe in (asdict(cell.recipe) for cell in cells)}
    plan = {
        "experiment": experiment.name,
        "root": experiment.root,
        "request": experiment.request,
        "recipes": {one["recipe"]: recipes[one["recipe"]] for one in entries},
        "arms": list(dict.fromkeys(one["arm"] for one in entries)),
        "seeds": sorted({one["seed"] for one in entries}),
        "pairs": asdict(experiment.pairs),
        "triplets": asdict(experiment.triplets),
        "sets": [asdict(part) for part in experiment.sets],
        "cells": entries,
        **({"evaluation_version": evaluation_version} if evaluation_version > 1 else {}),
        **beside,
        "lanes": lanes_of_others | _own_lanes(experiment, cells, entries),
    }
    return Draft(plan=plan, configs=configs, said=said, earlier=checksum(earlier))


def _lanes_of_others(experiment: Experiment, earlier: Plan) -> LanesByRequest:
    """The lanes of other requests, whose runs may still be alive, except those of deleted requests."""
    own = layout.id_of_request(experiment.request) if experiment.request else ""
    names = {one["cell"] for one in earlier["cells"]}
    found = {key: dealt for key, dealt in earlier.get("lanes", {}).items() if all(names.issuperset(lane["cells"]) for lane in dealt)}
    return {key: dealt for key, dealt in found.items() if key != own and exists(layout.request(experiment.uri, key))}


def _own_lanes(experiment: Experiment, cells: list[Cell], entries: list[dict[str, Any]]) -> LanesByRequest:
    if not experiment.request:
        return {}
    dealt = lanes.deal([cell.name for cell in cells], experiment.parallel_cells)
    return {layout.id_of_request(experiment.request): lanes.planned(dealt, entries)}


def _read_earlier(experiment: Experiment, said: list[str]) -> Plan:
    """plan.json; without cells if it is missing or damaged (a damaged one is reported)."""
    try:
        found = read_plan(experiment.uri)
    except Corrupt as error:
        said.append(f"{error}; it is rewritten from the request and the configurations of the stages")
        found = None
    return found or {"cells": [], "recipes": {}}


def _evaluation_version(experiment: Experiment, earlier: Plan, cells: list[Cell]) -> int:
    """The evaluation version with which the experiment was first planned; it never changes, since its figures are compared.

    If plan.json is missing, it is taken from the cells' own configurations; a new experiment gets the current version.
    """
    if earlier["cells"]:
        number = earlier.get("evaluation_version", 1)
        rule = f"1 to {EVALUATION_VERSION}, which this firstsight knows"
        require(f"{join(experiment.uri, NAME)}: evaluation_version", number, rule, number in range(1, EVALUATION_VERSION + 1))
        return int(number)
    found = []
    for cell in cells:
        with contextlib.suppress(InputError, Corrupt):
            before = _written(cell.evaluation)
            found += [before.evaluation_version] if before else []
    return min(found, default=EVALUATION_VERSION)


def _refuse_what_differs(experiment: Experiment, cells: list[Cell], earlier: Plan) -> None:
    """Check that the plan has the requested data, and the requested recipe for these cells; other cells may have other recipes."""
    data: dict[str, str] = {what: getattr(experiment, what).identity for what in ("pairs", "triplets") if what in earlier}
    _refuse(f"experiment {experiment.name}", list(differing_keys({what: earlier[what]["identity"] for what in data}, data)))
    planned = {one["cell"]: one["recipe"] for one in earlier["cells"]}
    for cell in cells:
        key = planned.get(cell.name, "")
        if key and key != recipe_key(asdict(cell.recipe)):
            before = read_stored(Recipe, earlier["recipes"][key], join(experiment.uri, NAME))
            old, new = {"recipe": recipe_fields(before, complete=True)}, {"recipe": recipe_fields(cell.recipe, complete=True)}
            _refuse(f"cell {cell.name} of experiment {experiment.name}", list(differing_keys(old, new)))


def _refuse_other_manifests(experiment: Experiment, earlier: Plan) -> None:
    """Check that a manifest of format 1, whose identity does not cover all of it, is the one that was used first."""
    pins = {"manifest_sha256": "", "evaluation_sha256": []}
    before = [earlier[what] for what in ("pairs", "triplets") if what in earlier] + list(earlier.get("sets", []))
    known = {(one["uri"], one["identity"]): {name: one.get(name, none) for name, none in pins.items()} for one in before}
    for data in (experiment.pairs, experiment.triplets, *experiment.sets):
        now = {"manifest_sha256": data.manifest_sha256, "evaluation_sha256": list(data.evaluation_sha256)}
        pinned = known.get((data.uri, data.identity), now)
        differing = [name for name, value in pinned.items() if value and value != now[name]]
        if differing:
            what = "its manifest.json is" if "manifest_sha256" in differing else "the manifest.json of an evaluation set staged with it is"
            raise Corrupt(
                f"{data.uri}: {what} not the file that experiment {experiment.name} was planned with: it was damaged or changed by hand; "
                "delete that file to have the data set staged again, or restore it from a copy"
            )


def _refuse(what: str, differing: list[str]) -> None:
    if differing:
        raise InputError(
            f"{what} was planned with a different recipe or different data: {shown(differing)}: give the experiment another name"
        )


# ------------------------------------------------------------------------------------------------------- cells of earlier runs


def _kept(
    experiment: Experiment, names: set[str], earlier: Plan, lanes_of_others: LanesByRequest, said: list[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The entries of other cells that are finished or requested by other requests, and every known recipe.

    plan.json lacks such a cell if it was damaged or replaced by an older version; the entry is then restored from the cell's folder.

    Raises:
        InputError: plan.json is missing, and its cells had different data.
    """
    finished, configured = cells_there(experiment.uri)
    finished -= names
    asked = {cell for dealt in lanes_of_others.values() for lane in dealt for cell in lane["cells"]}
    wanted = finished | (asked - names)
    kept, recipes = [one for one in earlier["cells"] if one["cell"] in wanted], dict(earlier["recipes"])
    for name in sorted(finished - {one["cell"] for one in kept}):
        try:
            stages = _stages_of(experiment, name, configured.get(name, set()))
        except (InputError, Corrupt) as error:
            said.append(f"cell {name} of an earlier run is missing from the plan; run it again to have it reported: {error}")
            continue
        ours = {"pairs": experiment.pairs.identity, "triplets": experiment.triplets.identity}
        theirs = {"pairs" if stage.stage == "contrastive" else "triplets": stage.data.identity for stage in stages}
        differing = list(differing_keys(theirs, {what: ours[what] for what in theirs}))
        if "pairs" not in earlier:
            _refuse(f"experiment {experiment.name} (cell {name})", differing)
        if not differing:
            last, recipe = stages[-1], _recipe_of(experiment, name, stages)
            kept.append(entry(name, stages, recipe, last.arm, last.point, last.seed))
            recipes[recipe_key(asdict(recipe))] = asdict(recipe)
            said.append(f"cell {name} of an earlier run was missing from the plan: taken from the configurations of its stages")
    return kept, recipes


def cells_there(experiment_uri: str) -> tuple[set[str], dict[str, set[str]]]:
    """The cells that have a final model or figures, and which stages of each cell have a configuration."""
    finished, configured = set(), dict[str, set[str]]()
    for info in open_store(experiment_uri).list(experiment_uri):
        match = _IN_CELL.fullmatch(info.uri.removeprefix(f"{experiment_uri}/"))
        if match is None:
            continue
        if match["configured"]:
            configured.setdefault(match["cell"], set()).add(match["configured"])
        else:
            finished.add(match["cell"])
    return finished, configured


def _stages_of(experiment: Experiment, name: str, configured: set[str]) -> list[StageConfig]:
    """The stages of a cell, in order, from the configurations in their folders."""
    posthoc = read_stage(layout.config(join(experiment.uri, name, "posthoc"))) if "posthoc" in configured else None
    base = join(experiment.uri, name, "contrastive") if posthoc is None else posthoc.start.uri.removesuffix("/final")
    contrastive = read_stage(layout.config(base))
    tower = contrastive.start.uri.removesuffix("/final")
    perceptual = read_stage(layout.config(tower)) if tower.startswith(join(experiment.uri, "towers/")) else None
    cells = [
        dataclasses.replace(stage, cell=layout.cell_name(stage.arm, stage.seed, stage.point))
        for stage in (contrastive, posthoc)
        if stage is not None
    ]
    if cells[-1].cell != name:
        raise Corrupt(f"{layout.config(cells[-1].output)}: belongs to cell {cells[-1].cell}")
    return [*([perceptual] if perceptual else []), *cells]


def _recipe_of(experiment: Experiment, name: str, stages: list[StageConfig]) -> Recipe:
    """The recipe of a cell, as far as its stages record it; the rest, which did not affect its numbers, is that of the experiment."""
    parts: dict[str, Any] = {"model": stages[-1].model, **{stage.stage: getattr(stage, stage.stage) for stage in stages}}
    uri = layout.config(join(experiment.uri, name, "evaluation"))
    with contextlib.suppress(InputError, Corrupt):
        parts["evaluation"] = read_stored(EvaluateConfig, read_config_values(uri), uri).evaluation
    return dataclasses.replace(experiment.recipe, **parts)


# ------------------------------------------------------------------------------------------------------- configurations


def _written_stage(stage: StageConfig, planned: str, said: list[str]) -> StageConfig | None:
    """The stored configuration of `stage`; None if it is missing or damaged (damage is reported).

    Args:
        stage: the stage as it is planned now.
        planned: the recipe hash that plan.json has for its folder; empty: none.
        said: gets a line if the file is damaged.

    Raises:
        InputError: it is damaged, and the rest of the folder belongs to a different recipe.
    """
    wanted = recipe_hash(stage)
    try:
        before = _written(stage)
        if before is None or recipe_hash(before) == wanted:
            return before
        why = (
            f"{layout.config(stage.output)}: damaged or changed by hand: its recipe differs from that of the plan and the folder's records"
        )
    except (InputError, Corrupt) as error:
        before, why = None, str(error)
    if planned != wanted and find_fields(stage.output, wanted) is None:
        if before is not None:
            return before
        if next(recorded_fields(stage.output), None) is not None:
            raise InputError(
                f"{why}; and the other contents of {stage.output} belong to a different recipe: give the experiment another name"
            )
    said.append(f"{why}; rewritten as planned")
    return None


def _written_evaluation(config: EvaluateConfig, said: list[str]) -> EvaluateConfig | None:
    """As `_written`; an unreadable configuration is rewritten, since no result depends on it."""
    try:
        return _written(config)
    except (InputError, Corrupt) as error:
        said.append(f"{error}; rewritten as planned")
        return None


def _written(config: ConfigT) -> ConfigT | None:
    """The stored configuration at the place of `config`; None if there is none. An identical text is not parsed, since parsing is slow."""
    uri = layout.config(config.output)
    try:
        values = read_config_values(uri)
    except MissingObject:
        return None
    if _meaning(values) != _meaning(asdict(config)):
        return read_stored(type(config), values, uri)
    parse_config(Placement, values.get("placement", {}), source=f"{uri}: placement")
    for name in _FOR_PEOPLE:
        require(f"{uri}: {name}", values.get(name, ""), "text", isinstance(values.get(name, ""), str))
    return config


def _says_more(before: ConfigT | None, config: ConfigT) -> bool:
    """Whether config.yaml has to be written because it is missing or has a different content.

    A job of an older version may still be running, and reads its file at each restart: it must not find unknown keys.
    """
    return before is None or _meaning(asdict(before)) != _meaning(asdict(config))


def _meaning(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that is neither informative only nor, like placement, passed in each job's arguments; as JSON data."""
    kept = {key: value for key, value in values.items() if key not in (*_FOR_PEOPLE, "placement")}
    placement = values.get("placement")
    by_epoch = {"checkpoint_every_epochs": 0, "trajectory": False}
    kept["placement"] = {key: placement.get(key, none) for key, none in by_epoch.items()} if isinstance(placement, Mapping) else placement
    return dict(_without_pins(json.loads(json.dumps(kept, skipkeys=True, default=str))))


def _without_pins(value: Any) -> Any:
    """Plain data without the checksums of manifests, which are in plan.json as well."""
    if isinstance(value, dict):
        return {key: _without_pins(part) for key, part in value.items() if key not in ("manifest_sha256", "evaluation_sha256")}
    return [_without_pins(part) for part in value] if isinstance(value, list) else value
