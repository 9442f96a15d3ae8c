"""Building the towers: streams of the seed, statistics of the initialisation, what is refused, what is counted."""

import dataclasses
import math

import open_clip
import pytest
import torch

from trainer.config import ModelConfig
from trainer.configs import load_recipe
from trainer.errors import InputError
from trainer.model import towers

TINY = load_recipe("smoke").model


@pytest.mark.parametrize("vision_init", ["paper", "open_clip"])
def test_one_seed_gives_equal_weights(vision_init: str) -> None:
    """Two builds from one seed are equal in every tensor, whatever torch drew before."""
    config = dataclasses.replace(TINY, vision_init=vision_init)
    torch.manual_seed(1)
    first = towers.model_state(towers.build_model(config, 7))
    torch.manual_seed(2)
    second = towers.model_state(towers.build_model(config, 7))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_building_leaves_the_global_stream_alone() -> None:
    """What a caller draws next does not depend on a model having been built."""
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    towers.build_model(TINY, 0)
    assert torch.equal(torch.rand(1), expected)


def test_seeds_differ_in_both_towers() -> None:
    """Another seed draws every random tensor again."""
    first, second = (towers.build_model(TINY, seed) for seed in (0, 1))
    for name in ("visual.conv1.weight", "visual.class_embedding", "token_embedding.weight", "text_projection"):
        assert not torch.equal(first.state_dict()[name], second.state_dict()[name]), name


def test_text_init_does_not_depend_on_the_vision_tower() -> None:
    """The streams are apart: another vision initialisation, or another vision tower, leaves the text tower as it was."""
    plain = towers.build_model(TINY, 0).state_dict()
    for change in ({"vision_init": "open_clip"}, {"vision_layers": 3}):
        other = towers.build_model(dataclasses.replace(TINY, **change), 0).state_dict()
        text = [name for name in plain if not name.startswith("visual.")]
        assert all(torch.equal(plain[name], other[name]) for name in text)


def test_open_clip_init_is_open_clips_own() -> None:
    """vision_init open_clip keeps PyTorch's defaults: drawn from our stream, they equal open_clip's constructor."""
    from trainer.config import stream_seed

    config = dataclasses.replace(TINY, vision_init="open_clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(5, "vision_init"))
        theirs = open_clip.CLIP(**towers.open_clip_config(config)).visual.state_dict()
    ours = towers.build_model(config, 5).visual.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_paper_init_has_its_standard_deviations() -> None:
    """Class token of std 1, residual-scaled blocks, zero biases; positions, patches and projection as open_clip draws them."""
    layers, width = 4, 192
    config = dataclasses.replace(TINY, vision_layers=layers, vision_width=width, vision_head_width=64)
    visual = towers.build_model(config, 0).visual
    expected = {"in_proj_weight": width**-0.5, "c_fc.weight": (2 * width) ** -0.5}
    expected |= {name: width**-0.5 * (2 * layers) ** -0.5 for name in ("out_proj.weight", "c_proj.weight")}
    for ending, std in expected.items():
        weights = torch.cat([p.flatten() for name, p in visual.transformer.named_parameters() if name.endswith(ending)])
        assert weights.std().item() == pytest.approx(std, rel=0.02), ending
    assert visual.class_embedding.std().item() == pytest.approx(1.0, rel=0.15)
    assert visual.positional_embedding.std().item() == pytest.approx(width**-0.5, rel=0.05)
    assert all(p.abs().max() == 0 for name, p in visual.transformer.named_parameters() if name.endswith("bias"))


def test_text_init_is_clips() -> None:
    """The text tower's standard deviations are those that open_clip's own constructor draws."""
    config = dataclasses.replace(TINY, text_width=128, text_layers=3)
    ours = towers.build_model(config, 0)
    theirs = open_clip.CLIP(**towers.open_clip_config(config))
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if not name.startswith("visual.") and mine.numel() > 1 and other.std() > 0:
            assert mine.std().item() == pytest.approx(other.std().item(), rel=0.15), name


@pytest.mark.parametrize(("given", "value"), [("100", 100.0), ("1/0.07", 1 / 0.07)])
def test_logit_scale_starts_where_the_recipe_says(given: str, value: float) -> None:
    """The parameter is the logarithm."""
    model = towers.build_model(dataclasses.replace(TINY, logit_scale_init=given), 0)
    assert model.logit_scale.item() == pytest.approx(math.log(value), rel=1e-6)


def test_an_open_clip_name_gives_its_sizes() -> None:
    """ViT-B-32 by name has the sizes that are ModelConfig's defaults."""
    named = towers.resolve(ModelConfig(open_clip_name="ViT-B-32"))
    assert named == towers.resolve(ModelConfig())
    assert named["vision_width"] == 768


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "batch normalisation"),
        ("ViT-B-16-SigLIP", "timm"),
        ("convnext_base", "timm"),
        ("roberta-ViT-B-32", "Hugging Face"),
        ("coca_ViT-B-32", "not a plain CLIP"),
        ("ViT-B-33", r"one of open_clip.list_models\(\)"),
    ],
)
def test_towers_that_are_not_exact_are_refused(name: str, reason: str) -> None:
    """One line with the name and the reason."""
    with pytest.raises(InputError, match=reason) as caught:
        towers.open_clip_config(ModelConfig(open_clip_name=name))
    assert f"got {name!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flops_are_those_of_the_published_model() -> None:
    """ViT-B/32: 8.82 GFLOP forward for an image, 5.96 for 77 tokens, three times that with backward."""
    assert towers.flops_per_sample(ModelConfig(), 0) == pytest.approx(3 * 8.82e9, rel=0.002)
    assert towers.flops_per_sample(ModelConfig(), 77) == pytest.approx(44.3e9, rel=0.01)
    assert towers.flops_per_sample(ModelConfig(), 32) == pytest.approx(33.6e9, rel=0.01)
