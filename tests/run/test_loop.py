import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.run.toy import ToyStage, Trained, toy_config
from trainer import lineage
from trainer.config import kept_epochs, recipe_hash
from trainer.errors import RunError, Stopped
from trainer.run import checkpoint
from trainer.storage import layout, read_bytes
from trainer.storage.committed import Committed, read_committed


class Killed(BaseException):
    """Stands for a process that dies without a word."""


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "stage" / "progress.jsonl").read_text().splitlines()]


def sealed_steps(folder: Path) -> list[int]:
    return sorted(int(path.parent.name.removeprefix("step-")) for path in folder.rglob("COMMITTED.json"))


def test_a_run_ends_with_a_sealed_final_model(tmp_path: Path, run_toy: Trained) -> None:
    """final/ carries the recipe's hash, the last step and where the weights came from."""
    config = toy_config(tmp_path)
    run_toy(config)
    seal = read_committed(str(tmp_path / "stage" / "final"))
    assert seal is not None
    assert (seal.recipe_hash, seal.step) == (recipe_hash(config), 20)
    assert seal.facts["data_identity"] == config.data.identity
    lineage = json.loads((tmp_path / "stage" / "lineage.json").read_text())
    assert lineage["weights_sha256"] == seal.facts["weights_sha256"]
    assert lineage["recipe_hash"] == seal.recipe_hash


def test_progress_has_every_logged_step_and_its_time_split(tmp_path: Path, run_toy: Trained) -> None:
    """One line a step here, with loss, rate, and the parts of a step's time."""
    run_toy(toy_config(tmp_path))
    assert steps_of(tmp_path) == list(range(1, 21))
    line = json.loads((tmp_path / "stage" / "progress.jsonl").read_text().splitlines()[4])
    assert line["steps"] == 20
    assert line["samples"] == 20
    assert line["val_2afc"] == 0.5
    parts = [line[f"{part}_seconds"] for part in ("data_wait", "compute", "communication", "saving", "evaluation")]
    assert sum(parts) == pytest.approx(line["step_seconds"])


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, run_toy: Trained) -> None:
    """Killed in mid-epoch after a checkpoint: what follows equals the undisturbed run, bit for bit, with nothing logged twice."""
    whole = run_toy(toy_config(tmp_path / "a", checkpoint_every_steps=3, clip_norm=0.5))

    def die(stage: ToyStage) -> None:
        if stage.served.served[-1] == 7:
            raise Killed

    config = toy_config(tmp_path / "b", checkpoint_every_steps=3, clip_norm=0.5)
    with pytest.raises(Killed):
        run_toy(config, after=die)
    resumed = run_toy(config)
    assert resumed.served.served[0] == 6
    assert int(resumed.memory["epochs"]) == 4
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name])
    assert steps_of(tmp_path / "b") == list(range(1, 21))


def test_the_end_of_a_run_needs_nothing_but_the_store_it_writes_to(
    tmp_path: Path, run_toy: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is gone, git hangs, nobody can draw the bar: final/ is written all the same."""
    (tmp_path / "bin").mkdir()
    git = tmp_path / "bin" / "git"
    git.write_text("#!/bin/sh\nexec sleep 60\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FIRSTSIGHT_PROGRESS", str(tmp_path / "gone" / "progress"))
    monkeypatch.setattr(lineage, "GIT_SECONDS", 0.1)
    lineage.code_facts.cache_clear()

    def lose_the_manifest(stage: ToyStage) -> None:
        (tmp_path / "data" / "manifest.json").unlink(missing_ok=True)

    run_toy(toy_config(tmp_path), after=lose_the_manifest)
    lineage.code_facts.cache_clear()
    assert read_committed(str(tmp_path / "stage" / "final")) is not None
    written = json.loads((tmp_path / "stage" / "lineage.json").read_text())
    assert written["code"]["dirty"] is None
    assert written["data"]["name"] == "toy"


def test_sigterm_saves_the_step_and_exits_143(tmp_path: Path, run_toy: Trained) -> None:
    """The step that is running is finished and saved; the next run resumes after it."""

    def terminate(stage: ToyStage) -> None:
        if stage.served.served[-1] == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    config = toy_config(tmp_path)
    with pytest.raises(Stopped, match="at step 8 of 20") as stopped:
        run_toy(config, after=terminate)
    assert stopped.value.exit_code == 143
    assert run_toy(config).served.served[0] == 8


def test_the_parents_stop_marker_ends_a_run_like_sigterm(tmp_path: Path, run_toy: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the parent leaves a marker that the loop sees."""
    monkeypatch.setenv("FIRSTSIGHT_STOP", str(tmp_path / "stop"))
    (tmp_path / "stop").touch()
    with pytest.raises(Stopped, match="at step 1"):
        run_toy(toy_config(tmp_path))


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, run_toy: Trained) -> None:
    """NaN in two batches costs two steps and no weight."""
    stage = run_toy(toy_config(tmp_path), poisoned=frozenset({3, 9}))
    assert all(bool(value.isfinite().all()) for value in stage.module.state_dict().values())
    last = json.loads((tmp_path / "stage" / "progress.jsonl").read_text().splitlines()[-1])
    assert last["nonfinite_steps"] == 2


