"""The baseline."""

from trainer.arms import BASELINE, Arm

ARM = Arm(name=BASELINE, order=10, meaning="both towers start from random weights: the baseline")
