import dataclasses
from pathlib import Path

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
from trainer.storage import read_text


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
        ("contrastive.optimizer.learning_rat=1e-3", ["did you mean contrastive.optimizer.learning_rate?", "recipe demo"]),
        ("contrastive.optimizer.learning_rate=0", ["optimizer.learning_rate", "> 0", "0"]),
        ("contrastive.epochs=many", ["contrastive.epochs", "whole number", "many"]),
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
    with pytest.raises(InputError, match="recipe 'papr' is not a built-in recipe: use one of smoke, demo, paper, paper-3m"):
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
    with pytest.raises(InputError, match=r"start\.uri must be set if start\.kind is tower"):
        StartConfig(kind="tower")


def test_an_evaluation_with_models_survives_a_round_trip_through_yaml() -> None:
    config = EvaluateConfig(output="x", models=(ModelToEvaluate(stage="perceptual", uri="y", recipe_hash="z"),))

    assert parse_config(EvaluateConfig, load_yaml(dump_yaml(config), "c")) == config


def test_named_streams_differ_by_name_and_by_seed() -> None:
    seeds = {stream_seed(seed, name) for seed in (0, 1) for name in ("vision_init", "text_init")}

    assert len(seeds) == 4
    assert all(0 <= value < 2**63 for value in seeds)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"contrastive": {"optimizer": {"learning_rate": 0.0}}}, r"contrastive\.optimizer\.learning_rate must be > 0 and < 1, got 0\.0"),
        ({"contrastive": {"optimizer": {"weight_decay": float("inf")}}}, r"optimizer\.weight_decay must be a finite number, got inf"),
        ({"contrastive": {"epochs": 0}}, r"contrastive\.epochs must be >= 1, got 0"),
        (
            {"contrastive": {"global_batch_size": 64, "contrast_batch_size": 48}},
            r"must be a divisor of contrastive\.global_batch_size 64, got 48",
        ),
        ({"contrastive": {"optimizer": None}}, r"optimizer must be a mapping of settings, got None"),
        ({"contrastive": {"epochs": "many"}}, r"x\.yaml: contrastive\.epochs must be a whole number, got 'many'"),
        ({"contrastive": {"epoch": 3}}, r"contrastive\.epoch is not a setting: did you mean contrastive\.epochs\?"),
        ({"model": None}, r"model must be a mapping of settings, got None"),
        ({"model": {"vision_head_width": 0}}, r"model\.vision_head_width must be >= 1, got 0"),
        ({"placement": {"metrics_port": 99999}}, r"placement\.metrics_port must be between 0 and 65535, got 99999"),
        (
            {"placement": {"checkpoint_every_minutes": float("nan")}},
            r"checkpoint_every_minutes must be a finite number, got nan",
        ),
        ({"placement": {"attempt": -1}}, r"placement\.attempt must be >= 0, got -1"),
        ({"perceptual": {}}, r"perceptual must be set for this stage and no other, got 'set'"),
    ],
)
def test_a_stages_configuration_is_refused_in_one_line(changes: dict[str, object], line: str) -> None:
    """Of a group that may be missing, too: the source, the whole key, the rule and the value."""
    values = {"stage": "contrastive", "output": "x", "contrastive": {}, **changes}
    with pytest.raises(InputError, match=line) as raised:
        parse_config(StageConfig, values, (), "x.yaml")
    assert str(raised.value).startswith("x.yaml: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\nseed: 2", "seed appears twice"),
        ("contrastive: {epochs: 1, epochs: 2}", "epochs appears twice"),
        ("[" * 3000, "nested deeper than 64 levels"),
        (f"seed: {'9' * 5000}", "not YAML"),
        ("- 1", "expected a mapping of settings, got list"),
        ("a: &a {b: *a}", "not YAML: found unconstructable recursive node"),
        ("a: &a [[*a]]", "not YAML: found unconstructable recursive node"),
    ],
)
def test_yaml_that_says_nothing_clear_is_refused(text: str, line: str) -> None:
    """A key that stands twice is a typo; the rest would be a traceback."""
    with pytest.raises(InputError, match=line):
        load_yaml(text, "x.yaml")


