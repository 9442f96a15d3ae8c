"""What `python -m trainer train` finds out before any rank starts."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.run import build
from tests.run.toy import sealed_data, toy_config
from trainer.config import DataConfig, ModelConfig, Placement, StageConfig, StartConfig, recipe_hash
from trainer.configs import dump_yaml
from trainer.errors import Corrupt, InputError, RunError, Stopped
from trainer.run import loop as train_loop
from trainer.run.failure import write_failure
from trainer.run.train import launch, validate
from trainer.storage.committed import Committed, write_committed
from trainer.storage.plans import write_plan
from trainer.storage.recipes import read_stage, write_config_file


def done(config: StageConfig, hash_of: str = "") -> None:
    write_committed(f"{config.output}/final", Committed(recipe_hash=hash_of or recipe_hash(config), attempt=0, step=1, files={}, facts={}))


def test_a_finished_stage_says_so_without_torch(tmp_path: Path) -> None:
    """The second run of a pipeline must cost nothing: a process that may not import torch ends with 0."""
    config = toy_config(tmp_path)
    done(config)
    code = (
        "import sys; sys.modules['torch'] = None; from trainer.__main__ import main; "
        f"sys.exit(main(['train', 'contrastive', '--config', {build.written(config)!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "already done" in ended.stderr


def test_wrong_input_is_found_without_torch(tmp_path: Path) -> None:
    """Exit 2, one line, a failure.json, and no rank was started."""
    config = toy_config(tmp_path)
    uri = build.written(config, data=dataclasses.replace(config.data, identity="f" * 64))
    code = (
        "import sys; sys.modules['torch'] = None; from trainer.__main__ import main; "
        f"sys.exit(main(['train', 'contrastive', '--config', {uri!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "is not the one this run was planned with" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    failure = json.loads((tmp_path / "stage" / "failure.json").read_text())
    assert (failure["exit_code"], failure["stage"]) == (2, "contrastive")


def test_a_rank_dies_with_its_agent() -> None:
    """Killed without a word, the agent leaves no rank behind that holds a GPU."""
    child = "import time; from trainer.run.train import _die_with_parent; _die_with_parent(); print('ready', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    agent = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    assert agent.stdout.readline() == "ready\n"
    agent.kill()
    assert agent.stdout.read() == ""  # ends when the last that holds the pipe, the rank, is gone
    agent.wait()
    agent.stdout.close()


def test_a_finished_stage_of_another_recipe_is_refused(tmp_path: Path) -> None:
    """What differs is named; nothing is overwritten."""
    config = toy_config(tmp_path)
    build.written(config)
    done(config)
    other = dataclasses.replace(config, seed=1)
    elsewhere = tmp_path / "other.yaml"
    elsewhere.write_text(Path(build.written(other, output=str(tmp_path / "x"))).read_text().replace(str(tmp_path / "x"), config.output))
    with pytest.raises(InputError, match="finished with a different recipe, rejected: seed: 0 -> 1"):
        launch("contrastive", str(elsewhere), [])


def test_what_a_finished_stage_was_made_by_is_named_where_its_configuration_was_written_anew(tmp_path: Path) -> None:
    """Its lineage records it."""
    config = build.contrastive(tmp_path, epochs=1)
    build.written(config)
    launch("contrastive", build.written(config), [])
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(InputError, match=r"finished with a different recipe, rejected: seed: 0 -> 1$"):
        launch("contrastive", build.written(other), [])


def test_a_folder_of_another_recipe_is_refused_before_it_is_finished(tmp_path: Path) -> None:
    """config.yaml says whose folder it is."""
    config = toy_config(tmp_path)
    build.written(config)
    with pytest.raises(InputError, match="this folder belongs to a different recipe, rejected: seed: 0 -> 1"):
        validate(dataclasses.replace(config, seed=1))


def test_an_older_configuration_than_the_plan_has_is_refused(tmp_path: Path) -> None:
    """It is intact, and nothing else in the folder could tell: the experiment's plan does, and what differs is named."""
    folder = tmp_path / "experiments" / "toy" / "random-seed0" / "contrastive"
    config = dataclasses.replace(toy_config(tmp_path), output=str(folder))
    entry = {"cell": "random-seed0", "arm": "random", "seed": 0, "recipe": "r", "contrastive": str(folder)}
    for planned, refused in ((recipe_hash(config), False), ("f" * 64, True)):
        plan = {"cells": [{**entry, "recipe_hashes": {"contrastive": planned}}], "recipes": {"r": {}}}
        write_plan(str(tmp_path / "experiments" / "toy"), plan)
        if refused:
            with pytest.raises(InputError, match=r"does not match the experiment's plan .* run the experiment again"):
                validate(config)
        else:
            validate(config)


