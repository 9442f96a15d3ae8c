"""What a job is called and what its labels say.

A job's name is a function of what it does, so that a second launcher of the same stage finds the first one's job.
"""

import re
from dataclasses import dataclass

from trainer.config import canonical_hash
from trainer.errors import InputError

MAX_NAME = 46
"""So that every kind of job can have the name. The pods of a TrainJob's JobSet are called `<name>-node-0-<rank>-<5 letters>`,
at most 63, which leaves 46 up to 100 nodes. A PyTorchJob could have 54: at 55 it says Running, but its Services are never made."""
MAX_LABEL = 63
DOMAIN = "firstsight.dev"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What makes a job the same job again. Of a shared tower the arm is the tower's name.

    Attributes:
        root: store URI.
        experiment: its name.
        arm: the arm's name.
        seed: the seed.
        stage: perceptual, contrastive, posthoc, evaluate, or a staging step.
    """

    root: str
    experiment: str
    arm: str
    seed: int
    stage: str

    @property
    def name(self) -> str:
        """DNS-1035, at most MAX_NAME characters: stage, arm and seed for people, a hash for the machine."""
        digest = canonical_hash([self.root.rstrip("/"), self.experiment, self.arm, self.seed, self.stage])[:10]
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.stage}-{self.arm}-s{self.seed}".lower()).strip("-")
        if not words or not words[0].isalpha():
            words = f"fs-{words}".rstrip("-")
        return f"{words[: MAX_NAME - len(digest) - 1].rstrip('-')}-{digest}"

    def labels(self) -> dict[str, str]:
        """By which jobs are found, scraped and counted."""
        labels = {
            "app.kubernetes.io/name": "firstsight",
            "app.kubernetes.io/part-of": "firstsight",
            "app.kubernetes.io/component": "trainer",
            f"{DOMAIN}/experiment": self.experiment,
            f"{DOMAIN}/arm": self.arm,
            f"{DOMAIN}/seed": str(self.seed),
            f"{DOMAIN}/stage": self.stage,
        }
        for key, value in labels.items():
            if len(value) > MAX_LABEL or not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", value):
                rule = f"at most {MAX_LABEL} of letters, digits, '.', '_', '-', beginning and ending with a letter or digit"
                raise InputError(f"label {key} must be {rule}, got {value!r}")
        return labels
