"""The two stages of Perceptual Initialization, and their interface to the training loop (trainer/run/loop.py)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


class Stage(Protocol):
    """What is trained, on which batches, by which loss. The loop owns optimiser, schedule, clipping and checkpoints.

    Attributes:
        module: everything that is trained or saved; parameters that stay fixed have requires_grad False.
        model: the open_clip CLIP that `module` is, or is part of; the hand-off loads weights into it.
        memory: further tensors that a checkpoint must contain (best weights so far, …); replaced in place on resume.
    """

    module: nn.Module
    model: Any
    memory: dict[str, Tensor]

    def loader(self) -> Any:
        """The stage's batches: `.batches(start_step)`, `.steps_per_epoch`, `.close()`."""
        ...

    def forward_backward(self, batch: Any, step: int) -> Mapping[str, float | Tensor]:
        """One batch forward and backward; afterwards `.grad` holds the global batch's gradient on every rank.

        Returns:
            Metrics of the step over all ranks, including `loss`. They are scalar tensors, left on the device so that only
            the loop's log waits for them. Optional: `flops` (this rank's part of the step), `logit_scale`.
        """
        ...

    def after_optimizer(self) -> None:
        """Called after the optimiser's step, for clamping."""
        ...

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Metrics after the last step of an epoch; called on all ranks."""
        ...

    def save_final(self, folder: Path) -> dict[str, Any]:
        """Write the files of final/ into the local `folder`; returns the facts for COMMITTED.json."""
        ...
