"""Rows I, P and Q: how long a checkpoint stalls training, and how much of a run's progress kills cost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.harness import Measured, interleaved, row, wall_seconds
from tests.ranks import children_of
from tests.run import build
from trainer.config import ModelConfig, OptimizerConfig
from trainer.model import encoding, optimizer, towers
from trainer.model.losses import contrastive_loss
from trainer.run import checkpoint
from trainer.storage.fence import Fence

KILL_EVERY_SECONDS, CHECKPOINT_EVERY = 150.0, 50


def _state(device: str) -> tuple[Any, optimizer.Adam]:
    """A ViT-B/32 CLIP with AdamW's moments: 151.3 M parameters, 1.82 GB in all."""
    model = towers.build_model(ModelConfig(), 0).to(device)
    built = optimizer.build(model, OptimizerConfig())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    built.step()
    built.zero_grad()
    return model, built


def _tensors(model: Any, built: optimizer.Adam) -> dict[str, Mapping[str, Tensor]]:
    return {"model.safetensors": model.state_dict(), "optimizer.safetensors": optimizer.state(built, model)}


class _Saver:
    """Saves one state repeatedly, each time after the previous commit, since in training at least one step lies between saves."""

    def __init__(self, folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._tensors = tensors
        self._step = 0
        fence = Fence(str(folder), 0)
        self.writer = checkpoint.Writer(str(folder), recipe_hash="0" * 64, fence=fence, keep_last=1)

    def stall(self) -> float:
        """Seconds for which one save stalls training."""
        self.writer.wait()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._step += 1
        began = time.perf_counter()
        self.writer.save(self._step, self._tensors, {}, {}, beside={}, keep=False)
        return time.perf_counter() - began


@row("I", what="save stall, ViT-B/32 with AdamW (1.82 GB), against torch.save to the same disk", unit="s", target=0.3, at_least=False)
def save_stall(folder: Path) -> Measured:
    """Ours returns after the copy into host buffers; the rest happens during training."""
    model, built = _state("cpu")
    tensors = _tensors(model, built)
    saver = _Saver(folder / "ours", tensors)
    reference = wall_seconds(lambda: torch.save(tensors, folder / "reference.pt"))
    measured = interleaved(reference, saver.stall)
    saver.writer.close()
    return measured


@row("I-step", what="save stall against one training step at batch 32, bf16", unit="s", target=0.5, at_least=False)
def save_stall_in_steps(folder: Path) -> Measured:
    """On a CPU a step is long and memory slow; row P is the same on a GPU."""
    model, built = _state("cpu")
    saver = _Saver(folder, _tensors(model, built))
    images, tokens = torch.randn(32, 3, 224, 224), torch.randint(1, 49405, (32, 24))
    tokens[:, 0], tokens[:, -1] = 49406, 49407
    lengths = torch.full((32,), 24)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            image_features, text_features = encoding.encode_image(model, images), encoding.encode_text(model, tokens, lengths)
        contrastive_loss(image_features, text_features, model.logit_scale.exp()).backward()  # type: ignore[no-untyped-call]
        built.step()
        built.zero_grad()

    measured = interleaved(wall_seconds(step), saver.stall, rounds=3)
    saver.writer.close()
    return measured


@row("P", what="GPU: save stall of ViT-B/32 with AdamW against 100 ms", unit="s", target=1.0, at_least=False, gpu=True)
def save_stall_on_a_gpu(folder: Path) -> Measured:
    """Pinned buffers and one wait for all copies; the note gives torch.save's stall for comparison."""
    model, built = _state("cuda")
    tensors = _tensors(model, built)
    saver = _Saver(folder / "ours", tensors)
    reference = wall_seconds(lambda: torch.save(tensors, folder / "reference.pt"))
    measured = interleaved(reference, saver.stall, rounds=3)
    saver.writer.close()
    stall = f"torch.save stalled training for {measured.reference:.2f} s"
    note = f"1.82 GB into pinned memory; {stall}; commit after {saver.writer.last_seconds:.1f} s"
    return Measured(reference=0.1, ours=measured.ours, note=note)


@row(
    "Q",
    what=f"goodput: a SIGKILL of a rank every {KILL_EVERY_SECONDS:g} s, against the run before the kill",
    unit="steps/s",
    target=0.9,
)
def goodput_under_kills(folder: Path) -> Measured:
    """Two ranks under the elastic agent; everything counts: detection, imports, reading the checkpoint, steps done again.

    One run, as it would have its machine for itself: half of the time to the kill, which is the reference, and half after it.
    """
    run = _long_run(folder)
    try:
        first = _wait_for_checkpoint(run)
        time.sleep(KILL_EVERY_SECONDS / 2)
        undisturbed = _newest(run) - first
        os.kill(children_of(run)[-1], signal.SIGKILL)
        time.sleep(KILL_EVERY_SECONDS / 2)
        steps = _newest(run) - first
    finally:
        run.terminate()
        end = run.wait()
    assert end == 143, end
    note = f"over {KILL_EVERY_SECONDS:g} s with one kill in the middle; a checkpoint every {CHECKPOINT_EVERY} steps"
    return Measured(reference=undisturbed / (KILL_EVERY_SECONDS / 2), ours=steps / KILL_EVERY_SECONDS, note=note)


def _long_run(folder: Path) -> "subprocess.Popen[bytes]":
    """Endless training in a separate process; the last argument is the configuration."""
    settings = {"processes_per_node": 2, "checkpoint_every_steps": CHECKPOINT_EVERY, "log_every_steps": 100, "max_restarts": 9}
    config = build.written(build.contrastive(folder, epochs=10**6, **settings))
    command = [sys.executable, "-m", "trainer", "train", "contrastive", "--config", config]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _newest(run: "subprocess.Popen[bytes]") -> int:
    """The step of the newest sealed checkpoint; 0 if there is none."""
    assert isinstance(run.args, list)
    seals = (Path(str(run.args[-1])).parent / "checkpoints").glob("step-*/COMMITTED.json")
    return max((int(seal.parent.name.removeprefix("step-")) for seal in seals), default=0)


def _wait_for_checkpoint(run: "subprocess.Popen[bytes]") -> int:
    while not (step := _newest(run)):
        assert run.poll() is None, run.returncode
        time.sleep(0.05)
    return step
