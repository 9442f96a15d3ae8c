"""Whole runs in processes of their own for the price of a fork: `pipelines run`, its steps, and every job that they start.

    with Zygote() as zygote:
        pid = zygote.start(Command(...))

The zygote has everything imported and no threads. Each command, its steps and its jobs are forks that do what the real programs do, with
the same signals, sessions and locks; an exec would cost five seconds of CPU for each. Orphans come back to the zygote, so that
none is overlooked.
"""

import contextlib
import contextvars
import ctypes
import dataclasses
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_CLONE_NEWUTS = 0x04000000
_LIBC = ctypes.CDLL(None, use_errno=True)
HEARTBEAT_SECONDS, STALE_SECONDS, WATCH_SECONDS = 6.0, 60.0, 9.0
"""Of the lock in the store: in place of minutes."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One `python -m pipelines run`.

    Attributes:
        request: path of the request's file.
        output: path of the file that gets what it prints; what its steps print, which a person does not see, goes to `<output>.steps`.
        environment: of the process and of all that it starts.
        skew: seconds that its clock is ahead.
        host: its hostname; empty: this machine's.
        part_bytes: of multipart uploads; 0: as firstsight has it.
        executed: start the real programs, which takes a minute of CPU.
    """

    request: str
    output: str
    environment: dict[str, str] = field(default_factory=dict)
    skew: float = 0.0
    host: str = ""
    part_bytes: int = 0
    executed: bool = False


class Zygote:
    """The server, as its client sees it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tests.faults.forked", str(theirs.fileno())]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._ours = ours.makefile("rw")
        self._socket = ours
        self.codes: dict[int, int] = {}

    @property
    def pid(self) -> int:
        """Of the server: what it forked are its children."""
        return self._process.pid

    def start(self, command: Command) -> int:
        """Start a command; its pid."""
        self._ours.write(f"{json.dumps(dataclasses.asdict(command))}\n")
        self._ours.flush()
        while "started" not in (said := self._next()):
            pass
        pid = int(said["started"])
        self.codes.pop(pid, None)  # of an earlier process: numbers are used again
        return pid

    def code(self, pid: int) -> int | None:
        """The exit code of a command, or minus the signal that killed it; None while it runs."""
        self._ours.write('"wait"\n')
        self._ours.flush()
        while "waited" not in self._next():
            pass
        return self.codes.get(pid)

    def _next(self) -> dict[str, int]:
        line = self._ours.readline()
        if not line:
            raise RuntimeError("the zygote has ended")
        said: dict[str, int] = json.loads(line)
        if "ended" in said:
            self.codes[said["ended"]] = said["code"]
        return said

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pid in descendants(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._ours.close()
        self._socket.close()
        self._process.wait()


def serve(channel: socket.socket) -> None:
    """Fork a command for each line that comes, and reap whatever ends; until nobody asks any more."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with channel, channel.makefile("rw") as lines:

        def say(**what: int) -> None:
            lines.write(f"{json.dumps(what)}\n")
            lines.flush()

        for line in iter(lines.readline, ""):
            asked = json.loads(line)
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    say(ended=ended[0], code=os.waitstatus_to_exitcode(ended[1]))
            if asked == "wait":
                say(waited=0)
            else:
                command = Command(**asked)
                say(started=fork(lambda command=command: _begin(command), "pipeline"))


