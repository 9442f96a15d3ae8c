"""The votes of those who judged the triplets, as in the paper."""

from trainer.labels import Labels


class Votes(Labels):
    """The target that staging wrote: the part of the votes for the second variant."""

    name = "votes"
    says = "the triplets' judgements"
    tower = "perceptual"


LABELS = Votes()
