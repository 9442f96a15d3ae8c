"""Runs on machines of their own: in containers that share a hostname, with a clock that is wrong, as another user."""

import contextlib
import json
import os
from collections.abc import Iterator

import pytest

from tests.fault_proxy import FaultProxy, Status, fault_proxy
from tests.machines import HOSTNAME, Machine, are_possible
from tests.servers import S3Server
from trainer.storage import join, read_bytes

pytestmark = pytest.mark.skipif(not are_possible(), reason="needs namespaces of its own: root, or user namespaces")

TAKE = """
from trainer.errors import InputError
lease.HEARTBEAT_SECONDS = 0.5
print("ready", flush=True)
while True:
    lease.STALE_SECONDS = float(input() or 300)
    lease.WATCH_SECONDS = min(5.0, lease.STALE_SECONDS)
    try:
        with lock.exclusive(sys.argv[1]) as held:
            print("held", os.getpid(), flush=True)
            while not held.lost() and not os.path.exists(sys.argv[2]):
                time.sleep(0.05)
        print(held.lost() or "released", flush=True)
    except InputError as error:
        print(error, flush=True)
"""


@pytest.fixture
def proxies(s3_server: S3Server) -> Iterator[list[FaultProxy]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(fault_proxy(s3_server.endpoint)) for _ in range(3)]


@pytest.fixture
def three(proxies: list[FaultProxy], s3_root: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    """The second one's clock is three minutes ahead, the third one runs as another user where that can be."""
    settings = [{}, {"skew": 180.0}, {"user": 65534 if os.getuid() == 0 else 0}]
    stop = str(tmp_path_factory.mktemp("stop") / "stop")
    with contextlib.ExitStack() as stack:
        machines = [
            stack.enter_context(Machine(proxy.endpoint, TAKE, s3_root, stop, **each))  # type: ignore[arg-type]
            for proxy, each in zip(proxies, settings, strict=True)
        ]
        assert [machine.line() for machine in machines] == ["ready"] * 3
        yield machines


def test_of_three_that_begin_at_once_one_wins_and_the_others_name_it(three: list[Machine]):
    """Whoever it is."""
    for machine in three:
        machine.say()
    lines = [machine.line() for machine in three]

    (winner,) = [line for line in lines if line.startswith("held")]
    for line in set(lines) - {winner}:
        assert f"is being run by process {winner.partition(' ')[2]} on {HOSTNAME}" in line


@pytest.mark.parametrize("first", [1, *(pytest.param(first, marks=pytest.mark.campaign) for first in (0, 2))])
def test_nobody_takes_over_from_one_whose_heartbeat_is_refused_once(
    three: list[Machine], proxies: list[FaultProxy], s3_root: str, first: int
):
    """Its clock may be any."""
    three[first].say()
    assert three[first].line().startswith("held")
    beats = _beats(s3_root)
    proxies[first].applies = lambda method, path: method == "PUT" and path.partition("?")[0].endswith("run.lock")
    proxies[first].faults.append(Status(403, "AccessDenied"))
    while proxies[first].faults or _beats(s3_root) < beats + 2:
        assert three[first].process.poll() is None
    for machine in (three[first - 1], three[first - 2]):
        machine.say()
        assert "is being run by process" in machine.line()


def test_one_that_was_killed_elsewhere_is_taken_over_when_its_heartbeat_has_expired(three: list[Machine]):
    """And named before: in another container nobody can know it sooner."""
    three[0].say()
    number = three[0].line().partition(" ")[2]
    three[0].kill()
    three[1].say()
    assert f"process {number} on {HOSTNAME}" in (line := three[1].line())
    assert "if it was killed, try again in " in line
    for machine in three[1:]:
        machine.say("2")
    lines = sorted(machine.line() for machine in three[1:])

    while not any(line.startswith("held") for line in lines):  # too early
        for machine in three[1:]:
            machine.say("2")
        lines = sorted(machine.line() for machine in three[1:])
    assert [line.startswith("held") for line in lines].count(True) == 1


def _beats(root: str) -> int:
    return int(json.loads(read_bytes(join(root, "run.lock")))["beats"])
