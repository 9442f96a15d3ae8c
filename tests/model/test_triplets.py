"""Hinge, logistic loss and 2AFC credit on literal distances, and against naive loops."""

import math

import pytest
import torch

from trainer.model import losses


def test_distances_are_one_minus_cosine() -> None:
    """Equal directions are at 0, right angles at 1, opposite ones at 2."""
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]]])
    d0, d1 = losses.triplet_distances(features)
    torch.testing.assert_close(d0, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(d1, torch.tensor([2.0, 0.2]))


def test_hinge_is_margin_minus_signed_difference() -> None:
    """Right by more than the margin costs nothing, wrong costs margin plus the difference, a split vote the margin."""
    d0, d1 = torch.tensor([0.5, 0.1, 0.30, 0.3]), torch.tensor([0.1, 0.5, 0.28, 0.9])
    target = torch.tensor([1.0, 1.0, 1.0, 0.5])
    torch.testing.assert_close(losses.hinge(d0, d1, target, 0.05), torch.tensor([0.0, 0.45, 0.03, 0.05]))


def test_a_split_vote_moves_nothing_under_hinge() -> None:
    """Half the votes each way give y = 0, which leaves no gradient."""
    d0, d1 = torch.tensor([0.3], requires_grad=True), torch.tensor([0.4], requires_grad=True)
    gradients = torch.autograd.grad(losses.hinge(d0, d1, torch.tensor([0.5]), 0.05).sum(), (d0, d1))
    assert all(g.item() == 0 for g in gradients)


@pytest.mark.parametrize("kind", ["hinge", "logistic"])
def test_loss_and_gradient_equal_a_naive_loop(kind: str) -> None:
    """One triplet at a time in plain Python arithmetic, gradients by finite differences."""
    generator = torch.Generator().manual_seed(1)
    d0, d1 = (torch.rand(7, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    target = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.75, 0.25, 1.0], dtype=torch.float64)
    margin = 0.05

    def one(a: float, b: float, t: float) -> float:
        if kind == "hinge":
            return max(0.0, margin - (1 if t > 0.5 else -1) * (a - b))
        p = 1 / (1 + math.exp(-(a - b) / margin))
        return -t * math.log(p) - (1 - t) * math.log(1 - p)

    ours = getattr(losses, kind)(d0, d1, target, margin)
    expected = [one(a, b, t) for a, b, t in zip(d0.tolist(), d1.tolist(), target.tolist(), strict=True)]
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: getattr(losses, kind)(a, b, target, margin), (d0, d1))


def test_credit_counts_votes_and_halves_ties() -> None:
    """The credit is the part of the voters on the distances' side."""
    d0, d1 = torch.tensor([0.9, 0.1, 0.5, 0.9]), torch.tensor([0.1, 0.9, 0.5, 0.1])
    target = torch.tensor([1.0, 1.0, 1.0, 0.75])
    torch.testing.assert_close(losses.two_afc(d0, d1, target), torch.tensor([1.0, 0.0, 0.5, 0.75]))
