"""Stands for `python -m trainer` where a test is about the pipeline around it: it writes what the pipeline reads.

FAKE_FAIL is `<stage> <cell>:<exit code>`; FAKE_SECONDS is how long a training stage takes. Each start of a
stage leaves a line in starts.txt of its folder.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from tests.pipelines.data import commit, seal
from trainer.progress import progress
from trainer.storage import join, read_bytes, read_json, write_json
from trainer.storage.manifest import require_manifest


def main(arguments: list[str]) -> int:
    """Run one command as the trainer would, and fail where the test says so."""
    if "--dry-run" in arguments:
        print('{"wanted": 1, "missing": 0}')
        return 0
    options = dict(zip(arguments[::-1][1::2], arguments[::-1][::2], strict=False))
    name = " ".join(part for part in arguments[:2] if not part.startswith("--"))
    cell, code = name, 0
    if arguments[0] == "stage":
        folder = seal(options["--root"], "pairs" if arguments[1] == "pairs" else "triplets", judge="FLIP")
        write_json(options["--result"], {"uri": folder, "identity": require_manifest(folder).identity})
    elif arguments[0] in ("train", "evaluate"):
        config = yaml.safe_load(read_bytes(options["--config"]))
        cell = f"{config.get('stage', 'evaluate')} {config['arm']}-seed{config['seed']}"
        code = _fail(cell) or (_train(config, cell) if arguments[0] == "train" else 0)
    elif arguments[0] == "report":
        _report(options["--experiment"])
    if code:
        print(f"trainer {name}: {cell} was told to fail", file=sys.stderr)
    return code


def _train(config: dict[str, Any], cell: str) -> int:
    signal.signal(signal.SIGTERM, _save)
    folder = str(config["output"])
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(join(folder, "starts.txt"), "a") as stream:
        stream.write(f"{os.getpid()}\n")
    end = time.monotonic() + float(os.environ.get("FAKE_SECONDS", "0"))
    while time.monotonic() < end:
        progress(cell, 1, 2, "samples", loss=1.0)
        time.sleep(0.05)
    plan = read_json(join(folder.partition("/towers/")[0] if "/towers/" in folder else str(Path(folder).parents[1]), "plan.json"))
    entry = next(entry for entry in plan["cells"] if folder in entry.values())
    commit(folder, entry["recipe_hashes"][config["stage"]])
    return 0


def _report(experiment: str) -> None:
    cells = [entry["cell"] for entry in read_json(join(experiment, "plan.json"))["cells"]]
    Path(experiment, "report").mkdir(parents=True, exist_ok=True)
    Path(experiment, "report", "index.html").write_text("<p>fake</p>")
    Path(experiment, "report", "report.md").write_text("# fake\n")
    Path(experiment, "report", "results.csv").write_text("cell\n")
    summary = {"sentence": "A fake answer.", "columns": ["Arm"], "rows": [[cell] for cell in cells], "notes": []}
    write_json(join(experiment, "report", "results.json"), {"summary": summary})


def _fail(cell: str) -> int:
    told, _, code = os.environ.get("FAKE_FAIL", "").partition(":")
    return int(code) if told == cell else 0


def _save(number: int, frame: FrameType | None) -> None:
    print("trainer train: SIGTERM: saved", file=sys.stderr, flush=True)
    os._exit(143)