def fork(run: Callable[[], int], name: str, *, output: int | None = None) -> int:
    """Run a function in a fork, in a session of its own; its pid.

    Args:
        run: gives the exit code.
        name: by which the process is known.
        output: descriptor for what it prints.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # the hooks of os.fork swallow exceptions
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    code = 70
    try:
        os.setsid()
        _LIBC.prctl(_PR_SET_NAME, name.encode()[:15])
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if output is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(one, "w", buffering=1, closefd=False) for one in (1, 2))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        code = contextvars.Context().run(run)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:  # before the command line handles it
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


# --------------------------------------------------------------------------------------------- inside a command


def _begin(command: Command) -> int:
    descriptor = os.open(command.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(command.environment)
    arguments = ["-m", "pipelines", "run", "--request", command.request]
    if command.executed:
        os.execv(sys.executable, [sys.executable, *arguments])
    if command.host:
        _become(command.host, command.skew)
    _pretend(command)
    from pipelines.__main__ import main

    return main(arguments[2:])


def _become(host: str, skew: float) -> None:
    """Another machine: its name and its clock."""
    if _LIBC.unshare(_CLONE_NEWUTS) == 0:
        socket.sethostname(host)
    real = time.time
    time.time = lambda: real() + skew


def _pretend(command: Command) -> None:
    """Fork where the real programs start one another."""
    from pipelines.jobs import lease
    from pipelines.jobs.local import LocalBackend
    from pipelines.local import run
    from pipelines.steps import cells
    from tests.faults.making import count_missing_here
    from trainer.report import figures
    from trainer.storage import s3

    s3.PART_BYTES = command.part_bytes or s3.PART_BYTES
    for name in ("HEARTBEAT_SECONDS", "STALE_SECONDS", "WATCH_SECONDS"):
        setattr(lease, name, globals()[name])
    LocalBackend.submit = _submit  # type: ignore[method-assign, assignment]
    cells.count_missing = count_missing_here
    figures._svg = lambda *arguments: "<svg/>"
    stepper = Stepper(f"{command.output}.steps")  # with all of that
    run._Pipeline._run = lambda pipeline: stepper.run(pipeline._prepared)  # type: ignore[method-assign]


class Stepper:
    """A child, made while there is one thread, that forks a process for the steps and another for the last one."""

    def __init__(self, output: str) -> None:
        (asks, self._ask), (self._told, tells) = os.pipe(), os.pipe()
        printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        fork(lambda: self._serve(asks, tells), "stepper", output=printed)
        os.close(printed)
        os.close(asks)
        os.close(tells)

    def run(self, prepared: Any) -> None:
        """All steps, as kfp.local does it. RuntimeError if one fails."""
        asked = {"request": json.dumps(prepared.asked.stored()), "root": prepared.root, "run": f"run-{os.urandom(6).hex()}"}
        codes = [self._take({**asked, "environment": dict(os.environ), "code": 0, "last": False})]
        codes.append(self._take({**asked, "environment": dict(os.environ), "code": codes[0], "last": True}))
        if any(codes):
            raise RuntimeError(f"the steps ended with {codes[0]}, the last one with {codes[1]}")

    def _take(self, asked: dict[str, Any]) -> int:
        os.write(self._ask, f"{json.dumps(asked)}\n".encode())
        answer = os.read(self._told, 8)
        return int(answer) if answer else 1

    def _serve(self, asks: int, tells: int) -> int:
        os.close(self._ask)
        os.close(self._told)
        with os.fdopen(asks) as lines:
            for line in lines:
                pid = fork(lambda line=line: _take_steps(**json.loads(line)), "step")
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):
                    os.write(tells, f"{code:8}".encode())
        return 0


def _take_steps(request: str, root: str, run: str, environment: dict[str, str], code: int, last: bool) -> int:
    from tests.faults import experiment

    os.environ.clear()
    os.environ.update(environment)
    return experiment.finish_run(root, run, code) if last else experiment.take_steps(request, run)


class Forked:
    """A job, with as much of a Popen as LocalJob needs."""

    def __init__(self, run: Callable[[], int], name: str) -> None:
        out, into = os.pipe()
        self.pid = fork(run, name, output=into)
        os.close(into)
        self.stdout = os.fdopen(out, errors="replace")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As Popen's."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        """As Popen's."""
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode or 0

    def send_signal(self, number: int) -> None:
        """As Popen's."""
        os.kill(self.pid, number)


def _submit(backend: Any, spec: Any) -> Any:
    """In place of LocalBackend.submit: the trainer's command line in a fork."""
    from pipelines.jobs.base import placement_arguments
    from pipelines.jobs.local import LocalJob

    placement = dict(spec.placement) | ({"resume": spec.resume} if spec.resume != "auto" else {})
    arguments = [*spec.arguments, *placement_arguments(placement)]
    return LocalJob(Forked(lambda: _job(arguments, dict(spec.environment)), " ".join(arguments[:2])), backend._grace_seconds)  # type: ignore[arg-type]


def _job(arguments: list[str], environment: dict[str, str]) -> int:
    from trainer.__main__ import main
    from trainer.storage import s3

    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.environ.update(environment)
    s3._store.cache_clear()  # its connections are the step's
    return main(arguments)


# ------------------------------------------------------------------------------------------------- who is there


def descendants(pid: int) -> list[int]:
    """All processes below this one that have not ended, parents first."""
    found: list[int] = []
    for thread in _tasks(pid):
        with contextlib.suppress(OSError):
            for child in map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split()):
                found += ([] if _has_ended(child) else [child]) + descendants(child)
    return found


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def _has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def role(pid: int) -> str:
    """What a process is: pipeline, stepper, step, or the trainer's command; a rank is an executed trainer."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return "gone"
    if not name.startswith(("python", "pt_")) or "tests.faults.forked" in words:
        return name
    begin = words.index("-m") + 1 if "-m" in words else 1
    return f"rank of {words[begin + 2]}" if words[begin : begin + 2] == ["trainer", "train"] else " ".join(words[begin : begin + 3])


if __name__ == "__main__":
    import torch

    import pipelines.__main__  # noqa: F401
    import trainer.__main__
    import trainer.evaluation.evaluate
    import trainer.report.write
    import trainer.run.loop
    import trainer.stages.contrastive
    import trainer.stages.perceptual
    import trainer.stages.posthoc
    import trainer.staging.stage  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # forks share what is never looked at again
    serve(socket.socket(fileno=int(sys.argv[1])))
