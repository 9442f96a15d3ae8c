"""Stands for `python -m trainer` where a test is about the pipeline around it: it writes what the pipeline reads.

FAKE_FAIL is `<stage> <cell>:<exit code>`; FAKE_SECONDS is how long a training stage takes. Each start of a
stage leaves a line in starts.txt of its folder.
"""

import json
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
from trainer.storage import exists, join, pages, read_bytes, read_json, write_json
from trainer.storage.figures import BLOCK, write_figures
from trainer.storage.manifest import require_manifest

MEASURED = "untrained-final/fake_2afc.json"
"""What lies in a cell's evaluation/ once it was measured."""


def main(arguments: list[str]) -> int:
    """Run one command as the trainer would, and fail where the test says so."""
    if "--dry-run" in arguments:
        missing = count_missing(arguments[arguments.index("--config") + 1 :])
        print(json.dumps({"missing": sum(missing.values()), "cells": {uri: {"missing": number} for uri, number in missing.items()}}))
        return 0
    options = dict(zip(arguments[::-1][1::2], arguments[::-1][::2], strict=False))
    name = " ".join(part for part in arguments[:2] if not part.startswith("--"))
    cell, code = name, 0
    if arguments[0] == "stage":
        folder = seal(options["--root"], "pairs" if arguments[1] == "pairs" else "triplets", judge="FLIP")
        write_json(options["--result"], {"uri": folder, "identity": require_manifest(folder).identity})
    elif arguments[0] in ("train", "evaluate"):
        config = yaml.load(read_bytes(options["--config"]), Loader=yaml.CSafeLoader)
        cell = f"{config.get('stage', 'evaluate')} {config['arm']}-seed{config['seed']}"
        code = _fail(cell) or (_train(config, cell) if arguments[0] == "train" else _evaluate(config))
    elif arguments[0] == "report":
        _report(options["--experiment"], options.get("--made-from", ""))
    if code:
        print(f"trainer {name}: {cell} was told to fail", file=sys.stderr)
    return code


def _evaluate(config: dict[str, Any]) -> int:
    write_figures(join(str(config["output"]), MEASURED), {"metrics": {}, BLOCK: {}}, b"")
    return 0


def count_missing(configs: list[str]) -> dict[str, int]:
    """How many results of each cell are missing."""
    return {uri: int(not exists(f"{uri.rpartition('/')[0]}/{MEASURED}")) for uri in configs}


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


def _report(experiment: str, made_from: str) -> None:
    claimed = pages.claim(experiment)
    entries = read_json(join(experiment, "plan.json"))["cells"]
    cells = [entry["cell"] for entry in entries if exists(join(entry["evaluation"], MEASURED))]
    summary = {"sentence": "A fake answer.", "columns": ["Arm"], "rows": [[cell] for cell in cells], "notes": []}
    files = {
        "index.html": f"<p>fake: {len(cells)} of {len(entries)} cells</p>",
        "report.md": "# fake\n",
        "results.csv": "cell\n",
        "results.json": json.dumps({"summary": summary}),
    }
    pages.publish(experiment, claimed, {name: text.encode() for name, text in files.items()}, made_from)


def _fail(cell: str) -> int:
    told, _, code = os.environ.get("FAKE_FAIL", "").partition(":")
    return int(code) if told == cell else 0


def _save(number: int, frame: FrameType | None) -> None:
    print("trainer train: SIGTERM: saved", file=sys.stderr, flush=True)
    os._exit(143)