def test_an_override_that_is_no_yaml_is_refused() -> None:
    """It is named."""
    with pytest.raises(InputError, match=r"override 'seed=\[': not YAML"):
        parse_config(StageConfig, {"output": "x", "contrastive": {}}, ["seed=["])


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Where it is, and at which byte."""
    (tmp_path / "x.yaml").write_bytes(b"seed: 1\n\xff")
    with pytest.raises(InputError, match=r"x\.yaml: not UTF-8 text: invalid start byte at byte 8"):
        read_text(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize(
    ("kind", "values", "line"),
    [
        (OptimizerConfig, {"warmup_steps": "16"}, r"warmup_steps must be a whole number, got '16'"),
        (OptimizerConfig, {"warmup_steps": 2**63}, r"warmup_steps must be a whole number of at most 64 bits, got 9223372036854775808"),
        (OptimizerConfig, {"weight_decay": 10**400}, r"weight_decay must be a number of at most 64 bits, got 10{199}…$"),
        (OptimizerConfig, {"warmup_steps": 10**5000}, r"warmup_steps must be .*, got a number of thousands of digits"),
        (ModelConfig, {"open_clip_name": ["x" * 10**6]}, r"open_clip_name must be text, got \['x{198}…$"),
        (OptimizerConfig, {"warmup_steps": True}, r"warmup_steps must be a whole number, got True"),
        (OptimizerConfig, {"eps": "1e-3"}, r"eps must be a number, got '1e-3'"),
        (OptimizerConfig, {"schedule": "cosin"}, r"schedule must be one of cosine, constant, got 'cosin'"),
        (ModelConfig, {"open_clip_name": 5}, r"open_clip_name must be text, got 5"),
        (ContrastiveConfig, {"optimizer": {"eps": 0}}, r"optimizer\.eps must be > 0, got 0\.0"),
        (EvaluateConfig, {"models": None}, r"models must be a list, got None"),
        (EvaluateConfig, {"models": [{}, {"stage": "x"}]}, r"models\[1\]\.stage must be one of untrained, .* got 'x'"),
        (EvaluateConfig, {"models": [{"checkpoints": "x"}]}, r"models\[0\]: models\.checkpoints must be empty, all, or steps"),
        (Recipe, {1: 2}, r"1 is not a setting: known are name, model"),
        (Recipe, {"epochs": 2}, r"epochs is not a setting: did you mean perceptual\.epochs or contrastive\.epochs or posthoc\.epochs\?"),
        (Recipe, {"contrastiv": {}}, r"contrastiv is not a setting: did you mean contrastive\?"),
        (Recipe, {"contrastive.epochs": 1, "contrastive": {"epochs": 2}}, r"contrastive\.epochs is given twice"),
        (Recipe, {"contrastive": 1, "contrastive.epochs": 2}, r"contrastive is given twice"),
    ],
)
def test_a_value_of_another_type_and_a_key_that_is_not_one_are_refused(kind: type, values: dict[str, object], line: str) -> None:
    """The rule in words; of a key the nearest one."""
    with pytest.raises(InputError, match=f"^x: {line}"):
        parse_config(kind, values, (), "x")


def test_what_yaml_reads_otherwise_is_taken_as_it_was_meant() -> None:
    """A whole number for a fraction, a number for a choice, and overrides of text that YAML takes for something else."""
    assert parse_config(ModelConfig, {"logit_scale_init": 100}).logit_scale_init == "100"
    assert parse_config(OptimizerConfig, {"clip_norm": 3}).clip_norm.is_integer()
    assert parse_config(Placement, {}, ["profile_steps=10:20", "cache_dir=007", "wandb_project=no"]) == Placement(
        profile_steps="10:20", cache_dir="007", wandb_project="no"
    )
    assert parse_config(Placement, {"profile_steps": "10:20"}, ["profile_steps="]).profile_steps == ""


def test_a_dotted_key_of_a_file_is_a_key_of_its_group() -> None:
    """As in the tables of docs/RECIPES.md."""
    loaded = parse_config(Recipe, {"contrastive.epochs": 3, "contrastive": {"optimizer.eps": 1e-6, "precision": "fp32"}})
    assert (loaded.contrastive.epochs, loaded.contrastive.optimizer.eps, loaded.contrastive.precision) == (3, 1e-6, "fp32")
