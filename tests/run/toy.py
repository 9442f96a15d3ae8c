"""A stage small enough to run hundreds of steps in a test: one linear map, batches drawn from the step alone."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.config import ContrastiveConfig, DataConfig, ModelConfig, OptimizerConfig, Placement, StageConfig
from trainer.lineage import weights_sha256
from trainer.model.distributed import Distributed, GradientSum, sum_over_ranks
from trainer.storage.manifest import Manifest, Shard, write_manifest

STEPS_PER_EPOCH = 5


@dataclass
class ToyLoader:
    """Batches of 4 rows of 3 numbers, a function of the step; `poisoned` steps hold NaN."""

    poisoned: frozenset[int] = frozenset()
    steps_per_epoch: int = STEPS_PER_EPOCH
    served: list[int] = field(default_factory=list)

    def batches(self, start_step: int) -> Iterator[Tensor]:
        """Endless, from `start_step`."""
        step = start_step
        while True:
            self.served.append(step)
            batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            yield batch * float("nan") if step in self.poisoned else batch
            step += 1

    def close(self) -> None:
        """Nothing is open."""


class ToyStage:
    """Learns to map a row to its sum."""

    def __init__(self, config: StageConfig, dist: Distributed, poisoned: frozenset[int] = frozenset()) -> None:
        generator = torch.Generator().manual_seed(config.seed)
        self.module: nn.Module = nn.Linear(3, 1)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.normal_(generator=generator)
        self.model = self.module
        self.memory: dict[str, Tensor] = {}
        self._gradients = GradientSum(self.module.parameters())
        self.served = ToyLoader(poisoned=poisoned)

    def loader(self) -> ToyLoader:
        """The toy batches."""
        return self.served

    def forward_backward(self, batch: Tensor, step: int) -> dict[str, float | Tensor]:
        """Squared error, with noise from the global generator so that resume must restore it."""
        loss = ((self.module(batch) - batch.sum(1, keepdim=True) - 0.1 * torch.randn(4, 1)) ** 2).mean()
        self._gradients.begin(passes=1)
        loss.backward()
        self._gradients.finish()
        return {"loss": sum_over_ranks(loss), "flops": 10.0}

    def after_optimizer(self) -> None:
        """Nothing to clamp."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Remembers how many epochs ended."""
        self.memory["epochs"] = torch.tensor(epoch + 1)
        return {"val_2afc": 0.5}

    def save_final(self, folder: Path) -> dict[str, Any]:
        """The weights."""
        save_file(self.module.state_dict(), folder / "model.safetensors")
        return {"weights_sha256": weights_sha256({name: value.numpy() for name, value in self.module.state_dict().items()})}


def sealed_data(folder: Path, kind: Any = "pairs", samples: int = 64, judge: str = "") -> DataConfig:
    """A manifest without shards behind it."""
    shard = Shard(
        name="shard-0-0.tar", split="train", num_samples=samples, size=1, sha256=hashlib.sha256(b"").hexdigest(), crc32c=0, index_crc32c=0
    )
    manifest = Manifest(kind=kind, name="toy", plan_id="toy", source={}, options={}, rows={}, shards=[shard], judge=judge)
    write_manifest(str(folder), manifest)
    return DataConfig(uri=str(folder), identity=manifest.identity)


def toy_config(folder: Path, *, epochs: int = 4, clip_norm: float = 0.0, seed: int = 0, **placement: Any) -> StageConfig:
    """A contrastive configuration that the toy stage stands in for."""
    settings = ContrastiveConfig(
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2, clip_norm=clip_norm),
        global_batch_size=4,
        contrast_batch_size=4,
        epochs=epochs,
    )
    return StageConfig(
        stage="contrastive",
        experiment="toy",
        arm="random",
        seed=seed,
        output=str(folder / "stage"),
        data=sealed_data(folder / "data"),
        model=ModelConfig(),
        contrastive=settings,
        placement=Placement(device="cpu", threads=1, log_every_steps=1, **placement),
    )


Trained = Callable[..., ToyStage]
"""What the fixture run_toy gives."""
