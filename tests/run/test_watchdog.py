"""How a step that hangs ends, and what it leaves."""

import sys
import threading
import time
import types
from pathlib import Path

import pytest

from tests.logged import records
from tests.run.toy import ToyStage, Trained, toy_config
from trainer import logs
from trainer.run import health


def end_instead(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], threading.Event]:
    """Watchdogs set the event, and leave their code in the list, where they would end the process."""
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()
        raise SystemExit  # of the watchdog's thread

    monkeypatch.setattr(health, "os", types.SimpleNamespace(_exit=end, environ={}))
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    return codes, ended


def test_a_step_that_hangs_tells_its_stack_and_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack names the function that hangs, on standard error and for the store; the line names the setting; the exit code is 1."""
    said: list[tuple[str, str]] = []
    codes, ended = end_instead(monkeypatch)

    def stuck_in_a_collective() -> None:
        assert ended.wait(60)

    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr(sys, "__stderr__", stderr)
        dog = health.Watchdog(0.2, "toy", lambda *told: said.append(told))
        stuck_in_a_collective()
        dog.close()
    assert codes == [1]
    ((line, stacks),) = said
    assert line == "toy: a step took longer than placement.watchdog_seconds 0.2"
    assert all("stuck_in_a_collective" in text for text in (stacks, (tmp_path / "stderr").read_text()))


def test_where_logs_are_records_the_stacks_are_one(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """In the field for tracebacks, beside the line."""
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    _, ended = end_instead(monkeypatch)
    with logs.speaking("trainer"):
        dog = health.Watchdog(0.2, "toy", lambda *_: None)
        assert ended.wait(60)
        dog.close()
    (told,) = records(capfd.readouterr().err)
    assert (told["level"], told["message"]) == ("critical", "toy: a step took longer than placement.watchdog_seconds 0.2")
    assert "test_where_logs_are_records" in told["traceback"]


def test_a_run_that_hangs_leaves_its_ranks_stacks_in_the_store(tmp_path: Path, run_toy: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """By step and rank, and failure.json says where."""
    codes, ended = end_instead(monkeypatch)

    def hang(stage: ToyStage) -> None:
        if stage.served.served[-1] == 3:
            assert ended.wait(60)

    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr(sys, "__stderr__", stderr)
        run_toy(toy_config(tmp_path, watchdog_seconds=3.0), after=hang)
    assert codes == [1]
    assert "in hang" in (tmp_path / "stage" / "hung" / "step-000000003" / "rank-0.txt").read_text()


def test_the_limit_follows_the_slowest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before the pace is known, without the first ones, which compile; at least the floor, at most the setting."""
    now = [0.0]
    monkeypatch.setattr(health, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def steps(count: int, seconds: float) -> float:
        for _ in range(count):
            now[0] += seconds
            dog.beat()
        return dog.limit

    dog = health.Watchdog(1800.0, "toy", lambda *_: None)
    try:
        assert steps(50, 100.0) == 1800
        assert steps(49, 0.5) == 1800
        assert steps(1, 0.5) == 600
        assert steps(1, 40.0) == 800
        assert steps(1, 0.5) == 800
        assert dog._reason() == "800 s; the slowest one before it took 40 s"
        assert steps(1, 200.0) == 1800
    finally:
        dog.close()


def test_a_store_that_may_take_longer_raises_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that waits for its data holds up all the others, which are not hung."""
    now = [0.0]
    monkeypatch.setattr(health, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "700")
    dog = health.Watchdog(1800.0, "toy", lambda *_: None)
    for _ in range(100):
        now[0] += 0.1
        dog.beat()
    dog.close()
    assert dog.limit == 1400


def test_steps_that_end_keep_the_watchdog_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats closer than the limit, for longer than the limit in all."""
    now, said = [0.0], list[str]()
    monkeypatch.setattr(health, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    dog = health.Watchdog(0.1, "toy", lambda line, _: said.append(line))
    for _ in range(12):
        now[0] += 0.09
        time.sleep(0.02)  # in which it looks
        dog.beat()
    dog.close()
    assert not said


def test_a_watchdog_ends_the_process_even_where_it_cannot_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is down keeps no GPU."""
    codes, ended = end_instead(monkeypatch)

    def say(*_: str) -> None:
        raise OSError("store is down")

    dog = health.Watchdog(0.1, "toy", say)
    assert ended.wait(60)
    dog.close()
    assert codes == [1]
