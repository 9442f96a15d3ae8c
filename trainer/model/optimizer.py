"""The optimiser: which parameters decay, the learning rate of each step, and its state by parameter name.

State is stored by name, not by number, so that a checkpoint is self-describing and a changed model is refused.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from trainer.config import OptimizerConfig
from trainer.errors import InputError

AS_CODED_ACCUMULATION = 6
"""With `as_coded`, the cosine's horizon counts micro-batches, six per step, so it is six times too long (docs/RECIPES.md)."""


def learning_rate(config: OptimizerConfig, step: int, horizon: int) -> float:
    """The learning rate after `step` finished steps, as in open_clip: linear warm-up, then cosine to 0 or constant.

    Args:
        config: peak, warm-up and schedule.
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
    """Whether weight decay applies to a parameter: never to gains, biases and the logit scale; to positions depending on `no_decay`."""
    if parameter.ndim < 2:
        return False
    return not (config.no_decay == "gains_biases_and_positions" and name.endswith("positional_embedding"))


class Adam:
    """AdamW or Adam with torch's fused kernels.

    The steps are bitwise equal to those of torch.optim. Its classes are not used because they import torch._dynamo at their first call
    (two CPU-seconds in each process) and sort all parameters again in each step.

    Attributes:
        param_groups: dictionaries of `params`, `lr` and `weight_decay`; the loop sets `lr`.
        state: of each parameter, by quantity: `step`, `exp_avg`, `exp_avg_sq`; empty before its first step.
    """

    def __init__(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> None:
        self.param_groups = [{"lr": config.learning_rate, **group} for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self._config, self._move = config, adamw if config.name == "adamw" else adam

    @torch.no_grad()
    def step(self, unless: Tensor | None = None) -> None:
        """Update each parameter that has a gradient.

        Args:
            unless: a boolean on the parameters' device; if it is true nothing changes, and the host does not wait to know it.
        """
        config, found = self._config, None if unless is None else unless.float()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            states = [self.state.get(p) or self.state.setdefault(p, _at_rest(p)) for p in moved]
            self._move(
                moved,
                [p.grad for p in moved],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                found_inf=found,
                amsgrad=False,
                beta1=config.beta1,
                beta2=config.beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=config.eps,
                maximize=False,
            )

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


def build(module: nn.Module, config: OptimizerConfig) -> Adam:
    """AdamW (or Adam) over the parameters that require a gradient, in two groups."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if decays(name, p, config)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trained if not decays(name, p, config)], "weight_decay": 0.0},
    ]
    return Adam([group for group in groups if group["params"]], config)


def _at_rest(p: nn.Parameter) -> dict[str, Tensor]:
    """Moments before the first step; the fused kernels keep the count of steps on the parameter's device, as float32."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=p.device),
        "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
    }


def state(optimizer: Adam, module: nn.Module) -> dict[str, Tensor]:
    """The optimiser's tensors as `<parameter>/<quantity>`; references, not copies. Empty before its first step."""
    return {
        f"{name}/{quantity}": value
        for name, p in module.named_parameters()
        if p in optimizer.state
        for quantity, value in optimizer.state[p].items()
    }


def load_state(optimizer: Adam, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what `state` returned.

    Raises:
        InputError: the names differ from those of the trained parameters.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, quantity = key.rpartition("/")
        found.setdefault(name, {})[quantity] = value
    if found and found.keys() != trained.keys():
        first = sorted(found.keys() ^ trained.keys())[0]
        raise InputError(f"the checkpoint's optimiser state does not match the model: {first} is in one but not in the other")
    for name, quantities in found.items():
        p = trained[name]
        optimizer.state[p] = {quantity: value.to(p.device) for quantity, value in quantities.items()}
