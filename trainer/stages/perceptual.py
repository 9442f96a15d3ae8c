"""Stage 1: the vision tower alone learns which of two pictures is closer to a reference (arXiv 2505.14204).

    python -m trainer train perceptual --config <stage folder>/config.yaml

Shapes: B triplets of this rank, S image side, D joint width.
"""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import OptimizerConfig, PerceptualConfig, PosthocConfig, StageConfig, unless_auto
from trainer.data.augment import normalise
from trainer.data.loader import Split, TripletsLoader
from trainer.lineage import TOWER_FILE, weights_sha256
from trainer.model import encoding, losses, towers
from trainer.model.distributed import Distributed, GradientSum, share, sum_over_ranks
from trainer.storage.manifest import require_manifest

BEST_PREFIX = "best/"
LOSSES = {"hinge": losses.hinge, "logistic": losses.logistic}


class TripletStage:
    """The common part of stage 1 and the post-hoc stage: triplets in, distances out, 2AFC on the validation split."""

    def __init__(self, config: StageConfig, settings: PerceptualConfig | PosthocConfig, dist: Distributed) -> None:
        self.model = towers.build_model(config.model, config.seed)
        if settings.precision == "fp64":
            self.model.double()
        self.memory: dict[str, Tensor] = {}
        self.module: nn.Module
        self._config = config
        self._settings = settings
        self._dist = dist
        self._image_size = towers.resolve(config.model)["image_size"]
        local = share(f"{config.stage}.global_batch_size", settings.global_batch_size, dist.world_size)
        self._chunk = min(unless_auto(config.placement.local_batch_size) or local, local)
        self._flops = 3 * towers.flops_per_sample(config.model, 0)
        self._validation: TripletsLoader | None = None
        self._has_validation = bool(require_manifest(config.data.uri, config.data.identity, config.data.manifest_sha256).split("val"))

    @functools.cached_property
    def _gradients(self) -> GradientSum:
        return GradientSum(self.module.parameters())

    @property
    def optimizer(self) -> OptimizerConfig:
        """The settings of the optimiser."""
        return self._settings.optimizer

    def loader(self) -> TripletsLoader:
        """The training split, shuffled."""
        mirror = isinstance(self._settings, PerceptualConfig) and self._settings.flip_augmentation
        return self._load("train", self._settings.global_batch_size, self._dist, mirror)

    def forward_backward(self, batch: Any, step: int) -> dict[str, float | Tensor]:
        """One batch, in chunks of at most placement.local_batch_size; the gradient is that of the global mean.

        Args:
            batch: images (B, 3, 3, S, S) uint8: reference, 0 and 1 of each triplet; target (B,) in [0, 1]: the fraction
                of votes for image 1.
            step: unused: nothing here depends on it.

        Returns:
            loss and accuracy (2AFC) of the global batch, and this rank's flops.
        """
        if self._has_validation and "untrained_val_2afc" not in self.memory:
            self.memory["untrained_val_2afc"] = torch.tensor(self.validate(), dtype=torch.float64)
        self._gradients.begin(passes=math.ceil(len(batch.images) / self._chunk))
        totals = torch.zeros(2, dtype=torch.float64, device=self._dist.device)
        for images, target in self._chunks(batch):
            d0, d1 = losses.triplet_distances(self._features(images))
            each = self._loss(d0, d1, target)
            (each.sum() / self._settings.global_batch_size).backward()  # type: ignore[no-untyped-call]
            totals += torch.stack([each.detach().sum(), losses.two_afc(d0, d1, target).detach().sum()])
        self._gradients.finish()
        loss, accuracy = (sum_over_ranks(totals) / self._settings.global_batch_size).unbind()
        return {"loss": loss, "accuracy": accuracy, "flops": self._flops * len(batch.images)}

    def after_optimizer(self) -> None:
        """Nothing: this stage clamps nothing."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """2AFC on the validation split; remembers the best."""
        score = self.validate()
        best = self.memory.get("best_val_2afc")
        if self._has_validation and (best is None or score > float(best)):
            self.memory["best_val_2afc"] = torch.tensor(score, dtype=torch.float64)
            self._remember_best()
        return {"val_2afc": score} if self._has_validation else {}

    @torch.no_grad()
    def validate(self) -> float:
        """2AFC on the validation split, in [0, 1], ties one half; NaN without a validation split. Every rank measures all of it."""
        credit, count = torch.zeros((), dtype=torch.float64, device=self._dist.device), 0
        for batch in self._validation_batches():
            for images, target in self._chunks(batch):
                d0, d1 = losses.triplet_distances(self._features(images))
                credit += losses.two_afc(d0, d1, target).double().sum()
                count += len(target)
        return float(credit) / count if count else float("nan")

    @torch.no_grad()
    def feature_rank(self) -> float:
        """Effective rank of the validation references' features: the exponential of the entropy of their spectrum.

        Between 1 (all collapsed onto a line) and D. Roy and Vetterli, "The effective rank", EUSIPCO 2007.
        """
        parts = [self._features(images)[:, 0].cpu() for batch in self._validation_batches() for images, _ in self._chunks(batch)]
        if not parts:
            return float("nan")
        features = torch.cat(parts).double()
        spectrum = torch.linalg.svdvals(features - features.mean(0))
        share_of = spectrum / spectrum.sum().clamp_min(torch.finfo(torch.float64).tiny)
        return float(torch.special.entr(share_of).sum().exp())

    def facts(self) -> dict[str, float]:
        """Scores of the finished stage for COMMITTED.json."""
        scores: dict[str, float] = {
            name: float(self.memory[name]) for name in ("untrained_val_2afc", "best_val_2afc") if name in self.memory
        }
        return {**scores, "val_2afc": self.validate(), "feature_rank": self.feature_rank()} if self._has_validation else {}

    def _remember_best(self) -> None:
        """Called when the validation score is the best so far."""

    def _loss(self, d0: Tensor, d1: Tensor, target: Tensor) -> Tensor:
        kind = self._settings.loss if isinstance(self._settings, PerceptualConfig) else "hinge"
        return LOSSES[kind](d0, d1, target, self._settings.margin)

    def _features(self, images: Tensor) -> Tensor:
        """(B, 3, 3, S, S) uint8 -> (B, 3, D) L2-normalised; the three pictures of all triplets run as one batch."""
        pixels = normalise(images.flatten(0, 1))
        pixels = pixels.double() if self._settings.precision == "fp64" else pixels
        with torch.autocast(self._dist.device.type, torch.bfloat16, enabled=self._settings.precision == "bf16"):
            features = encoding.encode_image(self.model, pixels, compiled=self._config.placement.compile is True)
        return features.view(-1, 3, features.shape[-1])

    def _chunks(self, batch: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(batch.images), self._chunk):
            images = torch.as_tensor(batch.images[start : start + self._chunk])
            target = torch.as_tensor(batch.target[start : start + self._chunk])
            yield images.to(self._dist.device, non_blocking=True), target.to(self._dist.device, non_blocking=True)

    def _validation_batches(self) -> Iterator[Any]:
        if not self._has_validation:
            return
        if self._validation is None:
            alone = Distributed(rank=0, world_size=1, local_rank=self._dist.local_rank, device=self._dist.device)
            self._validation = self._load("val", self._chunk, alone, mirror=False)
        try:
            yield from self._validation.all_once()
        finally:
            self._validation.close()

    def _load(self, split: Split, global_batch_size: int, dist: Distributed, mirror: bool) -> TripletsLoader:
        return TripletsLoader(
            self._config.data,
            seed=self._config.seed,
            global_batch_size=global_batch_size,
            rank=dist.rank,
            world_size=dist.world_size,
            image_size=self._image_size,
            labels=self._config.labels if split == "train" else "votes",
            split=split,
            mirror=mirror,
            placement=self._config.placement,
            fraction=self._settings.triplet_fraction if split == "train" else 1.0,
        )


class PerceptualStage(TripletStage):
    """Trains the whole vision tower; final/ holds it as vision.safetensors."""

    def __init__(self, config: StageConfig, dist: Distributed, device: torch.device) -> None:
        assert config.perceptual is not None
        super().__init__(config, config.perceptual, dist)
        self.module = self.model.visual.to(device)
        self._keeps_best = config.perceptual.handoff == "best_val"

    def save_final(self, folder: Path) -> dict[str, Any]:
        """Write vision.safetensors: the last weights, or those that validated best."""
        if self._keeps_best:
            best = {name.removeprefix(BEST_PREFIX): value for name, value in self.memory.items() if name.startswith(BEST_PREFIX)}
            self.module.load_state_dict(best, strict=True)
        weights = towers.vision_state(self.model)
        towers.write_tensors(folder / TOWER_FILE, weights)
        return {"vision_sha256": weights_sha256({name: value.numpy() for name, value in weights.items()}), **self.facts()}

    def _remember_best(self) -> None:
        if self._keeps_best:
            self.memory.update({f"{BEST_PREFIX}{name}": value.detach().clone() for name, value in self.module.state_dict().items()})
