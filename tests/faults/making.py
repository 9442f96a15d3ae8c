"""Makes the small real experiment in all its states, and the older versions of its objects."""

import contextlib
import csv
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.jobs.local import LocalBackend
from pipelines.steps import cells
from tests.faults.experiment import CELLS, NAME, Experiment, Killed, Objects
from tests.pipelines.whole import Done
from trainer.__main__ import main
from trainer.errors import InputError, RunError
from trainer.evaluation.evaluate import count_missing
from trainer.report import figures
from trainer.run import records
from trainer.staging.slices import Attempt, SliceRecord
from trainer.staging.sources import listing
from trainer.storage import join, layout, open_store, read_bytes, write_bytes
from trainer.storage.base import local_path
from trainer.storage.failures import write_failure


def write_sources(folder: Path, seed: int) -> None:
    """40 captioned, labelled pictures and 20 triplets that people judged."""
    shutil.rmtree(folder, ignore_errors=True)
    draw = random.Random(seed)
    for part in ("pairs", "triplets/ref", "triplets/distort"):
        (folder / part).mkdir(parents=True)
    for number in range(48):
        label = ("circle", "square")[number % 2]
        _picture(folder / f"pairs/{number:03d}.png", draw)
        facts = {"captions": [f"{label} number {number}", f"a {label}, {number}th"], "label": label}
        (folder / f"pairs/{number:03d}.json").write_text(json.dumps(facts))
    (folder / "pairs/000.png").write_bytes(b"no picture")  # is rejected, and listed
    names = "id left_vote right_vote votes ref_path left_path right_path split is_imagenet prompt".split()
    rows = []
    for number in range(20):
        paths = [f"ref/{number:03d}.png", f"distort/{number:03d}_0.png", f"distort/{number:03d}_1.png"]
        for path in paths:
            _picture(folder / "triplets" / path, draw)
        split = "train" if number < 12 else "val" if number < 16 else "test"
        rows.append([number, number % 2 and 6, 6 - (number % 2 and 6), 6, *paths, split, True, ""])
    with open(folder / "triplets/data.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([names, *rows])


def _picture(path: Path, draw: random.Random) -> None:
    image = Image.frombytes("RGB", (4, 4), draw.randbytes(48)).resize((24, 24), Image.Resampling.NEAREST)
    image.save(path)


@contextlib.contextmanager
def in_this_process() -> Iterator[pytest.MonkeyPatch]:
    """Jobs run the real trainer in this process, which has torch imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalBackend, "submit", lambda _, spec: Done(spec, main))
        patch.setattr(cells, "count_missing", count_missing_here)
        patch.setattr(listing, "_ALWAYS_READ_BYTES", 0)  # a large source's fingerprint is remembered
        patch.setattr(figures, "_svg", lambda *arguments: "<svg/>")  # pictures take most of the time, and show what is in the figures
        yield patch


def count_missing_here(configs: list[str]) -> dict[str, int]:
    """As pipelines.steps.cells has it, without a process for it."""
    try:
        return {uri: one["missing"] for uri, one in count_missing(configs)["cells"].items()}
    except (InputError, RunError):
        return {}


def make(root: str, source: Path) -> Experiment:
    """Make the experiment in all its states: first with other pictures, which gives older versions, then as it is meant."""
    made = Experiment(root=root, source=source)
    write_sources(source, seed=1)
    assert made.run().code == 0
    other = made.content()
    _clear(made)
    write_sources(source, seed=0)
    versions: dict[str, list[bytes]] = {}
    with _recorded(root, versions):
        ended = made.run()
    assert ended.code == 0, ended
    made.result = made.outcome()
    whole = made.content()
    _clear(made)
    locks: Objects = {}
    for state, stop in (("staging", _in_staging), ("training", _in_training), ("unevaluated", _before_evaluation)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            made.run(_noting_locks(made, stop(patch), locks))
        for name, data in locks.items():
            made.write(name, data)
        if state == "unevaluated":
            _fail_everywhere(made)
            _leave_traces(made)
        made.states[state] = made.content()
    assert made.run().code == 0
    assert made.outcome() == made.result
    made.states["finished"] = made.content()
    _add_older(made, other, [whole, *made.states.values()], versions)
    return made


def _noting_locks(made: Experiment, stop: Callable[[str], None], locks: Objects) -> Callable[[str], None]:
    """Note the lock files of a run, which a kill leaves behind. A lock on S3 is another matter: tests/pipelines/jobs/test_lock.py."""

    def at(step: str) -> None:
        if local_path(made.root) is not None:
            locks.update({name: data for name, data in made.content().items() if name.endswith(".lock")})
        stop(step)

    return at


def _fail_everywhere(made: Experiment) -> None:
    """Let every sort of job have left a record of a failure."""
    for name in ("", "staging/pairs", "report", *(f"{cell}/{part}" for cell in CELLS[:1] for part in ("contrastive", "evaluation"))):
        write_failure(join(made.uri, name).rstrip("/"), stage="a stage", exit_code=1, line="it failed before")


def _leave_traces(made: Experiment) -> None:
    """What only some runs write, and none needs: signs of life beside other lanes, a start by `resume`, stacks, a profile."""
    stage, request = join(made.uri, CELLS[0], "contrastive"), next(iter(open_store(made.uri).list(join(made.uri, "requests")))).uri
    for uri in (
        layout.run_life(made.root, "run-1", "lane-1-of-1"),
        layout.request_begun(made.uri, request.rpartition("/")[2].removesuffix(".json"), stage),
        layout.hung(stage, 2, 0),
        join(stage, "profile/steps-1-2.json"),
    ):
        write_bytes(uri, b'{"format_version": 1}')


def _clear(made: Experiment) -> None:
    for name in made.content():
        made.delete(name)


@contextlib.contextmanager
def _recorded(root: str, versions: dict[str, list[bytes]]) -> Iterator[None]:
    store = type(open_store(root))
    put_stream = store.put_stream

    def recorded(self: Any, uri: str, *arguments: Any) -> Any:
        info = put_stream(self, uri, *arguments)
        versions.setdefault(uri.removeprefix(f"{root}/"), []).append(read_bytes(uri))
        return info

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "put_stream", recorded)
        yield


def _add_older(made: Experiment, other: Objects, states: list[Objects], versions: dict[str, list[bytes]]) -> None:
    """Of each object the contents that it had at other times, or with the other pictures."""
    like: dict[str, bytes] = {_anonymous(name): data for name, data in other.items()}
    for name in dict.fromkeys(name for state in states for name in state):
        known = [*versions.get(name, []), *(state[name] for state in states if name in state)]
        if _anonymous(name) in like and name != f"experiments/{NAME}/plan.json":  # an experiment never has other data
            known.append(like[_anonymous(name)])
        made.older[name] = list(dict.fromkeys(known))


def _anonymous(name: str) -> str:
    """The name with every hash in it left out."""
    return re.sub(r"[0-9a-f]{16,64}", "*", re.sub(r"^runs/run-\d+", "runs/run", name))


def _in_staging(patch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Killed while the second slice of the pairs is published: one shard of it is missing."""
    publish = Attempt._publish

    def publish_one(attempt: Attempt, record: SliceRecord) -> dict[str, str]:
        if attempt._target.rpartition("/")[0].endswith("-pairs") and attempt._number == 1:
            name = next(iter(record.files(1)))
            open_store(attempt.folder).copy(join(attempt.folder, name), join(attempt._target, name))
            raise Killed
        return publish(attempt, record)

    patch.setattr(Attempt, "_publish", publish_one)
    return lambda step: None


def _in_training(patch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Killed after the second checkpoint of the contrastive stage of the second cell."""
    save, saves = records.save, [0]

    def save_or_die(run: records.Run, keep: bool) -> None:
        save(run, keep)
        if (run.config.stage, run.config.cell) == ("contrastive", CELLS[1]):
            saves[0] += 1
            if saves[0] == 2:
                run.writer.wait()  # type: ignore[union-attr]
                raise Killed

    patch.setattr(records, "save", save_or_die)
    return lambda step: None


def _before_evaluation(patch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Killed before the first evaluation."""

    def die(*arguments: Any, **options: Any) -> None:
        raise Killed

    patch.setattr(cells, "evaluate", die)
    return lambda step: None
