"""What a perceptual stage learns from: the kinds of triplet labels, one file each.

A kind says which pictures are shown as a triplet and which of the two variants is closer to the reference. To add
one, write a file here that ends with `LABELS = <a Labels object>`: configurations, loader, plan and report find it.
No torch, and numpy only inside functions: plan and report read these files too.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from trainer.config import StagingConfig
from trainer.errors import InputError
from trainer.registry import discover

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Draw = Callable[[str, NDArray[np.int64]], NDArray[np.float64]]
    """Stream and samples -> a number in [0, 1) for each, the same whenever the run's seed is."""
    Partners = Callable[[NDArray[np.int64], int], NDArray[np.int64]]
    """Samples and epoch -> the sample that each of them is paired with."""

Facts = Callable[[], Mapping[str, Any]]
"""Reads the json member of a triplet when it is called."""
Place = tuple[int, int]
"""A picture: (0: of the triplet, 1: of the one it is paired with; 0: reference, 1 and 2: its variants)."""
OWN: tuple[Place, Place, Place] = ((0, 0), (0, 1), (0, 2))


class Shown(NamedTuple):
    """One training example.

    Attributes:
        target: in [0, 1], the part of the judges that say the second variant is closer.
        pictures: reference, first and second variant.
    """

    target: float
    pictures: tuple[Place, Place, Place] = OWN


class Labels:
    """One kind of triplet labels.

    Attributes:
        name: value of `labels` in a stage's configuration, and so part of its recipe hash.
        says: completes "trained on …" on the report's page.
        tower: what a tower trained on them is called in plan.json and in its job's name.
        min_triplets: how many a split must have at least.
    """

    name: ClassVar[str]
    says: ClassVar[str]
    tower: ClassVar[str]
    min_triplets: ClassVar[int] = 1

    def refusal(self, judge: str, staging: StagingConfig | None = None) -> str:
        """Why triplets cannot have these labels, completing "labels that …"; empty: they can.

        Args:
            judge: of the triplets: people, FLIP, or empty if it is not known.
            staging: how they are staged; None: they are staged already.
        """
        return ""

    def partners(self, count: int, draw: "Draw") -> "Partners | None":
        """Which of the split's `count` triplets each one is paired with; None: it stands alone."""
        return None

    def show(self, own: Facts, other: Facts, draws: Sequence[float]) -> Shown:
        """One training example.

        Args:
            own: what is known of the triplet.
            other: likewise of the one it is paired with; of the triplet itself where `partners` names none.
            draws: three numbers in [0, 1), new for each sample and epoch.

        Raises:
            InputError: the triplet was staged without what these labels need.
        """
        return Shown(float(own()["target"]))


@functools.cache
def registered() -> dict[str, Labels]:
    """All kinds by name."""
    return {labels.name: labels for labels in discover("trainer.labels", "LABELS", Labels)}


def named_labels(name: str) -> Labels:
    """The kind of this name.

    Raises:
        InputError: there is none.
    """
    if name not in registered():
        raise InputError(f"labels must be one of {', '.join(registered())}, got {name!r}")
    return registered()[name]
