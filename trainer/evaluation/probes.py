"""What can be read from features with a few labels or many: a linear probe, nearest neighbours, few-shot. Pure functions of tensors.

N training pictures, M test pictures, D features, C classes. Features are taken as they are: what is normalised, the caller decides.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import stream_seed

NEIGHBOURS = 20
TEMPERATURE = 0.07
FEW_SHOT_STRENGTH = 1 / 0.316
"""Lambda of the few-shot probes, which have no pictures to choose it on: CLIP's own example has C = .316 in scikit-learn's terms."""
COARSE = tuple(float(exponent) for exponent in range(-6, 7, 2))
"""Decades of lambda at which the sweep begins."""
FINEST = 0.125
"""Decades between two neighbours where it ends: 8 steps a decade."""
VALIDATION_FRACTION = 0.2
MAX_EVALUATIONS = 1250
"""Of the objective, for one fit."""
_EVALUATIONS_AT_ONCE = 40
"""After which it is asked whether a fit still gets anywhere: below single precision's rounding a line search can go on for ever."""
_TOLERANCE = 1e-5
_ROUNDING = 1e-12
"""Of sums of products in double precision, relative to the largest: no lambda below it is told from none."""
_ROWS_AT_ONCE = 1024

Metric = Callable[[NDArray[np.int64], NDArray[np.int64]], float]
"""Predictions and labels to a figure; more is better."""


def nearest_neighbours(train_ND: Tensor, labels_N: Tensor, test_MD: Tensor, num_classes: int) -> NDArray[np.int64]:
    """The class that a picture's nearest training pictures vote for.

    Cosine similarity s; each of the 20 nearest votes with exp(s / .07). Among equal sums the lower class wins.

    Source: Wu et al. 2018, with DINO's number of neighbours (Caron et al. 2021).

    Returns:
        (M,) predictions.
    """
    train, test = F.normalize(train_ND, dim=-1), F.normalize(test_MD, dim=-1)
    found = []
    for rows in torch.split(test, _ROWS_AT_ONCE):
        similarity, nearest = (rows @ train.T).topk(min(NEIGHBOURS, len(train)), dim=-1)
        votes = torch.zeros(len(rows), num_classes, dtype=torch.float64, device=rows.device)
        votes.scatter_add_(1, labels_N[nearest], ((similarity.double() - 1) / TEMPERATURE).exp())
        found.append(votes.argmax(dim=-1).cpu().numpy())
    return np.concatenate(found)


class LogisticRegression:
    """Multinomial logistic regression with an L2 penalty on the weights, fitted by torch's L-BFGS at one lambda after another.

    Minimises sum of cross-entropies + lambda / 2 |W|^2, the bias left out: scikit-learn's objective with C = 1 / lambda. L-BFGS works
    on W' = R W, where R'R = X'X / 4 + lambda, about the Hessian at the start: the minimum is the same, and small lambdas
    take tens of steps in place of thousands. Each fit begins at the solution of the one before.

    Args:
        features_ND: float32.
        labels_N: int64, on the same device.
        num_classes: C.
    """

    def __init__(self, features_ND: Tensor, labels_N: Tensor, num_classes: int) -> None:
        self._mean = features_ND.mean(dim=0)
        self._features = features_ND - self._mean  # a shift of the features is one of the bias, which costs nothing
        self._labels = labels_N
        self._gram = torch.zeros(features_ND.shape[1], features_ND.shape[1], dtype=torch.float64, device=features_ND.device)
        for rows in torch.split(self._features, _ROWS_AT_ONCE):
            self._gram += rows.double().T @ rows.double()
        self._ridge = _ROUNDING * float(self._gram.diagonal().max())
        self._weights = torch.zeros(features_ND.shape[1], num_classes, dtype=features_ND.dtype, device=features_ND.device)
        self._bias = torch.zeros(num_classes, dtype=features_ND.dtype, device=features_ND.device)

    def fit(self, strength: float) -> tuple[Tensor, Tensor]:
        """Weights (D, C) and bias (C,) at a lambda."""
        # a LayerNorm's features add up to 0, so X'X is singular, and its rounding may be larger than a small lambda
        curvature = self._gram / 4 + max(strength, self._ridge) * torch.eye(len(self._gram), dtype=torch.float64, device=self._gram.device)
        root = torch.linalg.cholesky(curvature.cpu(), upper=True).to(self._gram.device)
        inverse = torch.linalg.solve_triangular(root, torch.eye(len(root), dtype=root.dtype, device=root.device), upper=True)
        inverse = inverse.to(self._weights.dtype)
        turned = (root @ self._weights.double()).to(self._weights.dtype).requires_grad_()
        scale = (len(self._labels) / 4) ** -0.5
        bias = (self._bias / scale).requires_grad_()
        total = float(len(self._labels))
        solver = torch.optim.LBFGS(
            [turned, bias], max_iter=_EVALUATIONS_AT_ONCE, max_eval=_EVALUATIONS_AT_ONCE, history_size=20, tolerance_grad=_TOLERANCE,
            tolerance_change=1e-12, line_search_fn="strong_wolfe",
        )  # fmt: skip
        evaluations = 0

        def loss() -> Tensor:
            nonlocal evaluations
            evaluations += 1
            solver.zero_grad()
            weights = inverse @ turned
            logits = torch.addmm(bias * scale, self._features, weights)
            value: Tensor = (F.cross_entropy(logits, self._labels, reduction="sum") + strength / 2 * (weights**2).sum()) / total**0.5
            value.backward()  # type: ignore[no-untyped-call]
            return value

        least, rounding = float("inf"), torch.finfo(turned.dtype).eps
        while evaluations < MAX_EVALUATIONS:
            before = evaluations
            solver.step(loss)  # type: ignore[no-untyped-call]
            if evaluations - before < _EVALUATIONS_AT_ONCE:  # it ended by itself
                break
            value = loss().item()
            if least - value <= rounding * value:
                break
            least = value
        self._weights, self._bias = (inverse @ turned).detach(), (bias * scale).detach()
        return self._weights, self._bias - self._mean @ self._weights


