"""Rows G1, G2, H: the text tower, the whole step and the loss, against open_clip on the same tensors."""

import time
from pathlib import Path

import torch

from tests.benchmarks import training
from tests.benchmarks.harness import Measured, cpu_rate, interleaved, row
from tests.peak import peak_bytes
from tests.ranks import run_ranks
from trainer.model import encoding, towers
from trainer.model.distributed import Distributed
from trainer.model.losses import contrastive_loss

BATCH, ROUNDS = 256, 3
LOSS_BATCH, LOSS_WIDTH = 12288, 512


@row(
    "G1",
    what="text tower forward and backward, captions of mean 24 tokens, exact, against the same at 77",
    unit="captions / CPU-s",
    target=1.8,
)
def text_tower(folder: Path) -> Measured:
    """A quarter of CLIP's text width, all twelve layers, batch 256."""
    config = training.ModelConfig(text_width=128, text_heads=2, vision_layers=1)
    precision, given = training.cpu_precision(), training.batch(BATCH, 32)
    model = towers.build_model(config, 0)
    weights = [p for name, p in model.named_parameters() if not name.startswith("visual.") and name != "logit_scale"]

    def reference() -> int:
        with training.autocast("cpu", precision):
            features = model.encode_text(given.tokens, normalize=True)
        torch.autograd.grad(features.float().sum(), weights)
        return BATCH

    def ours() -> int:
        with training.autocast("cpu", precision):
            features = encoding.encode_text(model, given.tokens, given.lengths)
        torch.autograd.grad(features.sum(), weights)
        return BATCH

    mean = float(given.lengths.double().mean())
    note = f"width 128, 12 layers, batch {BATCH}, {precision} on both sides, mean {mean:.1f} tokens"
    return interleaved(cpu_rate(reference), cpu_rate(ours), rounds=ROUNDS, note=note)


@row(
    "G2",
    what="whole training step on captions of mean 24 tokens, against open_clip's at the same precision",
    unit="pairs / CPU-s",
    target=1.35,
)
def whole_step(folder: Path) -> Measured:
    """CLIP ViT-B/32 at a quarter of its widths, batch 256, optimiser included."""
    precision, device, given = training.cpu_precision(), torch.device("cpu"), training.batch(BATCH, 224)
    theirs = training.open_clip_step(training.QUARTER, given, precision, device)
    ours = training.our_step(training.QUARTER, given, precision, device)

    def counted(step: object) -> int:
        step()  # type: ignore[operator]
        return BATCH

    note = f"ViT-B/32 at a quarter of its widths, batch {BATCH}, {precision} on both sides; open_clip gets normalised pictures"
    return interleaved(cpu_rate(lambda: counted(theirs)), cpu_rate(lambda: counted(ours)), rounds=ROUNDS, note=note)


@row("H", what=f"loss of {LOSS_BATCH} pairs, peak memory above inputs and their gradients", unit="MB", target=1 / 8, at_least=False)
def loss_memory(folder: Path) -> Measured:
    """Each side runs in a fresh process, so that the peaks are independent; gradients are compared."""
    (theirs,), (ours,) = run_ranks(_loss_once, 1, "open_clip"), run_ranks(_loss_once, 1, "ours")
    for name in ("image", "text", "scale"):
        torch.testing.assert_close(torch.tensor(ours[name]), torch.tensor(theirs[name]), rtol=2e-4, atol=1e-9)
    note = f"width {LOSS_WIDTH}, float32; sampled gradients equal to within 2e-4; seconds: {theirs['seconds']:.1f} -> {ours['seconds']:.1f}"
    return Measured(reference=theirs["megabytes"], ours=ours["megabytes"], note=note)


@row("H-time", what=f"loss of {LOSS_BATCH} pairs, forward and backward", unit="CPU-s", target=1.0, at_least=False)
def loss_time(folder: Path) -> Measured:
    """The same, in turns."""
    pairs = []
    for _ in range(ROUNDS):
        (theirs,), (ours,) = run_ranks(_loss_once, 1, "open_clip"), run_ranks(_loss_once, 1, "ours")
        pairs.append((theirs["seconds"], ours["seconds"]))
    theirs_seconds, our_seconds = (sorted(column)[ROUNDS // 2] for column in zip(*pairs, strict=True))
    return Measured(reference=theirs_seconds, ours=our_seconds, note="one thread and one process each")


def _loss_once(dist: Distributed, side: str) -> dict[str, object]:
    """One forward and backward in this fresh process: CPU-seconds, peak memory above the start, some of the gradients."""
    from open_clip import ClipLoss

    generator = torch.Generator().manual_seed(0)
    image, text = (
        torch.nn.functional.normalize(torch.randn(LOSS_BATCH, LOSS_WIDTH, generator=generator), dim=-1).requires_grad_() for _ in range(2)
    )
    scale = torch.tensor(100.0, requires_grad=True)
    inputs = (image, text, scale)
    torch.autograd.grad(contrastive_loss(image[:64], text[:64], scale), inputs)  # libraries load, buffers settle
    before, started = peak_bytes(), time.process_time()
    loss = ClipLoss()(*inputs) if side == "open_clip" else contrastive_loss(*inputs)
    gradients = torch.autograd.grad(loss, inputs)
    seconds = time.process_time() - started
    peak = peak_bytes()
    own = 2 * image.numel() * 4 / 2**20  # the gradients of the inputs
    return {
        "seconds": seconds,
        "megabytes": (peak - before) / 2**20 - own,
        "image": gradients[0][::1024, ::64].tolist(),
        "text": gradients[1][::1024, ::64].tolist(),
        "scale": gradients[2].item(),
    }
