"""What a run says of its health, and to whom."""

import dataclasses
import json
import sys
import time
import types
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.run import build
from tests.run.toy import ToyStage, Trained, toy_config
from trainer.config import profiled_steps
from trainer.errors import InputError
from trainer.run import sinks
from trainer.run.sinks import Endpoint, optional_sinks

FRESH = {"step": 0, "samples": 0, "nonfinite_steps": 0, "restarts": 0}
RECORD = {"time": 1.0, "step": 3, "samples": 12, "loss": 0.5, "grad_norm": 1.5, "nonfinite_steps": 1, "restarts": 2, "val_2afc": None}


def scraped(port: int) -> dict[str, float]:
    """Figures by name, labels left out."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.partition("{")[0].partition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_prometheus_shows_the_figures_of_the_record(tmp_path: Path) -> None:
    """By the names that the chart's alerts use."""
    endpoint = Endpoint(toy_config(tmp_path), 0, FRESH)
    endpoint.log(RECORD)
    endpoint.step(0.25, 0.05)
    endpoint.saved(0.01, 2.0)
    found = scraped(endpoint.port)
    endpoint.close(0.0)
    expected = {
        "loss": 0.5, "grad_norm": 1.5, "samples_total": 12, "steps_total": 3, "nonfinite_total": 1, "restarts": 2, "step": 3,
        "data_wait_seconds_total": 0.05, "step_seconds_sum": 0.25, "checkpoint_seconds": 2.0, "checkpoint_stall_seconds": 0.01,
    }  # fmt: skip
    assert {name: found[f"firstsight_train_{name}"] for name in expected} == expected
    assert found["firstsight_train_info"] == 1
    assert found["firstsight_train_last_step_timestamp_seconds"] > 1e9


def test_gpu_seconds_count_from_the_start_and_never_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs are held from the first moment on, whatever a step takes; a clock that is set back costs nothing."""
    clock = types.SimpleNamespace(now=100.0, monotonic=time.monotonic, sleep=time.sleep)
    clock.time = lambda: clock.now
    monkeypatch.setattr(sinks, "time", clock)
    endpoint = Endpoint(toy_config(tmp_path), 0, FRESH, gpus=8)
    shown = []
    for now in (130.0, 120.0, 121.0):
        clock.now = now
        endpoint.step(0.25, 0.05)
        shown.append(scraped(endpoint.port)["firstsight_train_gpu_seconds_total"])
    endpoint.close(0.0)
    assert shown == [240.0, 240.0, 248.0]


@pytest.mark.parametrize(("seed", "point", "cell"), [(0, "", "toy-seed0"), (7, "dose-10", "toy-dose-10-seed7"), (0, "", "")])
def test_every_series_says_whose_it_is(tmp_path: Path, seed: int, point: str, cell: str) -> None:
    """Two seeds, or two points, are told apart; what cells share names none."""
    config = dataclasses.replace(toy_config(tmp_path), experiment="e", arm="toy", seed=seed, point=point, cell=cell)
    endpoint = Endpoint(config, 0, FRESH)
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    endpoint.close(0.0)
    wanted = {"experiment": "e", "cell": cell, "arm": "toy", "point": point, "seed": str(seed), "stage": config.stage, "node_rank": "0"}
    ours = [sample for family in families for sample in family.samples if sample.name.startswith("firstsight_train_")]
    assert len(ours) > 20
    assert all(wanted.items() <= sample.labels.items() for sample in ours)


def test_counters_go_on_and_never_back(tmp_path: Path) -> None:
    """A second record adds what is new."""
    endpoint = Endpoint(toy_config(tmp_path), 0, FRESH)
    endpoint.log(RECORD)
    endpoint.log({**RECORD, "step": 5, "samples": 20})
    found = scraped(endpoint.port)
    endpoint.close(0.0)
    assert (found["firstsight_train_steps_total"], found["firstsight_train_samples_total"]) == (5, 20)


def test_a_resumed_process_counts_from_zero(tmp_path: Path) -> None:
    """Its counters start at 0 and grow by its own work; the run's totals are gauges, right from the start."""
    endpoint = Endpoint(toy_config(tmp_path), 0, RECORD)
    first = scraped(endpoint.port)
    endpoint.log({**RECORD, "step": 5, "samples": 20, "nonfinite_steps": 2})
    later = scraped(endpoint.port)
    endpoint.close(0.0)
    counters = ("steps_total", "samples_total", "nonfinite_total", "data_wait_seconds_total")
    assert [first[f"firstsight_train_{name}"] for name in counters] == [0, 0, 0, 0]
    assert [later[f"firstsight_train_{name}"] for name in counters] == [2, 8, 1, 0]
    gauges = ("step", "nonfinite_steps", "restarts")
    assert [first[f"firstsight_train_{name}"] for name in gauges] == [3, 1, 2]
    assert [later[f"firstsight_train_{name}"] for name in gauges] == [5, 2, 2]
    assert first["firstsight_train_start_timestamp_seconds"] > 1e9


