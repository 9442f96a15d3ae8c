"""The arms of an experiment, one file each: what the contrastive stage starts from, and what the report says of it.

To add one, write a file here that ends with `ARM = Arm(…)`: the command line, the plan and the report find it. An arm is
declared and holds no code; what a tower can learn from is declared beside it (trainer/labels/).
"""

import functools
from dataclasses import dataclass

from trainer.config import StartKind
from trainer.labels import named_labels
from trainer.registry import discover

BASELINE = "random"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm.

    Attributes:
        name: as folders and people say it.
        order: of the arms wherever they are listed, lowest first.
        start: kind of the contrastive stage's start; of a fine-tuned arm that of its own stage, a whole model.
        labels: what its perceptual stage learns from; None: it has no such stage.
        finetuned: whether that stage comes after the contrastive one, on the model of another arm (`posthoc.base`).
        source: of `from:<uri>`, the URI of the tower; else empty.
        meaning: what the report says the arm is.
        control: of a control, what it leaves of `perceptual`: "the same …"; else empty.
    """

    name: str
    order: int = 1000
    start: StartKind = "random"
    labels: str | None = None
    finetuned: bool = False
    source: str = ""
    meaning: str = ""
    control: str = ""

    @property
    def tower(self) -> str:
        """What the tower that it starts from is called; arms with the same labels share one."""
        return named_labels(self.labels).tower if self.labels and not self.finetuned else ""

    @property
    def does(self) -> tuple[bool, str, str | None]:
        """What tells it from another arm."""
        return self.finetuned, self.start, self.labels


@functools.cache
def registered() -> dict[str, Arm]:
    """All arms by name, in their order."""
    found = sorted(discover("trainer.arms", "ARM", Arm), key=lambda arm: (arm.order, arm.name))
    does = [arm.does for arm in found]
    same = [arm.name for arm in found if does.count(arm.does) > 1]
    if same:
        raise ValueError(f"arms must differ in what they start from or learn from, but {', '.join(same)} do not")
    return {arm.name: arm for arm in found}


def find(*, finetuned: bool, start: str, labels: str | None) -> Arm | None:
    """The arm that does this; None: it is none of this version's."""
    return next((arm for arm in registered().values() if arm.does == (finetuned, start, labels)), None)


def controls() -> list[Arm]:
    """The arms whose tower was warmed up on something else than the judgements."""
    return [arm for arm in registered().values() if arm.control]
