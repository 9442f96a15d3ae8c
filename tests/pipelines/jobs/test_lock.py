import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.jobs import lock
from trainer.errors import InputError, RunError
from trainer.storage import join, read_json, write_json

HOLD = (
    "import sys, time; from pipelines.jobs.lock import exclusive\nwith exclusive(sys.argv[1]):\n print('held', flush=True)\n time.sleep(60)"
)


@pytest.fixture
def holder(root: str):
    """Another process that holds the experiment."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, root], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_naming_the_first_ones_process(root: str, holder: "subprocess.Popen[str]"):
    """On files and on S3."""
    with pytest.raises(InputError, match=f"being run by process {holder.pid} on .*, started 20"), lock.exclusive(root):
        pass


def test_a_killed_run_leaves_the_experiment_free(root: str, holder: "subprocess.Popen[str]"):
    """However it ended."""
    holder.kill()
    holder.wait()

    with lock.exclusive(root):
        pass


def test_the_lock_is_free_after_the_run(root: str):
    """And leaves no heartbeat behind."""
    for _ in range(2):
        with lock.exclusive(root):
            pass


def test_a_run_waits_for_the_jobs_of_a_killed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They may be saving a checkpoint."""
    monkeypatch.setattr(lock, "JOBS_WAIT_SECONDS", 0.5)
    monkeypatch.setenv(lock.JOBS_VARIABLE, str(tmp_path / "jobs.lock"))

    with lock.job_lock() as descriptors, pytest.raises(RunError, match="still go on"), lock.exclusive(str(tmp_path)):
        pass
    with lock.exclusive(str(tmp_path)):
        pass

    assert len(descriptors) == 1


def test_a_heartbeat_of_another_machine_holds_until_it_is_stale(s3_root: str):
    """S3 has no lock, so its age decides."""
    holder = {"pid": 1, "host": "elsewhere", "started": "2026-01-01 00:00:00", "time": time.time()}
    write_json(join(s3_root, "run.lock"), holder)
    with pytest.raises(InputError, match="process 1 on elsewhere"), lock.exclusive(s3_root):
        pass

    write_json(join(s3_root, "run.lock"), {**holder, "time": time.time() - lock.STALE_SECONDS - 1})

    with lock.exclusive(s3_root):
        assert read_json(join(s3_root, "run.lock"))["pid"] != 1


def test_what_the_lock_file_says_is_json(tmp_path: Path):
    """For whoever looks by hand."""
    with lock.exclusive(str(tmp_path)):
        assert set(json.loads((tmp_path / "run.lock").read_text())) == {"pid", "host", "started"}
