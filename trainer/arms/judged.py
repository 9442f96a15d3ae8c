"""Control: is it human perception, or any metric?"""

from trainer.arms import Arm

ARM = Arm(
    name="judged",
    order=50,
    start="tower",
    labels="flip",
    meaning="as perceptual, but the same pictures were judged by FLIP instead of people",
    control="the same pictures judged by FLIP",
)
