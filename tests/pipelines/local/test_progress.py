import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.local.progress import Display, Step, jobs_of
from pipelines.planning import plan
from pipelines.planning.arms import parse_arms
from pipelines.steps.notes import note
from trainer.config import DataConfig, Placement
from trainer.configs import load_recipe
from trainer.progress import PROGRESS_VARIABLE, progress


def record(time: float, done: int, total: int = 100, **figures: object) -> dict[str, object]:
    """One record as trainer.progress writes it."""
    return {"time": time, "step": "contrastive random-seed0", "done": done, "total": total, "unit": "samples", **figures}


def shown(path: Path, records: list[dict[str, object]], *, verbose: bool = False) -> list[str]:
    """The lines that a display without a terminal prints."""
    output = io.StringIO()
    path.write_text("".join(json.dumps(item) + "\n" for item in records))
    with Display(path, Console(file=output, width=200), verbose=verbose):
        pass
    return output.getvalue().splitlines()


def test_rate_and_time_left_come_from_the_records():
    """50 units in 10 seconds leave 10 seconds for the other 50."""
    step = Step(name="s")
    step.update(record(0, 0))
    step.update(record(10, 50, loss=3.25))

    assert step.amount() == "50/100 samples"
    assert step.pace() == "5/s, 0:10 left"
    assert step.extras() == "loss 3.25"


def test_a_step_that_went_back_starts_its_rate_anew():
    """After a resume fewer are done than before."""
    step = Step(name="s")
    for item in (record(0, 0), record(10, 50), record(20, 20)):
        step.update(item)

    assert step.rate == 0


def test_plain_lines_come_at_most_every_ten_seconds(tmp_path: Path):
    """The first, those ten seconds apart, and the last."""
    lines = shown(tmp_path / "p", [record(second, second) for second in range(26)] + [record(26, 100)])

    assert [line.split()[2] for line in lines] == ["0", "10", "20", "100"]


def test_a_step_without_a_total_shows_what_is_done(tmp_path: Path):
    """No bar and no time left can be known."""
    (line,) = shown(tmp_path / "p", [record(0, 7, 0)])

    assert "7 samples" in line


def test_jobs_are_numbered_as_they_begin(tmp_path: Path):
    """Parts of staging are one job, what two cells share is counted once, and what is no job has no number."""
    experiment = plan.Experiment(
        root="/r", name="e", recipe=load_recipe("smoke"), pairs=DataConfig(uri="p"), triplets=DataConfig(uri="t"), placement=Placement()
    )
    jobs = jobs_of([plan.resolve(experiment, arm, 0) for arm in parse_arms("random,perceptual,permuted,posthoc")])
    assert len(jobs) == 2 + 5 + 4  # one tower for two arms, one contrastive stage for random and posthoc
    said = [
        {**record(0, 100), "step": name}
        for name in ("judge triplets", "stage my-pairs", "stage my-triplets", "contrastive random-seed0", "x")
    ]
    said.append({"time": 1, "step": "evaluate random-seed0", "note": "already done", "detail": False})
    said.append({**record(0, 100), "step": "evaluate perceptual-seed0"})
    output, path = io.StringIO(), tmp_path / "p"
    path.write_text("".join(json.dumps(item) + "\n" for item in said))
    with Display(path, Console(file=output, width=200), jobs=jobs):
        pass
    lines = output.getvalue().splitlines()
    assert [found[1] if (found := re.search(r"  job (\d+) of 11  100 %", line)) else "" for line in lines] == [
        "1",
        "2",
        "1",
        "3",
        "",
        "",
        "5",
    ]


def test_details_are_shown_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A step that a cell does not need is one."""
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "p"))
    note("perceptual random-seed0", "not needed by this arm", detail=True)
    note("contrastive random-seed0", "already done")
    records = [json.loads(line) for line in (tmp_path / "p").read_text().splitlines()]

    assert shown(tmp_path / "q", records) == ["contrastive random-seed0: already done"]
    assert len(shown(tmp_path / "q", records, verbose=True)) == 2


def test_a_half_written_record_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The writer may be between two writes of the disk."""
    path, output = tmp_path / "p", io.StringIO()
    monkeypatch.setenv(PROGRESS_VARIABLE, str(path))
    progress("s", 1, 2, "samples")
    whole = path.read_bytes()
    with Display(path, Console(file=output, width=200)) as display:
        path.write_bytes(whole + b'{"time": 1, "step"')
        display.poll()
        display.poll()

    assert output.getvalue().count("1/2 samples") >= 1


def test_a_line_that_a_full_disk_cut_short_is_passed_over(tmp_path: Path):
    """And the one that was appended to it; the next ones count."""
    path, output = tmp_path / "p", io.StringIO()
    whole = json.dumps(record(10, 50)).encode() + b"\n"
    path.write_bytes(whole[:30] + whole + b"\n17\n" + json.dumps({**record(11, 1), "total": 2}).encode() + b"\n")
    with Display(path, Console(file=output, width=200)):
        pass
    assert [line.split("  ")[-1] for line in output.getvalue().splitlines()] == ["1/2 samples"]


def test_a_terminal_gets_bars(tmp_path: Path):
    """Redrawn in place, with the amount beside them."""
    path, output = tmp_path / "p", io.StringIO()
    path.write_text(json.dumps(record(0, 0)) + "\n" + json.dumps(record(10, 50)) + "\n")
    with Display(path, Console(file=output, force_terminal=True, width=120)) as display:
        display.poll()

    assert "50/100 samples" in output.getvalue()
    assert "━" in output.getvalue()


def test_why_several_steps_failed_is_said_once(tmp_path: Path):
    """And whoever prints the reasons at the end knows which of them were the last words."""
    said = [("a", "failed: too few"), ("b", "failed: too few"), ("c", "already done"), ("d", "failed: no room"), ("e", "failed: too few")]
    path, output = tmp_path / "p", io.StringIO()
    path.write_text("".join(json.dumps({"time": 1, "step": step, "note": text}) + "\n" for step, text in said))
    with Display(path, Console(file=output, width=200)) as display:
        display.poll()

    assert output.getvalue().splitlines() == [
        "a: failed: too few", "b: failed for the same reason", "c: already done", "d: failed: no room", "e: failed for the same reason"
    ]  # fmt: skip
    assert display.last_reasons == ["no room", "too few"]
