"""Control: is it what the tower learned, or the norms that its weights have by then?"""

from trainer.arms import Arm

ARM = Arm(
    name="permuted",
    order=30,
    start="permuted",
    labels="votes",
    meaning="the perceptual weights, permuted within each tensor: same norms, no structure",
    control="the same weights without their structure",
)
