"""The two towers: open_clip's CLIP, built from the recipe with named random streams.

The modules and their key names are open_clip's, so that open_clip can load the trained models. This module adds the
initialisation and the strict loading of a tower; trainer/model/encoding.py runs the towers.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.config import ModelConfig, stream_seed
from trainer.configs.sizes import VOCABULARY, sizes
from trainer.errors import InputError
from trainer.model.clip import CLIP, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, model_config

LOGIT_SCALES = {"100": math.log(100), "1/0.07": math.log(1 / 0.07)}


# ------------------------------------------------------------------------------------------------ building


def build_model(config: ModelConfig, seed: int) -> CLIP:
    """A CLIP in float32 on the CPU, initialised from the streams `vision_init` and `text_init` of `seed`.

    The streams are separate, so a tower's initial weights do not depend on other random draws: all arms of a seed share them.

    Raises:
        InputError: config names no open_clip ViT that this trainer keeps exact (see `open_clip_config`).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "vision_init"))  # the constructor draws the vision tower first
        model = CLIP(**open_clip_config(config))
    if config.vision_init != "open_clip":
        _init_vision(model.visual, config.vision_init == "published", _generator(seed, "vision_init"))
    _init_text(model, config.text_init == "published", _generator(seed, "text_init"))
    with torch.no_grad():
        model.logit_scale.fill_(LOGIT_SCALES[config.logit_scale_init])
    return model


def open_clip_config(config: ModelConfig) -> dict[str, Any]:
    """The model in open_clip's configuration format: embed_dim, vision_cfg, text_cfg.

    Raises:
        InputError: open_clip knows no such name, or it is not CLIP's ViT with a causal text tower over CLIP's vocabulary:
            batch statistics and dropout would make results depend on the number of ranks.
    """
    if not config.open_clip_name:
        return {
            "embed_dim": config.embed_dim,
            "vision_cfg": {
                "image_size": config.image_size,
                "patch_size": config.patch_size,
                "layers": config.vision_layers,
                "width": config.vision_width,
                "head_width": config.vision_head_width,
            },
            "text_cfg": {
                "context_length": config.context_length,
                "vocab_size": VOCABULARY,
                "width": config.text_width,
                "heads": config.text_heads,
                "layers": config.text_layers,
            },
        }
    name = config.open_clip_name
    found = model_config(name)
    if found is None:
        raise InputError(f"model.open_clip_name must be one of open_clip.list_models(), got {name!r}")
    _refuse_inexact(name, found)
    return found


def _refuse_inexact(name: str, found: Mapping[str, Any]) -> None:
    """Only CLIP's own ViT and causal text tower are the same function at every world size and text length."""
    vision, text = found["vision_cfg"], found["text_cfg"]
    reasons = {
        "its vision tower is a ResNet with batch normalisation": isinstance(vision.get("layers"), list),
        "its vision tower comes from timm, perhaps with batch statistics or dropout": "timm_model_name" in vision,
        "its vision tower drops patches at random": bool(vision.get("patch_dropout")),
        "its text tower comes from Hugging Face": "hf_model_name" in text,
        "it is not a plain CLIP (custom_text, CoCa)": bool(found.get("custom_text")) or "multimodal_cfg" in found,
        "its text tower is not causal with pooling at EOT": bool(text.get("no_causal_mask") or text.get("embed_cls"))
        or text.get("pool_type", "argmax") != "argmax",
        f"its vocabulary is not CLIP's {VOCABULARY} tokens": text.get("vocab_size", VOCABULARY) != VOCABULARY
        or bool(text.get("hf_tokenizer_name")),
        "it has a logit bias": "init_logit_bias" in found,
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"model.open_clip_name must be a CLIP ViT that is exact at any number of ranks, got {name!r}: {reason}")


def resolve(config: ModelConfig) -> dict[str, int]:
    """The effective sizes, also if they come from an open_clip name: the size fields of ModelConfig."""
    found = open_clip_config(config)
    vision, text = found["vision_cfg"], found["text_cfg"]
    return {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "vision_layers": vision["layers"],
        "vision_width": vision["width"],
        "vision_head_width": vision.get("head_width", 64),
        "embed_dim": found["embed_dim"],
        "text_layers": text["layers"],
        "text_width": text["width"],
        "text_heads": text["heads"],
        "context_length": text.get("context_length", 77),
    }


def flops_per_sample(config: ModelConfig, text_tokens: float) -> float:
    """Floating-point operations of one image and one caption of `text_tokens`, forward and backward.

    Multiplications and additions count as one each; backward costs twice forward. 0 tokens: only the vision tower.
    """
    return sizes(config).flops(text_tokens)


# ------------------------------------------------------------------------------------------- initialisation


def _generator(seed: int, stream: str) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(seed, stream))


def _init_blocks(blocks: nn.Module, width: int, layers: int, generator: torch.Generator) -> None:
    """Normal weights; those of layers that add to the residual stream are scaled by (2 layers)^-1/2."""
    residual_std = width**-0.5 * (2 * layers) ** -0.5
    for name, parameter in blocks.named_parameters():
        if name.endswith(("out_proj.weight", "c_proj.weight")):
            parameter.normal_(std=residual_std, generator=generator)
        elif name.endswith("in_proj_weight"):
            parameter.normal_(std=width**-0.5, generator=generator)
        elif name.endswith("c_fc.weight"):
            parameter.normal_(std=(2 * width) ** -0.5, generator=generator)


