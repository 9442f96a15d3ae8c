"""Control: is it the judgements, or having seen the pictures?"""

from trainer.arms import Arm

ARM = Arm(
    name="instance",
    order=60,
    start="tower",
    labels="instance",
    meaning="as perceptual, but trained to prefer a picture's own distortion to another picture's: images without judgements",
    control="the same pictures without judgements",
)
