import numpy as np
import pytest
from scipy import stats

from trainer.report.statistics import bootstrap, holm, paired_t, percentile_interval, sign_test


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_paired_t_is_scipys(count: int) -> None:
    """Interval and p equal scipy's paired t-test."""
    generator = np.random.default_rng(count)
    ours, theirs = generator.normal(0.5, 0.1, count), generator.normal(0.45, 0.1, count)
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    found = paired_t((ours - theirs).tolist())
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("effect", [0.0, 0.03])
def test_interval_over_seeds_covers_the_truth(seeds: int, effect: float) -> None:
    """95 % +- 2 of 1,000 simulated experiments: scores are counts of right answers, and models differ by their seed."""
    generator = np.random.default_rng(seeds)
    items, covered, claimed = 2000, 0, 0
    for _ in range(1000):
        skill = generator.normal(0.0, 0.01, (2, seeds)) + np.array([[0.4 + effect], [0.4]])
        scores = generator.binomial(items, skill) / items
        interval = paired_t((scores[0] - scores[1]).tolist(), 1 / items)
        covered += interval.low <= effect <= interval.high
        claimed += interval.p is not None and interval.p <= 0.05
    assert 0.93 <= covered / 1000 <= 0.97
    if effect == 0.0:
        assert claimed / 1000 <= 0.07  # one endpoint before Holm; the page's sentence is simulated in test_answer


def test_seeds_that_agree_by_rounding_claim_nothing() -> None:
    """Three seeds, each one item better out of forty: the deviation of 0 is not believed."""
    assert paired_t([1 / 40] * 3).p == pytest.approx(0.0)
    found = paired_t([1 / 40] * 3, 1 / 40)
    assert found.p is not None
    assert found.p > 0.2
    assert paired_t([0.0, 0.0, 0.0], 1 / 40).p == 1.0


def test_bootstrap_has_the_error_of_clusters() -> None:
    """Its spread is that of cluster means, as theory gives it, not that of items taken as independent."""
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(300), 5).astype(str)
    values = np.repeat(generator.choice([-1.0, 0.0, 1.0], 300), 5)
    replicates = bootstrap(values, clusters, np.ones(1500), "a test")
    assert replicates.std() == pytest.approx(values[::5].std() / 300**0.5, rel=0.05)
    assert replicates.mean() == pytest.approx(values.mean(), abs=0.01)


def test_bootstrap_agrees_with_scipys() -> None:
    """Where each item is its own cluster, the interval is scipy's percentile interval."""
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 400, p=[0.2, 0.5, 0.3])
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    found = percentile_interval(float(values.mean()), bootstrap(values, np.arange(400).astype(str), np.ones(400), "x"))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.008)


@pytest.mark.slow
def test_bootstrap_covers_the_truth() -> None:
    """Intervals over items cover the true difference of two models in 95 % +- 2 of 1,000 drawn test sets."""
    generator = np.random.default_rng(3)
    clusters = np.repeat(np.arange(200), 2).astype(str)
    covered = 0
    for number in range(1000):
        easy = generator.uniform(size=200)[:, None]
        ours = (0.5 * easy + 0.5 * generator.uniform(size=(200, 2)) < 0.55).ravel()
        theirs = (0.5 * easy + 0.5 * generator.uniform(size=(200, 2)) < 0.50).ravel()
        values = ours.astype(float) - theirs
        interval = percentile_interval(0.0, bootstrap(values, clusters, np.ones(400), f"{number}"))
        covered += interval.low <= TRUE_DIFFERENCE <= interval.high
    assert 0.93 <= covered / 1000 <= 0.97


TRUE_DIFFERENCE = (1 - 2 * 0.45**2) - 0.5
"""P(0.5 u + 0.5 v < c) for uniform u, v is 2 c**2 below 1/2 and 1 - 2 (1 - c)**2 above."""


def test_bootstrap_repeats() -> None:
    """Equal names of a stream give equal draws, others do not."""
    values, clusters = np.random.default_rng(0).normal(size=50), np.arange(50).astype(str)
    first, second, third = (bootstrap(values, clusters, np.ones(50), name) for name in ("a", "a", "b"))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


def test_weights_make_a_mean_over_classes() -> None:
    """Weights of one over the class size give the mean of class means, not of items."""
    values = np.repeat([1.0, 0.0], [50, 150])
    weights = np.repeat([1 / 50, 1 / 150], [50, 150])
    replicates = bootstrap(values, np.arange(200).astype(str), weights, "w")
    assert replicates.mean() == pytest.approx(0.5, abs=0.01)


def test_holm_on_a_known_example() -> None:
    """Values of .01, .04, .03, .005 adjust to .03, .06, .06, .02."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(("won", "lost", "tied"), [(5, 1, 0), (23, 6, 0), (3, 3, 2), (0, 0, 4)])
def test_sign_test_is_scipys(won: int, lost: int, tied: int) -> None:
    """Two-sided binomial p without the ties; 23 of 29 sets has p = .002 if sets were independent."""
    found = sign_test([0.1] * won + [-0.1] * lost + [0.0] * tied)
    expected = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert (found["won"], found["lost"], found["tied"]) == (won, lost, tied)
    assert found["p"] == pytest.approx(expected)
