"""`python -m pipelines remove`: an experiment goes, unless something needs it; data sets stay, unless nobody else uses them."""

import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main
from pipelines.jobs.lock import exclusive
from pipelines.operate import remove as module
from pipelines.operate.remove import remove
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.fake_jobs import identity, put_job
from tests.pipelines.whole import Whole
from trainer.errors import InputError, RunError
from trainer.storage import layout, open_store, write_json
from trainer.storage.committed import NAME as SEAL
from trainer.storage.file import FileStore


def files(root: Path) -> dict[str, bytes]:
    """Every file below the root."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def copy_experiment(root: Path, name: str) -> None:
    """Another experiment that uses the same data: the first one's staging under another name."""
    for path in (root / "experiments/smoke/staging").rglob("*.json"):
        target = root / "experiments" / name / path.relative_to(root / "experiments/smoke")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


def test_an_experiment_goes_with_its_runs_and_its_data_stay(whole: Whole, capsys: pytest.CaptureFixture[str]):
    """A dry run says the same and deletes nothing; nothing of the experiment is left, not even a folder or a killed writer's part."""
    whole.run()
    (whole.folder / "random-seed0/.x.write-dead-1-2-3.partial").write_bytes(b"x")
    before = files(whole.root)
    capsys.readouterr()

    assert main(["remove", "smoke", "--root", str(whole.root), "--dry-run"]) == 0
    would = capsys.readouterr().out
    assert files(whole.root) == before
    assert main(["remove", "smoke", "--root", str(whole.root)]) == 0
    did = capsys.readouterr().out

    assert would.replace("would delete", "deleted") == did
    assert did.count("kept ") == len(list(whole.root.glob("datasets/*/*/manifest.json")))
    assert "no other experiment here uses it; --data deletes it too" in did
    assert {name for name in before if name.startswith("datasets/")} == set(files(whole.root))
    assert not whole.folder.exists()
    assert main(["remove", "smoke", "--root", str(whole.root)]) == 2
    assert "experiments/smoke: no experiment here" in capsys.readouterr().err


def test_a_run_makes_it_anew(whole: Whole):
    """As if it had never been: the data are found, every stage is trained."""
    jobs = whole.run()
    list(remove(str(whole.root), "smoke"))

    again = whole.run()

    assert [job for job in again if "stage" not in job] == [job for job in jobs if "stage" not in job]
    assert whole.is_finished()


def test_data_that_others_use_stay(whole: Whole):
    whole.run()
    copy_experiment(whole.root, "other")
    (whole.root / "experiments/other/staging/pairs/result.json").unlink()
    (whole.root / "experiments/other/staging/pairs/sealed.json").unlink(missing_ok=True)

    said = list(remove(str(whole.root), "smoke", data=True))

    assert any(line.startswith(f"kept {whole.root}/datasets/demo-triplets") and line.endswith(": other uses it too") for line in said), said
    assert [path.parts[-3] for path in whole.root.glob("datasets/*/*/manifest.json")] == ["demo-triplets"]
    assert not list(whole.root.glob("datasets/demo-pairs/*"))


def test_what_a_run_holds_is_not_removed(whole: Whole, capsys: pytest.CaptureFixture[str]):
    whole.run()
    before = files(whole.root)
    with exclusive(str(whole.folder)):
        assert main(["remove", "smoke", "--root", str(whole.root)]) == 2
    assert "is being run by process" in capsys.readouterr().err
    assert files(whole.root) == before


def test_a_stage_that_runs_somewhere_keeps_it(whole: Whole):
    """Its progress is new and its seal is not there: a job on a cluster, or on another machine."""
    whole.run()
    stage = whole.folder / "random-seed0/contrastive"
    (stage / "final" / SEAL).unlink()
    (stage / "progress.jsonl").write_text('{"step": 3, "steps": 9}\n')

    with pytest.raises(InputError, match=r"its stage contrastive .* was running just now"):
        list(remove(str(whole.root), "smoke"))
    assert whole.folder.exists()


def test_a_living_step_of_a_run_keeps_it(whole: Whole, monkeypatch: pytest.MonkeyPatch):
    whole.run()
    write_json(layout.run_life(str(whole.root), "a-run", "lane-1-of-3"), {"format_version": 1, "time": time.time()})

    with pytest.raises(InputError, match="run a-run was alive within the last 3 minutes"):
        list(remove(str(whole.root), "smoke"))
    monkeypatch.setattr(module, "LIFE_SECONDS", 0.0)
    list(remove(str(whole.root), "smoke"))
    assert not whole.folder.exists()
    assert not (whole.root / "runs/a-run").exists()


