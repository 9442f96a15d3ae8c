"""The optimiser: which parameters decay, the learning rate of each step, and its state by parameter name.

State is named, not numbered, so that a checkpoint says what it holds and a changed model is refused.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.config import OptimizerConfig
from trainer.errors import InputError

AS_CODED_ACCUMULATION = 6
"""As coded, the cosine's horizon counts micro-batches, six to a step: it is six times too long (docs/RECIPES.md)."""


def learning_rate(config: OptimizerConfig, step: int, horizon: int) -> float:
    """The rate of the step after `step` done ones, as open_clip has it: linear warm-up, then cosine to 0 or constant.

    Args:
        config: peak, warm-up and form.
        step: optimiser steps done before this one.
        horizon: steps after which the cosine is 0.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, horizon - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def decays(name: str, parameter: Tensor, config: OptimizerConfig) -> bool:
    """Whether weight decay pulls at a parameter: never at gains, biases and the logit scale, by choice not at positions."""
    if parameter.ndim < 2:
        return False
    return not (config.no_decay == "gains_biases_and_positions" and name.endswith("positional_embedding"))


def build(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW (or Adam) over the parameters that require a gradient, fused, in two groups."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if decays(name, p, config)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trained if not decays(name, p, config)], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    groups = [group for group in groups if group["params"]]
    return kind(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """A step that changes nothing where `skip`, a boolean on the parameters' device, holds; nobody waits to know it.

    The fused optimisers read `found_inf` for PyTorch's own GradScaler.
    """
    setattr(optimizer, "found_inf", skip.float())  # noqa: B010  the optimizer's class does not declare it
    optimizer.step()


def state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimiser's tensors as `<parameter>/<quantity>`; references, not copies. Empty before its first step."""
    return {
        f"{name}/{quantity}": value
        for name, p in module.named_parameters()
        if p in optimizer.state
        for quantity, value in optimizer.state[p].items()
    }


def load_state(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state` gave.

    Raises:
        InputError: the names are not those of the parameters that are trained.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, quantity = key.rpartition("/")
        found.setdefault(name, {})[quantity] = value
    if found and found.keys() != trained.keys():
        first = sorted(found.keys() ^ trained.keys())[0]
        raise InputError(f"the checkpoint's optimiser does not fit the model: {first} is in one and not in the other")
    for name, quantities in found.items():
        p = trained[name]
        # the fused optimisers keep their step count on the parameter's device, as float32
        optimizer.state[p] = {quantity: value.to(p.device) for quantity, value in quantities.items()}