def test_the_stall_of_a_save_is_not_overwritten_by_a_line_of_the_log(tmp_path: Path, run_toy: Trained) -> None:
    """`checkpoint_stall_seconds` is the last save's; the share of a step is `saving_seconds`, in progress.jsonl alone."""
    run_toy(toy_config(tmp_path, checkpoint_every_steps=1))
    line = json.loads((tmp_path / "stage" / "progress.jsonl").read_text().splitlines()[-1])
    assert line["saving_seconds"] > 0
    assert "checkpoint_stall_seconds" not in line
    endpoint = Endpoint(toy_config(tmp_path), 0, FRESH)
    endpoint.saved(7.0, 8.0)
    endpoint.log(line)
    found = scraped(endpoint.port)
    endpoint.close(0.0)
    assert found["firstsight_train_checkpoint_stall_seconds"] == 7.0


def pauses(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], None]) -> None:
    """Replace the pauses of the sinks alone: threads that other tests left may sleep at any time."""
    monkeypatch.setattr(sinks, "time", types.SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=sleep))


def test_nobody_is_waited_for_where_nobody_scrapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a run without a Prometheus costs nothing."""
    endpoint = Endpoint(toy_config(tmp_path), 0, FRESH)

    def never(_: float) -> None:
        raise AssertionError("it waited")

    pauses(monkeypatch, never)
    endpoint.close()


def test_the_endpoint_lingers_until_the_last_figures_were_scraped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once somebody has scraped, they are given the last figures too, and no more."""
    endpoint = Endpoint(toy_config(tmp_path), 0, FRESH)
    scraped(endpoint.port)
    endpoint.log(RECORD)
    found: list[float] = []
    pauses(monkeypatch, lambda _: found.append(scraped(endpoint.port)["firstsight_train_loss"]))
    endpoint.close()
    assert found == [0.5]


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """As a setting, with its value."""
    endpoint = Endpoint(toy_config(tmp_path), 0, FRESH)
    with pytest.raises(InputError, match=rf"placement\.metrics_port must be a free port, got {endpoint.port}"):
        Endpoint(toy_config(tmp_path), endpoint.port, FRESH)
    endpoint.close(0.0)


def test_a_run_serves_while_it_runs(tmp_path: Path, run_toy: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of /metrics are those of progress.jsonl."""
    ports: list[int] = []
    found: list[dict[str, float]] = []

    def endpoint_on_any_port(config: Any, port: int, totals: Any, gpus: int) -> Endpoint:
        endpoint = Endpoint(config, 0, totals)
        ports.append(endpoint.port)
        return endpoint

    def look(stage: ToyStage) -> None:
        if stage.served.served[-1] == 9:
            found.append(scraped(ports[0]))

    monkeypatch.setattr("trainer.run.loop.Endpoint", endpoint_on_any_port)
    monkeypatch.setattr("trainer.run.records.LINGER_SECONDS", 0.0)
    run_toy(toy_config(tmp_path, metrics_port=1), after=look)
    line = json.loads((tmp_path / "stage" / "progress.jsonl").read_text().splitlines()[8])
    assert found[0]["firstsight_train_loss"] == pytest.approx(line["loss"])
    assert found[0]["firstsight_train_samples_total"] == line["samples"]
    assert found[0]["firstsight_train_step_seconds_count"] == 9


def test_a_resumed_run_serves_its_own_work_as_counters(tmp_path: Path, run_toy: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after step 7, resumed from step 6: at step 9 this process has done three steps."""
    endpoints: list[Endpoint] = []
    found: list[dict[str, float]] = []

    def endpoint_on_any_port(config: Any, port: int, totals: Any, gpus: int) -> Endpoint:
        endpoints.append(Endpoint(config, 0, totals))
        return endpoints[-1]

    def die(stage: ToyStage) -> None:
        if stage.served.served[-1] == 6:
            raise KeyboardInterrupt

    def look(stage: ToyStage) -> None:
        if stage.served.served[-1] == 9:
            found.append(scraped(endpoints[-1].port))

    monkeypatch.setattr("trainer.run.loop.Endpoint", endpoint_on_any_port)
    monkeypatch.setattr("trainer.run.records.LINGER_SECONDS", 0.0)
    config = toy_config(tmp_path, metrics_port=1, checkpoint_every_steps=3)
    with pytest.raises(KeyboardInterrupt):
        run_toy(config, after=die)
    run_toy(config, after=look)
    assert found[0]["firstsight_train_steps_total"] == 3
    assert (found[0]["firstsight_train_step"], found[0]["firstsight_train_restarts"]) == (9, 1)


@pytest.mark.parametrize(("setting", "package"), [("tensorboard_dir", "tensorboard"), ("wandb_project", "wandb")])
def test_a_missing_package_of_an_optional_sink_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, package: str
) -> None:
    """Which setting wants it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"placement\.{setting} is set, but the package {package} is not installed"):
        optional_sinks(dataclasses.replace(toy_config(tmp_path), placement=build.placed(**{setting: str(tmp_path)})))


def test_weights_and_biases_gets_the_numbers_and_one_run_for_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stand-in for the package: the run's id is the recipe's, so a restart goes on with it."""
    logged: list[tuple[dict[str, float], int]] = []
    run = types.SimpleNamespace(log=lambda figures, step: logged.append((figures, step)), finish=lambda: None)
    asked: dict[str, Any] = {}

    def init(**arguments: Any) -> Any:
        asked.update(arguments)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    (sink,) = optional_sinks(toy_config(tmp_path, wandb_project="eyes"))
    sink.log(RECORD)
    sink.close()
    assert asked["resume"] == "allow"
    assert asked["name"] == "contrastive-random-seed0"
    assert logged == [({"samples": 12, "loss": 0.5, "grad_norm": 1.5, "nonfinite_steps": 1, "restarts": 2}, 3)]


