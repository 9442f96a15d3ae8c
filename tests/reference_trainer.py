"""A plain, slow, obviously correct contrastive trainer: open_clip's model and loss, one process, one big batch.

No length buckets, no gradient cache, no tiles, no ranks, no fused kernels, no autocast. What firstsight trains must
equal this step by step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import open_clip
import torch
from torch import Tensor

from trainer.config import StageConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
START, END, CONTEXT = 49406, 49407, 77


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the stage reads of a PairBatch."""

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    augmentation_seeds: Tensor

    def part(self, rank: int, world_size: int) -> "Batch":
        """The rank's contiguous share."""
        size = len(self.tokens) // world_size
        rows = slice(rank * size, (rank + 1) * size)
        return Batch(
            images=self.images[rows], tokens=self.tokens[rows], lengths=self.lengths[rows], augmentation_seeds=self.augmentation_seeds[rows]
        )


def random_batches(count: int, size: int, side: int) -> Iterator[Batch]:
    """Batches of noise with captions of 3 to 77 tokens."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        lengths = torch.randint(3, CONTEXT + 1, (size,), generator=generator)
        tokens = torch.randint(1, START, (size, CONTEXT), generator=generator)
        tokens[:, 0] = START
        tokens[torch.arange(size), lengths - 1] = END
        tokens[torch.arange(CONTEXT)[None] >= lengths[:, None]] = 0
        images = torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8)
        yield Batch(images=images, tokens=tokens, lengths=lengths, augmentation_seeds=torch.arange(size))


def train(config: StageConfig, model: open_clip.CLIP, batches: Iterator[Batch], steps: int) -> list[float]:
    """Train `model` in place; returns the loss of each step."""
    settings, optimizer_settings = config.contrastive, config.contrastive.optimizer  # type: ignore[union-attr]
    decayed = [p for name, p in model.named_parameters() if p.ndim >= 2 and not name.endswith("positional_embedding")]
    kept = [p for name, p in model.named_parameters() if p.ndim < 2 or name.endswith("positional_embedding")]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optimizer_settings.weight_decay}, {"params": kept, "weight_decay": 0.0}],
        betas=(optimizer_settings.beta1, optimizer_settings.beta2),
        eps=optimizer_settings.eps,
        foreach=False,
    )
    dtype = model.logit_scale.dtype
    mean, std = (torch.tensor(x, dtype=torch.float32).view(3, 1, 1) for x in (MEAN, STD))
    groups = settings.global_batch_size // settings.contrast_batch_size  # type: ignore[union-attr]
    losses = []
    for step, batch in zip(range(steps), batches, strict=False):
        images = ((batch.images.float() / 255 - mean) / std).to(dtype)
        optimizer.zero_grad()
        total = torch.zeros((), dtype=dtype)
        for group in range(groups):
            image, text, scale = model(images[group::groups], batch.tokens[group::groups])
            if settings.logit_scale_clamp == "forward":  # type: ignore[union-attr]
                scale = torch.minimum(scale, torch.tensor(settings.logit_scale_max, dtype=dtype))  # type: ignore[union-attr]
            total = total + open_clip.ClipLoss()(image, text, scale) / groups
        total.backward()
        if optimizer_settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer_settings.clip_norm, foreach=False)
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate(step, steps, optimizer_settings.learning_rate, optimizer_settings.warmup_steps)
        optimizer.step()
        if settings.logit_scale_clamp == "parameter":  # type: ignore[union-attr]
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
        losses.append(total.item())
    return losses


def rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """open_clip's schedule: linear warm-up, cosine to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
