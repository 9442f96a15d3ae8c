"""The size of a model and the cost of training it: parameters, floating-point operations, GPU memory. Needs no torch.

Sizes of open_clip's ViTs are in open_clip.json, which `make generate` writes from the installed package.
"""

import difflib
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from trainer.config import ModelConfig, PosthocConfig, StageConfig, require
from trainer.errors import InputError

VOCABULARY = 49408
IMAGES_A_TRIPLET = 3
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12}
"""Dense bf16 (V100: fp16) operations a second by the makers' data sheets, SXM where there is a choice."""
MINIMUM_DRIVERS = {12: 525, 13: 580}
"""NVIDIA's least driver by the major version of CUDA; a minor version needs no newer one."""
CAPTION_TOKENS = 24.0
"""Mean tokens per caption assumed for activations, as in rows L and M of docs/BENCHMARKS.md (web captions)."""
CONTEXT_BYTES = 3 << 29
"""1.5 GiB for the CUDA context, cuBLAS, NCCL and gradients in transit: assumed, since PyTorch's allocator does not count it."""
TILE_BYTES = 2 * (8 << 20) * 4
"""The loss's two tiles of logits, float32: trainer/model/losses.py, TILE_ELEMENTS."""
USABLE_FRACTION = 0.8
"""Part of a GPU that an estimate may fill; the rest is for captions longer than CAPTION_TOKENS, fragmentation and the estimate's error."""


# --------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True, kw_only=True)
class Tower:
    """One tower.

    Attributes:
        tokens: tokens of a picture (including the class token), or of the longest caption.
        layers: transformer blocks.
        width: width of a token.
        mlp_width: width inside a block's MLP.
        parameters: parameters of the tower, including its projection into the joint space.
        edge_flops: forward operations of one picture or caption outside the blocks: patches, projection.
    """

    tokens: int
    layers: int
    width: int
    mlp_width: int
    parameters: int
    edge_flops: float

    def flops(self, tokens: float) -> float:
        """Forward operations for one picture or a caption of `tokens`; a multiplication and an addition count as one each."""
        block = tokens * (8 * self.width**2 + 4 * self.width * self.mlp_width) + 4 * tokens**2 * self.width
        return self.layers * block + self.edge_flops

    def activation_bytes(self, tokens: float, element: int) -> float:
        """Bytes that the backward pass needs for one picture or a caption of `tokens`, with `element` bytes per number.

        A block stores per token the residual stream twice (float32 under bf16 autocast), and in the step's precision both
        LayerNorms' output, queries, keys, values, the output of attention, and the MLP before and after its activation. In the
        last block only attention runs for all tokens. A test counts the same with autograd's hooks; measured on an H100, rows K and L
        of docs/BENCHMARKS.md (1,024 pairs of ViT-B/32: 29,597 MiB at 77 tokens, 19,758 MiB at 23.4) differ by less than 10 %.
        """
        residual = max(element, 4)
        block = (2 * residual + 6 * element) * self.width + 2 * element * self.mlp_width
        return tokens * ((self.layers - 1) * block + (residual + 5 * element) * self.width)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A model's two towers, and the side of a picture in pixels."""

    image_size: int
    embed_dim: int
    vision: Tower
    text: Tower

    @property
    def parameters(self) -> int:
        """Parameters of both towers and the logit scale."""
        return self.vision.parameters + self.text.parameters + 1

    @property
    def image_bytes(self) -> int:
        """Bytes of one picture as it is copied to the device: uint8."""
        return 3 * self.image_size**2

    def flops(self, text_tokens: float) -> float:
        """Forward and backward (twice forward) operations for one picture and a caption of `text_tokens`; 0: for the picture alone."""
        return 3 * (self.vision.flops(self.vision.tokens) + (self.text.flops(text_tokens) if text_tokens else 0.0))


@functools.cache
def sizes(model: ModelConfig) -> Sizes:
    """The sizes of a model, by its own fields or by its open_clip name.

    Raises:
        InputError: the trainer cannot build a model of this name; the message gives the nearest one.
    """
    if model.open_clip_name:
        return _sizes(**_known(model.open_clip_name))
    vision = {"layers": model.vision_layers, "width": model.vision_width, "mlp_width": 4 * model.vision_width}
    text = {"layers": model.text_layers, "width": model.text_width, "mlp_width": 4 * model.text_width}
    return _sizes(model.image_size, model.patch_size, model.context_length, model.embed_dim, vision, text)


