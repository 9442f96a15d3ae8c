"""How alike two representations of the same pictures are: debiased linear CKA, dissimilarity matrices, and their rank correlation.

Pure functions of numpy arrays: evaluation measures models with them, the report sets arms beside each other.

Shapes: N pictures, D and E features of a picture.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MIN_PICTURES = 4
"""The unbiased estimator of HSIC divides by N - 3."""


def centred(features_ND: Array) -> NDArray[np.float32]:
    """Features without their mean, scaled to a root mean square of 1, which changes no CKA: so they keep within float16."""
    features = np.asarray(features_ND, np.float64)
    features = features - features.mean(axis=0)
    scale = float(np.sqrt(np.mean(features**2)))
    found: NDArray[np.float32] = (features / scale if scale > 0 else features).astype(np.float32)
    return found


def cka(features_ND: Array, others_NE: Array) -> float | None:
    """Debiased linear CKA of two representations of the same pictures: 1 if one is the other, rotated and scaled.

    HSIC is Song et al.'s unbiased estimator (2012, equation 5), as Nguyen, Raghu and Kornblith (2021) take it for CKA, here over all
    pictures at once. With linear kernels K = X X' it needs no N x N matrix, only X'Y.

    Args:
        features_ND: centred or not.
        others_NE: of the same pictures in the same order.

    Returns:
        At most 1; about 0 if nothing is shared, a little below it by chance. None with fewer than 4 pictures, or where all
        pictures have the same features.
    """
    x, y = centred(features_ND), centred(others_NE)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} pictures and {len(y)}")
    if len(x) < MIN_PICTURES:
        return None
    own, other = hsic(x, x), hsic(y, y)
    return float(hsic(x, y) / np.sqrt(own * other)) if own > 0 and other > 0 else None


def hsic(x_ND: NDArray[np.float32], y_NE: NDArray[np.float32]) -> float:
    """The unbiased estimator of HSIC with linear kernels, of centred features of at least 4 pictures.

    With K and L without their diagonals: (tr KL + sum K sum L / (N - 1)(N - 2) - 2 sum KL / (N - 2)) / N (N - 3). Features are
    centred, so a row of the whole K adds up to 0, and without the diagonal to minus what stood there.
    """
    count = len(x_ND)
    own, other = (np.einsum("nd,nd->n", part, part, dtype=np.float64) for part in (x_ND, y_NE))
    product = (x_ND.T @ y_NE).astype(np.float64)
    trace = float((product**2).sum() - own @ other)
    sums = float(own.sum() * other.sum()) / ((count - 1) * (count - 2))
    return (trace + sums - 2 * float(own @ other) / (count - 2)) / (count * (count - 3))


def dissimilarities(features_ND: Array) -> NDArray[np.float32]:
    """1 - Pearson's correlation of the features of each two pictures: the upper triangle of the RDM, row by row.

    Returns:
        (N (N - 1) / 2,) in the order of `numpy.triu_indices(N, 1)`. A picture whose features are all equal correlates with none: NaN.
    """
    features = np.asarray(features_ND, np.float32)
    features = features - features.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = np.divide(features, norms, out=np.full_like(features, np.nan), where=norms > 0)
    return 1 - upper_triangle(unit @ unit.T)


def upper_triangle(square_NN: Array) -> Array:
    """What is above the diagonal, row by row."""
    return np.concatenate([square_NN[row, row + 1 :] for row in range(len(square_NN))])


def ranks(values_N: Array) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    order = np.argsort(values_N, kind="stable")
    ordered = values_N[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(np.append(starts, len(ordered)))
    found = np.empty(len(ordered))
    found[order] = np.repeat(starts + (counts + 1) / 2, counts)
    return found


def correlation(x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> float | None:
    """Pearson's correlation; None if one of the two does not vary, or contains NaN."""
    x, y = x_N - x_N.mean(), y_N - y_N.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else None


def rsa(features_ND: Array, ranked: NDArray[np.float64]) -> float | None:
    """Spearman's correlation of a representation's dissimilarities with given ones.

    Args:
        features_ND: of the RDM's pictures, in its order.
        ranked: `ranks` of the given RDM's upper triangle.

    Source: Kriegeskorte, Mur and Bandettini 2008.
    """
    own = dissimilarities(features_ND)
    return None if np.isnan(own).any() else correlation(ranks(own), ranked)
