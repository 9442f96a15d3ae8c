import dataclasses
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from trainer.errors import Corrupt, InputError, RunError
from trainer.run import checkpoint
from trainer.storage import join, layout, open_store, read_bytes, read_json, write_bytes
from trainer.storage.committed import read_committed, write_committed
from trainer.storage.documents import write_document
from trainer.storage.fence import Fence

RECIPE: dict[str, Any] = {"model": {"vision_width": 32}, "seed": 0}
HASH = "a" * 64


def tensors(value: float = 1.0) -> dict[str, dict[str, Tensor]]:
    """Odd sizes and several types, so that alignment matters."""
    return {
        "model.safetensors": {
            "odd": torch.full((3,), value, dtype=torch.bfloat16),
            "scalar": torch.tensor(value),
            "wide": torch.full((5, 7), value, dtype=torch.float64),
        },
        "optimizer.safetensors": {"wide/exp_avg": torch.full((5, 7), -value)},
    }


def saved(output: str, *steps: int, keep: tuple[int, ...] = (), attempt: int = 0, keep_last: int = 9) -> None:
    """Checkpoints of these steps, as a run leaves them."""
    writer = checkpoint.Writer(output, recipe_hash=HASH, fence=Fence(output, attempt), keep_last=keep_last)
    for step in steps:
        writer.save(step, tensors(step), {"recipe": RECIPE}, {"world_size": 1}, beside={"progress.jsonl": b"{}\n"}, keep=step in keep)
    writer.close()


def found(output: str, resume: str = "auto", recipe_hash: str = HASH, recipe: dict[str, Any] = RECIPE) -> checkpoint.Checkpoint | None:
    return checkpoint.find(output, resume, recipe_hash=recipe_hash, recipe=recipe)[0]