def _known(name: str) -> Mapping[str, Any]:
    table = _open_clip_table()
    if name not in table:
        near = difflib.get_close_matches(name.lower(), [known.lower() for known in table], 1, 0.0)
        nearest = next((known for known in table if [known.lower()] == near), "ViT-B-32")
        raise InputError(
            f"model.open_clip_name must be one of open_clip's {len(table)} CLIP ViTs whose training is exact at any number of ranks, "
            f"got {name!r}: did you mean {nearest!r}? (all are listed in trainer/configs/open_clip.json)"
        )
    found: Mapping[str, Any] = table[name]
    return found


@functools.cache
def _open_clip_table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads(resources.files("trainer.configs").joinpath("open_clip.json").read_text(encoding="utf-8"))
    return table


def _sizes(
    image_size: int, patch_size: int, context_length: int, embed_dim: int, vision: Mapping[str, Any], text: Mapping[str, Any]
) -> Sizes:
    patches, pixels, width = (image_size // patch_size) ** 2, 3 * patch_size**2, vision["width"]
    # patches, class token, positions, a LayerNorm before the blocks and one after, projection
    around = pixels * width + width + (patches + 1) * width + 4 * width + width * embed_dim
    seen = 2 * patches * pixels * width + 2 * width * embed_dim
    # words, positions, a LayerNorm, projection
    words = (VOCABULARY + context_length + 2 + embed_dim) * text["width"]
    return Sizes(
        image_size=image_size,
        embed_dim=embed_dim,
        vision=_tower(vision, patches + 1, around, seen),
        text=_tower(text, context_length, words, 2 * text["width"] * embed_dim),
    )


def _tower(found: Mapping[str, Any], tokens: int, around: int, edge_flops: float) -> Tower:
    layers, width, mlp_width = found["layers"], found["width"], found["mlp_width"]
    # weights of QKV, output and MLP; their biases; two LayerNorms; a scale after attention and MLP if there is one
    block = 4 * width**2 + 2 * width * mlp_width + 9 * width + mlp_width + (2 * width if found.get("layer_scale") else 0)
    return Tower(tokens=tokens, layers=layers, width=width, mlp_width=mlp_width, parameters=around + layers * block, edge_flops=edge_flops)


# -------------------------------------------------------------------------------------------------- its training


@dataclass(frozen=True, kw_only=True)
class Memory:
    """GPU memory of a rank at the peak of a step, in bytes.

    Attributes:
        state: weights, gradients and the optimiser's moments, and under autocast the weights' bf16 copies.
        samples: pairs or triplets of a micro-batch.
        sample: activations of one of them.
        share: pictures of the rank's share, and features, their gradients and tiles of logits of its contrast group.
        context: CONTEXT_BYTES.
    """

    state: int
    samples: int
    sample: int
    share: int
    context: int = CONTEXT_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.samples * self.sample + self.share + self.context


def training_bytes(config: StageConfig, ranks: int, local_batch_size: int) -> int:
    """Estimated GPU memory of a rank, in bytes; `training_memory` has its parts."""
    return training_memory(config, ranks, local_batch_size).total


def training_memory(config: StageConfig, ranks: int, local_batch_size: int, caption_tokens: float = CAPTION_TOKENS) -> Memory:
    """Estimated GPU memory of a rank.

    Args:
        config: of the stage.
        ranks: of the job; each is one GPU.
        local_batch_size: of a micro-batch, in pairs or triplets; 0: the rank's whole share (see `largest_whole`).
        caption_tokens: mean length of a caption.

    Raises:
        InputError: the ranks do not divide the batch.
    """
    size, element, whole = sizes(config.model), _element_bytes(config), whole_batch_size(config, ranks)
    samples = min(local_batch_size or whole, whole)
    # uint8 patches become numbers, and are kept for the gradient of their projection
    picture = size.vision.activation_bytes(size.vision.tokens, element) + size.image_bytes * element
    if config.contrastive is None:
        sample = IMAGES_A_TRIPLET * picture
        share = IMAGES_A_TRIPLET * size.image_bytes * samples
    else:
        group, words = config.contrastive.contrast_batch_size, min(caption_tokens, size.text.tokens)
        sample = picture + size.text.activation_bytes(words, element)
        pairs = config.contrastive.global_batch_size // ranks
        features = (4 * whole + 2 * group) * size.embed_dim * max(element, 4)
        kept = min(element, 4) if samples < pairs else 1  # bytes per pixel: augmented once for all chunks, or part of `picture`
        share = pairs * size.image_bytes * kept + features + TILE_BYTES
    return Memory(state=_state_bytes(config, size, element), samples=samples, sample=math.ceil(sample), share=share)


def largest_local_batch_size(config: StageConfig, ranks: int, gpu_bytes: int) -> int:
    """The largest micro-batch whose estimate fills at most USABLE_FRACTION of a GPU: the whole share, or as few equal parts as possible.

    Args:
        config: of the stage.
        ranks: of the job; each is one GPU.
        gpu_bytes: memory of a GPU.

    Raises:
        InputError: the ranks do not divide the batch, nothing fits, or a contrast batch would have to be split and
            contrastive.accumulation is `independent`.
    """
    whole, usable = whole_batch_size(config, ranks), int(gpu_bytes * USABLE_FRACTION)
    memory = training_memory(config, ranks, whole)
    if memory.total <= usable:
        return whole
    one = training_memory(config, ranks, 1)
    fitting = 1 + (usable - one.total) // one.sample if whole > 1 else 0
    holds = f"{_gigabytes(usable)} ({USABLE_FRACTION:.0%} of a GPU's {_gigabytes(gpu_bytes)})"
    if fitting < 1:
        raise InputError(
            f"{config.stage}: even one sample at a time needs an estimated {_gigabytes(one.total)}, but a rank has {holds}: "
            "use a larger GPU or a smaller model"
        )
    if config.contrastive is not None and config.contrastive.accumulation == "independent":
        total = config.contrastive.global_batch_size
        smaller = max(size for size in range(ranks, fitting * ranks + 1, ranks) if total % size == 0)
        raise InputError(
            f"contrastive.accumulation independent never splits a contrast batch, and contrast_batch_size / ranks = {whole} pairs need an "
            f"estimated {_gigabytes(memory.total)}, but a rank has {holds}: use gradcache, more GPUs or contrast_batch_size {smaller}"
        )
    fewest = math.ceil(whole / fitting)
    parts = next((parts for parts in range(fewest, 2 * fewest + 1) if whole % parts == 0), fewest)
    return math.ceil(whole / parts)


def whole_batch_size(config: StageConfig, ranks: int) -> int:
    """The samples that a rank runs at once if memory sets no limit: its part of a contrast group, or of a batch of triplets.

    Raises:
        InputError: the ranks do not divide it.
    """
    settings = config.contrastive or config.perceptual or config.posthoc
    assert settings is not None, "a stage has its settings"
    keys = ("global_batch_size",) if config.contrastive is None else ("global_batch_size", "contrast_batch_size")
    for key in keys:
        value = getattr(settings, key)
        require(f"{config.stage}.{key}", value, f"a multiple of the number of ranks {ranks}", value % ranks == 0)
    return int(getattr(settings, keys[-1])) // ranks


def checkpoint_bytes(config: StageConfig) -> int:
    """Bytes of one checkpoint of the stage: all parameters in float32, and two moments of those that are trained. ViT-B/32: 1.82 GB."""
    size, element = sizes(config.model), 8 if _precision(config) == "fp64" else 4
    return element * (_held(config, size) + 2 * _trained(config, size))


def final_bytes(config: StageConfig) -> int:
    """Bytes of the finished model in float32: the vision tower for a perceptual stage, otherwise both towers."""
    return 4 * _held(config, sizes(config.model))


def _state_bytes(config: StageConfig, size: Sizes, element: int) -> int:
    held, trained = _held(config, size), _trained(config, size)
    copies = 0 if element >= 4 else element * held
    best = held if config.perceptual is not None and config.perceptual.handoff == "best_val" else 0
    return max(element, 4) * (held + best + 3 * trained) + copies


def _held(config: StageConfig, size: Sizes) -> int:
    """Parameters on the device."""
    return size.vision.parameters if config.stage == "perceptual" else size.parameters


def _trained(config: StageConfig, size: Sizes) -> int:
    """Parameters with a gradient: all of them, or in a post-hoc stage only the vision tower's QKV."""
    return size.vision.layers * 3 * size.vision.width * (size.vision.width + 1) if config.stage == "posthoc" else _held(config, size)


def _precision(config: StageConfig) -> str:
    settings = config.contrastive or config.perceptual or config.posthoc or PosthocConfig()
    return settings.precision


def _element_bytes(config: StageConfig) -> int:
    return {"bf16": 2, "fp32": 4, "fp64": 8}[_precision(config)]


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
