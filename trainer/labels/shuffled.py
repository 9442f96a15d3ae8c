"""The triplets' judgements, shuffled among the triplets: the same pictures and labels, without their association."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.labels import Facts, Labels, Shown

if TYPE_CHECKING:
    from trainer.labels import Draw, Partners


class Shuffled(Labels):
    """Gives each triplet the votes of another one, the same in all epochs."""

    name = "shuffled"
    says = "the triplets' judgements, shuffled among them"
    tower = "shuffled"

    def partners(self, count: int, draw: "Draw") -> "Partners":
        """By one permutation of the split."""
        import numpy as np

        order = np.argsort(draw("shuffled labels", np.arange(count)), kind="stable")
        return lambda samples, epoch: order[samples]

    def show(self, own: Facts, other: Facts, draws: Sequence[float]) -> Shown:
        """The other triplet's target."""
        return Shown(float(other()["target"]))


LABELS = Shuffled()
