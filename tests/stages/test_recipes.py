"""docs/RECIPES.md says what the trainer runs on, and `paper` is the recipe that is known."""

import re

import pytest

from scripts import recipe_table
from trainer.configs import load_base, load_recipe, parse_overrides, recipe_differences


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
    (override,) = re.findall(r'SET="(.*?)"', page)
    assert load_recipe("paper", parse_overrides(override)).model.vision_layers == 6


def test_every_recipe_field_says_how_sure_it_is() -> None:
    """Each has one of the four tags and a sentence."""
    for key, _, tag, why in recipe_table.fields(load_recipe("paper")):
        assert tag in ("known", "as coded", "unknown", "ours"), key
        assert why.endswith((".", ")")), key


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            "model",
            "image_size 224, patch_size 32, vision_layers 12, vision_width 768, embed_dim 512, text_layers 12, text_width 512, "
            "text_heads 8, context_length 77, vision_init paper, text_tower clip_causal_eot, logit_scale_init 100",
        ),
        (
            "perceptual",
            "optimizer.name adamw, optimizer.learning_rate 0.0005, optimizer.weight_decay 0.1, optimizer.beta1 0.9, optimizer.beta2 0.98, "
            "optimizer.eps 1e-08, optimizer.warmup_steps 150, optimizer.schedule cosine, loss hinge, margin 0.05, global_batch_size 768, "
            "epochs 32, min_votes 6, handoff last, precision bf16, flip_augmentation False",
        ),
        (
            "contrastive",
            "optimizer.name adamw, optimizer.learning_rate 0.0005, optimizer.weight_decay 0.1, optimizer.beta1 0.9, optimizer.beta2 0.98, "
            "optimizer.eps 1e-08, optimizer.warmup_steps 2500, optimizer.schedule cosine, optimizer.clip_norm 3.0, "
            "optimizer.no_decay gains_biases_and_positions, epochs 32, global_batch_size 4096, contrast_batch_size 4096, precision bf16, "
            "augmentation moco_v2, crop_scale_min 0.2, schedule_horizon optimizer_steps, logit_scale_max 100.0",
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
