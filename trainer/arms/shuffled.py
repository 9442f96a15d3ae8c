"""Control: is it the judgements, or any labels of the same pictures?"""

from trainer.arms import Arm

ARM = Arm(
    name="shuffled",
    order=70,
    start="tower",
    labels="shuffled",
    meaning="as perceptual, but the judgements were shuffled among the triplets",
    control="the same triplets with shuffled judgements",
)
