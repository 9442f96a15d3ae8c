"""Hashes of ad127be hold: its fields as they are, and a field that came later is left out while it is as introduced."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.planning.arms import parse_arms
from pipelines.planning.plan import Experiment, resolve
from tests import old_store
from trainer.config import (
    ContrastiveConfig,
    DataConfig,
    EvaluateConfig,
    EvaluationConfig,
    ModelToEvaluate,
    OptimizerConfig,
    Recipe,
    StageConfig,
    canonical_hash,
    differing_keys,
    recipe_fields,
    recipe_hash,
)
from trainer.configs import load_recipe, parse_config, parse_overrides, read_stored
from trainer.configs.building import group_in
from trainer.errors import InputError
from trainer.evaluation.results import version
from trainer.fields import added_fields, placement, recipe

LINES = old_store.resolved()
STAGES = [line for line in LINES if line["stage"] != "evaluation"]
EVALUATIONS = [line for line in LINES if line["stage"] == "evaluation"]


def test_every_stored_stage_keeps_its_hash() -> None:
    """Read from what ad127be wrote, for every shipped recipe and arm; placement is read too, and does not count."""
    assert len(STAGES) == 56
    for line in STAGES:
        assert recipe_hash(read_stored(StageConfig, line["config"], "stored")) == line["recipe_hash"], (line["recipe"], line["arm"])


def test_every_stored_evaluation_keeps_its_version_and_its_untrained_model() -> None:
    assert len(EVALUATIONS) == 32
    for line in EVALUATIONS:
        config = read_stored(EvaluateConfig, line["config"], "stored")
        assert canonical_hash(recipe_fields(config)) == line["recipe_hash"]
        assert version(config.evaluation) == line["version"]
        assert canonical_hash({"untrained": recipe_fields(config.model), "seed": config.seed}) == line["untrained"]


@pytest.mark.parametrize("name", sorted({line["recipe"] for line in LINES}))
def test_a_shipped_recipe_resolves_to_the_hashes_of_ad127be(name: str) -> None:
    """For all arms: a recipe is its resolved configuration, whatever its file says today.

    The paper's recipes say more exactly since what the code does; what docs/RECIPES.md gives brings back their first reading.
    """
    (set_first_reading,) = re.findall(r'SET="(model\.vision_init=paper [^"]*)"', Path("docs/RECIPES.md").read_text())
    overrides = parse_overrides(set_first_reading) if name.startswith("paper") else {}
    lines = [line for line in STAGES if line["recipe"] == name]
    for arm in parse_arms(",".join(sorted({line["arm"] for line in lines}))):
        experiment = Experiment(
            root="s3://bucket",
            name="e",
            recipe=load_recipe(name, overrides),
            pairs=DataConfig(uri="s3://bucket/p", identity="1" * 64),
            triplets=DataConfig(uri="s3://bucket/t", identity="2" * 64),
            weights={arm.name: "3" * 64},
        )
        wanted = {line["stage"]: line["recipe_hash"] for line in lines if line["arm"] in (arm.name, f"from:{arm.source}")}
        assert {stage.stage: recipe_hash(stage) for stage in resolve(experiment, arm, 7).stages()} == wanted, arm.name


def kinds(kind: type[Any]) -> Iterator[type[Any]]:
    """A configuration and all that is nested in it."""
    yield kind
    for hint in _hints(kind).values():
        group = group_in(hint) or group_in(next(iter(getattr(hint, "__args__", ())), None))
        if group is not None:
            yield from kinds(group)


def _hints(kind: type[Any]) -> dict[str, Any]:
    return {item.name: item.type for item in dataclasses.fields(kind)}


def keys(values: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of plain data; of a list those of its items."""
    for key, value in values.items():
        yield prefix + key
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield from keys(part, f"{prefix}{key}.")


