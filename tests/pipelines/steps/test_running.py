"""What a step does with a signal that arrives where Python ignores exceptions."""

import os
import signal
import threading

import pytest

from pipelines.steps import running


@pytest.mark.parametrize("hook", [True, False])
def test_a_signal_ends_the_step_wherever_it_arrives(hook: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised in a hook of os.fork, as logging has them, it would only be printed with its traceback, and the step would go on."""
    monkeypatch.setattr(running.logging, "__file__", __file__ if hook else "elsewhere.py")
    arrived: list[str] = []

    @running.step
    def run() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        arrived.append("after the signal")
        running.check_caller(threading.Event())
        arrived.append("after the look at the job")

    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 130
    assert arrived == (["after the signal"] if hook else [])


def test_the_signal_of_an_earlier_step_does_not_end_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a test, or of a notebook, share a process."""
    monkeypatch.setattr(running, "_interrupts", [signal.SIGTERM])
    done: list[bool] = []

    @running.step
    def run() -> None:
        running.check_caller(threading.Event())
        done.append(True)

    run()
    assert done
