"""Whole runs: the real pipeline, kfp.local, locks and signals, around a trainer that only pretends."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.local.run import StopMarker, _Lines, _Pipeline, _signals
from tests.staging.conftest import photo_folder
from trainer.progress import STOP_AT_ONCE

REPOSITORY = Path(__file__).parents[3]
FAKE = Path(__file__).parent / "fake"


class Run:
    """One `python -m pipelines run` with a pretended trainer."""

    def __init__(self, root: Path, *arguments: str, **variables: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FAKE), str(REPOSITORY)]), **variables}
        command = [sys.executable, "-m", "pipelines", "run", "--root", str(root), "--recipe", "smoke", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, cwd=root.parent, text=True, start_new_session=True, **pipes)
        self.root = root

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        out, error = self.process.communicate(timeout=240)
        return self.process.returncode, out, error

    def starts(self, stage: str = "contrastive", cell: str = "random-seed0") -> list[int]:
        """The process of each start of a stage."""
        path = self.root / "experiments" / "smoke" / cell / stage / "starts.txt"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_start(self) -> int:
        """Until the contrastive stage of the random arm has begun; its process."""
        end = time.monotonic() + 240
        while not self.starts():
            assert time.monotonic() < end, "the stage has not begun"
            time.sleep(0.02)
        return self.starts()[0]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root whose name kfp.local would rewrite, were it let."""
    return tmp_path / "python3 runs"


def is_gone(pid: int) -> bool:
    """Whether the process ends soon, as quick as that may be here."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_a_run_ends_with_the_table_and_the_path_of_the_report(root: Path):
    """And a second one does nothing again: it needs no kfp to find that out."""
    run = Run(root, "--arms", "random,posthoc")
    code, out, error = run.end()

    assert (code, error) == (0, "")
    assert out.splitlines()[-1] == f"report: {root}/experiments/smoke/report/index.html"
    assert "A fake answer." in out

    (root.parent / "without" / "kfp").mkdir(parents=True)
    (root.parent / "without" / "kfp" / "__init__.py").write_text("raise ImportError('kfp was started')")
    path = os.pathsep.join(map(str, (root.parent / "without", FAKE, REPOSITORY)))
    code, out, error = Run(root, "--arms", "random,posthoc", PYTHONPATH=path).end()

    assert (code, error) == (0, "")
    assert "stage pairs: already sealed" in out
    assert "contrastive random-seed0: already done" in out
    assert "A fake answer." in out
    assert len(run.starts()) == len(run.starts("posthoc", "posthoc-seed0")) == 1


@pytest.mark.slow
def test_a_failed_cell_does_not_keep_the_others_from_the_report(root: Path):
    """Wrong input is not tried twice; exit code and line are the cell's."""
    run = Run(root, FAKE_FAIL="contrastive random-seed0:2")
    code, out, error = run.end()

    assert code == 2
    assert "contrastive random-seed0: trainer train contrastive: contrastive random-seed0 was told to fail" in error
    assert "contrastive random-seed0: failed: trainer train" in out
    assert "starting it again" not in out
    assert len(run.starts("contrastive", "perceptual-seed0")) == 1
    assert (root / "experiments/smoke/report/index.html").exists()


@pytest.mark.slow
def test_on_a_terminal_the_reason_is_said_once(root: Path):
    """The real staging of too few pictures, of which both steps find the same; stdout and stderr lead to one place."""
    photos = photo_folder(root.parent / "photos", 10)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "pipelines", "run", "--root", str(root), "--pairs", str(photos)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)

    assert done.returncode == 2
    assert done.stdout.count("needs at least 160 for recipe demo") == 1
    assert "failed for the same reason" in done.stdout
    assert "training at" not in done.stdout, "an estimate for data of another size"


@pytest.mark.slow
def test_what_fails_on_the_way_is_started_once_more(root: Path):
    """And then ends the cell with 1."""
    code, out, error = Run(root, "--arms", "random", FAKE_FAIL="evaluate random-seed0:1").end()

    assert code == 1
    assert out.count("starting it again") == 1
    assert "told to fail" in error


@pytest.mark.slow
def test_a_killed_trainer_is_started_again_at_once(root: Path):
    """As an out-of-memory kill leaves it: the run itself goes on."""
    run = Run(root, "--arms", "random", FAKE_SECONDS="3")
    os.kill(run.wait_for_start(), signal.SIGKILL)
    code, out, _ = run.end()

    assert code == 0
    assert "killed by SIGKILL" in out
    assert len(run.starts()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.campaign)])
def test_a_stopped_run_leaves_no_process_and_the_next_one_goes_on(root: Path, number: int, expected: int):
    """The trainer has time to save, and queued steps do not begin."""
    run = Run(root, "--arms", "random", "--seeds", "0,1", FAKE_SECONDS="60")
    trainer = run.wait_for_start()
    run.process.send_signal(number)
    code, out, error = run.end()

    assert code == expected
    assert "stopping…" in out
    assert "run the same command again to resume" in error
    assert is_gone(trainer)
    assert run.starts("contrastive", "random-seed1") == []
    assert "SIGTERM: saved" in (root / "experiments/smoke/random-seed0/contrastive/log.txt").read_text()
    assert Run(root, "--arms", "random", "--seeds", "0,1").end()[0] == 0


