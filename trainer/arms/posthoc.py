"""Perceptual fine-tuning after the contrastive stage, of the model of `posthoc.base`."""

from trainer.arms import Arm

ARM = Arm(
    name="posthoc",
    order=40,
    start="model",
    labels="votes",
    finetuned=True,
    meaning="a contrastively trained model (posthoc.base of the recipe), fine-tuned on the triplets afterwards",
)
