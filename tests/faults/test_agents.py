"""The elastic agent: of one machine whose ranks are killed, and two of one job, as the pods of a PyTorchJob start them, over loopback."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults import campaign
from tests.faults.test_kills import weights_of
from tests.ranks import children_of, run_ranks
from tests.run import build
from trainer.config import StageConfig
from trainer.model.distributed import Distributed
from trainer.run.starting import from_main
from trainer.storage.committed import read_committed


def start_agent(config: StageConfig, **job: str) -> subprocess.Popen[bytes]:
    """The trainer's command line; `job` are the variables by which an operator says that there are more machines."""
    command = [sys.executable, "-m", "trainer", "train", "contrastive", "--config", f"{config.output}/config.yaml"]
    with (Path(config.output) / "agents.log").open("ab") as log:
        return subprocess.Popen(command, env={**os.environ, **job}, stdout=log, stderr=log)


def wait_for_step(config: StageConfig, step: int, agents: list[subprocess.Popen[bytes]]) -> None:
    """A checkpoint at or after `step` has begun to appear."""
    deadline = time.monotonic() + 240
    while campaign._newest(config) < step:
        assert all(agent.poll() is None for agent in agents), (Path(config.output) / "agents.log").read_text()[-3000:]
        assert time.monotonic() < deadline, f"no checkpoint after step {step}"
        time.sleep(0.01)


def start_pod(config: StageConfig, port: int) -> subprocess.Popen[bytes]:
    """One pod's trainer: training-operator's variables for an elastic job of exactly two, one rank each."""
    job = {"PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}", "PET_NNODES": "2:2"}
    return start_agent(config, **job, PET_NPROC_PER_NODE="1", PET_MAX_RESTARTS="10")


def start_both(config: StageConfig, port: int) -> list[subprocess.Popen[bytes]]:
    """The first holds the rendezvous, as worker 0 does."""
    first = start_pod(config, port)
    while True:
        assert first.poll() is None
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return [first, start_pod(config, port)]
        time.sleep(0.1)


def wait_until_it_waits(pid: int) -> None:
    """The process has computed for a second (it imports torch), and does so no longer."""
    ticks, deadline = os.sysconf("SC_CLK_TCK"), time.monotonic() + 120
    before = 0.0
    while True:
        now = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / ticks
        if now > 1.0 and now - before < 0.02:
            return
        assert time.monotonic() < deadline, f"process {pid} still computes"
        before = now
        time.sleep(1.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_while_ranks_wait_for_each_other_ends_them(tmp_path: Path) -> None:
    """A rank that waits inside the group's making hears no Python handler: it would hold on until the agent lost its patience."""
    config = build.contrastive(tmp_path, epochs=100, processes_per_node=2)
    build.written(config)
    agent = start_agent(config)
    try:
        while len(ranks := children_of(agent)) < 2:
            time.sleep(0.01)
        os.kill(ranks[0], signal.SIGSTOP)
        wait_until_it_waits(ranks[1])  # for the first, to make the group
        agent.send_signal(signal.SIGINT)
        time.sleep(0.5)
        os.kill(ranks[0], signal.SIGCONT)
        assert agent.wait(90) == 143
    finally:
        agent.kill()
        agent.wait()
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("world_size", "kills"), [pytest.param(2, 2, marks=pytest.mark.slow), pytest.param(3, 5, marks=pytest.mark.campaign)]
)
def test_ranks_that_die_one_after_another_leave_no_trace_in_the_weights(tmp_path: Path, world_size: int, kills: int) -> None:
    """SIGKILL of one rank after another under one agent, which starts all again each time: bit-equal to the run left alone."""
    whole = build.contrastive(tmp_path / "whole", epochs=100, processes_per_node=world_size)
    assert campaign.finish(campaign.start_ranks(whole, world_size)) == [0] * world_size
    config = build.contrastive(tmp_path / "killed", epochs=100, processes_per_node=world_size, checkpoint_every_steps=1, max_restarts=9)
    build.written(config)
    agent = start_agent(config)
    try:
        for kill in range(kills):
            wait_for_step(config, campaign._newest(config) + 15, [agent])
            ranks = children_of(agent)
            assert len(ranks) == world_size
            os.kill(ranks[kill % world_size], signal.SIGKILL)
        assert agent.wait(240) == 0, (Path(config.output) / "agents.log").read_text()[-3000:]
    finally:
        agent.kill()
        agent.wait()
    assert weights_of(config) == weights_of(whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_pod_is_replaced_and_leaves_no_trace_in_the_weights(tmp_path: Path) -> None:
    """SIGKILL of one agent, then SIGTERM, then SIGKILL of the one that holds the rendezvous: bit-equal to the run left alone.

    With an elastic policy the first worker that ends ends the job, so both exit 0 only after the model is sealed.
    """
    whole = build.contrastive(tmp_path / "whole", epochs=100, nodes=2)
    assert campaign.finish(campaign.start_ranks(whole, 2)) == [0, 0]
    config = build.contrastive(tmp_path / "lost", epochs=100, nodes=2, checkpoint_every_steps=1)
    build.written(config)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    agents = start_both(config, port)
    try:
        for number, exit_code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
            wait_for_step(config, campaign._newest(config) + 20, agents)
            agents[1].send_signal(number)
            assert agents[1].wait(180) == exit_code
            agents[1] = start_pod(config, port)
        wait_for_step(config, campaign._newest(config) + 20, agents)
        agents[0].kill()
        assert (agents[0].wait(180), agents[1].wait(180)) == (-signal.SIGKILL, 1)
        assert "machines lost the rendezvous (worker 0)" in (Path(config.output) / "agents.log").read_text()
        agents = start_both(config, port)
        while all(agent.poll() is None for agent in agents):
            time.sleep(0.01)
        assert read_committed(f"{config.output}/final") is not None
        assert [agent.wait(180) for agent in agents] == [0, 0], (Path(config.output) / "agents.log").read_text()[-3000:]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    assert weights_of(config) == weights_of(whole)
    seal = read_committed(f"{config.output}/final")
    assert seal is not None
    assert seal.facts["restarts"] >= 3


def _finish_slowly(dist: Distributed, seal: str) -> bool:
    def finish() -> None:
        time.sleep(0.5)
        Path(seal).touch()

    from_main(dist, finish)
    return Path(seal).exists()


def test_every_rank_waits_for_the_seal(tmp_path: Path) -> None:
    """What rank 0 does last is done when any rank goes on, also on other machines."""
    assert run_ranks(_finish_slowly, 2, str(tmp_path / "COMMITTED.json")) == [True, True]
