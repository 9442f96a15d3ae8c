"""Stage 2: contrastive training of both towers on image-text pairs (CLIP, arXiv 2103.00020).

The samples of a global batch, and the pairs with which each is contrasted, are canonical: neither the number of ranks
nor their memory changes the loss. A batch has M = global_batch_size / contrast_batch_size contrast groups; group k is
every M-th pair of the batch, starting at pair k, so each rank has an equal part of each group. Groups run one after
the other. If a rank's part does not fit in memory, it goes through the gradient cache (arXiv 2101.06983): first all
features without a graph, then the loss and its gradient at the features, then each chunk again with a graph, whose
backward pass starts from the gradient of its features. The towers use no random numbers, so both passes are equal.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import ContrastiveConfig, StageConfig, unless_auto
from trainer.data.augment import augment_on_device
from trainer.data.loader import PairBatch, PairsLoader
from trainer.errors import InputError
from trainer.lineage import weights_sha256
from trainer.model import distributed, encoding, towers
from trainer.model.distributed import Distributed
from trainer.model.losses import contrastive_loss


@dataclass(frozen=True)
class _Pairs:
    """Part of a rank's share: images (b, 3, S, S) as the tower takes them, tokens (b, L), lengths (b,) on the CPU."""

    images: Tensor
    tokens: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "_Pairs":
        return _Pairs(self.images[rows], self.tokens[rows], self.lengths[rows])


