"""TensorBoard and Weights & Biases as they are installed, writing to disk: what they keep is what progress.jsonl says."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reference import REQUIREMENTS, reference_python, run_reference
from tests.run import build

pytestmark = pytest.mark.slow
SINKS = REQUIREMENTS.with_name("sinks.txt")
BESIDE = "import site; site.addsitedir({!r})  # after what runs need\n"
READ = """
import glob, json, struct, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record
board = EventAccumulator(sys.argv[1])
board.Reload()
scalars = {name: {event.step: event.value for event in board.Scalars(name)} for name in board.Tags()["scalars"]}
(path,) = glob.glob(sys.argv[2] + "/wandb/offline-run-*/*.wandb")
data, place, history, run, message = open(path, "rb").read(), 7, {}, {}, b""
assert data.startswith(b":W&B")
while place < len(data):  # LevelDB's log: blocks of 32 KiB, in them parts with a header each
    if 32768 - place % 32768 < 7:
        place += 32768 - place % 32768
        continue
    _, length, part = struct.unpack("<IHB", data[place : place + 7])
    message, place = message + data[place + 7 : place + 7 + length], place + 7 + length
    if part in (2, 3):
        continue
    record, message = Record.FromString(message), b""
    if record.HasField("run"):
        run = {"project": record.run.project, "group": record.run.run_group, "name": record.run.display_name}
    if record.HasField("history"):
        values = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        history[record.history.step.num] = values
print(json.dumps({"scalars": scalars, "history": history, "run": run}))
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records of a training, and what both sinks have on disk after it."""
    folder = tmp_path_factory.mktemp("sinks")
    board = folder / "board"
    config = build.contrastive(folder, tensorboard_dir=str(board), wandb_project="eyes")
    packages = reference_python(SINKS).parents[1] / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (folder / "sitecustomize.py").write_text(BESIDE.format(str(packages)))
    paths = os.pathsep.join([str(folder), str(REQUIREMENTS.parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths, "WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_SILENT": "true"}
    command = [sys.executable, "-m", "trainer", "train", "contrastive", "--config", build.written(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "continues without" not in done.stderr
    (events,) = board.rglob("events.out.*")
    (folder / "read.py").write_text(READ)
    said = run_reference("read.py", events.parent, folder, cwd=folder, requirements=SINKS)
    records = [json.loads(line) for line in Path(config.output, "progress.jsonl").read_text().splitlines()]
    return records, json.loads(said.splitlines()[-1])


def test_tensorboard_keeps_every_figure_of_every_step(kept: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    """As 32-bit floats."""
    records, found = kept
    assert [record["step"] for record in records] == [int(step) for step in found["scalars"]["loss"]]
    for record in records:
        for name in ("loss", "grad_norm", "learning_rate", "logit_scale", "samples"):
            assert math.isclose(found["scalars"][name][str(record["step"])], record[name], rel_tol=1e-6), name


def test_weights_and_biases_keeps_every_figure_of_every_step(kept: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    """In a run that is named after the cell, in its experiment's group."""
    records, found = kept
    assert found["run"] == {"project": "eyes", "group": "tests", "name": "contrastive-random-seed0"}
    assert [record["step"] for record in records] == [int(step) for step in found["history"]]
    for record in records:
        for name in ("loss", "grad_norm", "learning_rate", "logit_scale", "samples"):
            assert math.isclose(found["history"][str(record["step"])][name], record[name], rel_tol=1e-6), name