def test_too_many_steps_that_are_not_finite_end_the_run(tmp_path: Path, run_toy: Trained) -> None:
    """The line names the setting and its value."""
    with pytest.raises(RunError, match=r"placement\.max_nonfinite_steps is 2"):
        run_toy(toy_config(tmp_path, max_nonfinite_steps=2), poisoned=frozenset(range(5, 10)))


def test_resume_never_starts_from_the_beginning(tmp_path: Path, run_toy: Trained) -> None:
    """Old checkpoints are gone, so that a later automatic resume cannot take them."""

    def die(stage: ToyStage) -> None:
        if stage.served.served[-1] == 7:
            raise Killed

    with pytest.raises(Killed):
        run_toy(toy_config(tmp_path, checkpoint_every_steps=3), after=die)
    stage = run_toy(toy_config(tmp_path, resume="never"))
    assert stage.served.served[0] == 0
    assert steps_of(tmp_path) == list(range(1, 21))
    assert not list((tmp_path / "stage" / "checkpoints").rglob("COMMITTED.json"))


def test_a_restarted_attempt_goes_on_even_where_it_was_told_never(tmp_path: Path, run_toy: Trained) -> None:
    """A pod that comes back has the same arguments; what this very attempt saved is not thrown away."""

    def die(stage: ToyStage) -> None:
        if stage.served.served[-1] == 7:
            raise Killed

    config = toy_config(tmp_path, checkpoint_every_steps=3, resume="never", attempt=4)
    with pytest.raises(Killed):
        run_toy(config, after=die)
    assert run_toy(config).served.served[0] == 6


def test_a_run_on_an_object_store_goes_on_after_a_kill(tmp_path: Path, run_toy: Trained, s3_root: str) -> None:
    """The same on S3 as on files: nothing lost, nothing twice."""

    def die(stage: ToyStage) -> None:
        if stage.served.served[-1] == 7:
            raise Killed

    config = dataclasses.replace(toy_config(tmp_path, checkpoint_every_steps=3), output=f"{s3_root}/stage")
    with pytest.raises(Killed):
        run_toy(config, after=die)
    assert run_toy(config).served.served[0] == 6
    lines = read_bytes(f"{s3_root}/stage/progress.jsonl").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))
    assert read_committed(f"{s3_root}/stage/final") is not None


def test_checkpoints_kept_by_epoch_outlive_the_newest(tmp_path: Path, run_toy: Trained) -> None:
    """keep_last counts the others only; the last epoch's weights are the final model."""
    run_toy(toy_config(tmp_path, checkpoint_every_steps=2, checkpoint_every_epochs=2, trajectory=True, keep_last=1))
    stage = tmp_path / "stage"
    assert sealed_steps(stage / "trajectory") == [0, 5, 10]
    assert sealed_steps(stage / "checkpoints") == [18]
    assert {path.name for path in (stage / "trajectory").rglob("*.*")} == {"COMMITTED.json", "model.safetensors"}


@pytest.mark.parametrize("every", [3, 5], ids=["between epochs", "at an epoch's end"])
def test_a_run_that_is_killed_before_the_seal_of_kept_weights_keeps_them_after_all(
    tmp_path: Path, run_toy: Trained, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """No run resumes from a checkpoint whose epoch is to be kept and is not; what is kept is what an undisturbed run keeps."""
    settings: dict[str, Any] = {"checkpoint_every_steps": every, "trajectory": True}
    run_toy(toy_config(tmp_path / "whole", **settings))
    write = checkpoint.write_committed

    def killed(folder: str, seal: Committed) -> None:
        if folder == layout.kept(str(tmp_path / "killed" / "stage"), 10):
            raise RunError("killed")
        write(folder, seal)

    monkeypatch.setattr(checkpoint, "write_committed", killed)
    with pytest.raises(RunError, match="killed"):
        run_toy(toy_config(tmp_path / "killed", **settings))
    assert sealed_steps(tmp_path / "killed" / "stage" / "trajectory") == [0, 5]
    assert max(sealed_steps(tmp_path / "killed" / "stage" / "checkpoints")) < 10
    monkeypatch.undo()

    run_toy(toy_config(tmp_path / "killed", **settings))
    for step in (0, 5, 10):
        whole, again = (Path(layout.kept(str(tmp_path / name / "stage"), step), "model.safetensors") for name in ("whole", "killed"))
        assert whole.read_bytes() == again.read_bytes()


def test_resume_never_keeps_the_weights_of_the_new_run_alone(tmp_path: Path, run_toy: Trained) -> None:
    """Weights of the run before would be taken for a part of this one's course."""
    run_toy(toy_config(tmp_path, trajectory=True))
    (tmp_path / "stage" / "final" / "COMMITTED.json").unlink()

    run_toy(toy_config(tmp_path, resume="never"))

    assert sealed_steps(tmp_path / "stage" / "trajectory") == []


@pytest.mark.parametrize(
    ("epochs", "trajectory", "every", "expected"),
    [
        (32, True, 0, [0, 1, 2, 4, 8, 16]),
        (34, True, 0, [0, 1, 2, 4, 8, 16, 32]),
        (16, True, 4, [0, 1, 2, 4, 8, 12]),
        (8, False, 3, [3, 6]),
        (1, True, 1, [0]),
        (32, False, 0, []),
    ],
)
def test_the_epochs_that_are_kept(epochs: int, trajectory: bool, every: int, expected: list[int]) -> None:
    """0, the powers of two and every k; the last epoch's weights are the final model."""
    assert kept_epochs(epochs, trajectory=trajectory, every=every) == expected
