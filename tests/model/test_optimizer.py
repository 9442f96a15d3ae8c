import pytest
import torch
from torch import nn

from trainer.config import OptimizerConfig
from trainer.errors import InputError
from trainer.model import optimizer


class Tower(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.positional_embedding = nn.Parameter(torch.ones(4, 3))
        self.logit_scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_the_rate_warms_up_linearly_then_falls_as_a_cosine() -> None:
    """Against values worked out by hand: peak 1e-3, two steps of warm-up, six steps in all."""
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=2)
    rates = [optimizer.learning_rate(config, step, 6) for step in range(7)]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 8.535533906e-4, 5e-4, 1.464466094e-4, 0.0])


def test_a_constant_schedule_stays() -> None:
    """After warm-up."""
    config = OptimizerConfig(learning_rate=1e-3, schedule="constant")
    assert optimizer.learning_rate(config, 10_000, 6) == 1e-3


@pytest.mark.parametrize(("no_decay", "positions"), [("gains_and_biases", True), ("gains_biases_and_positions", False)])
def test_decay_leaves_gains_biases_and_by_choice_positions_alone(no_decay: str, positions: bool) -> None:
    """And never touches what is frozen."""
    tower = Tower()
    built = optimizer.build(tower, OptimizerConfig(weight_decay=0.1, no_decay=no_decay))  # type: ignore[arg-type]
    decayed = {id(p) for group in built.param_groups if group["weight_decay"] for p in group["params"]}
    trained = {id(p) for group in built.param_groups for p in group["params"]}
    assert (id(tower.positional_embedding) in decayed) == positions
    assert id(tower.linear.weight) in decayed
    assert not {id(tower.linear.bias), id(tower.logit_scale)} & decayed
    assert id(tower.frozen) not in trained


def test_state_goes_back_by_name_and_gives_the_same_next_step() -> None:
    """An optimiser rebuilt from its saved tensors moves the weights bit for bit alike."""
    first, second = Tower(), Tower()
    second.load_state_dict(first.state_dict())
    one, two = (optimizer.build(tower, OptimizerConfig()) for tower in (first, second))
    for tower, built in ((first, one), (second, two)):
        for p in tower.parameters():
            p.grad = torch.full_like(p, 0.3) if p.requires_grad else None
        built.step()
    rebuilt = optimizer.build(second, OptimizerConfig())
    optimizer.load_state(rebuilt, second, {name: value.clone() for name, value in optimizer.state(two, second).items()})
    one.step()
    rebuilt.step()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_state_of_another_model_is_refused() -> None:
    """The first name that does not fit is said."""
    with pytest.raises(InputError, match="does not match the model"):
        optimizer.load_state(optimizer.build(Tower(), OptimizerConfig()), Tower(), {"other/exp_avg": torch.ones(1)})


def test_a_skipped_step_changes_neither_weights_nor_moments() -> None:
    """Nor the count of steps, whatever the gradient holds; the next one goes on as if it had not been."""
    states = []
    for skips in ([False, False], [False, True, False]):
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        built = optimizer.build(module, OptimizerConfig(learning_rate=1e-2))
        for skip in skips:
            for p in module.parameters():
                p.grad = torch.full_like(p, float("nan") if skip else 0.5)
            built.step(unless=torch.tensor(skip))
        states.append({**module.state_dict(), **optimizer.state(built, module)})
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
