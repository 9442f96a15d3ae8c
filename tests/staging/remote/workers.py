"""Processes that run commands of the trainer at the same time, forked before there are threads and started at a word."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator


class Worker:
    """A forked process that waits for a command line; `start` gives it one, `wait` its exit code (of a signal the negative number)."""

    def __init__(self) -> None:
        read, self._write = os.pipe()
        self.pid = os.fork()
        self._code: int | None = None
        if self.pid == 0:
            os.close(self._write)
            os._exit(_work(read))
        os.close(read)

    def start(self, *arguments: str) -> None:
        os.write(self._write, json.dumps(arguments).encode() + b"\n")
        os.close(self._write)
        self._write = -1

    def kill(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def end(self) -> None:
        if self._write >= 0:
            os.close(self._write)
        self.kill()
        self.wait()


def _work(pipe: int) -> int:
    """Run the command line that comes through the pipe; its exit code."""
    try:
        with open(pipe, encoding="utf-8") as stream:
            text = stream.readline()  # not to its end: workers that were forked later hold it open too
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        log = os.open(os.environ.get("FIRSTSIGHT_TEST_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        from trainer.__main__ import main

        return main(json.loads(text)) if text else 0
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        return 99


@contextlib.contextmanager
def workers(count: int) -> Iterator[list[Worker]]:
    """So many of them, ended with the block."""
    found = [Worker() for _ in range(count)]
    try:
        yield found
    finally:
        for worker in found:
            worker.end()
