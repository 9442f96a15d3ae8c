"""docs/RECIPES.md says what the trainer runs on, and `paper` is the recipe that is known."""

import re

import pytest

from scripts import recipe_table
from trainer.configs import load_base, load_recipe, parse_overrides, recipe_differences
from trainer.errors import InputError


def test_the_page_is_written_from_the_configuration() -> None:
    """`python scripts/recipe_table.py` would change nothing."""
    current = recipe_table.PAGE.read_text(encoding="utf-8")
    assert recipe_table.page(current) == current


def test_the_pages_recipe_and_overrides_are_taken() -> None:
    """What a reader copies from it works, and changes what it says."""
    page = recipe_table.PAGE.read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert recipe_differences(load_recipe(text), load_base(text)) == [
        "contrastive.epochs: 32 -> 16",
        "contrastive.optimizer.learning_rate: 0.0005 -> 0.001",
        "model.open_clip_name: '' -> 'ViT-B-16'",
    ]
    override, _ = re.findall(r'SET="(.*?)"', page)  # the second brings back the first reading: tests/config/test_growth.py
    assert load_recipe("paper", parse_overrides(override)).model.vision_layers == 6


def test_every_recipe_field_says_how_sure_it_is() -> None:
    """Each has one of the four tags and a sentence; what is in no hash has no tag."""
    for key, _, tag, why in recipe_table.fields(load_recipe("paper")):
        assert tag in (("–",) if key == "evaluation.trajectory" else ("known", "as coded", "unknown", "ours")), key
        assert why.endswith((".", ")")), key


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            "model",
            "image_size 224, patch_size 32, vision_layers 12, vision_width 768, embed_dim 512, text_layers 12, text_width 512, "
            "text_heads 8, context_length 77, vision_init published, text_init published, text_tower clip_causal_eot, logit_scale_init 100",
        ),
        (
            "perceptual",
            "optimizer.name adamw, optimizer.learning_rate 0.0005, optimizer.weight_decay 0.1, optimizer.beta1 0.9, optimizer.beta2 0.98, "
            "optimizer.eps 1e-08, optimizer.warmup_steps 150, optimizer.schedule cosine, optimizer.clip_norm 0.0, "
            "optimizer.no_decay gains_biases_and_positions, loss hinge, margin 0.05, global_batch_size 768, "
            "epochs 32, min_votes 6, handoff last, precision bf16, flip_augmentation False",
        ),
        (
            "contrastive",
            "optimizer.name adamw, optimizer.learning_rate 0.0005, optimizer.weight_decay 0.1, optimizer.beta1 0.9, optimizer.beta2 0.98, "
            "optimizer.eps 1e-08, optimizer.warmup_steps 2500, optimizer.schedule cosine, optimizer.clip_norm 0.0, "
            "optimizer.no_decay gains_biases_and_positions, epochs 32, global_batch_size 4096, contrast_batch_size 4096, precision bf16, "
            "augmentation moco_v2, crop_scale_min 0.2, schedule_horizon optimizer_steps, logit_scale_max 100.0, "
            "logit_scale_clamp forward, accumulation gradcache, decoder fast",
        ),
        (
            "posthoc",
            "optimizer.name adam, optimizer.learning_rate 1e-05, optimizer.weight_decay 0.0, global_batch_size 16, epochs 64, margin 0.05, "
            "base random",
        ),
    ],
)
def test_the_papers_recipe_is_the_one_looked_up(section: str, expected: str) -> None:
    """Literal figures of what is known of Perceptual Initialization, so that no default drifts."""
    found = {key: str(value) for key, value, _, _ in recipe_table.fields(getattr(load_recipe("paper"), section))}
    for pair in expected.split(", "):
        key, value = pair.split(" ")
        assert found[key] == value, f"{section}.{key}"


def test_the_codes_own_arithmetic_is_a_recipe() -> None:
    """Six GPUs of 1,024 pairs contrast, six such batches make a step, the horizon counts batches; some 13 k steps in all."""
    recipe = load_recipe("paper-as-coded")
    assert recipe_differences(recipe, load_recipe("paper")) == [
        "contrastive.accumulation: 'gradcache' -> 'independent'",
        "contrastive.contrast_batch_size: 4096 -> 6144",
        "contrastive.global_batch_size: 4096 -> 36864",
        "contrastive.order_runs: 32 -> 48",
        "contrastive.schedule_horizon: 'optimizer_steps' -> 'as_coded'",
        "posthoc.base: 'random' -> 'perceptual'",
    ]
    assert 14_829_396 // recipe.contrastive.global_batch_size * recipe.contrastive.epochs == 12_864


def test_the_codes_text_tower_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"model\.text_tower mean_pooled_unmasked, the follow-on code's tower, is not supported: it"):
        load_recipe("paper", ["model.text_tower=mean_pooled_unmasked"])
