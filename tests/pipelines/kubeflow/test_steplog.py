"""Every line once, in order, whatever answers come."""

import random

import pytest

from pipelines.kubeflow.steplog import GAP, StepLog
from tests.pipelines.kubeflow import recordings

LOGS = sorted(str(path.relative_to(recordings.FOLDER)) for path in recordings.FOLDER.glob("product-*/log-right.*.http"))


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("seed", range(3))
def test_answers_that_repeat_lag_and_are_cut_add_up_to_the_log(name: str, seed: int) -> None:
    text, chance, log, got = recordings.answer(name).body.decode(), random.Random(seed), StepLog(noise=True), list[str]()
    written = 0
    while written < len(text):
        written = min(len(text), written + chance.randint(1, 800))
        lag = chance.choice([0, 0, 0, chance.randint(0, written)])
        got += log.take(text[: written - lag])
    got += log.take(text, ended=True)
    assert got == text.rstrip("\n").split("\n")


def test_an_answer_without_the_beginning_is_laid_on_what_is_known() -> None:
    lines = [f"line {number}" for number in range(100)]
    log = StepLog()
    assert log.take("\n".join(lines[:60]) + "\n") == lines[:60]
    assert log.take("\n".join(lines[30:80]) + "\n") == lines[60:80]
    assert log.take("\n".join(lines[20:50]) + "\n") == []
    assert log.take("\n".join(lines[90:]) + "\n") == [GAP, *lines[90:]]
    assert log.take("\n".join(lines[90:]) + "\nlast", ended=True) == ["last"]


def test_a_line_that_repeats_is_shown_as_often_as_it_was_said() -> None:
    log = StepLog()
    assert log.take("a\na\n") == ["a", "a"]
    assert log.take("a\na\na\nb\n") == ["a", "b"]


def test_a_line_that_is_being_written_waits_for_its_end() -> None:
    log = StepLog()
    assert log.take("one\ntw") == ["one"]
    assert log.take("one\ntwo\n") == ["two"]


@pytest.mark.parametrize("name", LOGS)
def test_what_kfp_says_itself_is_left_out(name: str) -> None:
    lines = StepLog().take(recordings.answer(name).body.decode(), ended=True)
    assert lines or ".plan." in name  # which said nothing
    assert not [line for line in lines if ".go:" in line or "KFP Executor" in line or line in ("{", "}") or line.startswith("    ")]


def test_the_reason_of_a_failed_step_is_what_it_said_last() -> None:
    text = recordings.answer("product-failed/log-right.contrastive.142855384.http").body.decode()
    assert StepLog().take(text, ended=True)[-1].startswith("train: PyTorchJob contrastive-random-s0-1918b27177 was deleted")
    assert StepLog().take("", ended=True) == []
