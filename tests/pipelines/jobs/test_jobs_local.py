import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.jobs.base import JobSpec, Outcome
from pipelines.jobs.local import LocalBackend, LocalJob
from trainer.progress import STOP_AT_ONCE, STOP_VARIABLE

SAVES = """
import signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
"""


def start(code: str, grace_seconds: float = 30.0) -> tuple[LocalJob, list[str], threading.Thread]:
    """A job that runs `code`, its lines so far, and the thread that reads them."""
    backend = LocalBackend(command=(sys.executable, "-c", code), grace_seconds=grace_seconds)
    job, lines = backend.submit(JobSpec(name="job", arguments=("an argument",), folder="/nowhere")), []
    reader = threading.Thread(target=job.logs, args=(lines.append,))
    reader.start()
    return job, lines, reader


def ended(job: LocalJob, reader: threading.Thread) -> Outcome:
    """Wait for its end."""
    reader.join()
    while (outcome := job.watch()) is None:
        time.sleep(0.01)
    return outcome


def wait_for(lines: list[str], count: int = 1) -> None:
    """Until so many lines came."""
    while len(lines) < count:
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def gone(pid: int) -> bool:
    """Whether it ends within a few seconds."""
    end = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(pid)


def test_a_job_that_succeeds_has_no_failure_line():
    """Its arguments reach it and its output comes back."""
    job, lines, reader = start("import sys; print(sys.argv[1])")

    assert ended(job, reader) == Outcome(exit_code=0, line="")
    assert lines == ["an argument"]


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (1, 1), (7, 1), (143, 1)])
def test_the_last_line_says_why_a_job_failed(code: int, expected: int):
    """Exit code 2 is the user's to fix, any other is 1."""
    job, _, reader = start(f"import sys; print('first'); print('trainer train: why', file=sys.stderr); print(); sys.exit({code})")

    assert ended(job, reader) == Outcome(exit_code=expected, line="trainer train: why")


def test_a_killed_job_names_the_signal():
    """As kill -9 and the kernel's out-of-memory killer leave it."""
    job, lines, reader = start(DEAF)
    wait_for(lines)
    os.kill(job.pid, signal.SIGKILL)

    outcome = ended(job, reader)

    assert outcome.exit_code == -signal.SIGKILL
    assert outcome.line.startswith("killed by SIGKILL")


def test_a_cancelled_job_has_time_to_save():
    """SIGTERM comes first."""
    job, lines, reader = start(SAVES)
    wait_for(lines)
    job.cancel()
    reader.join()

    assert lines == ["ready", "saved"]


def test_a_job_that_does_not_end_is_killed_after_its_grace():
    """Nothing outlives a cancel."""
    job, lines, reader = start(DEAF, grace_seconds=0.2)
    wait_for(lines)
    job.cancel()
    reader.join()

    assert not is_alive(job.pid)


@pytest.mark.parametrize("ending", ["time.sleep(60)", "sys.exit(1)"])
def test_what_a_job_started_ends_with_it(ending: str):
    """Whether it is cancelled or fails by itself."""
    job, lines, reader = start(PARENT + ending, grace_seconds=0.2)
    wait_for(lines)
    if "sleep" in ending:
        job.cancel()
    while job.watch() is None:
        time.sleep(0.01)
    reader.join()

    assert gone(int(lines[0]))


def test_a_job_ends_when_the_step_that_watches_it_is_killed():
    """It gets SIGTERM from the kernel, and so saves."""
    step = (
        "import sys, time; from pipelines.jobs.base import JobSpec; from pipelines.jobs.local import LocalBackend\n"
        f"backend = LocalBackend(command=(sys.executable, '-c', {SAVES!r}))\n"
        "job = backend.submit(JobSpec(name='job', arguments=(), folder='/nowhere'))\n"
        "job.logs(lambda line: print(job.pid, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", step], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()

    assert gone(pid)


def test_a_job_of_a_run_that_lost_its_experiment_has_no_time_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What it would save is another run's by now; also where it was saving already."""
    marker = tmp_path / "stop"
    monkeypatch.setenv(STOP_VARIABLE, str(marker))
    marker.write_text(STOP_AT_ONCE)
    job, lines, reader = start(SAVES)
    wait_for(lines)
    job.leave()
    assert ended(job, reader).exit_code == -signal.SIGKILL
    assert lines == ["ready"]

    marker.write_text("")
    job, lines, reader = start(DEAF, grace_seconds=1000.0)
    wait_for(lines)
    threading.Timer(0.2, marker.write_text, (STOP_AT_ONCE,)).start()
    job.leave()
    assert ended(job, reader).exit_code == -signal.SIGKILL