def test_the_configuration_of_another_stage_is_not_trained(tmp_path: Path) -> None:
    """An intact config.yaml in a stage's folder that is for another one: restored from this stage's copy, else refused."""
    config = build.contrastive(tmp_path, epochs=1)
    launch("contrastive", build.written(config), [])
    other = dataclasses.replace(config, output=str(tmp_path / "other"), seed=1)
    foreign = Path(build.written(other)).read_text()
    path = Path(config.output, "config.yaml")
    path.write_text(foreign)
    launch("contrastive", str(path), [])
    assert read_stage(str(path)).seed == 0
    path.write_text(foreign)
    Path(config.output, "final", "config.yaml").unlink()
    with pytest.raises(Corrupt, match=r"this is the configuration of the stage in .*other, not of this stage"):
        launch("contrastive", str(path), [])
    assert json.loads(Path(config.output, "failure.json").read_text())["exit_code"] == 1
    assert not Path(other.output, "final").exists()


def test_a_damaged_configuration_beside_the_one_that_is_given_is_written_again(tmp_path: Path) -> None:
    """It decides nothing then."""
    config = build.contrastive(tmp_path, epochs=1)
    write_config_file(f"{config.output}/config.yaml", config)
    path = Path(config.output, "config.yaml")
    path.write_bytes(path.read_bytes()[:-9])
    elsewhere = tmp_path / "stage.yaml"
    elsewhere.write_text(dump_yaml(config))
    launch("contrastive", str(elsewhere), [])
    assert read_stage(str(path)) == config


def test_a_recipe_that_was_refused_leaves_the_folder_free(tmp_path: Path) -> None:
    """What only a rank can find wrong: the corrected recipe takes the same folder."""
    config = build.contrastive(tmp_path, epochs=1)
    elsewhere = tmp_path / "stage.yaml"
    elsewhere.write_text(dump_yaml(dataclasses.replace(config, model=ModelConfig(open_clip_name="ViT-Z-99"))))
    with pytest.raises(InputError, match="ViT-Z-99"):
        launch("contrastive", str(elsewhere), [])
    assert not Path(config.output, "config.yaml").exists()
    elsewhere.write_text(dump_yaml(config))
    launch("contrastive", str(elsewhere), [])
    assert Path(config.output, "config.yaml").exists()
    assert Path(config.output, "final", "COMMITTED.json").exists()


def test_a_split_that_is_never_made_is_refused_before_any_rank(tmp_path: Path) -> None:
    """Accumulation independent holds a whole contrast batch."""
    config = build.contrastive(tmp_path, local_batch_size=4)
    assert config.contrastive is not None
    config = dataclasses.replace(config, contrastive=dataclasses.replace(config.contrastive, accumulation="independent"))
    with pytest.raises(InputError, match=r"placement\.local_batch_size must be auto, 0 or >= contrast_batch_size / ranks = 12 .*, got 4"):
        validate(config)


def test_a_final_model_that_lost_a_file_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A seal over files that are gone is no model."""
    config = build.contrastive(tmp_path, epochs=1)
    launch("contrastive", build.written(config), [])
    weights = Path(config.output, "final", "open_clip_model.safetensors")
    before = weights.read_bytes()
    weights.unlink()
    launch("contrastive", build.written(config), [])
    assert weights.read_bytes() == before
    assert "final/open_clip_model.safetensors: missing; the final model is being recreated" in capsys.readouterr().err


def test_what_goes_wrong_behind_the_commit_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is there: exit 0, no failure.json, and the reason on standard error."""
    config = build.contrastive(tmp_path, epochs=1)
    real = train_loop.train

    def stopped(config: StageConfig) -> None:
        real(config)
        raise Stopped("stopped by signal 15")

    monkeypatch.setattr(train_loop, "train", stopped)
    launch("contrastive", build.written(config), [])
    assert not Path(config.output, "failure.json").exists()
    assert "then: stopped by signal 15" in capsys.readouterr().err


