"""Ranks that run the real loop in processes of their own, to be killed at any moment and started again.

They are forked from a server that has torch imported, so a restart takes milliseconds and the kills hit the training.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.run import build
from trainer.config import StageConfig
from trainer.errors import InputError, RunError

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.faults.preload"])


def start_ranks(config: StageConfig, world_size: int) -> list[BaseProcess]:
    """One process a rank, each with the environment that torchrun would give it."""
    build.written(config)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks: list[BaseProcess] = []
    for rank in range(world_size):
        process = _CONTEXT.Process(target=_rank, args=(rank, world_size, port, f"{config.output}/config.yaml"), daemon=True)
        process.start()
        ranks.append(process)
    return ranks


def finish(ranks: list[BaseProcess], timeout_seconds: float = 240.0) -> list[int | None]:
    """Wait for all; their exit codes, None for one that had to be killed."""
    deadline = time.monotonic() + timeout_seconds
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in ranks]
    kill(ranks)
    return codes


def kill(ranks: list[BaseProcess]) -> None:
    """SIGKILL for whoever lives, as the agent does to the peers of a rank that died."""
    for process in ranks:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join()


def run_with_kills(config: StageConfig, world_size: int, *, kills: int, last_step: int, seed: int) -> int:
    """Run to the end through `kills` deaths of a random rank, spread over the steps up to `last_step`.

    Every other death comes as soon as a checkpoint's first file appears, before its seal, and hits rank 0, which writes it.

    Returns:
        Deaths that fell into the middle of a save.
    """
    draw = random.Random(seed)
    moments = sorted(draw.randrange(1, last_step) for _ in range(kills))
    torn = 0
    for number, moment in enumerate(moments):
        ranks = start_ranks(config, world_size)
        in_save = number % 2 == 0
        step = _wait_for_step(config, moment, ranks)
        if not in_save:
            time.sleep(draw.uniform(0, 0.1))
        victim = ranks[0 if in_save else draw.randrange(world_size)]
        assert victim.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
        torn += not (_folder(config, step) / "COMMITTED.json").exists()
        kill(ranks)
    codes = finish(start_ranks(config, world_size))
    assert codes == [0] * world_size, codes
    return torn


def _wait_for_step(config: StageConfig, step: int, ranks: list[BaseProcess]) -> int:
    """The step of the first checkpoint at or after `step` that begins to appear from now on."""
    before = _newest(config)
    deadline = time.monotonic() + 120
    while (newest := _newest(config)) < step or newest == before:
        assert all(process.exitcode in (None, 0) for process in ranks), [process.exitcode for process in ranks]
        assert time.monotonic() < deadline, f"no checkpoint after step {before}"
        time.sleep(0.0005)
    return newest


def _newest(config: StageConfig) -> int:
    folder = Path(config.output) / "checkpoints"
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("step-*")), default=0)


def _folder(config: StageConfig, step: int) -> Path:
    return Path(config.output) / "checkpoints" / f"step-{step:09d}"


def _rank(rank: int, world_size: int, port: int, config_uri: str) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="tests",
    )  # fmt: skip
    from trainer.run.train import launch

    try:
        launch(Path(config_uri).parent.name, config_uri, [])
    except (InputError, RunError) as error:
        raise SystemExit(error.exit_code) from error