def flip_a_byte(uri: str) -> None:
    data = bytearray(read_bytes(uri))
    data[len(data) // 2] ^= 1
    write_bytes(uri, bytes(data))


def test_what_is_saved_comes_back(root: str) -> None:
    """Every tensor, bit for bit, and the state; the newest step is taken."""
    saved(root, 10, 20)
    back = found(root)
    assert back is not None
    assert back.step == 20
    assert back.state["recipe"] == RECIPE
    for file, part in tensors(20).items():
        assert back.tensors[file].keys() == part.keys()
        for name, value in part.items():
            assert torch.equal(back.tensors[file][name], value)
            assert back.tensors[file][name].dtype == value.dtype


def test_the_files_are_plain_safetensors(tmp_path: Path) -> None:
    """Any reader of the format opens them."""
    saved(str(tmp_path), 10)
    state = safetensors.torch.load_file(tmp_path / "checkpoints" / "step-000000010" / "model.safetensors")
    assert torch.equal(state["wide"], torch.full((5, 7), 10.0, dtype=torch.float64))


def test_the_caller_may_change_tensors_once_save_returned(tmp_path: Path) -> None:
    """What is stored is the copy of the moment."""
    writer = checkpoint.Writer(str(tmp_path), recipe_hash=HASH, fence=Fence(str(tmp_path), 0), keep_last=2)
    part = tensors()
    writer.save(1, part, {"recipe": RECIPE}, {}, beside={}, keep=False)
    part["model.safetensors"]["wide"].zero_()
    writer.close()
    back = found(str(tmp_path))
    assert back is not None
    assert torch.equal(back.tensors["model.safetensors"]["wide"], torch.ones(5, 7, dtype=torch.float64))


def test_logs_are_not_older_than_the_checkpoint(tmp_path: Path) -> None:
    """What is given beside is stored before the seal."""
    saved(str(tmp_path), 10)
    assert (tmp_path / "progress.jsonl").read_bytes() == b"{}\n"


def test_a_folder_without_a_seal_is_not_seen(tmp_path: Path) -> None:
    """A save that was cut short leaves no checkpoint."""
    saved(str(tmp_path), 10, 20)
    (tmp_path / "checkpoints" / "step-000000020" / "COMMITTED.json").unlink()
    back = found(str(tmp_path))
    assert back is not None
    assert back.step == 10


def test_a_flipped_byte_is_passed_over_for_an_older_checkpoint(tmp_path: Path) -> None:
    """The newest that verifies is used, and the other is named."""
    saved(str(tmp_path), 10, 20)
    flip_a_byte(join(layout.checkpoint(str(tmp_path), 20), "optimizer.safetensors"))
    back, skipped = checkpoint.find(str(tmp_path), "auto", recipe_hash=HASH, recipe=RECIPE)
    assert back is not None
    assert back.step == 10
    assert "optimizer.safetensors: checksum" in skipped[0]


def test_when_none_is_intact_the_run_begins_again_and_every_one_is_named(tmp_path: Path) -> None:
    """A missing file, a damaged seal, a lost seal: none is believed, and none stops the stage for ever."""
    saved(str(tmp_path), 10, 20, 30)
    folder = tmp_path / "checkpoints"
    (folder / "step-000000010" / "model.safetensors").unlink()
    (folder / "step-000000020" / "COMMITTED.json").write_bytes(b"{")
    (folder / "step-000000030" / "COMMITTED.json").unlink()
    back, skipped = checkpoint.find(str(tmp_path), "auto", recipe_hash=HASH, recipe=RECIPE)
    assert back is None
    for line, said in zip(
        skipped, ("30: no COMMITTED.json", "20/COMMITTED.json: not JSON", "10/model.safetensors: no such file"), strict=True
    ):
        assert said in line


@pytest.mark.parametrize("content", [b"", b"{", b"[]", None], ids=["empty", "cut", "other", "flipped"])
def test_a_damaged_seal_fails_no_later_save_and_is_pruned(root: str, content: bytes | None) -> None:
    """Its checkpoint counts as absent: `keep_last` are kept besides, and the same goes for `resume: never` with an attempt."""
    saved(root, 10, 20, keep=(10,), attempt=3)
    uri = join(layout.checkpoint(root, 10), "COMMITTED.json")
    if content is None:
        flip_a_byte(uri)
    else:
        write_bytes(uri, content)
    assert checkpoint.written_by(root, 3)
    saved(root, 30, keep_last=2)
    assert [info.uri for info in open_store(root).list(layout.checkpoint(root, 10))] == []
    assert {step for step in (20, 30) if read_committed(layout.checkpoint(root, step))} == {20, 30}


def test_pruning_leaves_what_is_newer_or_of_a_newer_firstsight(tmp_path: Path) -> None:
    """A run that went back to an older checkpoint must not delete what it may not understand."""
    saved(str(tmp_path), 10, 40)
    uri = join(layout.checkpoint(str(tmp_path), 10), "COMMITTED.json")
    write_document(uri, {**read_json(uri), "format_version": 99})
    flip_a_byte(join(layout.checkpoint(str(tmp_path), 40), "COMMITTED.json"))
    saved(str(tmp_path), 20, 30, keep_last=1)
    left = sorted(path.parent.name for path in (tmp_path / "checkpoints").glob("*/model.safetensors"))
    assert left == ["step-000000010", "step-000000030", "step-000000040"]


def test_the_records_of_a_step_come_back_with_it(root: str) -> None:
    """A resumed run takes its lines from the checkpoint, whatever became of the stage's folder; a flipped one is no checkpoint."""
    saved(root, 10, 20)
    back = found(root)
    assert back is not None
    assert back.records == {"progress.jsonl": b"{}\n"}
    flip_a_byte(join(back.uri, "progress.jsonl"))
    older = found(root)
    assert older is not None
    assert older.step == 10


def reseal(output: str, step: int, changes: dict[str, Any]) -> None:
    """Change what COMMITTED.json says."""
    uri = join(layout.checkpoint(output, step), "COMMITTED.json")
    write_document(uri, {**read_json(uri), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 7},
        {"step": 700},
        {"step": "seven"},
        {"files": None},
        {"files": {}},
        {"files": {"model.safetensors": {}}},
        {"facts": None},
        {"recipe_hash": 3},
    ],
)
def test_a_seal_that_says_something_else_is_passed_over(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Another step than the state's, or another shape: never believed, and the older checkpoint serves."""
    saved(str(tmp_path), 10, 20)
    reseal(str(tmp_path), 20, changes)
    back, skipped = checkpoint.find(str(tmp_path), "auto", recipe_hash=HASH, recipe=RECIPE)
    assert back is not None
    assert back.step == 10
    assert "step-000000020" in skipped[0]
    with pytest.raises(InputError, match=r"placement\.resume: .*step-000000020"):
        found(str(tmp_path), resume=layout.checkpoint(str(tmp_path), 20))


def test_a_store_that_fails_is_no_bad_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps must not be lost because the store was down for a moment: the run fails, and may be run again."""
    saved(str(tmp_path), 10, 20)

    def fails(uri: str) -> bytes:
        raise RunError(f"{uri}: 503")

    monkeypatch.setattr("trainer.storage.checked.read_bytes", fails)
    with pytest.raises(RunError, match="503") as raised:
        found(str(tmp_path))
    assert not isinstance(raised.value, Corrupt)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, value: float) -> None:
    """The next save says it, and the last good checkpoint stays the newest."""
    saved(str(tmp_path), 10)
    writer = checkpoint.Writer(str(tmp_path), recipe_hash=HASH, fence=Fence(str(tmp_path), 0), keep_last=9)
    part = tensors(20.0)
    part["optimizer.safetensors"]["wide/exp_avg"][3, 3] = value
    writer.save(20, part, {"recipe": RECIPE}, {}, beside={}, keep=False)
    with pytest.raises(RunError, match=r"optimizer\.safetensors: wide/exp_avg contains NaN or Inf"):
        writer.close()
    back = found(str(tmp_path))
    assert back is not None
    assert back.step == 10


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """Both versions are named."""
    saved(str(tmp_path), 10)
    uri = join(layout.checkpoint(str(tmp_path), 10), "COMMITTED.json")
    write_document(uri, {**read_json(uri), "format_version": 99})
    with pytest.raises(InputError, match="format 99 is newer"):
        found(str(tmp_path))


def test_another_recipe_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    """Other architectures and data identities are recipe fields, so this is their refusal too."""
    saved(str(tmp_path), 10)
    other = {"model": {"vision_width": 64}, "seed": 0}
    with pytest.raises(InputError, match=r"model\.vision_width: 32 -> 64"):
        found(str(tmp_path), recipe_hash="b" * 64, recipe=other)


def test_an_explicit_checkpoint_must_be_sealed(tmp_path: Path) -> None:
    """A URI never falls back to anything else."""
    with pytest.raises(InputError, match=r"no COMMITTED\.json"):
        found(str(tmp_path), resume=str(tmp_path / "checkpoints" / "step-000000010"))


def test_an_explicit_checkpoint_is_used_though_a_newer_is_there(tmp_path: Path) -> None:
    """`resume: <uri>` means that one."""
    saved(str(tmp_path), 10, 20)
    back = found(str(tmp_path), resume=layout.checkpoint(str(tmp_path), 10))
    assert back is not None
    assert back.step == 10


def test_only_the_last_ones_stay_and_those_marked(root: str) -> None:
    """keep_last counts sealed ones; a torn folder of an earlier step goes too, and one that firstsight 0.1.0 marked as kept stays."""
    write_bytes(join(layout.checkpoint(root, 5), "model.safetensors"), b"torn")
    saved(root, 10)
    seal = read_committed(layout.checkpoint(root, 10))
    assert seal is not None
    write_committed(layout.checkpoint(root, 10), dataclasses.replace(seal, facts={**seal.facts, "kept": True}))
    saved(root, 20, 30, 40, keep=(20,), keep_last=2)
    left = [step for step in (5, 10, 20, 30, 40) if read_committed(layout.checkpoint(root, step)) is not None]
    assert left == [10, 30, 40]
    assert read_committed(layout.kept(root, 20)) is not None
    with pytest.raises(InputError):
        read_bytes(join(layout.checkpoint(root, 5), "model.safetensors"))


def test_a_failed_save_fails_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The background's error is raised where the run can see it, and nothing is sealed."""
    writer = checkpoint.Writer(str(tmp_path), recipe_hash=HASH, fence=Fence(str(tmp_path), 0), keep_last=2)

    def full(*_: object) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(checkpoint, "put_file", full)
    writer.save(1, tensors(), {"recipe": RECIPE}, {}, beside={}, keep=False)
    with pytest.raises(RunError, match="disk is full"):
        writer.save(2, tensors(), {"recipe": RECIPE}, {}, beside={}, keep=False)
    writer.close()
    assert found(str(tmp_path)) is None


def test_an_older_attempt_must_not_commit(root: str) -> None:
    """The number is read again before the seal: a writer that lived on leaves no checkpoint."""
    old = Fence(root, 1)
    old.claim()
    writer = checkpoint.Writer(root, recipe_hash=HASH, fence=old, keep_last=2)
    Fence(root, 2).claim()
    writer.save(10, tensors(), {"recipe": RECIPE}, {}, beside={}, keep=False)
    with pytest.raises(RunError, match="attempt 2 has taken over"):
        writer.close()
    assert found(root) is None


def test_an_older_attempt_cannot_claim_the_folder(tmp_path: Path) -> None:
    """It ends before it writes anything."""
    Fence(str(tmp_path), 3).claim()
    with pytest.raises(RunError, match="attempt 3 has taken over"):
        Fence(str(tmp_path), 2).claim()


def test_a_rewritten_step_is_unsealed_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old seal must not vouch for new files."""
    saved(str(tmp_path), 10)

    def killed(*_: object) -> None:
        raise RunError("killed")

    monkeypatch.setattr(checkpoint, "put_file", killed)
    with pytest.raises(RunError, match="killed"):
        saved(str(tmp_path), 10)
    assert found(str(tmp_path)) is None
