"""Load the final model of a stage and verify every byte against its seal."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer import lineage
from trainer.config import ModelConfig, StageConfig, StartConfig
from trainer.configs import read_stored
from trainer.data.decode import centre
from trainer.errors import InputError
from trainer.evaluation.encode import Encoder
from trainer.model import towers
from trainer.storage import exists, join, layout
from trainer.storage.base import absolute
from trainer.storage.committed import read_committed
from trainer.storage.recipes import read_config_values

if TYPE_CHECKING:
    import open_clip

_TEXTS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained model, in evaluation mode.

    Attributes:
        uri: the folder of its stage.
        stage: perceptual (only a vision tower), contrastive or posthoc.
        arm: arm of its cell.
        seed: seed of its cell.
        recipe_hash: recipe hash of the stage that trained it.
        weights_sha256: hash of its weights.
        step: optimiser steps that it was trained for.
        clip: the towers, an `open_clip.CLIP`.
        image_size: S, side of its input.
    """

    uri: str
    stage: str
    arm: str
    seed: int
    recipe_hash: str
    weights_sha256: str
    step: int
    clip: "open_clip.CLIP"
    image_size: int
    _config: ModelConfig = field(repr=False, compare=False)
    _encoder: Encoder = field(repr=False, compare=False)

    @property
    def has_text(self) -> bool:
        """Whether it has a trained text tower."""
        return self.stage != "perceptual"

    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """Preprocess a picture as for evaluation: (H, W, 3) uint8 to (3, S, S) uint8, bicubic resize and centre crop."""
        return centre(image, self.image_size, "exact")

    def encode_images(self, images: Sequence[NDArray[np.uint8]] | Tensor) -> Tensor:
        """Features of pictures.

        Args:
            images: arrays of (H, W, 3) uint8 of any size, or one tensor of (B, 3, S, S) uint8.

        Returns:
            (B, D) float32 on the CPU, L2-normalised.
        """
        return self._encoder.images(images if isinstance(images, Tensor) else torch.stack([self.preprocess(image) for image in images]))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Features of texts: (len(texts), D) float32 on the CPU, L2-normalised.

        Raises:
            InputError: it has no text tower.
        """
        if not self.has_text:
            raise InputError(f"{self.uri}: a perceptual stage trains only the vision tower: load the cell's contrastive stage for texts")
        starts = range(0, len(texts), _TEXTS_AT_ONCE)
        return torch.cat([self._encoder.texts(texts[start : start + _TEXTS_AT_ONCE]) for start in starts])


def load_model(uri: str, *, device: str = "cpu") -> Model:
    """The final model of a stage.

    Args:
        uri: the stage's folder, `<root>/experiments/<name>/<cell>/contrastive`, `…/posthoc` or `…/towers/<hash>`, or its `final/`.
        device: as torch names it, `cpu` or `cuda`.

    Raises:
        InputError: there is no finished model.
        Corrupt: its bytes differ from those that were sealed.
    """
    folder = absolute(uri).rstrip("/")
    folder = folder.removesuffix(f"/{layout.FINAL}")
    final = layout.final(folder)
    seal = read_committed(final)
    if seal is None:
        raise InputError(f"{final}: no COMMITTED.json, so there is no finished model here: name the folder of a finished stage")
    config = _stage_config(folder)
    tower = config.stage == "perceptual"
    state, weights_sha256 = lineage.read_start(StartConfig(kind="tower" if tower else "model", uri=final, recipe_hash=seal.recipe_hash))
    clip = towers.build_model(config.model, config.seed)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    towers.load_strict(clip.visual if tower else clip, tensors, final)
    encoder = Encoder(folder, clip, config.model, torch.device(device), "fp32")
    return Model(
        uri=folder, stage=config.stage, arm=config.arm, seed=config.seed, recipe_hash=seal.recipe_hash, weights_sha256=weights_sha256,
        step=seal.step, clip=clip, image_size=encoder.image_size, _config=config.model, _encoder=encoder,
    )  # fmt: skip


def _stage_config(folder: str) -> StageConfig:
    """The configuration of a finished stage: the copy that was sealed with its model, or else the stage's own."""
    sealed = layout.config(layout.final(folder))
    place = sealed if exists(sealed) else layout.config(folder)
    if not exists(place):
        raise InputError(f"{place}: missing: loading a model needs the configuration of its stage")
    return read_stored(StageConfig, read_config_values(place), join(place))