def recipe_keys(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, "dataclasses.Field[Any]"]]:
    """Dotted keys of the recipe fields of a configuration, those of what is nested too."""
    for item in dataclasses.fields(kind):
        if item.metadata["kind"] == "recipe":
            yield prefix + item.name, item
            group = group_in(item.type) or group_in(next(iter(getattr(item.type, "__args__", ())), None))
            if group is not None:
                yield from recipe_keys(group, f"{prefix}{item.name}.")


@pytest.mark.parametrize("kind", [StageConfig, EvaluateConfig])
def test_a_recipe_field_that_ad127be_lacks_says_since_when(kind: type[Any]) -> None:
    """Without it every finished stage would be another recipe's; and no field that ad127be had may say so."""
    old = {key for line in (STAGES if kind is StageConfig else EVALUATIONS) for key in keys(line["config"])}
    new = dict(recipe_keys(kind))
    groups_since = [key for key, item in new.items() if "since" in item.metadata]
    for key, item in new.items():
        inside = any(key.startswith(f"{group}.") for group in groups_since)
        assert (key in old) != (inside or "since" in item.metadata), key


@pytest.mark.parametrize("kind", sorted({found for root in (Recipe, StageConfig, EvaluateConfig) for found in kinds(root)}, key=str))
def test_what_a_field_was_introduced_with_is_a_value_of_it(kind: type[Any]) -> None:
    """A literal of another type would never be left out."""
    for item in dataclasses.fields(kind):
        if "since" in item.metadata:
            alone = dataclasses.make_dataclass("Alone", [(item.name, item.type, item)], frozen=True, kw_only=True)
            assert recipe_fields(read_stored(alone, {}, "stored")) == {}, item.name


# Copies of the configuration, grown by fields whose default has moved since they were introduced.


@dataclass(frozen=True, kw_only=True)
class GrownOptimizer(OptimizerConfig):
    """A group inside a group, which grew."""

    amsgrad: bool = recipe(True, "ours", "Deep inside.", since="0.2.0", introduced=False)


@dataclass(frozen=True, kw_only=True)
class Averaging:
    """A group that came later, and grew after that."""

    decay: float = recipe(0.999, "ours", "")
    every: int = recipe(4, "ours", "Came later still.", since="0.3.0", introduced=1)
    device: str = placement("cpu", "")


@dataclass(frozen=True, kw_only=True)
class GrownContrastive(ContrastiveConfig):
    """A field of each sort that came later."""

    optimizer: GrownOptimizer = recipe(
        GrownOptimizer(warmup_steps=2500, no_decay="gains_biases_and_positions", clip_norm=3.0), "as coded", ""
    )
    drops: tuple[float, ...] = recipe((0.1,), "ours", "A tuple.", since="0.2.0", introduced=[])
    averaging: Averaging = recipe(Averaging(), "ours", "A group.", since="0.2.0", introduced={"decay": 0.0})
    teacher: Averaging | None = recipe(Averaging(), "ours", "A group that may be missing.", since="0.2.0", introduced=None)


@dataclass(frozen=True, kw_only=True)
class GrownStage(StageConfig):
    """A stage of the grown code."""

    contrastive: GrownContrastive | None = recipe(None, "ours", "")


OLD = StageConfig(output="x", contrastive=ContrastiveConfig(epochs=3))


def grown() -> GrownStage:
    """What the grown code makes of a file that the old code wrote."""
    return read_stored(GrownStage, dataclasses.asdict(OLD), "x.yaml")


def test_fields_that_came_later_leave_an_old_hash_alone() -> None:
    """In a nested group, in a tuple, as a whole group and as one that may be missing."""
    assert recipe_hash(grown()) == recipe_hash(OLD)


