"""One run an experiment: a second one on the same experiment is refused, naming the first one's process.

On a file root the lock is a flock in the experiment's folder, gone with its process however that ends. On
S3, which has no lock, the same flock in the machine's temporary folder keeps this machine's runs apart, and
a heartbeat object those of others. A second flock is held by every job, so that a run which follows a
killed one begins when the killed one's jobs are gone.
"""

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.config import canonical_hash
from trainer.errors import InputError, RunError
from trainer.storage import join, open_store, read_json, write_json
from trainer.storage.base import MissingObject, local_path

HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 120.0
JOBS_VARIABLE = "FIRSTSIGHT_JOBS_LOCK"
JOBS_WAIT_SECONDS = 60.0


@contextlib.contextmanager
def exclusive(experiment_uri: str) -> Iterator[Path]:
    """Hold the experiment for this process; yields the path of the flock for its jobs.

    Raises:
        InputError: another run holds it.
        RunError: jobs of a killed run do not end.
    """
    folder = _lock_folder(experiment_uri)
    folder.mkdir(parents=True, exist_ok=True)
    me = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
    with (folder / "run.lock").open("a+") as stream:
        _lock_or_refuse(stream, experiment_uri)
        stream.truncate(0)
        stream.write(json.dumps(me))
        stream.flush()
        _wait_for_jobs(folder / "jobs.lock")
        with contextlib.nullcontext() if local_path(experiment_uri) else _heartbeat(experiment_uri, me):
            yield folder / "jobs.lock"


@contextlib.contextmanager
def job_lock() -> Iterator[tuple[int, ...]]:
    """Share the flock named by FIRSTSIGHT_JOBS_LOCK; yields the descriptors that a job must inherit."""
    path = os.environ.get(JOBS_VARIABLE)
    if not path:
        yield ()
        return
    with open(path, "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield (stream.fileno(),)


def _lock_folder(experiment_uri: str) -> Path:
    path = local_path(experiment_uri)
    return path or Path(tempfile.gettempdir()) / f"firstsight-{os.getuid()}" / canonical_hash(experiment_uri)[:16]


def _lock_or_refuse(stream: Any, experiment_uri: str) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.seek(0)
        text = stream.read()
        raise InputError(_refusal(experiment_uri, json.loads(text) if text else {})) from None


def _refusal(experiment_uri: str, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, started {holder.get('started', '?')}"
    return f"{experiment_uri} is being run by {who}: wait for it, or give EXPERIMENT another name"


def _wait_for_jobs(path: Path) -> None:
    """Until no job of an earlier run holds the flock."""
    end = time.monotonic() + JOBS_WAIT_SECONDS
    with path.open("a") as stream:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() > end:
                raise RunError(f"{path}: jobs of a run that was killed still go on after {JOBS_WAIT_SECONDS:.0f} s: end them first")
            time.sleep(0.2)


@contextlib.contextmanager
def _heartbeat(experiment_uri: str, me: dict[str, Any]) -> Iterator[None]:
    uri = join(experiment_uri, "run.lock")
    try:
        holder = read_json(uri)
    except MissingObject:
        holder = {}
    # Of this machine none can be alive: the flock would have told.
    if holder and holder.get("host") != me["host"] and time.time() - float(holder.get("time", 0)) < STALE_SECONDS:
        raise InputError(_refusal(experiment_uri, holder))
    write_json(uri, {**me, "time": time.time()})
    ended = threading.Event()

    def send_heartbeats() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(RunError):  # a store that is down for a while is the steps' to report
                write_json(uri, {**me, "time": time.time()})

    thread = threading.Thread(target=send_heartbeats, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        open_store(uri).delete(uri)