def predict(features_MD: Tensor, weights: Tensor, bias: Tensor) -> NDArray[np.int64]:
    """The class with the highest logit, the lower among equals: (M,)."""
    return torch.addmm(bias, features_MD, weights).argmax(dim=-1).cpu().numpy()


def choose_strength(
    train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], num_classes: int, metric: Metric
) -> tuple[float, dict[float, float]]:
    """The lambda with the best figure on the validation part, as CLIP's paper sweeps it.

    Seven lambdas from 1e-6 to 1e6, then twice as fine around the best one until there are 8 to a decade. Among equal figures the largest
    lambda wins. Each step fits from the largest to the smallest.

    Source: Radford et al. 2021, appendix A.3.

    Returns:
        Lambda, and the figure at each one that was tried.
    """
    model = LogisticRegression(*train, num_classes)
    labels = validation[1].cpu().numpy()
    tried: dict[float, float] = {}
    wanted, step = list(COARSE), COARSE[1] - COARSE[0]
    while True:
        for exponent in sorted(set(wanted) - tried.keys(), reverse=True):
            tried[exponent] = metric(predict(validation[0], *model.fit(10**exponent)), labels)
        best = max(tried, key=lambda exponent: (tried[exponent], exponent))
        step /= 2
        if step < FINEST:
            return 10**best, {10**exponent: figure for exponent, figure in sorted(tried.items())}
        wanted = [exponent for exponent in (best - step, best + step) if COARSE[0] <= exponent <= COARSE[-1]]


def split_validation(keys: Sequence[str], labels_N: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Which training pictures lambda is chosen on: the last fifth of each class in a drawn order; none of a class of one.

    The order is that of `draw_order`, so it depends on keys and seed alone and is the same for every model.

    Returns:
        (N,) True for the validation part.
    """
    chosen = np.zeros(len(labels_N), bool)
    for places in _by_class(draw_order(keys, seed, "probe_validation"), labels_N):
        held = max(round(VALIDATION_FRACTION * len(places)), 1) if len(places) > 1 else 0
        chosen[places[len(places) - held :]] = True
    return chosen


def draw_shots(keys: Sequence[str], labels_N: NDArray[np.int64], shots: int, seed: int) -> NDArray[np.int64]:
    """Training pictures of a few-shot probe: the first `shots` of each class in a drawn order, so fewer are part of more.

    Returns:
        Places in `keys`, rising. Of a class with fewer pictures all are taken.
    """
    return np.sort(np.concatenate([places[:shots] for places in _by_class(draw_order(keys, seed, "few_shot"), labels_N)]))


def draw_order(keys: Sequence[str], seed: int, stream: str) -> NDArray[np.int64]:
    """A random order of pictures by the named stream of a seed; the order in which they are given does not matter."""
    by_name = np.argsort(np.asarray(keys), kind="stable")
    return by_name[np.random.default_rng(stream_seed(seed, stream)).permutation(len(by_name))]


def _by_class(order: NDArray[np.int64], labels_N: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The places of each class that occurs, in this order."""
    return [order[labels_N[order] == label] for label in np.unique(labels_N)]
