"""The tiled InfoNCE loss against a naive loop, in float64: value and every gradient."""

import math

import pytest
import torch
from torch import Tensor

from trainer.model import losses


def naive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Cross entropy of each image over the texts and of each text over the images, one pair at a time."""
    n = len(image)
    total = torch.zeros((), dtype=image.dtype)
    for i in range(n):
        to_texts = torch.stack([scale * (image[i] * text[j]).sum() for j in range(n)])
        to_images = torch.stack([scale * (image[j] * text[i]).sum() for j in range(n)])
        total = total + to_texts.exp().sum().log() - to_texts[i] + to_images.exp().sum().log() - to_images[i]
    return total / (2 * n)


def features(n: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Unit image and text features that need gradients, and a scale."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, width, generator=generator, dtype=dtype) for _ in range(2))
    image, text = (torch.nn.functional.normalize(x, dim=-1).requires_grad_() for x in (image, text))
    return image, text, torch.tensor(14.3, dtype=dtype, requires_grad=True)


def gradients(loss: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("tile_elements", [1, 17, 40, 1 << 20])
def test_value_and_gradients_equal_a_naive_loop(tile_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tile, the loss and its three gradients are those of the definition."""
    monkeypatch.setattr(losses, "TILE_ELEMENTS", tile_elements)
    inputs = features(9, 5)
    ours, theirs = losses.contrastive_loss(*inputs), naive_loss(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for mine, other in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_backward_scales_with_the_gradient_it_gets() -> None:
    """A weighted loss has weighted gradients."""
    inputs = features(6, 4)
    once = gradients(losses.contrastive_loss(*inputs), inputs)
    thrice = gradients(3 * losses.contrastive_loss(*inputs), inputs)
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * a, b)


def test_gradients_pass_gradcheck() -> None:
    """Finite differences agree with our backward."""
    assert torch.autograd.gradcheck(losses.contrastive_loss, features(4, 3))


def test_large_logits_do_not_overflow() -> None:
    """At the largest scale a perfect and a perfectly wrong batch are finite in float32, and known in closed form."""
    image = torch.eye(4)
    scale = torch.tensor(100.0)
    assert losses.contrastive_loss(image, image, scale).item() == pytest.approx(math.log(1 + 3 * math.exp(-100)), abs=1e-6)
    assert losses.contrastive_loss(image, image.roll(1, 0), scale).item() == pytest.approx(100.0, rel=1e-6)


def test_logits_stay_float32_under_autocast() -> None:
    """Autocast around the loss changes no bit of it."""
    inputs = features(8, 16, torch.float32)
    plain = losses.contrastive_loss(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        inside = losses.contrastive_loss(*inputs)
    assert torch.equal(plain, inside)


def test_equals_open_clip() -> None:
    """The same value and gradients as open_clip's ClipLoss."""
    from open_clip import ClipLoss

    inputs = features(12, 8)
    ours, theirs = losses.contrastive_loss(*inputs), ClipLoss()(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for mine, other in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