def test_what_another_experiments_request_names_stays(whole: Whole):
    """A tower, a checkpoint, a set: whatever it is that lies below this experiment."""
    whole.run()
    other = whole.root / "experiments/other/requests/0123456789abcdef.json"
    for key in ("arms", "resume", "eval_sets", "pairs"):
        write_json(str(other), {key: f"random,from:{whole.folder}/towers/x/final" if key == "arms" else f"{whole.folder}/x"})
        with pytest.raises(InputError, match="experiment other starts from it or reads it, by ") as refused:
            list(remove(str(whole.root), "smoke"))
        assert str(refused.value).endswith(f"withdraw other --root {whole.root} --request 0123456789abcdef`")
    assert (whole.folder / "plan.json").exists()
    write_json(str(other), {"pairs": f"{whole.folder}-2/x"})  # a name that begins alike
    list(remove(str(whole.root), "smoke"))
    assert not whole.folder.exists()


def test_a_removal_that_breaks_off_leaves_nothing_that_counts(whole: Whole, monkeypatch: pytest.MonkeyPatch):
    """The plan and the seals went first; the same command deletes the rest."""
    whole.run()
    seals = len(list(whole.folder.rglob(SEAL)))
    delete, deleted = FileStore.delete, list[str]()

    def broken(self: FileStore, uri: str) -> None:
        if len(deleted) == 1 + seals:
            raise RunError(f"{uri}: the store is away")
        deleted.append(uri)
        delete(self, uri)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "delete", broken)
        with pytest.raises(RunError, match="the store is away"):
            list(remove(str(whole.root), "smoke"))

    assert deleted[0].endswith("/plan.json")
    assert not list(whole.folder.rglob(SEAL))
    assert files(whole.folder)
    list(remove(str(whole.root), "smoke"))
    assert not whole.folder.exists()


def test_a_removal_that_loses_its_lock_stops(whole: Whole, monkeypatch: pytest.MonkeyPatch):
    whole.run()
    monkeypatch.setattr("pipelines.jobs.lock.Held.lost", lambda self: "another run took over")

    with pytest.raises(RunError, match="the lock was lost while it was being deleted: another run took over"):
        list(remove(str(whole.root), "smoke"))
    assert (whole.folder / "plan.json").exists()


def test_it_works_on_s3(s3_root: str):
    """The same kinds of object on SeaweedFS; the lock there is an object of its own."""
    for name in ("plan.json", "random-seed0/contrastive/final/COMMITTED.json", "requests/1.json"):
        write_json(f"{s3_root}/experiments/e/{name}", {"format_version": 3, "cells": [], "recipes": {}})
    (s3_plan,) = [info for info in open_store(s3_root).list(f"{s3_root}/experiments/e") if info.uri.endswith("plan.json")]
    open_store(s3_root).delete(s3_plan.uri)  # not one that can be read
    write_json(f"{s3_root}/runs/r.json", {"request": f"{s3_root}/experiments/e/requests/1.json"})
    write_json(f"{s3_root}/runs/q.json", {"request": f"{s3_root}/experiments/f/requests/1.json"})

    said = list(remove(s3_root, "e"))

    assert said[0].startswith(f"deleted {s3_root}/experiments/e: 2 objects")
    assert [info.uri for info in open_store(s3_root).list(s3_root)] == [f"{s3_root}/runs/q.json"]


@pytest.mark.usefixtures("api_cluster")
def test_a_job_on_the_cluster_keeps_it(whole: Whole, api_server: FakeApi, capsys: pytest.CaptureFixture[str]):
    """One that writes into this very folder; a namesake's under another root does not."""
    whole.run()
    _put(api_server, f"{whole.folder}/random-seed0/contrastive")

    assert main(["remove", "smoke", "--root", str(whole.root), "--namespace", "team"]) == 2
    said = capsys.readouterr().err
    assert "/j belongs to it: end its run first, or `python -m pipelines cancel smoke --namespace " in said
    assert whole.folder.exists()


@pytest.mark.usefixtures("api_cluster")
def test_neither_a_namesakes_job_does_nor_one_that_has_ended(whole: Whole, api_server: FakeApi):
    whole.run()
    _put(api_server, "s3://elsewhere/experiments/smoke/random-seed0/contrastive")
    ended = {"conditions": [{"type": "Succeeded", "status": "True", "reason": "x", "message": ""}]}
    _put(api_server, f"{whole.folder}/random-seed0/contrastive", name="k", status=ended)

    assert main(["remove", "smoke", "--root", str(whole.root), "--namespace", "team"]) == 0
    assert not whole.folder.exists()


def _put(api_server: FakeApi, output: str, **more: Any) -> None:
    put_job(api_server, labels=identity(experiment="smoke"), annotations={"firstsight.dev/output": output}, **more)
