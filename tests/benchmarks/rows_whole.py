"""Rows W1 and W8: `python -m trainer train` from its start to its end, as a request asks for it.

The recipe is a shipped one and the placement the product's default, except for the number of ranks: on a GPU `paper` at 1,024 pairs a
rank (its whole share at 4 GPUs), on a CPU the demo. Rates count from the step at which a run has found its pace, on a CPU after the first
epoch: the decoded pictures of so small a data set are kept.
"""

import dataclasses
import functools
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch

from tests.benchmarks import rows_feed_gpu
from tests.benchmarks.harness import Measured, row
from tests.data.datasets import pairs, write_dataset
from tests.reference import run_reference
from trainer.config import DataConfig, Placement, Recipe, StageConfig
from trainer.configs import dump_yaml, load_recipe
from trainer.data.loader import PairsLoader
from trainer.model import distributed, optimizer, towers
from trainer.run import loop
from trainer.storage.manifest import require_manifest

THEIRS = f"open_clip_train {open_clip.__version__}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained.

    Attributes:
        recipe: name of a shipped one.
        local: pairs of a rank.
        warm_up: steps until a run has found its pace.
        steps: counted after them.
        write: the data set, into a folder.
    """

    recipe: str
    local: int
    warm_up: int
    steps: int
    write: Callable[[Path], DataConfig]

    @property
    def shipped(self) -> Recipe:
        """The recipe."""
        return load_recipe(self.recipe)


GPU = Setting(recipe="paper", local=1024, warm_up=50, steps=60, write=rows_feed_gpu.dataset)
GPUS = dataclasses.replace(GPU, write=lambda folder: rows_feed_gpu.dataset(folder, 8 * rows_feed_gpu.SAMPLES))
CPU = Setting(recipe="demo", local=128, warm_up=25, steps=45, write=lambda folder: write_dataset(
    str(folder), "pairs", pairs([1024] * 3, side=64, encoding="JPEG"), suffixes={"image": "jpg"}
))  # fmt: skip


def stage(setting: Setting, data: DataConfig, output: Path, ranks: int = 1, threads: int = 0) -> StageConfig:
    """The stage that a run of the recipe trains, on `ranks`, for as many epochs as the measurement needs."""
    batch = setting.local * ranks
    settings = dataclasses.replace(setting.shipped.contrastive, global_batch_size=batch, contrast_batch_size=batch)
    held = sum(shard.num_samples for shard in require_manifest(data.uri, data.identity).split("train"))
    epochs = -(-(setting.warm_up + setting.steps) // (held // batch))
    placement = dataclasses.replace(Placement(), processes_per_node=ranks, threads=threads)
    return StageConfig(
        stage="contrastive", output=str(output), data=data, model=setting.shipped.model, placement=placement,
        contrastive=dataclasses.replace(settings, epochs=epochs),
    )  # fmt: skip


def trained(setting: Setting, config: StageConfig) -> float:
    """Pairs/s of all ranks of the run alone, from the times of the steps in its own log."""
    path = Path(config.output) / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(dump_yaml(config))
    command = [sys.executable, "-m", "trainer", "train", "contrastive", "--config", str(path)]
    subprocess.run(command, env=_plain_environment(), stderr=subprocess.DEVNULL, check=True)
    lines = [json.loads(line) for line in (path.parent / "progress.jsonl").read_text().splitlines()]
    settled = [line for line in lines if line["step"] >= setting.warm_up]
    return float((settled[-1]["samples"] - settled[0]["samples"]) / (settled[-1]["time"] - settled[0]["time"]))


def step_alone(setting: Setting, config: StageConfig, cache: Path) -> Callable[[], float]:
    """Pairs/s of the training loop's step, on one batch from the loader that stays on the device."""
    recipe, device = config.contrastive, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert recipe is not None
    loader = PairsLoader(
        config.data, seed=0, global_batch_size=setting.local, rank=0, world_size=1, runs=recipe.order_runs,
        block_shards=recipe.order_block_shards, image_size=towers.resolve(config.model)["image_size"], augmentation=recipe.augmentation,
        crop_scale_min=recipe.crop_scale_min, decoder=recipe.decoder, placement=Placement(cache_dir=str(cache)),
    )  # fmt: skip
    batch = next(iter(loader.batches(0)))
    loader.close()
    there = dataclasses.replace(batch, images=batch.images.to(device), tokens=batch.tokens.to(device))
    settings = dataclasses.replace(config.placement, local_batch_size=0, compile=device.type == "cuda")
    placed = dataclasses.replace(config, placement=settings)
    dist = distributed.Distributed(0, 1, 0, device)
    stage = loop.build_stage(placed, dist)
    state = SimpleNamespace(step=0, flops=0.0)
    built = optimizer.build(stage.module, recipe.optimizer)
    run: Any = SimpleNamespace(config=placed, dist=dist, stage=stage, optimizer=built, state=state, steps=setting.steps)

    def measure() -> float:
        if device.type == "cpu":  # as trainer.model.distributed.start has it
            distributed.keep_freed_memory()
        torch.set_num_threads(1 if device.type == "cuda" else len(os.sched_getaffinity(0)))
        for _ in range(5):
            loop._step(run, there)
        _synchronize()
        began = time.perf_counter()
        for _ in range(setting.steps):
            loop._step(run, there)
        _synchronize()
        return setting.steps * setting.local / (time.perf_counter() - began)

    return measure


