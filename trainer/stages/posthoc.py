"""Perceptual fine-tuning after contrastive training: only the vision tower's QKV weights are trained; all others stay bitwise the same.

python -m trainer train posthoc --config <stage folder>/config.yaml
"""

from pathlib import Path
from typing import Any

import torch

from trainer.config import StageConfig
from trainer.lineage import vision_weights, weights_sha256
from trainer.model import towers
from trainer.model.distributed import Distributed
from trainer.stages.perceptual import TripletStage

TRAINED = ("attn.in_proj_weight", "attn.in_proj_bias")


class PosthocStage(TripletStage):
    """Starts from a whole model; final/ contains a whole model again."""

    def __init__(self, config: StageConfig, dist: Distributed, device: torch.device) -> None:
        assert config.posthoc is not None
        super().__init__(config, config.posthoc, dist)
        self.module = self.model.to(device)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith("visual.") and name.endswith(TRAINED))

    def save_final(self, folder: Path) -> dict[str, Any]:
        """Write the model in open_clip's format."""
        towers.save_open_clip(folder, self.model, self._config.model)
        weights = {name: value.numpy() for name, value in towers.model_state(self.model).items()}
        return {"weights_sha256": weights_sha256(weights), "vision_sha256": weights_sha256(vision_weights(weights)), **self.facts()}
