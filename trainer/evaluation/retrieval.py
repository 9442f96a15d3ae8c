"""Image-text retrieval both ways, in tiles of rows, so that 50k x 50k needs no 10 GB matrix.

I images, T captions, D the joint space; caption t belongs to image `owner_T[t]`, an image may have several.
Recall@k is CLIP's: a query counts once, if one right answer is among its first k. Ranks count from 0.
Among equal scores the lower index is ahead, so a degenerate model scores what its order gives, repeatably.
"""

from collections.abc import Sequence
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE_BYTES = 64 << 20
"""Bytes of scores in one tile; a few masks of its shape come on top."""


def image_ranks(images_ID: Tensor, texts_TD: Tensor, owner_T: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """For each caption, how many images are ahead of its own, and the `top` first images.

    Args:
        images_ID: float, L2-normalised.
        texts_TD: the same.
        owner_T: int64.
        top: how many to list; fewer where there are fewer images.

    Returns:
        (T,) int64 and (T, min(top, I)) int64.
    """
    ranks, firsts = [], []
    for rows in _tiles(len(texts_TD), len(images_ID)):
        scores = texts_TD[rows] @ images_ID.T
        ranks.append(_ahead(scores, owner_T[rows]))
        firsts.append(_first(scores, top))
    return torch.cat(ranks), torch.cat(firsts)


def text_ranks(images_ID: Tensor, texts_TD: Tensor, owner_T: Tensor) -> Tensor:
    """For each image, how many captions are ahead of the best of its own: (I,) int64.

    Args:
        images_ID: float, L2-normalised.
        texts_TD: the same.
        owner_T: int64; every image has at least one caption.
    """
    ranks = []
    for rows in _tiles(len(images_ID), len(texts_TD)):
        scores = images_ID[rows] @ texts_TD.T
        own = owner_T[None, :] == torch.arange(rows.start, rows.stop, device=owner_T.device)[:, None]
        best = scores.masked_fill(~own, -torch.inf).argmax(dim=1)  # argmax gives the first of equals
        ranks.append(_ahead(scores, best))
    return torch.cat(ranks)


def best_ranks(queries_QD: Tensor, answers_AD: Tensor, right: Sequence[NDArray[np.int64]]) -> Tensor:
    """For each query, how many answers are ahead of the best of its right ones: (Q,) int64.

    Args:
        queries_QD: float, L2-normalised.
        answers_AD: the same.
        right: of each query, at least one answer.
    """
    ranks = [torch.empty(0, dtype=torch.int64)]
    for rows in _tiles(len(queries_QD), len(answers_AD)):
        scores = queries_QD[rows] @ answers_AD.T
        wrong = torch.ones_like(scores, dtype=torch.bool)
        for row, own in enumerate(right[rows]):
            wrong[row, torch.from_numpy(own)] = False
        ranks.append(_ahead(scores, scores.masked_fill(wrong, -torch.inf).argmax(dim=1)))
    return torch.cat(ranks)


def recall(ranks: NDArray[np.int64], k: int) -> float:
    """Share of queries with a right answer among the first k."""
    return float((ranks < k).mean())


def chance_recall(num_right: NDArray[np.int64], num_answers: int, k: int) -> float:
    """Expected recall@k of a random order.

    Args:
        num_right: (queries,), right answers of each.
        num_answers: answers in all.
        k: how many are looked at.
    """
    k = min(k, num_answers)
    values, counts = np.unique(num_right, return_counts=True)
    missed = [comb(num_answers - int(value), k) / comb(num_answers, k) for value in values]
    return float(1 - np.average(missed, weights=counts))


def _tiles(num_rows: int, num_columns: int) -> list[slice]:
    height = max(1, TILE_BYTES // (4 * num_columns))
    return [slice(start, min(start + height, num_rows)) for start in range(0, num_rows, height)]


def _ahead(scores: Tensor, right: Tensor) -> Tensor:
    """How many columns of each row are ahead of column `right`."""
    value = scores.gather(1, right[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device)[None, :] < right[:, None]
    return ((scores > value) | ((scores == value) & earlier)).sum(dim=1)


def _first(scores: Tensor, top: int) -> Tensor:
    """Columns of the `top` highest scores, best first; topk leaves the order of equals open, argmax does not."""
    scores = scores.clone()
    columns = []
    for _ in range(min(top, scores.shape[1])):
        columns.append(scores.argmax(dim=1))
        scores.scatter_(1, columns[-1][:, None], -torch.inf)
    return torch.stack(columns, dim=1)
