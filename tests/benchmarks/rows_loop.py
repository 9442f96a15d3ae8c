"""Rows I, P and Q: what a checkpoint costs the training, and what kills cost a run."""

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
from tests.train import build
from trainer import checkpoint, encoding, models, optimizer
from trainer.config import ModelConfig, OptimizerConfig, StageConfig
from trainer.losses import contrastive_loss

KILL_EVERY_SECONDS = 150.0


def _state(device: str) -> tuple[Any, torch.optim.Optimizer]:
    """A ViT-B/32 CLIP with AdamW's moments: 151.3 M parameters, 1.82 GB in all."""
    model = models.build_model(ModelConfig(), 0).to(device)
    built = optimizer.build(model, OptimizerConfig())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    built.step()
    built.zero_grad()
    return model, built


def _tensors(model: Any, built: torch.optim.Optimizer) -> dict[str, Mapping[str, Tensor]]:
    return {"model.safetensors": model.state_dict(), "optimizer.safetensors": optimizer.state(built, model)}


class _Saver:
    """Saves one state again and again, each time behind the commit of the one before, as a training step or more lies between."""

    def __init__(self, folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._tensors = tensors
        self._step = 0
        fence = checkpoint.Fence(str(folder), 0)
        self.writer = checkpoint.Writer(str(folder), recipe_hash="0" * 64, fence=fence, keep_last=1)

    def stall(self) -> float:
        """Seconds for which one save holds the training up."""
        self.writer.wait()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._step += 1
        began = time.perf_counter()
        self.writer.save(self._step, self._tensors, {}, {}, beside={}, keep=False)
        return time.perf_counter() - began


@row("I", what="save stall, ViT-B/32 with AdamW (1.82 GB), against torch.save to the same disk", unit="s", target=0.3, at_least=False)
def save_stall(folder: Path) -> Measured:
    """Ours returns after the copy into host buffers; the rest happens behind the training."""
    model, built = _state("cpu")
    saver = _Saver(folder / "ours", _tensors(model, built))
    reference = wall_seconds(lambda: torch.save({"model": model.state_dict(), "optimizer": built.state_dict()}, folder / "reference.pt"))
    measured = interleaved(reference, saver.stall)
    saver.writer.close()
    return measured


@row("I-step", what="save stall against one training step at batch 32, bf16", unit="s", target=0.5, at_least=False)
def save_stall_in_steps(folder: Path) -> Measured:
    """On a CPU a step is long and memory slow; a GPU row is P."""
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
    """Pinned buffers, one wait for all copies; torch.save beside it in the note."""
    model, built = _state("cuda")
    saver = _Saver(folder / "ours", _tensors(model, built))
    reference = wall_seconds(lambda: torch.save({"model": model.state_dict(), "optimizer": built.state_dict()}, folder / "reference.pt"))
    measured = interleaved(reference, saver.stall, rounds=3)
    saver.writer.close()
    note = (
        f"1.82 GB into pinned memory; torch.save held it up for {measured.reference:.2f} s; commit after {saver.writer.last_seconds:.1f} s"
    )
    return Measured(reference=0.1, ours=measured.ours, note=note)


@row("Q", what=f"goodput: a SIGKILL of a rank every {KILL_EVERY_SECONDS:g} s, against the same run left alone", unit="steps/s", target=0.9)
def goodput_under_kills(folder: Path) -> Measured:
    """Two ranks under the elastic agent; everything counts: detection, imports, reading the checkpoint, steps done again."""
    pace = _timed(_long_run(folder / "warm", epochs=20), kill_every=0.0)
    epochs = int(10 + 1.3 * KILL_EVERY_SECONDS * pace / 2)
    alone = _timed(_long_run(folder / "alone", epochs), kill_every=0.0)
    killed = _timed(_long_run(folder / "killed", epochs), kill_every=KILL_EVERY_SECONDS)
    return Measured(reference=alone, ours=killed, note=f"{2 * epochs} steps, a checkpoint every 50 steps, one kill")


def _long_run(folder: Path, epochs: int) -> StageConfig:
    return build.contrastive(folder, epochs=epochs, processes_per_node=2, checkpoint_every_steps=50, log_every_steps=100, max_restarts=9)


def _timed(config: StageConfig, kill_every: float) -> float:
    """Steps a second from the first checkpoint's appearance to the end, with kills `kill_every` seconds apart (0: none)."""
    command = [sys.executable, "-m", "trainer", "train", config.stage, "--config", build.written(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = Path(config.output) / "checkpoints"
    while process.poll() is None and not (checkpoints.exists() or (Path(config.output) / "progress.jsonl").exists()):
        time.sleep(0.05)
    began = time.perf_counter()
    while process.poll() is None:
        time.sleep(0.05)
        if kill_every and time.perf_counter() - began > kill_every:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
            kill_every = 0.0
    assert process.returncode == 0, process.returncode
    assert config.contrastive is not None
    return 2 * config.contrastive.epochs / (time.perf_counter() - began)
