"""Where records are asked for, every line is one, whoever wrote it, and its schema is that of the docs."""

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from pipelines.jobs.loglines import Progress
from pipelines.jobs.monitor import last_line
from pipelines.steps import running
from tests.logged import records
from tests.run import build
from trainer import logs
from trainer.errors import InputError, exit_code
from trainer.progress import PROGRESS_VARIABLE, step_line


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch."""
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")


@pytest.mark.usefixtures("as_json")
def test_whatever_is_printed_is_a_record(capfd: pytest.CaptureFixture[str]) -> None:
    """In pieces, on either stream, by a logger, as a warning, in several lines, with every kind of letter."""
    with logs.speaking("trainer"):
        logs.bind(experiment="demo", arm="random", point="", seed=0, stage="contrastive")
        print("one", end="")
        print(' "two"\\')
        print("a\r\nb\n\n", file=sys.stderr)
        logging.getLogger("some.library").warning("%s of %d", "1", 2)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old ways", stacklevel=1)
        logs.bind(step=7)
        logs.say("é\u2028\x00", "error")
        sys.stdout.write("no end")
    out, err = capfd.readouterr()
    found = records(out) + records(err)
    assert [one["message"] for one in found[:2]] == ['one "two"\\', "no end"]
    assert [one["message"] for one in found[2:5]] == ["a", "b", "1 of 2"]
    assert "UserWarning: old ways" in found[5]["message"]
    assert [one["level"] for one in found[2:]] == ["info", "info", "warning", "warning", "error"]
    assert found[-1]["message"] == "é\u2028\x00"
    own = {name: value for name, value in found[-1].items() if name not in ("time", "message")}
    assert own == {
        "level": "error",
        "component": "trainer",
        "experiment": "demo",
        "arm": "random",
        "seed": 0,
        "stage": "contrastive",
        "step": 7,
    }
    assert "step" not in found[0]
    assert sys.stdout is not None
    assert not isinstance(sys.stdout, logs._Lines)


@pytest.mark.usefixtures("as_json")
def test_a_traceback_is_one_field(capfd: pytest.CaptureFixture[str]) -> None:
    """Of what nobody caught, in a thread or not; of what a logger shows; of what -v shows."""

    def fail() -> None:
        raise KeyError("x\ny")

    def work() -> None:
        with logs.speaking("launcher"):
            thread = threading.Thread(target=fail, name="reader")
            thread.start()
            thread.join()
            try:
                fail()
            except KeyError:
                logging.getLogger("trainer").exception("it failed")
            fail()

    with pytest.raises(SystemExit, match="1"):
        work()

    def refuse() -> int:
        raise InputError("not that")

    assert exit_code("trainer train", refuse, verbose=True, component="trainer") == 2
    out, err = capfd.readouterr()
    found = records(err)
    assert out == ""
    assert [one["message"] for one in found] == [
        "reader: KeyError: 'x\\ny'", "it failed", "KeyError: 'x\\ny'", "trainer train: not that",
    ]  # fmt: skip
    assert [one["level"] for one in found] == ["error", "error", "critical", "error"]
    assert all(one["traceback"].startswith("Traceback (most recent call last):\n") for one in found)


@pytest.mark.usefixtures("as_json")
def test_a_library_s_own_handlers_and_levels_are_those_of_the_schema(capfd: pytest.CaptureFixture[str]) -> None:
    """A level that it adds, a handler that holds standard error from before, one that it makes later, arguments that do not fit."""
    library = logging.getLogger("some.library")
    before = logging.StreamHandler(sys.stderr)
    library.addHandler(before)
    try:
        with logs.speaking("trainer"):
            logging.addLevelName(35, "NOTICE")
            library.log(35, "noticed")
            later = logging.StreamHandler()
            later.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
            library.addHandler(later)
            library.warning("said once")
            (ours,) = (one for one in logging.getLogger().handlers if isinstance(one, logs._Handler))  # pytest's would refuse it
            ours.handle(library.makeRecord("some.library", logging.ERROR, "", 0, "%d pictures", ("no",), None))
            library.exception("nothing was raised")
            library.removeHandler(later)
        library.warning("afterwards as before")
    finally:
        library.removeHandler(before)
    *lines, last = capfd.readouterr().err.splitlines()
    found = records("\n".join(lines))
    assert [(one["level"], one["message"]) for one in found] == [
        ("warning", "noticed"), ("warning", "said once"), ("error", "%d pictures ('no',)"), ("error", "nothing was raised"),
    ]  # fmt: skip
    assert "TypeError" in found[2]["traceback"]
    assert "traceback" not in found[3]
    assert last == "afterwards as before"


@pytest.mark.usefixtures("as_json")
def test_a_bar_that_is_drawn_over_itself_is_what_it_shows_last(capfd: pytest.CaptureFixture[str]) -> None:
    """Not all that it ever showed, in one line."""
    with logs.speaking("trainer"):
        for percent in range(0, 101, 10):
            sys.stderr.write(f"\r{percent} %")
        sys.stderr.write("\n")
    assert [one["message"] for one in records(capfd.readouterr().err)] == ["100 %"]


def _work() -> int:
    """In a process that multiprocessing started: libraries warn and print there too."""
    warnings.warn("a strange picture", stacklevel=1)
    print("so it is", file=sys.stderr)
    return 5


@pytest.mark.usefixtures("as_json")
def test_worker_processes_make_records_too(capfd: pytest.CaptureFixture[str]) -> None:
    """With what their parent knows of the run."""
    context = multiprocessing.get_context("spawn")
    with logs.speaking("trainer"):
        logs.bind(experiment="demo", seed=3)
        with ProcessPoolExecutor(1, context, logs.speak_as, (logs.spoken(),)) as pool:
            assert pool.submit(_work).result() == 5
    found = records(capfd.readouterr().err)
    assert ["a strange picture" in one["message"] for one in found] == [True, False]
    assert [(one["level"], one["component"], one["experiment"], one["seed"]) for one in found] == [
        ("warning", "trainer", "demo", 3), ("info", "trainer", "demo", 3),
    ]  # fmt: skip
    assert logs.spoken() == {}


def test_whoever_starts_processes_lets_them_speak_as_it_does() -> None:
    """Each pool's initializer is one that takes what its parent says of itself."""
    for path in Path(logs.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert text.count("ProcessPoolExecutor(") == text.count("logs.spoken()"), path


@pytest.mark.usefixtures("as_json")
def test_threads_do_not_mix_their_lines_and_have_fields_of_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    """A line that one thread began is not ended by another; a record that is passed on stays as it is."""
    passed = '{"time": "2026-11-30T12:00:00.000Z", "level": "warning", "component": "trainer", "message": "m", "seed": 3}'

    def speak(seed: int) -> None:
        with logs.about(seed=seed):
            for number in range(50):
                print(f"{seed}:", end="")
                print(number)

    with logs.speaking("launcher"):
        threads = [threading.Thread(target=speak, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(passed)
    lines = capfd.readouterr().out
    found = records(lines)
    assert sorted(one["message"] for one in found[:-1]) == sorted(f"{seed}:{number}" for seed in range(4) for number in range(50))
    assert all(one["message"].startswith(f"{one['seed']}:") for one in found[:-1])
    assert lines.splitlines()[-1] == passed


def test_without_the_switch_nothing_changes(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor with `text`; another word is refused in one line."""
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "text")
    with logs.speaking("trainer"):
        print("as it is")
        logs.say("this too")
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "logfmt")
    assert exit_code("trainer train", lambda: 0, verbose=False, component="trainer") == 2
    assert capfd.readouterr() == ("as it is\n", "this too\ntrainer train: FIRSTSIGHT_LOG_FORMAT must be text or json, got 'logfmt'\n")


@pytest.mark.usefixtures("as_json")
def test_the_launcher_reads_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """How far a job is, and why it ended, is read in the record's message."""
    with logs.speaking("trainer"):
        print(step_line("contrastive random-seed0", 30, 60, 2.5, 100.0))
        print("trainer train: it is wrong")
    step, last = capfd.readouterr().out.splitlines()
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "progress"))
    Progress("a job", print).take("2026-11-30T12:00:00Z", step)
    assert json.loads((tmp_path / "progress").read_text())["done"] == 30
    assert last_line({"message": f"{step}\n{last}\n"}) == "trainer train: it is wrong"


@pytest.mark.usefixtures("as_json")
def test_a_job_s_records_are_passed_on_as_they_are(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where jobs run at once, whose other lines begin with their name."""
    with logs.speaking("trainer"):
        print("from a pod")
    record = capfd.readouterr().out.strip()
    with logs.speaking("launcher"), running._log(str(tmp_path), stored=False, speaker="random-seed0") as log:
        log(record)
        log("a remark")
    first, second = capfd.readouterr().out.splitlines()
    assert first == record
    assert (records(second)[0]["component"], records(second)[0]["message"]) == ("launcher", "random-seed0: a remark")


@pytest.mark.slow
def test_a_trainer_logs_records_alone(tmp_path: Path) -> None:
    """From the agent, from both ranks, to the end; then of a configuration that is refused."""
    config = build.contrastive(tmp_path, processes_per_node=2, local_batch_size=0)
    uri = build.written(config)
    environment = {**os.environ, logs.FORMAT_VARIABLE: "json"}
    command = [sys.executable, "-m", "trainer", "train", "contrastive", "--config", uri]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found = records(done.stderr) + records(done.stdout)
    steps = [one for one in found if ": step " in one["message"]]
    assert [one["step"] for one in steps] == [1, 2, 3, 4]
    assert {(one["experiment"], one["arm"], one["seed"], one["stage"], one["rank"]) for one in steps} == {
        ("tests", "random", 0, "contrastive", 0)
    }
    assert "loss" in (Path(config.output) / "log.txt").read_text()
    assert '"level"' not in (Path(config.output) / "log.txt").read_text()
    refused = subprocess.run([*command, "--set", "placement.nodes=0"], capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    (only,) = records(refused.stderr)
    assert (only["level"], only["component"]) == ("error", "trainer")