def test_a_signal_leaves_the_marker_at_once_and_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """It may arrive while this process prints, or imports what prints: the loop that waits for the pipeline says that it stops."""
    with _signals(StopMarker(tmp_path / "stop")) as received:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    assert received == [signal.SIGINT, signal.SIGINT]
    assert (tmp_path / "stop").exists()
    assert capfd.readouterr() == ("", "")


def test_a_stop_needs_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is to be told was written when the run began; a stop at once stays one, whatever signal follows."""
    marker, stop = StopMarker(tmp_path / "stop"), tmp_path / "stop"
    monkeypatch.setattr(Path, "write_text", None)
    monkeypatch.setattr(Path, "touch", None)
    assert not stop.exists()
    marker.leave()
    assert stop.read_text() == ""
    marker.leave()
    marker.leave(at_once=True)
    marker.leave()
    assert stop.read_text() == STOP_AT_ONCE


def test_a_pipeline_without_room_for_its_log_has_failed(tmp_path: Path):
    """Its thread ends before the first step; a run that took that for the end of all steps would exit 0."""
    pipeline = _Pipeline(None, tmp_path / "none", None)  # type: ignore[arg-type]
    pipeline.start()
    pipeline.join()
    assert "kfp.log" in pipeline.error


class Said:
    """A display that only remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


EXECUTOR = """\
04:13:46.539 - INFO - Executing task \x1b[96m'links'\x1b[0m
--------------------
    [KFP Executor 2026-11-30 04:13:47,415 INFO]: Loading KFP component "links" from /tmp/x.py
    [KFP Executor 2026-11-30 04:13:47,416 INFO]: Got executor_input:
    {
        "inputs": {
            "parameterValues": {}
        }
    }
    --- links, attempt 1
    {"identity": "2e80", "uri": "/r"}
    stage pairs: sealed
"""


def test_v_leaves_out_what_the_executor_says_of_itself():
    """Its input as JSON, its imports, rules and colours; the steps' own lines stay, also those that are JSON."""
    display = Said()
    lines = _Lines(display)  # type: ignore[arg-type]
    for start in range(0, len(EXECUTOR), 7):
        lines.write(EXECUTOR[start : start + 7])

    assert display.lines == [
        "04:13:46.539 - INFO - Executing task 'links'",
        "    --- links, attempt 1",
        '    {"identity": "2e80", "uri": "/r"}',
        "    stage pairs: sealed",
    ]


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_reaches_every_process_and_still_ends_cleanly(root: Path):
    """A terminal signals the whole foreground group, kfp's shells included."""
    run = Run(root, "--arms", "random", FAKE_SECONDS="60")
    trainer = run.wait_for_start()
    os.killpg(run.process.pid, signal.SIGINT)
    code, _, error = run.end()

    assert code == 130
    assert "Traceback" not in error
    assert is_gone(trainer)


@pytest.mark.slow
def test_a_killed_run_takes_its_jobs_along_and_the_next_one_finishes(root: Path):
    """Kill -9 on the pipeline in mid-stage: what had finished is not run again."""
    run = Run(root, "--arms", "perceptual,random", FAKE_SECONDS="2")
    trainer = run.wait_for_start()
    run.process.kill()
    run.end()

    assert is_gone(trainer)

    code, out, _ = Run(root, "--arms", "perceptual,random").end()

    assert code == 0
    assert "contrastive perceptual-seed0: already done" in out
    assert len(run.starts("contrastive", "perceptual-seed0")) == 1
    assert len(run.starts()) == 2


@pytest.mark.slow
def test_a_second_run_of_the_same_experiment_is_refused(root: Path):
    """Naming the process of the first, with exit code 2."""
    run = Run(root, "--arms", "random", FAKE_SECONDS="60")
    run.wait_for_start()

    code, _, error = Run(root).end()
    run.process.send_signal(signal.SIGINT)
    run.end()

    assert code == 2
    assert f"is being run by process {run.process.pid} " in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_run_whose_lock_another_one_took_ends_without_saving(root: Path):
    """Somebody deleted its lock, and another run began: exit code 1, and nothing more is written."""
    folder = root / "experiments" / "smoke"
    run = Run(root, "--arms", "random", FAKE_SECONDS="60", FAKE_HEARTBEAT="0.2")
    trainer = run.wait_for_start()
    with lock_of_another(folder):
        code, _, error = run.end()

    assert code == 1
    assert error.startswith(f"the experiment's lock was lost, so this run and its jobs were stopped: {folder} is being run by")
    assert len(error.splitlines()) == 1
    assert is_gone(trainer)
    assert "saved" not in (folder / "random-seed0/contrastive/log.txt").read_text()
    assert Run(root).end()[0] == 0


@contextlib.contextmanager
def lock_of_another(folder: Path) -> Iterator[None]:
    """The lock in place of whose it was."""
    new = folder / "new.lock"
    with new.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write('{"pid": 7}')
        stream.flush()
        new.rename(folder / "run.lock")
        yield