def theirs(setting: Setting, data: DataConfig, folder: Path) -> float:
    """Pairs/s of open_clip's own trainer over the same tars, with its own augmentation, and on a GPU amp_bf16 and torch.compile."""
    manifest = require_manifest(data.uri, data.identity)
    model = folder / "theirs.json"
    model.write_text(json.dumps(towers.open_clip_config(setting.shipped.model)))
    cuda, batch = torch.cuda.is_available(), setting.local
    samples = (setting.warm_up + setting.steps) * batch
    program = (
        f"import sys, open_clip; open_clip.add_model_config({str(model)!r}); from open_clip_train.main import main; main(sys.argv[1:])"
    )
    tars = "::".join(f"{data.uri}/{shard.name}" for shard in manifest.split("train"))
    arguments = {
        "model": "theirs", "train-data": tars,
        "dataset-type": "webdataset", "train-num-samples": samples, "batch-size": batch, "epochs": 1, "log-every-n-steps": 5,
        "workers": max(1, len(os.sched_getaffinity(0)) - 1), "precision": "amp_bf16" if cuda else "fp32", "logs": folder,
        "name": f"theirs-{time.monotonic_ns()}", "save-frequency": 0,
    }  # fmt: skip
    flags = ["--dataset-resampled", "--local-loss", "--gather-with-grad", *(["--torchcompile"] if cuda else ["--device", "cpu"])]
    options = itertools.chain(*((f"--{key}", str(value)) for key, value in arguments.items()))
    output = run_reference("-c", program, *options, *flags, cwd=folder, environment=_plain_environment())
    rates = [float(rate) for rate in re.findall(r"([0-9.e+]+)/s, ", output)]
    assert len(rates) > setting.warm_up // 5 + 2, output[-2000:]
    return statistics.median(rates[setting.warm_up // 5 :])


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _plain_environment() -> dict[str, str]:
    """The benchmark's environment without its limit of one thread."""
    return {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}


def _outputs(folder: Path) -> Iterator[Path]:
    return (folder / f"run-{number}" for number in itertools.count())


@functools.cache
def _data(setting: Setting) -> DataConfig:
    """Written once for all rows of one benchmark run, into the system's temporary folder."""
    return setting.write(Path(tempfile.mkdtemp(prefix="firstsight-bench-whole-")))


def _against_the_step(folder: Path, setting: Setting) -> Measured:
    data, outputs = _data(setting), _outputs(folder)
    config = stage(setting, data, next(outputs))
    alone = step_alone(setting, config, folder / "cache")
    note = f"recipe {setting.recipe}, {setting.local} pairs, default placement; compiling and loading models excluded"
    before, ours = alone(), trained(setting, stage(setting, data, next(outputs)))
    return Measured(reference=statistics.mean((before, alone())), ours=ours, note=note)


def _against_theirs(folder: Path, setting: Setting) -> Measured:
    data, outputs = _data(setting), _outputs(folder)
    rates = theirs(setting, data, folder), trained(setting, stage(setting, data, next(outputs)))
    note = f"{THEIRS}, its default augmentation against ours of recipe {setting.recipe}; {setting.local} pairs each"
    return Measured(reference=rates[0], ours=rates[1], note=note)


def _ranks(folder: Path, setting: Setting, ranks: int, threads: int) -> Measured:
    data, outputs = _data(setting), _outputs(folder)
    one, all_of_them = (trained(setting, stage(setting, data, next(outputs), count, threads)) for count in (1, ranks))
    return Measured(reference=one * ranks, ours=all_of_them, note=f"{ranks} ranks, {setting.local} pairs on each")


WHOLE = "`python -m trainer train` as run for a request"


@row("W1", what=f"GPU: {WHOLE}, MoCo-v2, from shards, against its step alone", unit="pairs/s", target=0.95, gpu=True)
def whole_on_gpu(folder: Path) -> Measured:
    """One rank."""
    return _against_the_step(folder, GPU)


@row("W1-peer", what=f"GPU: the same, against open_clip's own trainer ({THEIRS})", unit="pairs/s", target=1.5, gpu=True)
def whole_on_gpu_against_open_clip(folder: Path) -> Measured:
    """One rank."""
    return _against_theirs(folder, GPU)


@row(
    "W8",
    what="GPU: the same on all GPUs of the machine, against one GPU times their number",
    unit="pairs/s",
    target=0.9,
    gpu=True,
)
def whole_on_gpus(folder: Path) -> Measured:
    """All GPUs of the machine; with one GPU there is nothing to measure, and the ratio is 1."""
    return _ranks(folder, GPUS, torch.cuda.device_count(), 0)


@row("W1-cpu", what=f"{WHOLE}, the demo, against its step alone", unit="pairs/s", target=0.95)
def whole_on_cpu(folder: Path) -> Measured:
    """All cores, as by default."""
    return _against_the_step(folder, CPU)


@row("W1-cpu-peer", what=f"the same, against open_clip's own trainer ({THEIRS})", unit="pairs/s", target=1.5)
def whole_on_cpu_against_open_clip(folder: Path) -> Measured:
    """All cores on both sides, float32."""
    return _against_theirs(folder, CPU)


@row("W8-cpu", what="the same on two ranks with one thread each, against twice the rate of one such rank", unit="pairs/s", target=0.9)
def whole_on_two_ranks(folder: Path) -> Measured:
    """Two cores at least."""
    return _ranks(folder, CPU, 2, 1)
