"""docs/first-run.txt, a recording of the first run's screens, is what today's code prints."""

import io
import json
import re
from pathlib import Path

from rich.console import Console

from pipelines.local.progress import Display, jobs_of
from pipelines.planning import plan
from pipelines.planning.arms import parse_arms
from trainer.config import DataConfig
from trainer.configs import load_recipe

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "first-run.txt").read_text(encoding="utf-8")
PROGRESS = re.compile(
    r"(?P<name>\S+ \S+)  job (?P<job>\d+) of (?P<jobs>\d+) +(?P<percent>\d+) %  (?P<done>[\d,]+)/(?P<total>[\d,]+) (?P<unit>\w+)"
    r"(?:  (?P<rate>[\d.,]+)/s(?:, \S+ left)?)?(?P<figures>(?:  \w+ \S+)*)"
)


def screens() -> list[tuple[int, list[str]]]:
    """Seconds and lines of each screen."""
    parts = re.split(r"^─+ (\d+):(\d\d) ─+\n", TEXT, flags=re.MULTILINE)[1:]
    return [(60 * int(parts[n]) + int(parts[n + 1]), parts[n + 2].splitlines()) for n in range(0, len(parts), 3)]


def shape(line: str) -> str:
    """The line without its numbers, and without its pace, which a short job may not have."""
    return re.sub(r"[\d.,]*\d", "#", re.sub(r"  [\d.,]+/s(, \S+ left)?", "", line)).strip()


def test_it_is_a_whole_run() -> None:
    """From the command to the page, in order of time; the last screen is in the page of docs, and no path of our machine."""
    found = screens()
    assert len(found) > 5
    assert [seconds for seconds, _ in found] == sorted(seconds for seconds, _ in found)
    assert {lines[0] for _, lines in found} == {"$ make pipeline-run RECIPE=smoke"}
    last = "\n".join(found[-1][1])
    assert "report: /home/you/firstsight/runs/experiments/smoke/report/index.html" in last
    assert f"```\n{last}\n```" in (REPOSITORY / "docs" / "FIRST_RUN.md").read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|work|root)/", TEXT)


def test_every_line_of_a_job_is_what_the_display_prints(tmp_path: Path) -> None:
    """The same job, amount and figures through today's display give the same line except for numbers; jobs count as they begin."""
    experiment = plan.Experiment(
        root="/r", name="smoke", recipe=load_recipe("smoke"), pairs=DataConfig(uri="p"), triplets=DataConfig(uri="t")
    )
    jobs = jobs_of([plan.resolve(experiment, arm, 0) for arm in parse_arms("random,perceptual")])
    lines = [line for line in screens()[-1][1] if (" job " in line)]
    assert len(lines) >= len(jobs)
    numbers: list[int] = []
    for line in lines:
        match = PROGRESS.fullmatch(line)
        assert match, line
        assert int(match["jobs"]) == len(jobs)
        numbers += [int(match["job"])] if int(match["job"]) not in numbers else []
        done, total = (int(match[name].replace(",", "")) for name in ("done", "total"))
        figures = {name: float(value) for name, value in re.findall(r"(\w+) (\S+)", match["figures"])}
        record = {"time": 0.0, "step": match["name"], "done": done, "total": total, "unit": match["unit"], **figures}
        assert shape(shown(tmp_path / "p", record, jobs)) == shape(line)
    assert numbers == list(range(1, len(numbers) + 1))


def shown(place: Path, record: dict[str, object], jobs: list[str]) -> str:
    """What a display without a terminal prints of a record."""
    output = io.StringIO()
    place.write_text(json.dumps(record) + "\n")
    with Display(place, Console(file=output, width=300), jobs=jobs):
        pass
    return output.getvalue()


def test_what_frames_the_jobs_is_what_the_code_says() -> None:
    """Setup's line, the notes of staging, the summary's first words: each is in the source that prints it."""
    last = screens()[-1][1]
    for words, source in (
        ("once: what runs need (some 6 GB, minutes)", "scripts/setup.sh"), (": sealed", "pipelines/steps/staging.py"),
        ("One seed cannot say whether it helps", "trainer/report/answer.py"),
        ("2AFC of baselines without training: ", "trainer/report/results.py"),
    ):  # fmt: skip
        assert any(words in line for line in last), words
        text = (REPOSITORY / source).read_text(encoding="utf-8")
        assert all(word in text for word in words.removeprefix("once: ").removeprefix(": ").split(", "))
