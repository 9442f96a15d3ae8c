"""A sample of the campaign of `make faults`, bounded by count; and that its invariants can be broken."""

import dataclasses
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.counts import table
from tests.faults.disturbed import Laboratory, draw_trial
from tests.faults.forked import Zygote
from tests.faults.injecting import FAULTS, Scene
from tests.faults.invariants import INVARIANTS, SHORT_OF_MEMORY, End, Outcome, right_ends
from tests.faults.making import write_sources
from tests.faults.places import Place, place
from trainer.storage import write_bytes

SEED = 21


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("store", "trials"), [("file", 4), ("seaweedfs", 2)])
def test_whole_experiments_under_faults_keep_the_invariants(store: str, trials: int, tmp_path: Path) -> None:
    """Several faults a run, then one run without: as if nothing had happened."""
    with place(store, tmp_path, lambda folder: write_sources(folder, seed=0)) as here, Zygote() as zygote:
        laboratory = Laboratory(here, zygote)
        results = [laboratory.carry_out(trial) for trial in (draw_trial(SEED, number, here.abilities) for number in range(trials))]
        assert [result.problems for result in results] == [[] for _ in results]
        assert sum(len(result.faults) for result in results) >= trials


def test_a_seed_decides_all() -> None:
    """Trials are the same for the same seed, whatever was carried out before; every fault is drawn sooner or later."""
    everywhere = {one.needs for one in FAULTS.values()}
    trials = [draw_trial(SEED, number, everywhere) for number in range(200)]
    assert trials == [draw_trial(SEED, number, everywhere) for number in range(200)]
    assert {name for trial in trials for attempt in trial.attempts for name, _, _ in attempt.faults} == FAULTS.keys()
    assert not {name for name, _, _ in draw_trial(SEED, 0, {""}).attempts[0].faults} - {
        name for name, one in FAULTS.items() if not one.needs
    }


GOOD = End(code=0, said="report: here")
REFUSED = "pipelines run: s3://b/e is being run by process 1 on pod (user x), started now: wait for it"


@pytest.mark.parametrize(
    ("end", "is_right"),
    [
        (GOOD, True),
        (End(code=1, said="stage pairs: s3://b/x: gave up after 8 s"), True),
        (End(code=1, said=""), False),
        (End(code=1, said="Traceback (most recent call last):\n  ValueError"), False),
        (End(code=1, said="out of memory", steps="Traceback: no thread", faults=frozenset(SHORT_OF_MEMORY)), True),
        (End(code=1, said="failed", steps="Traceback: no thread"), False),
        (End(code=2, said=REFUSED), True),
        (End(code=2, said="stage pairs: no such source"), False),
        (End(code=2, said="/x: the file system is read-only: a run needs", faults=frozenset({"the root's disk read-only"})), True),
        (End(code=2, said="/x: the file system is read-only: a run needs"), False),
        (End(code=-9, said="", signals=frozenset({9})), True),
        (End(code=-9, said=""), False),
        (End(code=-11, said="", signals=frozenset({9})), False),
        (End(code=130, said="stopped", signals=frozenset({2})), True),
        (End(code=143, said="stopped", signals=frozenset({2})), False),
        (End(code=70, said="what"), False),
        (End(code=None, said="waiting"), False),
    ],
)
def test_how_a_command_may_end(end: End, is_right: bool, tmp_path: Path) -> None:
    """By exit code, last line, the signals that it got and the faults of its time."""
    assert (list(right_ends(_outcome(tmp_path, {}, ends=[end]))) == []) == is_right


def _outcome(folder: Path, content: dict[str, bytes], **changed: Any) -> Outcome:
    where = Place(folder=folder, root=str(folder / "root"), sources="", tmp=folder / "tmp")
    for name, data in content.items():
        write_bytes(f"{where.root}/{name}", data)
    whole = {"experiments/tiny/x/contrastive/progress.jsonl": b'{"step": 1}\n{"step": 2}\n'}
    return dataclasses.replace(Outcome(place=where, content=content, result={"w": 1}, whole=whole, whole_result={"w": 1}), **changed)


