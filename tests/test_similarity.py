"""CKA, RDMs and rank correlation: compared with scipy, with matrices of kernels, and with what must hold of them."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import pdist

from tests.evaluation.real import REAL, real_features
from trainer import similarity


def features(seed: int, count: int = 40, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)) * np.linspace(0.2, 3, width) + 5


def hsic_by_kernels(kernel: np.ndarray, other: np.ndarray) -> float:
    """Song et al. 2012, equation 5, over N x N kernels, term by term in loops."""
    count = len(kernel)
    kernel, other = kernel - np.diag(np.diag(kernel)), other - np.diag(np.diag(other))
    trace = sum(kernel[i, j] * other[j, i] for i in range(count) for j in range(count))
    crossed = sum((kernel @ other)[i, j] for i in range(count) for j in range(count))
    sums = kernel.sum() * other.sum() / ((count - 1) * (count - 2))
    return float((trace + sums - 2 * crossed / (count - 2)) / (count * (count - 3)))


def cka_by_u_statistic(x: np.ndarray, y: np.ndarray) -> float:
    """Another way to the same number: the inner product of U-centred kernels (Szekely and Rizzo 2014, bias-corrected correlation)."""

    def u_centred(kernel: np.ndarray) -> np.ndarray:
        count = len(kernel)
        kernel = kernel - np.diag(np.diag(kernel))
        rows = kernel.sum(axis=1, keepdims=True) / (count - 2)
        result = kernel - rows - rows.T + kernel.sum() / ((count - 1) * (count - 2))
        return result - np.diag(np.diag(result))

    a, b = u_centred(x @ x.T), u_centred(y @ y.T)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize(("seed", "count", "widths"), [(0, 40, (12, 7)), (1, 9, (30, 3)), (2, 4, (5, 5)), (3, 60, (1, 80))])
def test_cka_is_that_of_kernels(seed, count, widths):
    """It equals the estimator over whole kernels, and the U-centred form of it, with more features than pictures too."""
    x, y = features(seed, count, widths[0]), features(seed + 10, count, widths[1])
    y[:, 0] += x[:, 0]
    k, m = x @ x.T, y @ y.T
    expected = hsic_by_kernels(k, m) / np.sqrt(hsic_by_kernels(k, k) * hsic_by_kernels(m, m))
    assert similarity.cka(x, y) == pytest.approx(expected, abs=1e-4)
    assert similarity.cka(x, y) == pytest.approx(cka_by_u_statistic(x, y), abs=1e-4)


def test_cka_is_the_published_figure():
    """Kornblith et al.'s own demonstration (google-research, representation_similarity/Demo.ipynb) prints 0.51346 for its debiased form."""
    generator = np.random.RandomState(1337)  # as theirs draws
    x = generator.randn(100, 10)
    y = generator.randn(100, 10) + x
    assert f"{similarity.cka(x, y):.5f}" == "0.51346"


def test_real_features_have_the_cka_and_rsa_of_other_packages():
    """Two layers of a trained model over 150 pictures: CKA as PyPI's cka-pytorch 1.1.3 computes it (`hsic1`), RSA by scipy."""
    block, output, _ = real_features()
    assert similarity.cka(block, output) == pytest.approx(REAL["cka"], abs=1e-5)
    given = pdist(block, "correlation")
    expected = stats.spearmanr(pdist(output, "correlation"), given).statistic
    assert similarity.rsa(output, similarity.ranks(given)) == pytest.approx(expected, abs=1e-5)


def test_cka_ignores_rotation_scale_and_shift():
    """What no linear reader could tell apart is 1; half precision of the centred features moves it by less than .001."""
    x = features(0, 50)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))
    assert similarity.cka(x, 1e4 * (x @ rotation) - 300) == pytest.approx(1, abs=1e-5)
    y = x + np.random.default_rng(2).normal(size=x.shape)
    halved = similarity.centred(1e6 * x).astype(np.float16)
    assert similarity.cka(halved, y) == pytest.approx(similarity.cka(x, y), abs=1e-3)


def test_cka_of_what_shares_nothing_is_zero_on_average():
    """Few pictures and many features are far above 0 in the biased estimator, and not in this one."""
    generator = np.random.default_rng(0)
    found = [similarity.cka(generator.normal(size=(20, 60)), generator.normal(size=(20, 60))) for _ in range(200)]
    assert abs(np.mean(found)) < 0.02
    assert min(found) < 0 < max(found)


def test_cka_is_undefined_for_equal_or_few_pictures():
    """Pictures that all look the same, and fewer than four of them, have no CKA."""
    x = features(0)
    assert similarity.cka(x, np.ones_like(x)) is None
    assert similarity.cka(x[:3], x[:3]) is None
    with pytest.raises(ValueError, match="40 pictures and 39"):
        similarity.cka(x, x[:39])


def test_dissimilarities_are_those_of_scipy():
    """The RDM is scipy's correlation distance, in scipy's order."""
    x = features(3)
    assert np.allclose(similarity.dissimilarities(x), pdist(x, "correlation"), atol=1e-5)


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 0.0], [2.0, 2.0, 1.0, 3.0, 3.0, 3.0], [5.0]])
def test_ranks_are_those_of_scipy(values):
    """Ties share the mean of their ranks."""
    assert similarity.ranks(np.array(values)).tolist() == stats.rankdata(values).tolist()


def test_rsa_is_spearmans_correlation():
    """Against scipy, with ties in the given RDM."""
    x, given = features(4, 30), np.round(pdist(features(5, 30), "cosine"), 2)
    expected = stats.spearmanr(pdist(x, "correlation"), given).statistic
    assert similarity.rsa(x, similarity.ranks(given)) == pytest.approx(expected, abs=1e-4)


def test_rsa_is_undefined_where_features_do_not_vary():
    """One picture with constant features makes the whole figure undefined rather than leave a picture out."""
    x, given = features(4, 30), similarity.ranks(pdist(features(5, 30)))
    x[7] = 1.0
    assert similarity.rsa(x, given) is None
    assert similarity.rsa(features(4, 30), np.ones_like(given)) is None
