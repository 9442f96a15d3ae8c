"""2AFC: of two variants, which is closer to the reference? Scored against the votes of those who judged.

A triplet scores the share of votes that agree with the model: 0 or 1 if judges are unanimous or
decided by majority (NIGHTS), a fraction where votes are kept (BAPPS); .5 where the model sees no difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANCE = 0.5


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Each triplet's outcome.

    Attributes:
        choice: (N,) float32, 1 if image 1 is closer to the reference, 0 if image 0 is, .5 at a tie.
        score: (N,) float32 in [0, 1], agreement with the votes.
    """

    choice: NDArray[np.float32]
    score: NDArray[np.float32]


def score(distance_0: NDArray[Any], distance_1: NDArray[Any], target: NDArray[Any]) -> Scored:
    """Agreement of two distances to the reference with the votes.

    Args:
        distance_0: (N,), of image 0 to the reference.
        distance_1: (N,), of image 1.
        target: (N,) in [0, 1], share of votes that say image 1 is closer.
    """
    difference = np.asarray(distance_0, np.float64) - np.asarray(distance_1, np.float64)
    choice = (np.sign(difference) + 1) / 2
    agreement = choice * target + (1 - choice) * (1 - np.asarray(target, np.float64))
    return Scored(choice=choice.astype(np.float32), score=agreement.astype(np.float32))


def by_group(scores: NDArray[np.float32], groups: Sequence[str]) -> dict[str, float]:
    """`accuracy` over all and `accuracy_<group>` for each group, so the total is the size-weighted mean."""
    names = np.asarray(groups)
    result = {"accuracy": float(scores.mean(dtype=np.float64))}
    for name in sorted(set(groups) - {""}):
        result[f"accuracy_{name}"] = float(scores[names == name].mean(dtype=np.float64))
    return result


def ceiling(target: NDArray[Any]) -> float:
    """What siding with the majority of every triplet's judges would score; 1 if votes are unanimous."""
    return float(np.maximum(target, 1 - np.asarray(target, np.float64)).mean())
