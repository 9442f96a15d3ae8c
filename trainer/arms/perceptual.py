"""Perceptual Initialization: see first, then read (arXiv 2505.14204)."""

from trainer.arms import Arm

ARM = Arm(
    name="perceptual",
    order=20,
    start="tower",
    labels="votes",
    meaning="the vision tower was first trained on the triplets' judgements",
)