class ContrastiveStage:
    """The stage that the loop trains; see `trainer.stages.Stage`.

    Attributes:
        text_buckets: lengths to which captions are padded; empty: all to the full context, with the same result but slower.
    """

    module: nn.Module
    model: Any
    memory: dict[str, Tensor]
    text_buckets: tuple[int, ...]

    def __init__(self, config: StageConfig, dist: Distributed, device: torch.device) -> None:
        assert config.contrastive is not None, "the loop builds this stage for contrastive configurations"
        self._config, self._recipe, self._dist, self._device = config, config.contrastive, dist, device
        self._share = distributed.share("contrastive.global_batch_size", self._recipe.global_batch_size, dist.world_size)
        self._chunk = _chunk_size(self._recipe, unless_auto(config.placement.local_batch_size), dist.world_size)
        self._groups = self._recipe.global_batch_size // self._recipe.contrast_batch_size
        self.model = towers.build_model(config.model, config.seed).to(device).train()
        if self._recipe.precision == "fp64":
            self.model.double()
        self.module = self.model
        self._gradients = distributed.GradientSum(self.model.parameters())
        self.memory = {}
        self.text_buckets = encoding.TEXT_BUCKETS

    def loader(self) -> PairsLoader:
        """The pairs of this rank, in canonical order."""
        return PairsLoader(
            self._config.data,
            seed=self._config.seed,
            global_batch_size=self._recipe.global_batch_size,
            rank=self._dist.rank,
            world_size=self._dist.world_size,
            runs=self._recipe.order_runs,
            block_shards=self._recipe.order_block_shards,
            image_size=towers.resolve(self._config.model)["image_size"],
            augmentation=self._recipe.augmentation,
            crop_scale_min=self._recipe.crop_scale_min,
            decoder=self._recipe.decoder,
            placement=self._config.placement,
            context_length=towers.resolve(self._config.model)["context_length"],
            fraction=self._recipe.pair_fraction,
        )

    def forward_backward(self, batch: PairBatch, step: int) -> dict[str, float | Tensor]:
        """The global batch's loss and gradient.

        Args:
            batch: this rank's share of the global batch.
            step: not used; nothing here depends on it.

        Returns:
            loss (mean over the global batch), logit_scale (exponential, as used in the loss), flops (of this rank, at the captions'
            own lengths and without the gradient cache's second forward pass).
        """
        self._gradients.begin(passes=self._groups * math.ceil(self._share // self._groups / self._chunk))
        pairs = _Pairs(self._augmented(batch), batch.tokens.to(self._device, non_blocking=True), batch.lengths)
        loss = torch.zeros((), device=self._device, dtype=self.model.logit_scale.dtype)
        for group in range(self._groups):
            loss += self._contrast(pairs[group :: self._groups])
        self._gradients.finish()
        mean_tokens = float(batch.lengths.double().mean())
        return {
            "loss": distributed.sum_over_ranks(loss),
            "logit_scale": self._scale().detach(),
            "flops": len(pairs) * towers.flops_per_sample(self._config.model, mean_tokens),
        }

    def _augmented(self, batch: PairBatch) -> Tensor:
        """The pictures of the share, (B, 3, S, S), augmented and normalised once per step, however often the gradient cache runs them.

        They are copied to the device and augmented in place, one chunk at a time, so the share is held only once. They are kept in
        the precision of the tower's first matrix product, to which autocast would round them anyway.
        """
        dtype = torch.bfloat16 if self._recipe.precision == "bf16" else torch.float32
        images, seeds = batch.images, batch.augmentation_seeds
        if self._chunk >= len(images):
            return self._augment(images, seeds).to(dtype)
        augmented = torch.empty(images.shape, dtype=dtype, device=self._device)
        for start in range(0, len(images), self._chunk):
            rows = slice(start, start + self._chunk)
            augmented[rows] = self._augment(images[rows], seeds[rows])
        return augmented

    def _augment(self, images: Tensor, seeds: Tensor) -> Tensor:
        return augment_on_device(images.to(self._device, non_blocking=True), seeds, self._recipe.augmentation)

    def _contrast(self, pairs: _Pairs) -> Tensor:
        """Backward through one contrast group; returns this rank's part of its loss, weighted among the groups."""
        chunks = [pairs[start : start + self._chunk] for start in range(0, len(pairs), self._chunk)]
        if len(chunks) == 1:
            image, text = self._encode(pairs)
            loss = contrastive_loss(image, text, self._scale()) / self._groups
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        with torch.no_grad():
            features = [self._encode(chunk) for chunk in chunks]
        image, text = (torch.cat(part).requires_grad_() for part in zip(*features, strict=True))
        loss = contrastive_loss(image, text, self._scale()) / self._groups
        loss.backward()  # type: ignore[no-untyped-call]  # the logit scale's gradient is complete now, and counted once
        assert image.grad is not None, "the loss has a gradient at the image features"
        assert text.grad is not None, "the loss has a gradient at the text features"
        for chunk, *gradients in zip(chunks, torch.split(image.grad, self._chunk), torch.split(text.grad, self._chunk), strict=True):
            torch.autograd.backward(self._encode(chunk), gradients)
        return loss.detach()

    def _scale(self) -> Tensor:
        """exp(logit scale), (), as the loss uses it."""
        scale: Tensor = self.model.logit_scale.exp()
        return scale.clamp(max=self._recipe.logit_scale_max) if self._recipe.logit_scale_clamp == "forward" else scale

    def _encode(self, pairs: _Pairs) -> tuple[Tensor, Tensor]:
        """Unit features (b, D) of images and captions."""
        images = pairs.images.double() if self._recipe.precision == "fp64" else pairs.images
        compiled = self._config.placement.compile is True
        with self._autocast():
            # text second, so that the embedding's gradient, the largest, is complete while backward still runs the vision tower
            image = encoding.encode_image(self.model, images, compiled=compiled)
            return image, encoding.encode_text(self.model, pairs.tokens, pairs.lengths, self.text_buckets, compiled=compiled)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._recipe.precision == "bf16" else nullcontext()

    @torch.no_grad()
    def after_optimizer(self) -> None:
        """Keep exp(logit scale) between 1 and logit_scale_max, unless the loss clamps it."""
        if self._recipe.logit_scale_clamp == "forward":
            return
        self.model.logit_scale.clamp_(0.0, math.log(self._recipe.logit_scale_max))

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Nothing: this stage measures nothing between epochs."""
        return {}

    def save_final(self, folder: Path) -> dict[str, Any]:
        """Write the model in open_clip's format; the facts are the hashes of all weights and of the vision tower's weights."""
        towers.save_open_clip(folder, self.model, self._config.model)
        return {
            "weights_sha256": weights_sha256({name: value.numpy() for name, value in towers.model_state(self.model).items()}),
            "vision_sha256": weights_sha256({name: value.numpy() for name, value in towers.vision_state(self.model).items()}),
        }


def _chunk_size(recipe: ContrastiveConfig, local_batch_size: int, world_size: int) -> int:
    """Pairs of one contrast group that a rank runs at once.

    Raises:
        InputError: the ranks do not divide the contrast batch, or it may not be split and does not fit.
    """
    part = distributed.share("contrastive.contrast_batch_size", recipe.contrast_batch_size, world_size)
    if local_batch_size == 0 or local_batch_size >= part:
        return part
    if recipe.accumulation == "independent":
        raise InputError(
            f"contrastive.accumulation independent never splits a contrast batch, so placement.local_batch_size must be >= "
            f"contrast_batch_size / ranks = {part}, got {local_batch_size}"
        )
    return local_batch_size