PROGRESS = "experiments/tiny/x/contrastive/progress.jsonl"


@pytest.mark.parametrize(
    ("name", "content", "changed"),
    [
        ("same weights and figures", {}, {"result": {"w": 2}}),
        ("each step once", {PROGRESS: b'{"step": 1}\n{"step": 1}\n{"step": 2}\n'}, {}),
        ("no state that a rerun does not leave", {PROGRESS: b"", "experiments/tiny/novel": b""}, {}),
        ("no state that a rerun does not leave", {}, {}),
        ("no partial file, temporary folder or multipart upload", {".x.write-1.partial": b""}, {}),
        ("exit code and last line", {}, {"ends": [End(code=3, said="")]}),
    ],
)
def test_a_broken_invariant_is_named(name: str, content: dict[str, bytes], changed: dict[str, Any], tmp_path: Path) -> None:
    """And what broke it."""
    outcome = _outcome(tmp_path, content, **changed)
    assert any(line.startswith(f"{name}: ") for line in [f"{name}: {what}" for what in INVARIANTS[name](outcome)])


def test_counts_are_made_from_records(tmp_path: Path) -> None:
    """A row a campaign and a row a fault, with what broke and in which trial."""
    record = tmp_path / "record"
    record.write_text(
        '{"seed": 4, "store": "file", "abilities": []}\n'
        '{"trial": 0, "seconds": 1, "faults": [["SIGKILL of a process", "step"]], "runs": 3, "problems": []}\n'
        '{"trial": 1, "seconds": 1, "faults": [], "runs": 2, "problems": ["each step once: x: [1, 1]"]}\n'
    )
    lines = table([record]).splitlines()
    assert "| files | 4 | 2 | 5 | 1 | trial 1: each step once |" in lines
    assert "| SIGKILL of a process | 1 | 0 | 0 |" in lines


def test_what_fills_a_disk_goes_when_it_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may be full and read-only at the same time, and either may end first."""
    scene, calls = Scene(place=_outcome(tmp_path, {}).place, zygote=0, draw=random.Random(0)), []
    (tmp_path / "ballast").touch()
    remove = shutil.rmtree
    monkeypatch.setattr("tests.faults.injecting.shutil.rmtree", lambda path, **options: calls.append(path) or remove(path, **options))
    monkeypatch.setattr(Path, "unlink", lambda path, **options: "ended" in calls and os.unlink(path))
    scene.after(600, lambda: calls.append("ended"))
    scene.after(600, lambda: scene.remove(tmp_path / "ballast"))
    scene.end_faults(all_of_them=True)
    assert not (tmp_path / "ballast").exists()
    assert scene.later == []


def test_a_fault_without_a_victim_strikes_nobody(tmp_path: Path) -> None:
    """Least of all the campaign: the process 0 that is nobody's would be its own."""
    scene = Scene(place=_outcome(tmp_path, {}).place, zygote=os.getpid(), draw=random.Random(0))
    assert [one.do(scene) for one in FAULTS.values() if not one.needs] == [""] * sum(not one.needs for one in FAULTS.values())
    assert (scene.hits, scene.later) == ({}, [])


def test_a_fault_strikes_jobs_steps_and_commands(tmp_path: Path) -> None:
    """Found by the names that forks give themselves; what only serves the campaign is left alone."""
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(15, sys.argv[1].encode()); print(flush=True); sys.stdin.read()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    names = ("stepper", "train contrastive")
    children = [subprocess.Popen([sys.executable, "-c", code, name], **pipes) for name in names]
    try:
        for child in children:
            child.stdout.readline()
        scene = Scene(place=_outcome(tmp_path, {}).place, zygote=os.getpid(), draw=random.Random(0))
        assert FAULTS["SIGKILL of a process"].do(scene) == "train contrasti"
        assert children[1].wait() == -9
        assert scene.hits == {children[1].pid: {9}}
        assert children[0].poll() is None
    finally:
        for child in children:
            child.kill()
            child.communicate()
