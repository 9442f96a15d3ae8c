"""What the rows of the training step share: captions of mean 24 tokens, batches, open_clip's step and ours."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from trainer.config import ContrastiveConfig, ModelConfig, OptimizerConfig, Placement, StageConfig
from trainer.data.augment import normalise
from trainer.model import optimizer, towers
from trainer.model.distributed import Distributed
from trainer.stages.contrastive import ContrastiveStage

CONTEXT, START, END = 77, 49406, 49407
DISTINCT = 1024
"""Pictures that differ in a batch; larger batches repeat them, since drawing noise would take longer than the step."""
QUARTER = ModelConfig(vision_width=192, embed_dim=128, text_width=128, text_heads=2)
"""ViT-B/32 CLIP at a quarter of its widths: every depth, length and ratio is the real one, and a CPU can run a batch of 256."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """What the stage reads of a PairBatch."""

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    augmentation_seeds: Tensor


def lengths_of_captions(count: int) -> Tensor:
    """(count,) int64 in [4, 77]: log-normal as web captions are, mean about 24."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(count, generator=generator) * 0.62 + 2.95).exp().round().long().clamp(4, CONTEXT)


def batch(count: int, side: int, lengths: Tensor | None = None) -> Batch:
    """Noise for pictures and words; captions of `lengths`, by default those of `lengths_of_captions`."""
    generator = torch.Generator().manual_seed(1)
    lengths = lengths_of_captions(count) if lengths is None else lengths
    tokens = torch.randint(1, START, (count, CONTEXT), generator=generator)
    tokens[:, 0] = START
    tokens[torch.arange(count), lengths - 1] = END
    tokens[torch.arange(CONTEXT)[None] >= lengths[:, None]] = 0
    images = torch.randint(0, 256, (min(count, DISTINCT), 3, side, side), generator=generator, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)[torch.arange(count) % DISTINCT]
    return Batch(images, tokens, lengths, torch.arange(count))


def cpu_precision() -> str:
    """The precision to compare in: bf16 where the processor has instructions for it; else both sides run fp32."""
    flags = Path("/proc/cpuinfo").read_text()
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """Autocast to bf16 where asked for."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()


def our_step(
    model: ModelConfig, given: Batch, precision: str, device: torch.device, *, local_batch_size: int = 0, compile: bool = False
) -> Callable[[], None]:
    """One optimiser step of the contrastive stage, from uint8 pictures that lie on the device."""
    step = our_stage_step(model, len(given.tokens), precision, device, local_batch_size=local_batch_size, compile=compile)
    there = dataclasses.replace(given, images=given.images.to(device), tokens=given.tokens.to(device))
    return lambda: step(there)


def our_stage_step(
    model: ModelConfig,
    size: int,
    precision: Any,
    device: torch.device,
    *,
    local_batch_size: int = 0,
    compile: bool = False,
    augmentation: Any = "none",
) -> Callable[[Any], None]:
    """The same of any batch of `size` pairs."""
    contrastive = ContrastiveConfig(
        global_batch_size=size, contrast_batch_size=size, augmentation=augmentation, precision=precision, optimizer=OptimizerConfig()
    )
    placement = Placement(local_batch_size=local_batch_size, compile=compile)
    config = StageConfig(stage="contrastive", output="unused", model=model, contrastive=contrastive, placement=placement)
    stage = ContrastiveStage(config, Distributed(0, 1, 0, device), device)
    ours = optimizer.build(stage.module, contrastive.optimizer)

    def step(given: Any) -> None:
        stage.forward_backward(given, 0)
        ours.step()
        stage.after_optimizer()

    return step


def open_clip_step(model: ModelConfig, given: Batch, precision: str, device: torch.device, *, compile: bool = False) -> Callable[[], None]:
    """One optimiser step as open_clip's trainer takes it, from float pictures that its loader's workers normalised."""
    settings = OptimizerConfig()
    built = open_clip.CLIP(**towers.open_clip_config(model)).to(device)
    run = torch.compile(built) if compile else built
    loss = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True)
    decayed = [p for p in built.parameters() if p.ndim >= 2]
    kept = [p for p in built.parameters() if p.ndim < 2]
    theirs = torch.optim.AdamW(
        [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": settings.weight_decay}],
        lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.eps,
    )  # fmt: skip
    images, tokens = normalise(given.images).to(device), given.tokens.to(device)

    def step() -> None:
        theirs.zero_grad()
        with autocast(device.type, precision):
            image, text, scale = run(images, tokens)
            total = loss(image, text, scale)
        total.backward()
        theirs.step()
        with torch.no_grad():
            built.logit_scale.clamp_(0, 4.6052)

    return step
