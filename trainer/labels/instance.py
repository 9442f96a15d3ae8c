"""Images without judgements: a distortion of the reference is closer to it than a distortion of another picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.labels import Facts, Labels, Place, Shown

if TYPE_CHECKING:
    from trainer.labels import Draw, Partners


class Instance(Labels):
    """A variant of its own and one of any other triplet's, sides and variants drawn again each epoch."""

    name = "instance"
    says = "a picture's own distortion against another picture's, without judgements"
    tower = "instance"
    min_triplets = 2

    def partners(self, count: int, draw: "Draw") -> "Partners":
        """Any triplet but the sample itself, another one each epoch."""
        return lambda samples, epoch: (samples + 1 + (draw(f"instances:{epoch}", samples) * (count - 1)).astype("int64")) % count

    def show(self, own: Facts, other: Facts, draws: Sequence[float]) -> Shown:
        """The votes are not read."""
        side, own_side, other_side = (int(draw < 0.5) for draw in draws)
        mine: Place = (0, 1 + own_side)
        theirs: Place = (1, 1 + other_side)
        return Shown(float(side), ((0, 0), theirs, mine) if side else ((0, 0), mine, theirs))


LABELS = Instance()