def test_placement_may_change(tmp_path: Path) -> None:
    """It is no part of the recipe."""
    config = toy_config(tmp_path)
    build.written(config)
    validate(dataclasses.replace(config, placement=Placement(threads=2, keep_last=5)))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"placement": Placement(processes_per_node=3)},
            r"contrastive\.global_batch_size must be a multiple of the number of ranks 3, got 4",
        ),
        ({"placement": Placement(resume="latest")}, r"placement\.resume must be auto, never or a checkpoint's URI, got 'latest'"),
        ({"data": DataConfig()}, r"data\.uri must be the URI of a sealed data set, got ''"),
        ({"start": StartConfig(kind="tower", uri="nowhere", recipe_hash="a")}, r"start\.uri nowhere: no COMMITTED\.json"),
    ],
)
def test_one_line_names_key_rule_and_value(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    """Each before torch is imported."""
    with pytest.raises(InputError, match=line):
        validate(dataclasses.replace(toy_config(tmp_path), **changes))


def test_compiling_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before any rank starts, not by the first step."""
    config = dataclasses.replace(toy_config(tmp_path), placement=Placement(compile=True))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(InputError, match=r"placement\.compile must be auto or false if there is no C compiler \(CC, gcc or clang\)"):
        validate(config)


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    """An epoch would have no step."""
    config = dataclasses.replace(toy_config(tmp_path), data=sealed_data(tmp_path / "small", samples=3))
    with pytest.raises(InputError, match=r"contrastive\.global_batch_size must be at most the 3 training samples"):
        validate(config)


def test_a_dose_below_one_batch_is_refused(tmp_path: Path) -> None:
    """Before any rank starts, with what it comes to."""
    config = toy_config(tmp_path)
    assert config.contrastive is not None
    config = dataclasses.replace(config, contrastive=dataclasses.replace(config.contrastive, pair_fraction=0.01))
    with pytest.raises(InputError, match=r"contrastive\.pair_fraction must leave at least one batch, got 0\.01: that is"):
        validate(config)


def test_triplets_are_no_pairs(tmp_path: Path) -> None:
    """The kind of the data set fits the stage."""
    config = dataclasses.replace(toy_config(tmp_path), data=sealed_data(tmp_path / "t", kind="triplets"))
    with pytest.raises(InputError, match=r"data\.uri must be a data set of pairs \(this one contains triplets\)"):
        validate(config)


def test_the_judged_control_needs_people_as_the_first_judge(tmp_path: Path) -> None:
    """FLIP against FLIP would compare nothing."""
    data = sealed_data(tmp_path / "flip", kind="triplets", judge="FLIP")
    config = dataclasses.replace(build.perceptual(tmp_path), data=data, labels="flip")
    with pytest.raises(InputError, match="labels 'flip' would equal the votes: these triplets were judged by FLIP anyway"):
        validate(config)


def test_unknown_labels_are_named(tmp_path: Path) -> None:
    """With all kinds that there are."""
    with pytest.raises(InputError, match="labels must be one of flip, instance, shuffled, votes, got 'stars'"):
        validate(dataclasses.replace(build.perceptual(tmp_path), labels="stars"))


def test_posthoc_needs_a_whole_model(tmp_path: Path) -> None:
    """A tower is no start for it."""
    config = dataclasses.replace(
        build.posthoc(tmp_path, build.contrastive(tmp_path)), start=StartConfig(kind="tower", uri="x", recipe_hash="y")
    )
    with pytest.raises(InputError, match=r"start\.kind must be one of model for stage posthoc, got 'tower'"):
        validate(config)


def test_a_lost_peer_never_replaces_the_reason_the_peer_gave(tmp_path: Path) -> None:
    """failure.json keeps what can be fixed."""
    config = toy_config(tmp_path)
    write_failure(config, InputError("batch must be even, got 3"))
    write_failure(config, ConnectionError("connection closed by peer"))
    failure = json.loads((tmp_path / "stage" / "failure.json").read_text())
    assert failure["line"] == "batch must be even, got 3"


def test_wrong_input_is_the_pods_termination_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line where the kubelet made the file; a failure during the run leaves it to the log, and elsewhere none is made."""
    told = tmp_path / "termination-log"
    monkeypatch.setattr("trainer.run.failure.TERMINATION_LOG", str(told))
    config = toy_config(tmp_path)
    write_failure(config, InputError("batch must be even, got 3"))
    assert not told.exists()
    told.touch()
    write_failure(config, RunError("the store stayed down"))
    assert told.read_text() == ""
    with pytest.raises(InputError):
        launch("contrastive", build.written(config, data=dataclasses.replace(config.data, identity="f" * 64)), [])
    assert "is not the one this run was planned with" in told.read_text()
    assert len(told.read_text().splitlines()) == 1


def test_the_stage_must_be_the_configurations(tmp_path: Path) -> None:
    """`train perceptual` on a contrastive configuration is a slip of the hand."""
    with pytest.raises(InputError, match="stage must be the one that"):
        launch("perceptual", build.written(toy_config(tmp_path)), [])
