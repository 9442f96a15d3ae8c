"""Each collective on two and three gloo ranks, against the same thing in one process."""

import resource
import time

import numpy as np
import pytest
import torch

from tests.ranks import run_ranks
from trainer.config import Placement
from trainer.errors import InputError, PeerLost, RunError
from trainer.model import distributed, losses
from trainer.model.distributed import Distributed


def test_alone_there_is_one_rank_and_nothing_to_do() -> None:
    """Without torchrun's environment every collective is the identity."""
    dist = distributed.start(Placement(device="cpu", threads=1))
    assert (dist.rank, dist.world_size, dist.main) == (0, 1, True)
    value = torch.arange(6.0).view(3, 2)
    assert distributed.gather(value) is value
    assert torch.equal(distributed.concatenate(value), value[None])
    assert torch.equal(distributed.sum_over_ranks(value), value)
    assert distributed.largest(0.0, 2.5) == [0.0, 2.5]


def test_memory_of_freed_tensors_is_used_again() -> None:
    """Without the kernel, which would have to clear each of its pages again."""
    distributed.keep_freed_memory()

    def pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16 << 20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages()
    assert min(pages() for _ in range(3)) < (64 << 20) / resource.getpagesize() / 10


def test_share_refuses_what_the_ranks_do_not_divide() -> None:
    """The setting, the rule and the value are named."""
    assert distributed.share("contrastive.global_batch_size", 12, 3) == 4
    with pytest.raises(InputError, match=r"contrastive.global_batch_size must be a multiple of the number of ranks 3, got 16"):
        distributed.share("contrastive.global_batch_size", 16, 3)


def test_cuda_is_refused_where_there_is_none() -> None:
    """A placement that asks for a device that is missing ends before any work."""
    if torch.cuda.is_available():
        device = distributed.start(Placement(device="cuda", threads=1)).device
        assert device.type == "cuda"
        return
    with pytest.raises(InputError, match=r"placement\.device is 'cuda', but local rank 0 has no CUDA device"):
        distributed.start(Placement(device="cuda", threads=1))


def _collectives(dist: Distributed) -> dict[str, object]:
    mine = torch.full((2, 3), float(dist.rank + 1), dtype=torch.float64).requires_grad_()
    gathered = distributed.gather(mine)
    # each rank weighs every row by its own rank: the gradient of row r is the sum of the weights over ranks
    (gathered * (dist.rank + 1) * torch.arange(1.0, len(gathered) + 1)[:, None]).sum().backward()
    used, unused = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))
    fixed = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    gradients = distributed.GradientSum([used, unused, fixed])
    gradients.begin(passes=1)
    (used * dist.rank).sum().backward()
    gradients.finish()
    assert mine.grad is not None
    assert used.grad is not None
    assert unused.grad is not None
    return {
        "gathered": gathered.detach().numpy(),
        "gradient": mine.grad.numpy(),
        "largest": distributed.largest(float(dist.rank), -float(dist.rank), 0.0),
        "sum": distributed.sum_over_ranks(torch.tensor(float(dist.rank + 1))).item(),
        "used": used.grad.numpy(),
        "unused": unused.grad.numpy(),
        "fixed": fixed.grad is None,
    }


@pytest.mark.parametrize("world_size", [2, 3])
def test_collectives(world_size: int) -> None:
    """Rows come rank by rank, gradients and sums are over all ranks, a missing gradient is zero, a fixed weight has none."""
    results = run_ranks(_collectives, world_size)
    total = world_size * (world_size + 1) / 2
    for rank, result in enumerate(results):
        np.testing.assert_array_equal(result["gathered"], np.repeat(np.arange(1.0, world_size + 1), 2)[:, None] * np.ones((1, 3)))
        np.testing.assert_array_equal(result["gradient"], total * np.array([2 * rank + 1, 2 * rank + 2])[:, None] * np.ones((1, 3)))
        assert result["largest"] == [world_size - 1, 0.0, 0.0]
        assert (result["sum"], result["fixed"]) == (total, True)
        np.testing.assert_array_equal(result["used"], np.full(3, total - world_size))
        np.testing.assert_array_equal(result["unused"], np.zeros((2, 2)))


def test_runs_depend_on_the_parameters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are cut in parameter order, at the size limit and where the dtype changes."""
    monkeypatch.setattr(distributed, "BUCKET_ELEMENTS", 4)
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 2, 1, 9, 1)]
    parameters.append(torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    runs = distributed._runs(parameters)
    assert [[p.numel() for p in run] for run in runs] == [[3, 2], [1, 9], [1], [2]]
    assert [p for run in runs for p in run] == parameters


def _overlapped(dist: Distributed) -> dict[str, object]:
    """Three equal steps of two backward passes over five layers, one of which only the first pass uses."""
    distributed.BUCKET_ELEMENTS = 20  # a layer a run
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(5))
    inputs = torch.randn(3, 6, 4)[dist.rank]
    gradients = distributed.GradientSum(layers.parameters())
    sent, sums = [], []
    for _ in range(3):
        layers.zero_grad()
        gradients.begin(passes=2)
        for part, used in ((inputs[:3], layers), (inputs[3:], layers[1:])):
            x = part
            for layer in used:
                x = layer(x).tanh()
            x.sum().backward()
        sent.append(list(gradients._sent))
        gradients.finish()
        sums.append([p.grad.numpy().copy() for p in layers.parameters() if p.grad is not None])
    return {"sent": sent, "sums": sums}


def test_gradients_are_summed_while_backward_runs() -> None:
    """From the second step on, last layer first; what a pass left out goes last; not a bit differs from the first step's sums."""
    results = run_ranks(_overlapped, 3)
    for result in results:
        assert result["sent"] == [[], [4, 3, 2, 1], [4, 3, 2, 1]]
        assert len(result["sums"][0]) == 10
        for step in range(3):
            for mine, first in zip(result["sums"][step], results[0]["sums"][0], strict=True):
                np.testing.assert_array_equal(mine, first)