def _init_biases(blocks: nn.Module, endings: tuple[str, ...], generator: torch.Generator) -> None:
    """Biases of linear layers with these name endings: uniform within fan_in^-1/2, nn.Linear's default. LayerNorms keep theirs."""
    parameters = dict(blocks.named_parameters())
    for name in [name for name in parameters if name.endswith(endings)]:
        weight = parameters[name.removesuffix("bias") + "weight"]
        if weight.ndim == 2:
            bound = weight.shape[1] ** -0.5
            parameters[name].uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def _init_vision(visual: Any, published: bool, generator: torch.Generator) -> None:
    """Residual-scaled normal blocks and a class token of std 1; patches and LayerNorms as open_clip draws them.

    With `published`, the tower is initialised as by the follow-on code's `initialize_parameters` (docs/RECIPES.md, "Initialisation"):
    positions .01, projection width^-1/2, and all biases as in nn.Linear, including those of queries, keys, values and attention
    outputs. Otherwise an earlier interpretation of the same code is used, kept for finished experiments: biases 0, positions and
    projection as in open_clip.
    """
    width, layers = visual.conv1.out_channels, len(visual.transformer.resblocks)
    _init_blocks(visual.transformer, width, layers, generator)
    if published:
        _init_biases(visual.transformer, ("bias",), generator)
        visual.positional_embedding.normal_(std=0.01, generator=generator)
        visual.proj.normal_(std=width**-0.5, generator=generator)
    else:
        for name, parameter in visual.transformer.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    visual.class_embedding.normal_(std=1.0, generator=generator)


@torch.no_grad()
def _init_text(model: CLIP, published: bool, generator: torch.Generator) -> None:
    """CLIP's own initialisation of the text tower, from our stream. With `published`, attention has nn.Linear's biases instead of 0."""
    width, layers = model.positional_embedding.shape[1], len(model.transformer.resblocks)
    model.token_embedding.weight.normal_(std=0.02, generator=generator)
    model.positional_embedding.normal_(std=0.01, generator=generator)
    _init_blocks(model.transformer, width, layers, generator)
    _init_biases(model.transformer, ("bias",) if published else ("c_fc.bias", "c_proj.bias"), generator)
    model.text_projection.normal_(std=width**-0.5, generator=generator)


# --------------------------------------------------------------------------------------- weights in and out


def vision_state(model: CLIP) -> dict[str, Tensor]:
    """The vision tower's weights by open_clip's key names without `visual.`: float32, contiguous, on the CPU."""
    return _portable(model.visual)


def model_state(model: CLIP) -> dict[str, Tensor]:
    """All weights by open_clip's key names: float32, contiguous, on the CPU."""
    return _portable(model)


def _portable(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in module.state_dict().items()}


def load_vision(model: CLIP, state: Mapping[str, Tensor], source: str = "vision tower") -> None:
    """Load the vision tower, every key and every shape.

    Raises:
        InputError: anything is missing, unexpected, of another shape or not finite; the model is then unchanged.
    """
    load_strict(model.visual, state, source)


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state`, every key and every shape; `source` names it in errors.

    Raises:
        InputError: anything is missing, unexpected, of another shape or kind, or not finite; the module is then unchanged.
    """
    expected = module.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise InputError(
            f"{source} does not fit the model: {len(missing)} keys missing (first: {_first(missing)}), "
            f"{len(unexpected)} unexpected (first: {_first(unexpected)})"
        )
    for name, value in sorted(state.items()):
        if value.shape != expected[name].shape:
            raise InputError(f"{source} does not fit the model: {name} has shape {tuple(value.shape)}, not {tuple(expected[name].shape)}")
        if value.is_floating_point() != expected[name].is_floating_point():
            raise InputError(f"{source} does not fit the model: {name} has dtype {value.dtype}, not {expected[name].dtype}")
    if broken := find_nonfinite(state):
        raise InputError(f"{source}: {broken} contains NaN or Inf")
    module.load_state_dict(dict(state), strict=True)


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) or "none"


def permute_within(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Permute the numbers within each tensor at random (stream `permute`): the same norms and distribution, but no structure."""
    generator = _generator(seed, "permute")
    return {
        name: value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(value) for name, value in sorted(state.items())
    }


def save_open_clip(folder: Path, model: CLIP, config: ModelConfig) -> None:
    """Write the model so that `open_clip.create_model_and_transforms("local-dir:<folder>")` opens it, preprocessing included."""
    size = model.visual.image_size
    preprocess = {
        "size": list(size) if isinstance(size, tuple) else size,
        "mode": "RGB",
        "mean": list(OPENAI_DATASET_MEAN),
        "std": list(OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    content = {"model_cfg": open_clip_config(config), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_tensors(folder / "open_clip_model.safetensors", model_state(model))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file. OSError names it if the operating system refuses, which safetensors reports as an error of its own."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        refused = re.search(r"\(os error (\d+)\)", str(error))
        if refused is None:
            raise
        raise OSError(int(refused[1]), os.strerror(int(refused[1])), str(path)) from error


def find_nonfinite(tensors: Mapping[str, Tensor]) -> str:
    """The name of a tensor that contains NaN or Inf; empty if none does."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            return name
    return ""
