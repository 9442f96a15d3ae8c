"""FLIP's judgement of triplets that people judged: is it human perception that helps, or any metric?"""

from collections.abc import Sequence

from trainer.config import StagingConfig
from trainer.errors import InputError
from trainer.labels import Facts, Labels, Shown


class Flip(Labels):
    """The variant at the smaller FLIP distance is closer; equal distances are half a vote each."""

    name = "flip"
    says = "FLIP's judgement of the triplets"
    tower = "judged"

    def refusal(self, judge: str, staging: StagingConfig | None = None) -> str:
        """FLIP must have judged the triplets, and not as their only judge."""
        if judge == "FLIP":
            return "would equal the votes: these triplets were judged by FLIP anyway"
        if staging is not None and not staging.flip_judges_too:
            return "need FLIP's judgement of these triplets: set staging.flip_judges_too: true in the recipe"
        return ""

    def show(self, own: Facts, other: Facts, draws: Sequence[float]) -> Shown:
        """By the distances that staging wrote."""
        facts = own()
        if "flip_0" not in facts or "flip_1" not in facts:
            raise InputError("labels is flip, but this sample was staged without FLIP's judgement (flip_0, flip_1)")
        difference = facts["flip_0"] - facts["flip_1"]
        return Shown(0.5 if difference == 0 else float(difference > 0))


LABELS = Flip()
