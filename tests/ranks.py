"""Run a function on several gloo ranks of this machine, each a process, and collect what it returns."""

import multiprocessing
import os
import socket
import subprocess
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.ranks_preload"])


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: object) -> list[Any]:
    """`function(distributed, *arguments)` on `world_size` ranks; its results in the order of the ranks.

    Args:
        function: importable by name; what it returns is pickled, so let it return numbers and numpy arrays.
        world_size: number of processes; 1 runs without a process group.
        *arguments: pickled.

    Raises:
        AssertionError: a rank raised; the message holds its traceback.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ends, processes = [], []
    for rank in range(world_size):
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_rank, args=(rank, world_size, port, theirs, function, arguments), daemon=True)
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    try:
        outcomes = [end.recv() for end in ends]
    finally:
        for process in processes:
            process.join(30)
            if process.is_alive():
                process.kill()
    failures = [text for failed, text in outcomes if failed]
    assert not failures, "\n".join(failures)
    return [value for _, value in outcomes]


def children_of(agent: "subprocess.Popen[bytes]") -> list[int]:
    """The process ids of an elastic agent's ranks."""
    return [int(pid) for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]


def _rank(rank: int, world_size: int, port: int, end: Connection, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    from trainer.config import Placement
    from trainer.model import distributed

    try:
        dist = distributed.start(Placement(device="cpu", threads=1))
        result = (False, function(dist, *arguments))
    except BaseException:
        result = (True, f"rank {rank}:\n{traceback.format_exc()}")
    end.send(result)
    distributed.stop()
