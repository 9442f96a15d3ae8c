"""What `auto` becomes, and that a resumed run takes the same again."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import run_ranks
from tests.run import build
from tests.run.toy import ToyStage, Trained, toy_config
from trainer.config import Placement, StageConfig
from trainer.configs import load_recipe, parse_config
from trainer.errors import InputError
from trainer.model.distributed import Distributed
from trainer.progress import PROGRESS_VARIABLE
from trainer.run import placing
from trainer.run.placing import Chosen, Conditions, Machine, settle
from trainer.run.starting import from_main

CONDITIONS = Conditions(world_size=1, device="NVIDIA H200", firstsight="0.1.0", torch="2.15.0")
H200 = Machine(conditions=CONDITIONS, cuda=True, gpu_bytes=150_000_000_000, cores=16, compiler=True)
CPU = dataclasses.replace(H200, conditions=dataclasses.replace(CONDITIONS, device="a CPU (1 thread)"), cuda=False, gpu_bytes=0)


Estimate = Callable[[StageConfig, int, int], int]


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Estimate], None]:
    """Puts another estimate in place of trainer.configs.sizes'."""
    return lambda estimate: monkeypatch.setattr(placing, "largest_local_batch_size", estimate)


def automatic(config: StageConfig, **settings: Any) -> StageConfig:
    return dataclasses.replace(config, placement=dataclasses.replace(config.placement, **settings))


def recorded(config: StageConfig) -> list[dict[str, Any]]:
    value = json.loads((Path(config.output) / "placement.json").read_text())
    assert value["format_version"] == 2
    return list(value["runs"])


# ------------------------------------------------------------------------------------------------------- rules


def test_on_a_cpu_auto_is_what_it_was_before(tmp_path: Path) -> None:
    """Uncompiled, decoding in threads, the whole share at once."""
    assert settle(toy_config(tmp_path), CPU) == Chosen(compile=False, loader_workers=0, local_batch_size=0)


def test_on_a_gpu_auto_takes_what_is_measured_to_be_fast(tmp_path: Path) -> None:
    """Compiled, all cores but one decode, the whole share where it fits."""
    assert settle(toy_config(tmp_path), H200) == Chosen(compile=True, loader_workers=15, local_batch_size=0)


@pytest.mark.parametrize(("cores", "workers"), [(0, 0), (1, 0), (2, 1), (8, 7), (192, 16)])
def test_loader_workers_leave_the_rank_a_core(tmp_path: Path, cores: int, workers: int) -> None:
    """And are no more than any GPU needs."""
    assert settle(toy_config(tmp_path), dataclasses.replace(H200, cores=cores)).loader_workers == workers


def test_without_a_compiler_auto_says_so_once_and_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line, and none on a CPU, where nothing would be compiled anyway."""
    assert not settle(toy_config(tmp_path / "gpu"), dataclasses.replace(H200, compiler=False)).compile
    assert caplog.messages == ["placement.compile auto: no C compiler (CC, gcc or clang) here, so the towers run uncompiled"]
    settle(toy_config(tmp_path / "cpu"), dataclasses.replace(CPU, compiler=False))
    assert len(caplog.messages) == 1


def test_what_does_not_fit_is_split_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`paper` on one H200: an equal part of the share, in one line."""
    caplog.set_level("INFO", "trainer")
    recipe = load_recipe("paper")
    config = dataclasses.replace(toy_config(tmp_path), model=recipe.model, contrastive=recipe.contrastive)
    small = dataclasses.replace(H200, gpu_bytes=24_000_000_000)
    part = settle(config, small).local_batch_size
    assert recipe.contrastive.contrast_batch_size % part == 0
    assert caplog.messages == [
        f"placement.local_batch_size auto: {part} of a rank's {recipe.contrastive.contrast_batch_size} pairs at a time, the most that "
        "NVIDIA H200 (24 GB) is estimated to hold; the gradient cache keeps the loss the same"
    ]


