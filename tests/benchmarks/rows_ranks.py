"""Row O: the sum of gradients over ranks, hidden by backward, against DistributedDataParallel over the same slow network.

Two gloo ranks of one thread each in a network namespace whose loopback carries RATE: summing takes about as long as backward,
as on machines whose network is slow for their GPUs.
"""

import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from torch import Tensor, nn

from tests.benchmarks import training
from tests.benchmarks.harness import Measured, row, wall_seconds
from tests.ranks import run_ranks
from trainer.config import ModelConfig
from trainer.model import distributed, encoding, towers
from trainer.model.distributed import Distributed
from trainer.model.losses import contrastive_loss

BATCH, STEPS, RATE = 32, 2, "2gbit"


class _Towers(nn.Module):
    """The forward pass of both towers as one module, as DistributedDataParallel requires."""

    def __init__(self) -> None:
        super().__init__()
        self.model = towers.build_model(ModelConfig(), 0)

    def forward(self, given: training.Batch) -> tuple[Tensor, Tensor, Tensor]:
        with training.autocast("cpu", training.cpu_precision()):
            image = encoding.encode_image(self.model, training.normalise(given.images))
            text = encoding.encode_text(self.model, given.tokens, given.lengths)
        return image, text, self.model.logit_scale.exp()


@row(
    "O",
    what=f"forward, backward and all-reduce of gradients, two ranks over {RATE}, against DistributedDataParallel",
    unit="s",
    target=1.05,
    at_least=False,
)
def summed_behind_backward(folder: Path) -> Measured:
    """ViT-B/32, 605 MB of gradients. `unshare` creates the network namespace, which ends with its process."""
    inside = f"ip link set lo up && tc qdisc add dev lo root tbf rate {RATE} burst 4mb latency 400ms && exec "
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", inside + shlex.join([sys.executable, "-m", __name__])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, "row O needs unshare (util-linux), ip and tc (iproute2), and the right to make a network namespace"
    seconds = json.loads(done.stdout)
    note = (
        f"local batch {BATCH}, {training.cpu_precision()}, 605 MB of gradients, each variant in separate processes, taking turns; "
        f"without all-reduce {seconds['none']:.1f} s, with all-reduce after the backward pass {seconds['behind']:.1f} s"
    )
    return Measured(reference=seconds["ddp"], ours=seconds["ours"], note=note)


def _steps(dist: Distributed, way: str) -> list[float]:
    """Seconds of STEPS steps, not counting the first, in which buckets and orders settle."""
    given, towers = training.batch(BATCH, 224), _Towers()
    run = nn.parallel.DistributedDataParallel(towers) if way == "ddp" else towers
    gradients = distributed.GradientSum(towers.parameters()) if way in ("ours", "behind") else None

    def step() -> None:
        towers.zero_grad()
        if gradients is not None:
            gradients.begin(passes=1 if way == "ours" else 2)  # a second pass never comes: all is sent at the end
        contrastive_loss(*run(given)).backward()  # type: ignore[no-untyped-call]
        if gradients is not None:
            gradients.finish()
        distributed.barrier()

    step()
    return [wall_seconds(step)() for _ in range(STEPS)]


def _main() -> None:
    ways = ("ddp", "ours", "behind", "none", "ours", "ddp")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways:
        seconds[way] += run_ranks(_steps, 2, way)[0]
    print(json.dumps({way: statistics.median(found) for way, found in seconds.items()}))


if __name__ == "__main__":
    _main()
