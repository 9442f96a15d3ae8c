"""Pauses between tries, on a clock that the tests turn."""

import random

import pytest

from trainer.errors import RunError
from trainer.storage import retries
from trainer.storage.retries import Backoff, Retries, retry_after


class Clock:
    """Stands for the module `time`; sleeping moves it on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Sleep without waiting."""
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In place of the machine's; pauses are the product's own, not the suite's shorter ones."""
    clock = Clock()
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.2)
    monkeypatch.setattr(retries, "time", clock)
    return clock


def wait_until_given_up(tries: Retries) -> None:
    """Fail again and again."""
    while True:
        tries.wait("the store is away")


def test_pauses_double_up_to_the_most_and_are_jittered() -> None:
    """So that the clients of a server that came back do not come back all at once."""
    backoff, most = Backoff(first=1.0, most=8.0), [1, 2, 4, 8, 8, 8]
    shares = [backoff.seconds() / pause for pause in most]

    assert all(0.5 <= share <= 1.0 for share in shares)
    assert len(set(shares)) > 1


def test_what_went_well_begins_with_the_first_pause_again() -> None:
    """A later failure is another one."""
    backoff = Backoff(first=1.0, most=100.0)
    for _ in range(5):
        backoff.seconds()
    backoff.reset()

    assert backoff.seconds() <= 1.0


def test_tries_end_before_the_time_does(clock: Clock) -> None:
    """The error says why, how often and for how long; the last pause would have gone beyond the time."""
    tries = Retries(10.0)

    with pytest.raises(RunError, match=r"^the store is away \(given up after \d+ tries in \d+ s\)$"):
        wait_until_given_up(tries)

    assert 3.0 < clock.now <= 10.0
    assert clock.pauses[0] <= 0.2


def test_progress_gives_the_whole_time_again(clock: Clock) -> None:
    """And the first pause."""
    tries = Retries(10.0)
    for _ in range(5):
        tries.wait("cut off")
    clock.now += 8.0
    tries.restart()
    tries.wait("cut off")

    assert clock.pauses[-1] <= 0.2


def test_a_server_may_ask_for_a_longer_pause(clock: Clock) -> None:
    """By Retry-After."""
    Retries(10.0).wait("busy", at_least=3.0)

    assert clock.pauses == [3.0]


def test_one_wait_may_be_allowed_less(clock: Clock) -> None:
    """A first contact is soon given up."""
    with pytest.raises(RunError, match="given up after 1 tries in 0 s"):
        Retries(300.0).wait("nothing answers", seconds=0.05)

    assert clock.pauses == []


@pytest.mark.parametrize(("header", "expected"), [("7", 7.0), ("120", 30.0), ("", 0.0), ("²", 0.0), ("Wed, 21 Oct 2026", 0.0)])
def test_retry_after_is_read_where_it_is_seconds(header: str, expected: float) -> None:
    """A date, or nothing, asks for no pause."""
    assert retry_after(header, most=30.0) == expected


def test_pauses_leave_the_interpreters_generator_alone() -> None:
    """Threads pause while others draw from it; and clients that seeded it alike must not come back at the same time."""
    state = random.getstate()
    Backoff().seconds()
    assert random.getstate() == state
