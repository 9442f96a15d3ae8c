"""How much of its start a model of stage 2 still has: the cosine between the weights of its vision tower and those it started from.

For the perceptual arm the start is the tower of stage 1, for the baseline the seed's own initial weights: how far an arm without a
prior moves is beside it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer import lineage
from trainer.config import EvaluateConfig
from trainer.errors import InputError, RunError
from trainer.model import towers
from trainer.storage import layout
from trainer.storage.recipes import read_stage


class Start:
    """The vision tower that a cell's contrastive stage started from; read once, where a model is first compared with it."""

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config
        self._weights: dict[str, Tensor] | None = None
        self._looked = False
        self._failed: RunError | None = None

    def cosine(self, weights: Mapping[str, Tensor]) -> float | None:
        """Cosine of all matrices as one row of numbers, gains and biases left out; None if the start is gone, or is another by now.

        Args:
            weights: of a vision tower, by name, on the CPU.

        Raises:
            Corrupt: the start is damaged: a result without the figure would count as done for good.
            RunError: the store failed.
        """
        if not self._looked:
            self._looked = True
            try:
                self._weights = self._read()
            except InputError as error:
                print(f"evaluate: similarity to the start is left out: {error}", flush=True)
            except RunError as error:
                self._failed = error
        if self._failed is not None:
            raise self._failed
        return None if self._weights is None else cosine(weights, self._weights)

    def _read(self) -> dict[str, Tensor] | None:
        asked = next((model for model in self._config.models if model.stage == "contrastive"), None)
        if asked is None:
            return None
        start = read_stage(layout.config(asked.uri)).start
        if start.kind == "random":
            return towers.vision_state(towers.build_model(self._config.model, self._config.seed))
        arrays, _ = lineage.read_start(start)
        weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return towers.permute_within(weights, self._config.seed) if start.kind == "permuted" else weights


def cosine(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Cosine of the matrices of two towers of one shape, each set taken as one row of numbers; 0 if one is 0.

    Args:
        ours: weights by name.
        theirs: the same names and shapes.
    """
    product, first, second = 0.0, 0.0, 0.0
    for name, tensor in ours.items():
        if tensor.dim() > 1:
            a, b = tensor.flatten().double(), theirs[name].flatten().double()
            product, first, second = product + float(a @ b), first + float(a @ a), second + float(b @ b)
    return product / (first * second) ** 0.5 if first and second else 0.0
