"""`published`: every tensor's distribution against a second implementation, in plain torch.nn and without open_clip.

The second implementation is read off the same source (docs/RECIPES.md, "Initialisation") and shares nothing with ours: a block
is nn.Linear and nn.LayerNorm, whose defaults are what the code leaves alone.
"""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trainer.configs import load_recipe
from trainer.model import towers

WIDTH, LAYERS, EMBED, SIDE, PATCH, CONTEXT, VOCABULARY = 192, 4, 128, 64, 8, 77, 49408
CONFIG = dataclasses.replace(
    load_recipe("smoke").model,
    vision_init="published", text_init="published", image_size=SIDE, patch_size=PATCH, vision_layers=LAYERS, vision_width=WIDTH,
    vision_head_width=64, embed_dim=EMBED, text_layers=LAYERS, text_width=WIDTH, text_heads=3, context_length=CONTEXT,
)  # fmt: skip


class Block(nn.Module):
    """A residual block as the follow-on code writes it: queries, keys and values in one nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ln_2, self.fc, self.proj = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        proj_std, attn_std, fc_std = WIDTH**-0.5 * (2 * LAYERS) ** -0.5, WIDTH**-0.5, (2 * WIDTH) ** -0.5
        nn.init.normal_(self.qkv.weight, std=attn_std)
        nn.init.normal_(self.out.weight, std=proj_std)
        nn.init.normal_(self.fc.weight, std=fc_std)
        nn.init.normal_(self.proj.weight, std=proj_std)


NAMES = {
    "ln_1.weight": "ln_1.weight", "ln_1.bias": "ln_1.bias", "ln_2.weight": "ln_2.weight", "ln_2.bias": "ln_2.bias",
    "qkv.weight": "attn.in_proj_weight", "qkv.bias": "attn.in_proj_bias", "out.weight": "attn.out_proj.weight",
    "out.bias": "attn.out_proj.bias", "fc.weight": "mlp.c_fc.weight", "fc.bias": "mlp.c_fc.bias",
    "proj.weight": "mlp.c_proj.weight", "proj.bias": "mlp.c_proj.bias",
}  # fmt: skip


def second_implementation() -> dict[str, Tensor]:
    """Every tensor of both towers under open_clip's names."""
    found: dict[str, Tensor] = {}
    for prefix in ("visual.transformer", "transformer"):
        for layer in range(LAYERS):
            block = dict(Block().named_parameters())
            found |= {f"{prefix}.resblocks.{layer}.{NAMES[name]}": value for name, value in block.items()}
    for name, norm in {"visual.ln_pre": WIDTH, "visual.ln_post": WIDTH, "ln_final": WIDTH}.items():
        found |= {f"{name}.{key}": value for key, value in nn.LayerNorm(norm).named_parameters()}
    found["visual.conv1.weight"] = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False).weight
    found["visual.class_embedding"] = torch.randn(WIDTH)
    found["visual.positional_embedding"] = 0.01 * torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH)
    found["visual.proj"] = WIDTH**-0.5 * torch.randn(WIDTH, EMBED)
    found["token_embedding.weight"] = 0.02 * torch.randn(VOCABULARY, WIDTH)
    found["positional_embedding"] = 0.01 * torch.randn(CONTEXT, WIDTH)
    found["text_projection"] = WIDTH**-0.5 * torch.randn(WIDTH, EMBED)
    return {name: value.detach() for name, value in found.items()}


def by_kind(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensor of all layers together, so that few numbers do not blur its moments."""
    kinds: dict[str, list[Tensor]] = {}
    for name, value in tensors.items():
        kinds.setdefault(".".join(part for part in name.split(".") if not part.isdigit()), []).append(value.flatten())
    return {name: torch.cat(values).double() for name, values in kinds.items()}


@pytest.fixture(scope="module")
def drawn() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = towers.build_model(CONFIG, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return by_kind({name: p.detach() for name, p in model.named_parameters()}), by_kind(second_implementation())


def test_both_have_the_same_tensors(drawn: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    """All but the logit scale, which is a setting of its own."""
    ours, theirs = drawn
    assert ours.keys() - theirs.keys() == {"logit_scale"}
    assert not theirs.keys() - ours.keys()
    assert {name: len(ours[name]) for name in theirs} == {name: len(theirs[name]) for name in theirs}


@pytest.mark.parametrize(
    ("moment", "tolerance"),
    [
        (lambda x: x.mean() / (x.std() + 1e-9), 4.0),  # in standard errors, like all of these
        (lambda x: x.std().log() if x.std() > 0 else x.std(), 4.0),
        (lambda x: (x - x.mean()).abs().mean() / (x.std() + 1e-9), 4.0),  # .80 of a normal distribution, .87 of a uniform one
    ],
    ids=["mean", "deviation", "shape"],
)
def test_moments_are_equal(
    drawn: tuple[dict[str, Tensor], dict[str, Tensor]], moment: Callable[[Tensor], Tensor], tolerance: float
) -> None:
    ours, theirs = drawn
    for name, reference in theirs.items():
        difference = float(moment(ours[name]) - moment(reference))
        assert abs(difference) <= tolerance * (2 / len(reference)) ** 0.5, name


def test_biases_reach_their_bound_and_no_further(drawn: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    """Uniform within fan_in^-1/2, those of queries, keys, values and attention outputs too."""
    ours, _ = drawn
    for tower in ("visual.transformer", "transformer"):
        for name, fan_in in {
            "attn.in_proj_bias": WIDTH,
            "attn.out_proj.bias": WIDTH,
            "mlp.c_fc.bias": WIDTH,
            "mlp.c_proj.bias": 4 * WIDTH,
        }.items():
            largest = float(ours[f"{tower}.resblocks.{name}"].abs().max())
            assert 0.97 * fan_in**-0.5 < largest <= fan_in**-0.5, name
