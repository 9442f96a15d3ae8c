"""The paper's recipe at its real size, a few pairs at a time."""

import dataclasses

import pytest
import torch

from tests import reference_trainer as reference
from trainer.config import Placement, StageConfig
from trainer.configs import load_recipe
from trainer.model import optimizer
from trainer.model.distributed import Distributed
from trainer.stages.contrastive import ContrastiveStage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"), [("", 151_277_313), ("ViT-B-32", 151_277_313), ("ViT-B-16", 149_620_737), ("ViT-L-14", 427_616_513)]
)
def test_three_steps_of_the_papers_recipe(name: str, parameters: int) -> None:
    """In bf16 with MoCo-v2 augmentation, batch 2, by its own sizes and by name: finite losses, and every weight moves."""
    recipe = load_recipe("paper", [f"model.open_clip_name={name}"] if name else [])
    contrastive = dataclasses.replace(recipe.contrastive, global_batch_size=2, contrast_batch_size=2, order_runs=1)
    config = StageConfig(
        stage="contrastive", output="unused", model=recipe.model, contrastive=contrastive, placement=Placement(device="cpu", threads=2)
    )
    stage = ContrastiveStage(config, Distributed(0, 1, 0, torch.device("cpu")), torch.device("cpu"))
    assert sum(p.numel() for p in stage.module.parameters()) == parameters
    before = {name: p.detach().clone() for name, p in stage.module.named_parameters()}
    ours = optimizer.build(stage.module, contrastive.optimizer)
    for step, batch in enumerate(reference.random_batches(3, 2, 224)):
        figures = stage.forward_backward(batch, step)  # type: ignore[arg-type]
        assert torch.isfinite(torch.as_tensor(figures["loss"]))
        ours.step()
        stage.after_optimizer()
    # the logit scale starts at its largest value, so it may be clamped back to it
    still = [name for name, p in stage.module.named_parameters() if torch.equal(p, before[name]) and name != "logit_scale"]
    assert not still