def test_a_sink_that_fails_is_left_out_and_the_run_ends_well(
    tmp_path: Path, run_toy: Trained, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, whenever it fails; the final model is there."""
    calls: list[str] = []

    def log(figures: Any, step: int) -> None:
        calls.append("log")
        raise ConnectionError("api.wandb.ai\nunreachable")

    run = types.SimpleNamespace(log=log, finish=lambda: calls.append("finish"))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: run))
    run_toy(toy_config(tmp_path, wandb_project="eyes"))
    assert calls == ["log"]
    said = [line for line in caplog.messages if "continues without" in line]
    assert said == ["placement.wandb_project failed; the run continues without it: api.wandb.ai unreachable"]
    assert (tmp_path / "stage" / "final" / "COMMITTED.json").exists()


def test_a_sink_that_cannot_start_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is down must not turn a restart into a failure."""

    def init(**_: Any) -> Any:
        raise RuntimeError("no account")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    (sink,) = optional_sinks(toy_config(tmp_path, wandb_project="eyes"))
    sink.log(RECORD)
    sink.close()


def test_a_profiler_that_fails_ends_no_run(tmp_path: Path, run_toy: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace that cannot be written is logged."""

    def broken(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("torch.profiler.profile.export_chrome_trace", broken)
    run_toy(toy_config(tmp_path, profile_steps="2:3"))
    assert (tmp_path / "stage" / "final" / "COMMITTED.json").exists()


def test_tensorboard_gets_a_scalar_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stand-in for the package."""
    scalars: list[tuple[str, float, int]] = []
    writer = types.SimpleNamespace(add_scalar=lambda *scalar: scalars.append(scalar), close=lambda: None)
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=lambda _: writer))
    sink = sinks.TensorBoard(str(tmp_path))
    sink.log(RECORD)
    sink.close()
    assert ("loss", 0.5, 3) in scalars


def test_tensorboard_shows_each_stage_of_each_cell_as_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its folder; in one folder two seeds would be one zigzag line."""
    folders: list[str] = []
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=folders.append))
    config = dataclasses.replace(toy_config(tmp_path, tensorboard_dir=str(tmp_path)), experiment="e", arm="toy")
    for which in ({"seed": 0}, {"seed": 1}, {"seed": 1, "point": "dose-10"}):
        optional_sinks(dataclasses.replace(config, **which))
    assert folders == [f"{tmp_path}/e/{cell}/{config.stage}" for cell in ("toy-seed0", "toy-seed1", "toy-dose-10-seed1")]


def test_a_trace_of_the_chosen_steps_is_stored(tmp_path: Path, run_toy: Trained) -> None:
    """Chrome's format, in profile/ of the stage's folder."""
    run_toy(toy_config(tmp_path, profile_steps="2:3"))
    trace = json.loads((tmp_path / "stage" / "profile" / "steps-2-3.json").read_text())
    assert trace["traceEvents"]


@pytest.mark.parametrize("text", ["3", "3:2", "0:2", "a:b"])
def test_profiled_steps_must_be_a_range(text: str) -> None:
    """From 1, first before last."""
    with pytest.raises(InputError, match=r"placement\.profile_steps must be A:B"):
        profiled_steps(text)
