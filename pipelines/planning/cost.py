"""How long an experiment takes on accelerators, before anything is started: the arithmetic, and what it assumes.

Floating-point operations count multiplications and additions each; backward is twice forward. A ViT-B/32
pair of 77 tokens comes to 44.3 GFLOP, an image of it alone to 26.5.
"""

from dataclasses import dataclass

from trainer.config import ModelConfig, StageConfig
from trainer.errors import InputError

PEAK_TFLOPS = 798.0
"""Of an H100 in bf16, as a matrix product reaches it (measured; the SXM data sheet says 989)."""
UTILISATION = 0.5
IMAGES_A_TRIPLET = 3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one stage takes.

    Attributes:
        samples: seen in all epochs.
        flops: of them all, forward and backward.
        gpu_hours: at `rate`.
        rate: samples a second on one accelerator.
        measured: whether the rate was measured, or follows from the peak.
    """

    samples: int
    flops: float
    gpu_hours: float
    rate: float
    measured: bool


def estimate(stage: StageConfig, samples_per_epoch: int, measured_rate: float = 0.0) -> Estimate:
    """What `stage` takes on data of this size.

    Args:
        stage: the resolved stage.
        samples_per_epoch: pairs, or triplets, in the training split.
        measured_rate: samples a second on one accelerator, where an earlier run measured it; 0: from the peak.
    """
    epochs = (stage.perceptual or stage.contrastive or stage.posthoc).epochs  # type: ignore[union-attr]
    samples = samples_per_epoch * epochs
    flops = _flops(stage) * samples
    rate = measured_rate or PEAK_TFLOPS * 1e12 * UTILISATION / _flops(stage)
    return Estimate(samples=samples, flops=flops, gpu_hours=samples / rate / 3600, rate=rate, measured=bool(measured_rate))


def _flops(stage: StageConfig) -> float:
    """Forward and backward of one sample: an image with its caption, or a triplet's three images."""
    model = stage.model
    if model.open_clip_name:
        raise InputError(f"model.open_clip_name {model.open_clip_name!r}: its sizes are known to open_clip alone, so no hours can be told")
    vision, text = 3 * _vision(model), 3 * _tower(model.context_length, model.text_width, model.text_layers)
    return vision + text if stage.stage == "contrastive" else IMAGES_A_TRIPLET * vision


def _vision(model: ModelConfig) -> float:
    patches = (model.image_size // model.patch_size) ** 2
    return _tower(patches + 1, model.vision_width, model.vision_layers) + 2 * patches * 3 * model.patch_size**2 * model.vision_width


def _tower(tokens: int, width: int, layers: int) -> float:
    # A block is 12 W^2 weights a token (QKV, output, the 4x MLP), and two products of the tokens with each other.
    return layers * (24 * tokens * width**2 + 4 * tokens**2 * width)