def test_a_stored_file_gets_what_was_introduced_and_a_persons_todays_default() -> None:
    stored, written = grown().contrastive, parse_config(GrownContrastive, {"epochs": 3})
    assert stored is not None
    assert (stored.optimizer.amsgrad, stored.drops, stored.teacher) == (False, (), None)
    assert stored.averaging == Averaging(decay=0.0, every=1)
    assert (written.optimizer.amsgrad, written.drops, written.averaging) == (True, (0.1,), Averaging())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("contrastive.optimizer.amsgrad=true", "contrastive.optimizer.amsgrad: False -> True"),
        ("contrastive.drops=[0.5]", "contrastive.drops: [] -> [0.5]"),
        ("contrastive.averaging.every=2", "contrastive.averaging.every: 1 -> 2"),
        ("contrastive.averaging.decay=0.5", "contrastive.averaging.decay: 0.0 -> 0.5"),
        ("contrastive.teacher={decay: 0.5}", "contrastive.teacher: None -> {'decay': 0.5, 'every': 1}"),
    ],
)
def test_another_value_is_another_recipe_and_named(change: str, line: str) -> None:
    """And read back from the store it is the same again."""
    other = read_stored(GrownStage, dataclasses.asdict(OLD), "x.yaml", [change])
    assert recipe_hash(other) != recipe_hash(OLD)
    assert list(differing_keys(recipe_fields(grown(), complete=True), recipe_fields(other, complete=True))) == [line]
    assert read_stored(GrownStage, dataclasses.asdict(other), "x.yaml") == other


def test_a_placement_inside_a_group_that_came_later_does_not_count() -> None:
    other = read_stored(GrownStage, dataclasses.asdict(OLD), "x.yaml", ["contrastive.averaging.device=cuda"])
    assert recipe_hash(other) == recipe_hash(OLD)


def test_a_field_of_what_stands_in_a_tuple_may_come_later() -> None:
    """As of the models of an evaluation."""

    @dataclass(frozen=True, kw_only=True)
    class Model(ModelToEvaluate):
        averaged: bool = recipe(True, "ours", "", since="0.2.0", introduced=False)

    @dataclass(frozen=True, kw_only=True)
    class Grown(EvaluateConfig):
        models: tuple[Model, ...] = recipe((), "ours", "")

    old = EvaluateConfig(output="x", models=(ModelToEvaluate(stage="untrained"),))
    stored = read_stored(Grown, dataclasses.asdict(old), "x.yaml")
    assert recipe_fields(stored) == recipe_fields(old)
    assert not stored.models[0].averaged


def test_an_evaluations_version_grows_by_what_is_not_as_introduced() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Grown(EvaluationConfig):
        crop: float = recipe(0.9, "ours", "", since="0.2.0", introduced=1.0)

    assert version(Grown(crop=1.0)) == "1-exact-fp32"
    assert version(Grown()) == "1-exact-fp32-crop=0.9"
    assert added_fields(Grown(decoder="fast")) == {"crop": 0.9}


def test_a_file_of_a_newer_version_is_refused_by_its_key() -> None:
    """Never guessed, and never read as if the key were not there."""
    with pytest.raises(InputError, match=r"^x\.yaml: contrastive\.drops is not a setting .*: a newer version wrote this file"):
        read_stored(StageConfig, dataclasses.asdict(grown()), "x.yaml")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"since": "0.2.0"}, "since= and introduced= go together"),
        ({"introduced": 0}, "since= and introduced= go together"),
        ({"since": "soon", "introduced": 0}, "since= must be a version such as 0.2.0, got 'soon'"),
        ({"since": "0.2.0", "introduced": OptimizerConfig()}, "introduced= must be plain data"),
    ],
)
def test_a_field_that_cannot_grow_is_refused_at_import(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(TypeError, match=line):
        recipe(0, "ours", "A field.", **settings)


@pytest.mark.parametrize(("old", "new"), [({"a": None}, {}), ({"a": 1}, {"a": 1.0}), ({"a": True}, {"a": 1}), ({"a": {}}, {"a": None})])
def test_where_hashes_differ_a_key_is_named(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Also where Python calls the values equal."""
    assert canonical_hash(old) != canonical_hash(new)
    assert len(list(differing_keys(old, new))) == 1