def test_triplets_that_do_not_fit_are_accumulated(
    tmp_path: Path, fitting: Callable[[Estimate], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Stage 1 has no gradient cache, and needs none."""
    fitting(lambda *_: 4)
    caplog.set_level("INFO", "trainer")
    assert settle(build.perceptual(tmp_path), H200).local_batch_size == 4
    assert caplog.messages == [
        "placement.local_batch_size auto: 4 of a rank's 6 triplets at a time, the most that NVIDIA H200 (150 GB) is estimated to hold; "
        "accumulated gradients keep the loss the same"
    ]


def test_what_may_not_be_split_is_refused_before_the_model_is_built(
    tmp_path: Path, fitting: Callable[[Estimate], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate's own line, exit code 2, and no record."""

    def refuse(config: StageConfig, ranks: int, gpu_bytes: int) -> int:
        raise InputError("contrastive.accumulation independent never splits a contrast batch")

    fitting(refuse)
    monkeypatch.setattr(placing, "look", lambda _: H200)
    monkeypatch.setattr("trainer.run.loop.build_stage", lambda *_: pytest.fail("built"))
    from trainer.run.loop import train

    with pytest.raises(InputError, match="never splits"):
        train(toy_config(tmp_path))
    assert not (tmp_path / "stage" / "placement.json").exists()


def test_a_given_value_always_wins(tmp_path: Path) -> None:
    """0 keeps its meaning: the whole share, and threads."""
    given = automatic(toy_config(tmp_path), compile=False, loader_workers=0, local_batch_size=0)
    assert settle(given, H200) == Chosen(compile=False, loader_workers=0, local_batch_size=0)
    given = automatic(given, compile=True, loader_workers=3, local_batch_size=2)
    assert settle(given, CPU) == Chosen(compile=True, loader_workers=3, local_batch_size=2)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("compile=auto", "auto"), ("compile=true", True), ("compile=false", False),
        ("loader_workers=auto", "auto"), ("loader_workers=0", 0), ("local_batch_size=auto", "auto"), ("local_batch_size=512", 512),
    ],
)  # fmt: skip
def test_auto_on_the_command_line(override: str, value: object) -> None:
    """As `--set placement.compile=true` has it, and as YAML has it."""
    name = override.partition("=")[0]
    parsed = getattr(parse_config(Placement, {}, [override]), name)
    assert (parsed, type(parsed)) == (value, type(value))
    assert getattr(parse_config(Placement, {name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [("compile", "maybe"), ("compile", 1), ("loader_workers", "al"), ("local_batch_size", 1.5)])
def test_a_slip_is_named_in_one_line(name: str, value: object) -> None:
    """Key, what is allowed, and the value."""
    with pytest.raises(InputError, match=rf"{name}.*auto.*{value}") as raised:
        parse_config(Placement, {name: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["loader_workers", "local_batch_size"])
def test_a_number_below_0_is_refused(name: str) -> None:
    """By the field's own rule."""
    with pytest.raises(InputError, match=rf"placement\.{name} must be auto or >= 0, got -1"):
        Placement(**{name: -1})


# ------------------------------------------------------------------------------------------------------ record


def test_the_same_conditions_take_the_same_values_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the rules have changed since, or the machine has other cores."""
    config = toy_config(tmp_path)
    first = settle(config, H200)
    monkeypatch.setattr(placing, "loader_workers_for", lambda cores: 2)
    assert settle(config, dataclasses.replace(H200, cores=4, gpu_bytes=1)) == first
    assert len(recorded(config)) == 1


@pytest.mark.parametrize(
    "other",
    [{"world_size": 2}, {"device": "NVIDIA A100"}, {"firstsight": "0.2.0"}, {"torch": "2.16.0"}],
    ids=lambda other: next(iter(other)),
)
def test_other_conditions_choose_anew_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture, other: Any) -> None:
    """In one line that names both; the first choice stays for when its conditions come back."""
    config = toy_config(tmp_path)
    first = settle(config, H200)
    caplog.set_level("INFO", "trainer")
    machine = dataclasses.replace(H200, conditions=dataclasses.replace(CONDITIONS, **other), cores=4)
    assert settle(config, machine).loader_workers == 3
    assert caplog.messages == [
        f"contrastive random-seed0: placement recomputed for {machine.conditions}; it was {CONDITIONS}: "
        "the loss stays the same, the bits do not"
    ]
    assert settle(config, H200) == first
    assert len(recorded(config)) == 2


def test_a_value_given_later_wins_over_the_record_and_is_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From then on the weights are made with it."""
    config = toy_config(tmp_path)
    settle(config, H200)
    caplog.set_level("INFO", "trainer")
    assert not settle(automatic(config, compile=False), H200).compile
    assert len(caplog.messages) == 1
    assert "placement.compile is now False, previously True: the loss stays the same" in caplog.messages[0]
    assert not settle(config, H200).compile
    assert len(recorded(config)) == 1


def test_a_compiler_that_went_away_is_no_reason_to_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The record asks for what this image cannot do."""
    config = toy_config(tmp_path)
    settle(config, H200)
    assert not settle(config, dataclasses.replace(H200, compiler=False)).compile
    assert "so the towers run uncompiled" in caplog.messages[0]


DAMAGED: dict[str, str] = {
    "not JSON": "{",
    "no version": "{}",
    "no checksum": json.dumps(
        {"format_version": 2, "runs": [{**dataclasses.asdict(CONDITIONS), "compile": True, "loader_workers": 4, "local_batch_size": 0}]}
    ),
    "no runs": '{"format_version": 1}',
    "runs are no list": '{"format_version": 1, "runs": 3}',
    "a run is no object": '{"format_version": 1, "runs": ["x"]}',
    "a value is missing": json.dumps({"format_version": 1, "runs": [dataclasses.asdict(CONDITIONS)]}),
    "a value of another type": json.dumps(
        {"format_version": 1, "runs": [{**dataclasses.asdict(CONDITIONS), "compile": 1, "loader_workers": 0, "local_batch_size": 0}]}
    ),
    "a negative number": json.dumps(
        {"format_version": 1, "runs": [{**dataclasses.asdict(CONDITIONS), "compile": True, "loader_workers": -4, "local_batch_size": 0}]}
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_named_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """One line with its URI, which the person who waits sees too; a rerun has a sound one."""
    config, told = toy_config(tmp_path), tmp_path / "told.jsonl"
    monkeypatch.setenv(PROGRESS_VARIABLE, str(told))
    path = Path(config.output) / "placement.json"
    path.parent.mkdir()
    path.write_text(DAMAGED[damage])
    chosen = settle(config, H200)
    assert len(caplog.messages) == 1
    assert str(path) in caplog.messages[0]
    assert caplog.messages[0].endswith("values are chosen again: the loss stays the same, the bits may not")
    assert settle(config, H200) == chosen
    assert len(caplog.messages) == 1
    assert json.loads(told.read_text())["note"] == caplog.messages[0]


def test_a_record_of_a_newer_firstsight_is_refused(tmp_path: Path) -> None:
    """Never guessed at."""
    config = toy_config(tmp_path)
    path = Path(config.output) / "placement.json"
    path.parent.mkdir()
    path.write_text('{"format_version": 3}')
    with pytest.raises(InputError, match=r"placement\.json: format 3 is newer than this firstsight can read \(2\)"):
        settle(config, H200)


def _settled_on_this_rank(dist: Distributed, folder: str) -> dict[str, Any]:
    """As the loop does it, on ranks whose machines differ."""
    config = toy_config(Path(folder) / str(dist.rank), local_batch_size=0)
    machine = dataclasses.replace(H200, cores=2 + dist.rank, compiler=dist.main)
    return dataclasses.asdict(from_main(dist, lambda: settle(config, machine)))


def test_rank_0_decides_for_all(tmp_path: Path) -> None:
    """And only it writes the record."""
    first, second = run_ranks(_settled_on_this_rank, 2, str(tmp_path))
    assert first == second == {"compile": True, "loader_workers": 1, "local_batch_size": 0}
    assert (tmp_path / "0" / "stage" / "placement.json").exists()
    assert not (tmp_path / "1" / "stage" / "placement.json").exists()


# --------------------------------------------------------------------------------------------------------- runs


class Killed(BaseException):
    """Stands for a process that dies without a word."""


def at_step(number: int) -> Callable[[ToyStage], None]:
    def die(stage: ToyStage) -> None:
        if stage.served.served[-1] == number:
            raise Killed

    return die


def test_a_run_says_every_field_of_its_placement(tmp_path: Path, run_toy: Trained) -> None:
    """One line of log.txt and an entry of lineage.json, from inside the process; config.yaml keeps `auto`."""
    run_toy(toy_config(tmp_path, keep_last=7, cache_dir=str(tmp_path / "shards")))
    (line,) = [line for line in (tmp_path / "stage" / "log.txt").read_text().splitlines() if ": placement {" in line]
    said = json.loads(line.partition(": placement ")[2])
    assert said.keys() == {item.name for item in dataclasses.fields(Placement)}
    assert "auto" not in {said[name] for name in ("compile", "loader_workers", "local_batch_size", "device")}
    assert (said["keep_last"], said["cache_dir"], said["threads"], said["device"]) == (7, str(tmp_path / "shards"), 1, "cpu")
    assert json.loads((tmp_path / "stage" / "lineage.json").read_text())["placement"] == said
    assert "compile: auto" in (tmp_path / "stage" / "config.yaml").read_text()


def test_the_values_are_recorded_before_the_first_step(tmp_path: Path, run_toy: Trained) -> None:
    """A run that dies in its first step has them."""
    with pytest.raises(Killed):
        run_toy(toy_config(tmp_path), after=at_step(0))
    (run,) = recorded(toy_config(tmp_path))
    assert (run["compile"], run["loader_workers"], run["local_batch_size"], run["world_size"]) == (False, 0, 0, 1)
    assert run["device"].endswith("(1 thread)")


def test_a_run_from_before_the_record_takes_what_its_configuration_says(tmp_path: Path, run_toy: Trained) -> None:
    """Stored configurations state false and 0; the run goes on without a word."""
    config = automatic(toy_config(tmp_path, checkpoint_every_steps=3), compile=False, loader_workers=0, local_batch_size=0)
    with pytest.raises(Killed):
        run_toy(config, after=at_step(7))
    (tmp_path / "stage" / "placement.json").unlink()
    assert run_toy(config).served.served[0] == 6
    assert "chosen again" not in (tmp_path / "stage" / "log.txt").read_text()


def run_stage(config: StageConfig, monkeypatch: pytest.MonkeyPatch, machine: Machine, die_at: int = 0) -> tuple[dict[str, Any], set[int]]:
    """Train the real stage as on `machine`; its final weights, and the sizes of the chunks that it ran. `die_at` a step, from 1."""
    from trainer.run import loop
    from trainer.stages.contrastive import ContrastiveStage

    chunks: set[int] = set()
    steps: list[int] = []
    built: list[ContrastiveStage] = []
    encode, clamp = ContrastiveStage._encode, ContrastiveStage.after_optimizer

    def counted(stage: ContrastiveStage, pairs: Any) -> Any:
        chunks.add(len(pairs))
        return encode(stage, pairs)

    def clamped(stage: ContrastiveStage) -> None:
        clamp(stage)
        steps.append(1)
        built.append(stage)
        if len(steps) == die_at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(placing, "look", lambda _: machine)
        patch.setattr(ContrastiveStage, "_encode", counted)
        patch.setattr(ContrastiveStage, "after_optimizer", clamped)
        loop.train(config)
    return {name: value.clone() for name, value in built[-1].module.state_dict().items()}, chunks


def test_kill_and_resume_end_in_the_same_bits_with_the_recorded_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitting: Callable[[Estimate], None]
) -> None:
    """The first process found room for 5 pairs; when the run resumes the rule would say 3, and the record still says 5."""
    on_gpu = dataclasses.replace(H200, compiler=False, cores=1)  # nothing to compile for, and no processes to start
    fitting(lambda *_: 5)
    whole, chunks = run_stage(build.contrastive(tmp_path / "whole", local_batch_size="auto"), monkeypatch, on_gpu)
    assert chunks == {5, 2}
    config = build.contrastive(tmp_path / "killed", local_batch_size="auto", checkpoint_every_steps=1)
    with pytest.raises(Killed):
        run_stage(config, monkeypatch, on_gpu, die_at=3)
    fitting(lambda *_: 3)
    resumed, chunks = run_stage(config, monkeypatch, on_gpu)
    assert chunks == {5, 2}
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_other_conditions_keep_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitting: Callable[[Estimate], None]) -> None:
    """Resumed on another GPU with room for 3: other chunks, the same weights except for rounding."""
    on_gpu = dataclasses.replace(H200, compiler=False, cores=1)
    other = dataclasses.replace(on_gpu, conditions=dataclasses.replace(CONDITIONS, device="NVIDIA L4"))
    fitting(lambda *_: 5)
    whole, _ = run_stage(build.contrastive(tmp_path / "whole", precision="fp64"), monkeypatch, on_gpu)
    config = build.contrastive(tmp_path / "killed", precision="fp64", checkpoint_every_steps=1)
    with pytest.raises(Killed):
        run_stage(config, monkeypatch, on_gpu, die_at=3)
    fitting(lambda *_: 3)
    resumed, chunks = run_stage(config, monkeypatch, other)
    assert chunks == {3}
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-7)
