"""The leader's log through what happens to connections, containers and pods: each line once, gaps marked, progress told."""

import json
from pathlib import Path

import pytest

from pipelines.jobs.loglines import Progress
from tests.pipelines.launching import Scene, scene
from tests.pipelines.operator import eventually
from trainer.progress import PROGRESS_VARIABLE, read_step_line, step_line

__all__ = ["scene"]


def seconds(number: float) -> str:
    """A kubelet's timestamp in fixed width."""
    return f"2026-01-01T00:{int(number // 60):02d}:{number % 60:012.9f}Z"


def test_lines_come_once_over_a_connection_that_breaks_again_and_again(scene: Scene):
    """The server counts whole seconds, so it sends some lines again; those of the same instant are told apart by their number."""
    launch = scene.running()
    for number in range(30):
        scene.api.log(scene.pod(0), f"line {number}", when=seconds(number // 3 * 0.4))
        if number % 7 == 6:
            eventually(lambda number=number: f"line {number}" in launch.lines)  # type: ignore[misc]
            scene.api.drop()
    eventually(lambda: "line 29" in launch.lines)

    assert [line for line in launch.lines if line.startswith("line")] == [f"line {number}" for number in range(30)]
    assert "missing" not in launch.text()


def test_a_container_that_is_started_again_has_both_its_logs_read(scene: Scene):
    launch = scene.running()
    scene.api.log(scene.pod(0), "before", when=seconds(1))
    eventually(lambda: "before" in launch.lines)
    with scene.api._changed:
        scene.api.logs[(scene.pod(0), "pytorch~")] = [*scene.api.logs.pop((scene.pod(0), "pytorch")), f"{seconds(2)} the end"]
        scene.api.logs[(scene.pod(0), "pytorch")] = [f"{seconds(9)} after"]
        scene.operator.restart(scene.pod(0))
        scene.api.drop()
    eventually(lambda: "after" in launch.lines)

    text = [line for line in launch.lines if "PyTorchJob" not in line]
    assert text == [
        "before", "the end", f"--- {scene.pod(0)} was restarted (1 times so far); complete: {scene.folder}/log.txt", "after",
    ]  # fmt: skip


def test_a_pod_that_is_replaced_leaves_a_mark(scene: Scene):
    launch = scene.running()
    scene.api.log(scene.pod(0), "before", when=seconds(1))
    eventually(lambda: "before" in launch.lines)
    scene.api.remove("pods", scene.pod(0))
    scene.api.logs[(scene.pod(0), "pytorch")] = [f"{seconds(5)} of the new pod"]
    job = scene.job()
    assert job is not None
    scene.operator.make_pod(job, 0)
    scene.api.drop()
    eventually(lambda: "of the new pod" in launch.lines)

    assert f"{scene.pod(0)} was replaced by a new pod; the end of its predecessor's log may be missing here" in launch.text()


def test_lines_that_were_rotated_away_leave_a_mark(scene: Scene):
    launch = scene.running()
    scene.api.log(scene.pod(0), "before", when=seconds(1))
    eventually(lambda: "before" in launch.lines)
    with scene.api._changed:
        scene.api.logs[(scene.pod(0), "pytorch")] = [f"{seconds(5)} much later"]
        scene.api.drop()
    eventually(lambda: "much later" in launch.lines)

    assert "lines may be missing here" in launch.text()


def test_a_launcher_that_adopts_a_job_reads_its_log_from_the_beginning(scene: Scene):
    first = scene.running()
    scene.api.log(scene.pod(0), "at the beginning")
    eventually(lambda: "at the beginning" in first.lines)
    second = scene.launch()

    assert eventually(lambda: "at the beginning" in second.lines)


def test_a_step_line_is_read_as_it_was_written():
    line = f"2026-01-01 INFO {step_line('contrastive perceptual-seed0', 120, 1000, 3.21456, 512.04)}"

    assert read_step_line(line) == (120, 1000, 3.2146, 512.0)
    assert read_step_line("contrastive perceptual-seed0: resumed at step 12 of 20") is None


def test_progress_moves_the_bar_and_says_a_line_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By the kubelet's clock, so a log that is read late tells the same."""
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "progress.jsonl"))
    said: list[str] = []
    watch = Progress("contrastive random-seed0", said.append)
    for number in range(13):
        watch.take(seconds(10 * number), step_line("contrastive random-seed0", 10 * number, 1000, 2.0, 64.0))
    watch.take(seconds(125), "something else")

    records = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [record["done"] for record in records] == [10 * number for number in range(13)]
    assert records[-1] | {"time": 0} == {
        "time": 0, "step": "contrastive random-seed0", "done": 120, "total": 1000, "unit": "steps", "loss": 2.0, "samples_per_second": 64.0,
    }  # fmt: skip
    assert said == [
        "--- 1 %, step 10 of 1,000, loss 2.0000, 64.0 samples/s, 16:30 left",
        "--- 7 %, step 70 of 1,000, loss 2.0000, 64.0 samples/s, 15:30 left",
    ]


def test_the_log_of_a_container_that_ended_is_read_once(scene: Scene):
    """Its job may go on for long, with other pods."""
    launch = scene.running()
    scene.api.log(scene.pod(0), "the end")
    scene.api.end_log(scene.pod(0))
    ended = {"name": "pytorch", "state": {"terminated": {"exitCode": 0}}, "restartCount": 0}
    scene.operator.status(scene.pod(0), containerStatuses=[ended])
    eventually(lambda: "the end" in launch.lines and ("watch", "events") in scene.api.requests)
    with pytest.raises(AssertionError):
        eventually(launch.job.watch, seconds=0.2)
    before = len(scene.api.requests)
    with pytest.raises(AssertionError):
        eventually(launch.job.watch, seconds=0.5)

    assert len(scene.api.requests) == before
