"""The name and labels of a job.

A job's name is a function of the folder it writes, so that a second launcher for the same work finds the first one's job.
"""

import hashlib
import re
from dataclasses import dataclass

from trainer.config import canonical_hash

MAX_NAME = 46
"""Chosen so that every kind of job can have this name. The pods of a TrainJob's JobSet are called `<name>-node-0-<rank>-<5 letters>`,
at most 63 characters, which leaves 46 for up to 100 nodes. A PyTorchJob could have 54: at 55 it reports Running, but its Services are
never created."""
MAX_LABEL = 63
DOMAIN = "firstsight.dev"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What identifies a job (root, output, and which part of the work it does there) and, for people, whose it is.

    Attributes:
        root: store URI.
        output: URI of the folder that it makes.
        experiment: its name.
        cell: the cell whose folder contains the output; empty if cells share it (a tower) or there is none (staging).
        arm: the arm's name; for a shared tower, the tower's name; for staging, what is staged.
        point: the cell's point, if the recipe varies; otherwise empty.
        seed: the seed.
        stage: perceptual, contrastive, posthoc, evaluate, or a staging step.
    """

    root: str
    output: str
    experiment: str
    cell: str = ""
    arm: str
    point: str = ""
    seed: int
    stage: str

    @property
    def name(self) -> str:
        """DNS-1035, at most MAX_NAME characters: stage, cell and seed for people, a hash of root and folder for the machine.

        Anything that does not belong to one cell is named after its folder: the name must not depend on who asks for a shared tower first.
        """
        output = self.output.rstrip("/")
        what = f"{self.arm}-{self.point}" if self.cell else output.rpartition("/")[2][:12]
        return _name(f"{self.stage}-{what}", self.seed, [self.root.rstrip("/"), output])

    @property
    def former_name(self) -> str:
        """The name that commit ad127be and those before it would have given: a job may still be running under it.

        It was a hash of experiment, arm, seed and stage, so jobs that differ only in their point share it: check the annotations.
        """
        digest = canonical_hash([self.root.rstrip("/"), self.experiment, self.arm, self.seed, self.stage])[:10]
        words = _words(f"{self.stage}-{self.arm}-s{self.seed}")
        if not words or not words[0].isalpha():
            words = f"fs-{words}".rstrip("-")
        return f"{words[: MAX_NAME - len(digest) - 1].rstrip('-')}-{digest}"

    def labels(self) -> dict[str, str]:
        """Labels by which jobs are found, scraped and counted; empty ones are left out."""
        ours = {
            "experiment": self.experiment,
            "cell": self.cell,
            "arm": self.arm,
            "point": self.point,
            "seed": str(self.seed),
            "stage": self.stage,
        }
        return {
            "app.kubernetes.io/name": "firstsight",
            "app.kubernetes.io/part-of": "firstsight",
            "app.kubernetes.io/component": "trainer",
            **{f"{DOMAIN}/{name}": label_value(value) for name, value in ours.items() if value},
        }


def label_value(text: str) -> str:
    """The text itself if it can be a label's value; otherwise as much of it as possible, plus a hash that tells it from others."""
    if len(text) <= MAX_LABEL and re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?", text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[: MAX_LABEL - len(digest) - 1].strip("._-")
    return f"{words}-{digest}" if words else digest


def _name(words: str, seed: int, identity: list[str]) -> str:
    tail = f"-s{seed}-{canonical_hash(identity)[:10]}"  # alerts and the dashboard recognise our pods by this suffix
    return f"{_words(words)[: MAX_NAME - len(tail)].rstrip('-')}{tail}"


def _words(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
