"""A finished experiment whose root takes no writes: `run` shows it; what is not finished is refused as before."""

import contextlib
import os
from collections.abc import Iterator

import pytest

from pipelines.jobs.lease import Taken
from pipelines.local import run
from pipelines.planning.request import merge
from tests.pipelines.whole import ARMS, Whole
from trainer.errors import InputError, RunError
from trainer.storage.failures import write_failure
from trainer.storage.file import FileStore
from trainer.storage.writers import _begin, _boot, _namespace


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let nothing be written under any root, the lock neither."""

    def fail(*_: object) -> None:
        raise error

    @contextlib.contextmanager
    def no_lock(uri: str) -> Iterator[None]:
        raise error
        yield

    monkeypatch.setattr(run, "exclusive", no_lock)
    monkeypatch.setattr(FileStore, "put_stream", fail)
    monkeypatch.setattr(FileStore, "create", fail)


def look(whole: Whole) -> int:
    """`python -m pipelines run` of the experiment."""
    asked = merge("", {"recipe": "smoke", "root": str(whole.root), "arms": ARMS})
    return run.run(run.prepare(asked), verbose=False)


@pytest.mark.parametrize("error", [InputError("run.lock: the file system is read-only"), RunError("run.lock: No space left on device")])
def test_a_root_that_takes_no_writes(whole: Whole, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    whole.run()
    before = {path: path.stat().st_mtime_ns for path in whole.root.rglob("*")}
    with monkeypatch.context() as patch:
        refuse(patch, error)
        capsys.readouterr()
        assert look(whole) == 0
        assert "posthoc posthoc-seed0: already done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in whole.root.rglob("*")} == before

    (whole.folder / "report/index.html").unlink()
    refuse(monkeypatch, error)
    with pytest.raises(type(error), match=str(error)):
        look(whole)


def test_another_run_at_work_is_named_though_all_is_finished(whole: Whole, monkeypatch: pytest.MonkeyPatch):
    whole.run()
    refuse(monkeypatch, Taken("is being run by process 7"))
    with pytest.raises(Taken, match="process 7"):
        look(whole)


def test_what_killed_writers_left_is_swept_though_all_is_finished(whole: Whole):
    """Beside any object of the experiment, and beside records that experiments share."""
    whole.run()
    mark = f"{_boot()}-{_namespace()}-999999999-1-0123abcd"
    left = [whole.folder / f"report/.results.csv.write-{mark}.partial", whole.root / f"runs/.run.json.write-{mark}.partial"]
    ours = (
        whole.folder / f".plan.json.write-{mark.replace('999999999', str(os.getpid())).replace('-1-', f'-{_begin(os.getpid())}-')}.partial"
    )
    for path in (*left, ours):
        path.write_bytes(b"half")
    assert look(whole) == 0
    assert [path.exists() for path in (*left, ours)] == [False, False, True]


@pytest.mark.parametrize("writable", [True, False])
def test_a_failure_of_a_machine_whose_clock_was_ahead_is_not_this_runs(whole: Whole, writable: bool, monkeypatch: pytest.MonkeyPatch):
    """A run that finds everything done ends with 0, and removes the record if it may."""
    whole.run()
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 4e9)
        write_failure(str(whole.folder / "staging/triplets"), stage="stage triplets", exit_code=2, line="no such folder")
    if not writable:
        refuse(monkeypatch, InputError("run.lock: the file system is read-only"))
    assert look(whole) == 0
    assert (whole.folder / "staging/triplets/failure.json").exists() == (not writable)