def _too_many_passes(dist: Distributed) -> str:
    weight = torch.nn.Parameter(torch.ones(2))
    gradients = distributed.GradientSum([weight])
    gradients.begin(passes=1)
    weight.sum().backward()
    try:
        weight.sum().backward()
    except AssertionError as error:
        return str(error)
    return ""


def test_a_gradient_may_not_grow_behind_its_sum() -> None:
    """A pass more than was said would be lost: it ends the step."""
    assert all("there was another one" in said for said in run_ranks(_too_many_passes, 2))


def _loses_its_peer(dist: Distributed) -> str:
    if dist.rank == 1:
        torch.distributed.destroy_process_group()
        return ""
    return _said_of_the_peer()


def _said_of_the_peer() -> str:
    try:
        with distributed.peers_named("contrastive random-seed0"):
            distributed.sum_over_ranks(torch.zeros(1))
    except PeerLost as error:
        return str(error)
    return "nothing was raised"


def test_a_lost_peer_is_one_line() -> None:
    """Not a page of frames; any other error stays what it is."""
    said = run_ranks(_loses_its_peer, 2)[0]
    assert said.startswith("contrastive random-seed0: lost another rank: ")
    assert len(said.splitlines()) == 1
    for error in (RuntimeError("shapes do not fit"), RunError("gloo is a RunError's word here")):
        with pytest.raises(type(error), match=str(error)), distributed.peers_named("x"):
            raise error


def _waits_in_vain(dist: Distributed) -> str:
    distributed.sum_over_ranks(torch.zeros(1))  # they have met
    distributed.wait_at_most(0.4)
    if dist.rank == 1:
        time.sleep(1)
        return ""
    return _said_of_the_peer()


def test_a_rank_waits_no_longer_than_it_was_told() -> None:
    """Of 30 minutes, which a group begins with, less than a second is left."""
    assert "lost another rank" in run_ranks(_waits_in_vain, 2)[0]


def _waits(dist: Distributed) -> list[float]:
    distributed.sum_over_ranks(torch.zeros(1))  # they have met
    distributed.communication_seconds()
    if dist.rank == 0:
        time.sleep(0.4)
    distributed.sum_over_ranks(torch.zeros(1))
    return [distributed.communication_seconds(), distributed.communication_seconds()]


def test_waiting_for_a_slower_rank_is_communication() -> None:
    """The rank that came first counts it; a second look finds nothing new."""
    (_, late), (waited, after) = run_ranks(_waits, 2)
    assert waited > 0.1
    assert (late, after) == (0.0, 0.0)


def _loss(dist: Distributed, image: np.ndarray, text: np.ndarray) -> dict[str, object]:
    part = slice(dist.rank * len(image) // dist.world_size, (dist.rank + 1) * len(image) // dist.world_size)
    inputs = [torch.from_numpy(x[part]).requires_grad_() for x in (image, text)]
    scale = torch.nn.Parameter(torch.tensor(9.0, dtype=torch.float64))
    gradients = distributed.GradientSum([scale])
    gradients.begin(passes=1)
    loss = losses.contrastive_loss(*inputs, scale)
    loss.backward()
    gradients.finish()
    assert scale.grad is not None
    return {
        "loss": distributed.sum_over_ranks(loss).item(),
        "gradients": [x.grad.numpy() for x in inputs if x.grad is not None],
        "scale": scale.grad.item(),
    }


@pytest.mark.parametrize("world_size", [2, 4])
def test_contrastive_loss_equals_one_process(world_size: int) -> None:
    """Loss, each rank's feature gradients and the summed logit-scale gradient are those of one big batch, to 1e-12."""
    generator = np.random.default_rng(0)
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in generator.normal(size=(2, 8, 5)))
    alone = run_ranks(_loss, 1, image, text)[0]
    together = run_ranks(_loss, world_size, image, text)
    for k in range(2):
        np.testing.assert_allclose(np.concatenate([r["gradients"][k] for r in together]), alone["gradients"][k], atol=1e-12)
    for result in together:
        assert result["loss"] == pytest.approx(alone["loss"], abs=1e-12)
        assert result["scale"] == pytest.approx(alone["scale"], abs=1e-12)
