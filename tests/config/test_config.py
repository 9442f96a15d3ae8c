import dataclasses

import pytest

from trainer.config import (
    ContrastiveConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    ModelToEvaluate,
    OptimizerConfig,
    Placement,
    Recipe,
    StageConfig,
    StartConfig,
    differing_keys,
    recipe_fields,
    recipe_hash,
    stream_seed,
)
from trainer.configs import RECIPES, dump_yaml, load_recipe, load_yaml, parse_config
from trainer.errors import InputError


def stage_config(**changes: object) -> StageConfig:
    values = {"output": "file:///runs/x", "contrastive": ContrastiveConfig(), **changes}
    return StageConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_loads_and_survives_a_round_trip_through_yaml(name: str) -> None:
    """What is saved beside a checkpoint must read back as the same recipe."""
    loaded = load_recipe(name)

    assert parse_config(Recipe, load_yaml(dump_yaml(loaded), name)) == loaded


def test_every_field_is_tagged_recipe_or_placement() -> None:
    """An untagged field would silently be left out of the recipe hash."""
    for kind in (Recipe, ModelConfig, OptimizerConfig, ContrastiveConfig, StageConfig, EvaluateConfig, Placement, StartConfig, DataConfig):
        for item in dataclasses.fields(kind):
            assert item.metadata.get("kind") in {"recipe", "placement"}, f"{kind.__name__}.{item.name}"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("contrastive.optimizer.learning_rat=1e-3", ["learning_rat", "recipe demo"]),
        ("contrastive.optimizer.learning_rate=0", ["optimizer.learning_rate", "> 0", "0"]),
        ("contrastive.epochs=many", ["contrastive.epochs", "int", "many"]),
        ("contrastive.augmentation=cutmix", ["contrastive.augmentation", "moco_v2", "cutmix"]),
        ("contrastive.contrast_batch_size=100", ["contrastive.contrast_batch_size", "divisor", "128", "100"]),
        ("model.image_size=50", ["model.image_size", "multiple of patch_size 8", "50"]),
        ("model.open_clip_name=ViT-B-32", ["model.open_clip_name", "image_size"]),
        ("contrastive", ["dotted.key=value", "contrastive"]),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_that_names_key_rule_and_value(override: str, words: list[str]) -> None:
    """One line, so that it survives a log, a termination message and a terminal."""
    with pytest.raises(InputError) as caught:
        load_recipe("demo", [override])

    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


def test_an_unknown_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(InputError, match="recipe 'papr' is not shipped: one of smoke, demo, paper, paper-3m"):
        load_recipe("papr")


def test_scientific_notation_is_a_number() -> None:
    """YAML 1.1 reads 3e-4 as a string."""
    assert load_recipe("demo", ["contrastive.optimizer.learning_rate=3e-4"]).contrastive.optimizer.learning_rate == 3e-4


def test_a_partial_override_keeps_the_recipes_other_values() -> None:
    """Only the named key may move: a nested group must not fall back to its class's defaults."""
    before = load_recipe("paper").contrastive.optimizer
    after = load_recipe("paper", ["contrastive.optimizer.beta1=0.8"]).contrastive.optimizer

    assert after == dataclasses.replace(before, beta1=0.8)


def test_placement_never_changes_the_recipe_hash() -> None:
    base = stage_config()
    moved = dataclasses.replace(base, output="s3://b/y", experiment="z", arm="q", placement=Placement(nodes=7, threads=3))

    assert recipe_hash(moved) == recipe_hash(base)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data": DataConfig(identity="other")},
        {"start": StartConfig(kind="tower", uri="file:///t", recipe_hash="ab")},
        {"contrastive": ContrastiveConfig(epochs=31)},
        {"model": ModelConfig(vision_layers=11)},
    ],
)
def test_whatever_changes_the_numbers_changes_the_recipe_hash(change: dict[str, object]) -> None:
    assert recipe_hash(stage_config(**change)) != recipe_hash(stage_config())


def test_differing_keys_are_named_with_both_values() -> None:
    old, new = (recipe_fields(stage_config(contrastive=ContrastiveConfig(epochs=epochs))) for epochs in (32, 16))

    assert list(differing_keys(old, new)) == ["contrastive.epochs: 32 -> 16"]


def test_a_stage_carries_its_own_settings_and_no_others() -> None:
    with pytest.raises(InputError, match="perceptual must be set for this stage and no other"):
        StageConfig(stage="perceptual", output="x", contrastive=ContrastiveConfig())


def test_a_start_that_is_not_random_needs_a_place_and_a_hash() -> None:
    with pytest.raises(InputError, match=r"start\.uri must be set where start\.kind is tower"):
        StartConfig(kind="tower")


def test_an_evaluation_with_models_survives_a_round_trip_through_yaml() -> None:
    config = EvaluateConfig(output="x", models=(ModelToEvaluate(stage="perceptual", uri="y", recipe_hash="z"),))

    assert parse_config(EvaluateConfig, load_yaml(dump_yaml(config), "c")) == config


def test_named_streams_differ_by_name_and_by_seed() -> None:
    seeds = {stream_seed(seed, name) for seed in (0, 1) for name in ("vision_init", "text_init")}

    assert len(seeds) == 4
    assert all(0 <= value < 2**63 for value in seeds)
