"""The losses: InfoNCE over the ranks' joint batch in tiles (stage 2), 2AFC on triplets (stage 1).

Shapes: n pairs of this rank, N pairs of all ranks (N = W * n), D joint width, B triplets.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainer.model.distributed import concatenate, gather

TILE_ELEMENTS = 8 << 20
"""Logits in a tile, of which two are held at once: 32 MB of float32 each. Fixed, so that sums never depend on free memory."""


# ----------------------------------------------------------------------------------------------- contrastive


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
    """This rank's part of the symmetric InfoNCE loss (CLIP, arXiv 2103.00020) over the pairs of all ranks.

    Each rank computes the logits of its images against all texts, one tile at a time. This block is enough for the
    complete gradient of its images and for its part of the gradient of every text; for the softmax over images, ranks
    exchange only one log-sum-exp per text. Images are therefore never gathered, and the logits are computed twice in
    all (forward, backward). A loss with two local blocks of logits needs half as many products again.

    Args:
        image_features: (n, D), L2-normalised, float32 or float64.
        text_features: (n, D), L2-normalised, of the same dtype; n is equal on all ranks.
        scale: (), the exponential of the logit scale.

    Returns:
        (); the sum over ranks is the loss. Gradients are those of the sum: every rank must call backward with the same
        weight, and gradients of parameters that all ranks share must then be summed over ranks.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    all_text_features = gather(text_features)
    with torch.autocast(image_features.device.type, enabled=False):  # logits are never bf16
        loss: Tensor = _TiledInfoNCE.apply(image_features, all_text_features, scale, rank * len(image_features))
    return loss


class _TiledInfoNCE(torch.autograd.Function):
    """The part of the loss from image rows `offset` to `offset + n` against all N texts.

    log_softmax and softmax replace several passes over a tile: a row's log-sum-exp is any of its logits minus the
    log-softmax at the same place.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, offset: int) -> Tensor:
        n, total = len(image), len(text)
        row_lse, diagonal = image.new_empty(n), image.new_empty(n)
        column_lse = image.new_full((total,), -torch.inf)
        logits, work = _tile_buffers(image, text)
        for start, stop in _tiles(n, total):
            tile, scratch = logits[: stop - start], work[: stop - start]
            torch.mm(image[start:stop] * scale, text.T, out=tile)
            diagonal[start:stop] = tile.diagonal(offset + start)
            torch.log_softmax(tile, 1, out=scratch)
            row_lse[start:stop] = tile[:, 0] - scratch[:, 0]
            column_max = tile.amax(0)
            column_lse = torch.logaddexp(column_lse, column_max + tile.sub_(column_max).exp_().sum(0).log_())
        column_lse = concatenate(column_lse).logsumexp(0)
        ctx.save_for_backward(image, text, scale, column_lse)
        ctx.offset = offset
        return (row_lse + column_lse[offset : offset + n] - 2 * diagonal).sum() / (2 * total)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        image, text, scale, column_lse = ctx.saved_tensors
        n, total = len(image), len(text)
        weight = gradients[0] * scale / (2 * total)
        image_gradient, text_gradient = torch.empty_like(image), torch.zeros_like(text)
        logits, work = _tile_buffers(image, text)
        for start, stop in _tiles(n, total):
            tile, scratch = logits[: stop - start], work[: stop - start]
            torch.mm(image[start:stop] * scale, text.T, out=tile)
            torch.softmax(tile, 1, out=scratch)
            tile.sub_(column_lse).exp_().add_(scratch)  # softmax over texts + softmax over images
            tile.diagonal(ctx.offset + start).sub_(2)
            torch.mm(tile, text, out=image_gradient[start:stop])
            text_gradient.addmm_(tile.T, image[start:stop])
        image_gradient *= weight
        text_gradient *= weight
        # logit = scale * (image . text), so the scale's gradient is the dot product of image features and their gradient
        return image_gradient, text_gradient, (image * image_gradient).sum() / scale, None


def _tiles(n: int, total: int) -> list[tuple[int, int]]:
    """Split rows so that a tile of full width has about TILE_ELEMENTS."""
    rows = max(1, TILE_ELEMENTS // total)
    return [(start, min(start + rows, n)) for start in range(0, n, rows)]


def _tile_buffers(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    rows = min(len(image), max(1, TILE_ELEMENTS // len(text)))
    return image.new_empty(rows, len(text)), image.new_empty(rows, len(text))


# ---------------------------------------------------------------------------------------------------- triplets


def triplet_distances(features: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine distances of image 0 and image 1 from the reference.

    Args:
        features: (B, 3, D), L2-normalised: reference, 0, 1.

    Returns:
        d0 and d1, (B,) each, in [0, 2].
    """
    reference, image_0, image_1 = features.unbind(1)
    return 1 - (reference * image_0).sum(-1), 1 - (reference * image_1).sum(-1)


def hinge(d0: Tensor, d1: Tensor, target: Tensor, margin: float) -> Tensor:
    """The paper's triplet loss, relu(margin - y (d0 - d1)), as in dreamsim (arXiv 2306.09344).

    Args:
        d0: (B,), distance of image 0 from the reference.
        d1: (B,), distance of image 1.
        target: (B,), in [0, 1]: the fraction of votes that say image 1 is closer. y is the sign of target - 1/2, so
            a split vote has y = 0, a constant loss and no gradient.
        margin: how much closer the preferred image must be.

    Returns:
        (B,), a loss for each triplet; divide their sum by the global batch.
    """
    return F.relu(margin - torch.sign(target - 0.5) * (d0 - d1))


def logistic(d0: Tensor, d1: Tensor, target: Tensor, margin: float) -> Tensor:
    """Cross entropy between the fractions of votes and sigmoid((d0 - d1) / margin).

    Arguments and result are those of `hinge`; unlike there, a split vote pulls the distances together.
    """
    return F.binary_cross_entropy_with_logits((d0 - d1) / margin, target.to(d0.dtype), reduction="none")


def two_afc(d0: Tensor, d1: Tensor, target: Tensor) -> Tensor:
    """The score of each triplet: the fraction of votes that agree with the distances; equal distances get 1/2.

    Arguments and shapes are those of `hinge`; the result is (B,) in [0, 1].
    """
    says_1 = 0.5 * (1 + torch.sign(d0 - d1))
    return says_1 * target + (1 - says_1) * (1 - target)
