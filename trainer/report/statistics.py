"""Paired statistics, declared before the data were seen.

Over seeds: a paired t-interval, because a percentile bootstrap of 3 seeds covers the truth in about 73 % of
cases instead of the nominal 95 %. Over test items: a paired bootstrap that resamples clusters (images or
references), since captions of one picture, and triplets of one reference, are correlated. Several
endpoints: Holm's step-down. Everything here is a pure function of arrays; the random draws are seeded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
REPLICATES = 2000
MIN_CLUSTERS = 6
"""Fewer pictures or references get no interval: even if all favoured one side, chance would produce that more than 5 times in 100."""
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        mean: the estimate, in the unit of what was given.
        low: lower end.
        high: upper end.
        p: two-sided p of "no difference", or None if the method does not test.
    """

    mean: float
    low: float
    high: float
    p: float | None


@dataclass(frozen=True, kw_only=True)
class Items:
    """What one model did on each item of one test set; its score is the weighted mean of `values`.

    Attributes:
        identity: hash of the items' names and clusters, the same for every model that is paired.
        clusters: (N,) int32, which image or reference an item belongs to.
        values: (N,) float64 in [0, 1].
        weights: (N,) float64 > 0: 1, or what makes a mean over classes or over both ways of retrieval.
    """

    identity: str
    clusters: NDArray[np.int32]
    values: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def score(self) -> float:
        """The weighted mean of the values."""
        return float(np.average(self.values, weights=self.weights))


def paired_t(differences: Sequence[float], resolution: float = 0.0) -> Interval:
    """The t-interval of the mean of paired differences, one per seed.

    Args:
        differences: at least two.
        resolution: the smallest step that a difference can take (one test item). Differences of a few seeds can
            coincide because scores are counts; a standard deviation below this step is raised to it.
    """
    values = np.asarray(differences, np.float64)
    assert len(values) >= 2, "a t-interval needs two seeds"
    from scipy import special  # imported late, and not from scipy.stats, so that one-seed runs do not pay for the import

    mean, deviation = float(values.mean()), max(float(values.std(ddof=1)), resolution)
    if deviation == 0.0:
        return Interval(mean=mean, low=mean, high=mean, p=1.0 if mean == 0.0 else 0.0)
    error, freedom = deviation / len(values) ** 0.5, len(values) - 1
    reach = float(special.stdtrit(freedom, 0.5 + LEVEL / 2)) * error
    return Interval(mean=mean, low=mean - reach, high=mean + reach, p=float(2 * special.stdtr(freedom, -abs(mean) / error)))


def trend_weights(x: Sequence[float], scale: str) -> NDArray[np.float64]:
    """Weights of the linear contrast: (M,), so that weights @ differences is the least-squares slope.

    Args:
        x: (M,) values of the axis, at least two that differ.
        scale: `log`: the slope is per tenfold increase of x; `linear`: per unit.
    """
    places = np.log10(x) if scale == "log" else np.asarray(x, np.float64)
    centred = places - places.mean()
    weights: NDArray[np.float64] = centred / (centred @ centred)
    return weights


def trend(differences: NDArray[np.float64], weights: NDArray[np.float64], sides: str, resolution: float = 0.0) -> Interval:
    """A trend of paired differences along an axis: one slope per seed, then a t-test over seeds.

    Points of one seed share much (the baseline's model, the test items), so they are not independent units: whatever they share
    within a seed, that seed contributes a single slope.

    Args:
        differences: (seeds, points), at least two seeds.
        weights: (points,) of the linear contrast.
        sides: `two`, `greater` (the slope is above 0) or `less`; the interval is always two-sided.
        resolution: that of one difference, as in `paired_t`.

    Returns:
        The mean slope with its interval, and p by `sides`.
    """
    found = paired_t((differences @ weights).tolist(), resolution * float(np.linalg.norm(weights)))
    if sides == "two" or found.p is None:
        return found
    above = found.mean > 0 if sides == "greater" else found.mean < 0
    return replace(found, p=found.p / 2 if above else 1 - found.p / 2)


def bootstrap(values: NDArray[np.float64], clusters: NDArray[np.generic], weights: NDArray[np.float64], stream: str) -> NDArray[np.float64]:
    """Replicates of the weighted mean of `values` when whole clusters are resampled.

    Clusters of equal sum and equal weight are interchangeable, so each replicate draws how often each *kind* of
    cluster comes up: the same distribution as drawing clusters, at a fraction of the work.

    Args:
        values: (N,) differences, item by item.
        clusters: (N,) cluster labels saying which items belong together.
        weights: (N,) as in Items.
        stream: names the random stream; equal names give equal draws.

    Returns:
        (REPLICATES,) float64.
    """
    _, membership = np.unique(clusters, return_inverse=True)
    sums = np.stack([np.bincount(membership, weights * values), np.bincount(membership, weights)], axis=1)
    kinds, counts = np.unique(np.round(sums, 12), axis=0, return_counts=True)
    seed = np.frombuffer(stream.encode(), np.uint8).tolist()
    generator = np.random.default_rng(seed)
    replicates = np.empty(REPLICATES)
    step = max(1, _DRAWS_AT_ONCE // len(kinds))
    for start in range(0, REPLICATES, step):
        draws = generator.multinomial(int(counts.sum()), counts / counts.sum(), size=min(step, REPLICATES - start))
        numerator, denominator = (draws @ kinds).T
        replicates[start : start + len(draws)] = numerator / denominator
    return replicates


def percentile_interval(mean: float, replicates: NDArray[np.float64]) -> Interval:
    """The percentile interval of bootstrap replicates: it covers the sampling of test items and nothing else."""
    low, high = np.quantile(replicates, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(mean=mean, low=float(low), high=float(high), p=None)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p: reject where it is <= .05, and any true null hypothesis is rejected in at most 5 % of experiments."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted.tolist()


def sign_test(differences: Sequence[float]) -> dict[str, float | int]:
    """How many sets were won and lost, ties aside, and the two-sided sign test's p (descriptive: sets are correlated)."""
    won, lost = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    from scipy import special

    p = min(1.0, 2 * float(special.bdtr(min(won, lost), won + lost, 0.5)))
    return {"won": won, "lost": lost, "tied": len(differences) - won - lost, "p": p}
