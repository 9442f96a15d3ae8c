"""One attempt a slice counts, in every order in which several can meet, and wherever one of them is killed."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.damage import rewrite
from tests.staging.conftest import photo_folder
from tests.staging.test_writer import tree
from trainer.config import Recipe
from trainer.errors import Corrupt, RunError
from trainer.staging.plans import Plan, read_plan, slices_to_make, write_plan
from trainer.staging.rows import Reject
from trainer.staging.sealed import find_intact
from trainer.staging.slices import ATTEMPTS, Attempt, find_whole, record_name
from trainer.staging.stage import stage_pairs
from trainer.staging.writer import SliceWriter, gather, seal
from trainer.storage import join, open_store, read_bytes, write_bytes
from trainer.storage.file import FileStore
from trainer.storage.manifest import require_manifest
from trainer.storage.samples import read_index, read_members

PLAN = Plan(
    kind="pairs", name="x-pairs", source={"uri": "x", "fingerprint": "f"}, options={}, shard_samples=2, splits=["train"], rows_read=5,
    columns="pairs",
)  # fmt: skip


def begin(folder: str, who: str, count: int) -> SliceWriter:
    """A writer that was given `count` samples and 5 - `count` rejects, all with its maker's name in them."""
    writer = SliceWriter(folder, PLAN, 0).__enter__()
    for row in range(count):
        members = {"image": ("jpg", who.encode()), "txt": ("txt", who.encode()), "json": ("json", b"{}")}
        writer.add(f"k{row}", members, [[49406, 49407]])
    for row in range(count, 5):
        writer.reject(Reject(f"k{row}", f"lost by {who}", "404"))
    return writer


def end(writer: SliceWriter) -> None:
    writer.__exit__(None, None, None)


def end_unpublished(writer: SliceWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies between its record and its first copy."""
    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "_publish", lambda attempt, record: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            end(writer)


def sealed_by(folder: str) -> str:
    """Seal; whose samples these are, which must be one's alone, with its rejects and nothing beside."""
    manifest = seal(folder, PLAN, gather(folder, PLAN))
    who = set()
    for shard in manifest.shards:
        index = read_index(folder, shard)
        for row in range(index.num_samples):
            who.add(read_members(folder, index, row)["txt"].decode())
    assert len(who) == 1
    assert list(manifest.rows["lost"]) == [f"lost by {name}" for name in who]
    assert manifest.rows["written"] + sum(manifest.rows["lost"].values()) == 5
    names = {info.uri.removeprefix(f"{folder}/") for info in open_store(folder).list(folder)}
    assert names == {*manifest.all_files, "plan.json", "manifest.json", "CHECKED.json"}
    return who.pop()


def test_the_first_to_end_counts(root: str) -> None:
    """Whoever began first; the other one's shards, more of them, and its rejects are gone."""
    write_plan(root, PLAN)
    slow, quick = begin(root, "slow", 4), begin(root, "quick", 2)
    end(quick)
    end(slow)
    assert sealed_by(root) == "quick"


def test_the_chosen_one_is_published_by_another_if_it_dies(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it made lies in its attempt, and is found there by checksum."""
    write_plan(root, PLAN)
    slow, dead = begin(root, "slow", 4), begin(root, "dead", 2)
    end_unpublished(dead, monkeypatch)
    assert not open_store(root).head(join(root, "shard-00000-00000.tar"))
    end(slow)
    assert open_store(root).head(join(root, "shard-00000-00000.tar"))
    assert sealed_by(root) == "dead"


def test_sealing_publishes_what_a_dead_one_made(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it was published before."""
    write_plan(root, PLAN)
    dead = begin(root, "dead", 4)
    copied: list[str] = []
    kind = type(open_store(root))
    copy = kind.copy

    def copy_one(store: object, source: str, target: str) -> object:
        if copied:
            raise KeyboardInterrupt
        copied.append(target)
        return copy(store, source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(kind, "copy", copy_one)
        with pytest.raises(KeyboardInterrupt):
            end(dead)
    assert sealed_by(root) == "dead"


def test_a_slice_whose_chosen_bytes_are_gone_is_made_again(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record alone makes nothing count: gather names it, and the next to make it is chosen in its place, whole."""
    write_plan(root, PLAN)
    end_unpublished(begin(root, "dead", 4), monkeypatch)
    for info in open_store(root).list(join(root, ATTEMPTS)):
        open_store(root).delete(info.uri)
    with pytest.raises(RunError, match=r"1 of 1 slices are not done: 0; .*slice-00000\.jsonl: missing; rerun the command that makes them"):
        gather(root, PLAN)
    assert list(slices_to_make(root, PLAN)) == [0]
    one, two = begin(root, "one", 2), begin(root, "two", 3)
    end(one)
    end(two)
    assert sealed_by(root) == "one"
    assert list(slices_to_make(root, PLAN)) == []


def test_a_damaged_record_is_replaced_once(tmp_path: Path) -> None:
    """Two who found the same damage: one is chosen, the other finds it whole."""
    root = str(tmp_path)
    write_plan(root, PLAN)
    end(begin(root, "first", 4))
    write_bytes(join(root, record_name(0)), read_bytes(join(root, record_name(0))).replace(b"train", b"trbin"))
    assert list(slices_to_make(root, PLAN)) == [0]
    one, two = begin(root, "one", 2), begin(root, "two", 3)
    end(two)
    end(one)
    assert sealed_by(root) == "two"


def test_what_another_published_meanwhile_is_not_noted_as_ones_own(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was chosen before its record was damaged publishes late, over the next one's files: none is taken for whole unread."""
    write_plan(root, PLAN)
    end(begin(root, "one", 2))
    names = ("shard-00000-00000.tar", "shard-00000-00000.index", "rejects/slice-00000.jsonl")
    late = {name: read_bytes(join(root, name)) for name in names}
    write_bytes(join(root, record_name(0)), read_bytes(join(root, record_name(0))).replace(b"train", b"trbin"))
    drop = Attempt.drop

    def publish_late(attempt: Attempt) -> None:
        drop(attempt)
        for name, data in late.items():
            write_bytes(join(root, name), data)

    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "drop", publish_late)
        end(begin(root, "two", 2))
    with pytest.raises(RunError, match=r"1 of 1 slices are not done: 0; .*its checksum does not match"):
        gather(root, PLAN)
    assert list(slices_to_make(root, PLAN)) == [0]
    end(begin(root, "six", 2))
    assert sealed_by(root) == "six"


def test_a_slice_made_while_another_sealed_does_not_touch_it(tmp_path: Path) -> None:
    """It was begun when the slice was damaged; by its end the data set is whole and sealed with other bytes."""
    root = str(tmp_path)
    write_plan(root, PLAN)
    end(begin(root, "first", 4))
    shard = tmp_path / "shard-00000-00000.tar"
    data = shard.read_bytes()
    shard.write_bytes(b"x")
    late = begin(root, "late", 2)
    shard.write_bytes(data)
    assert sealed_by(root) == "first"
    end(late)
    assert sealed_by(root) == "first"


def test_attempts_of_a_record_that_lost_the_race_of_an_advisory_create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a store lets two create one record, the one that stays counts, and the other's shards do not replace its."""
    root = str(tmp_path)
    write_plan(root, PLAN)
    one, two = begin(root, "one", 2), begin(root, "two", 3)
    end(two)
    theirs = read_bytes(join(root, record_name(0)))
    (tmp_path / record_name(0)).unlink()
    create = FileStore.create

    def create_late(store: FileStore, uri: str, data: bytes) -> bool:
        created = create(store, uri, data)
        write_bytes(uri, theirs)  # it won as well, and wrote last
        return created

    monkeypatch.setattr(FileStore, "create", create_late)
    end(one)
    assert sealed_by(root) == "two"


def test_a_changed_byte_of_a_record_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """Whatever byte it is."""
    root = str(tmp_path)
    write_plan(root, PLAN)
    end(begin(root, "first", 4))
    path = tmp_path / record_name(0)
    data, (whole, _) = path.read_bytes(), find_whole(root, PLAN.plan_id, {0: "train"})
    found = 0
    for at in range(len(data)):
        for mask in (1, 64)[at % 2 :: 2]:
            rewrite(path, bytes([*data[:at], data[at] ^ mask, *data[at + 1 :]]))
            records, unfit = find_whole(root, PLAN.plan_id, {0: "train"})
            assert bool(records) != bool(unfit)
            assert records in ({}, whole)
            found += len(unfit)
    assert found > len(data) / 2


WRITES = ("put_stream", "copy", "delete", "create", "replace", "sweep")


def die_at(write: int, run: Callable[[], object], *, after: bool) -> bool:
    """Run in a forked process that is gone, without a word, at its n-th change of the store; whether it came to that."""
    pid = os.fork()
    if pid == 0:
        count = 0
        for name in WRITES:
            original = getattr(FileStore, name)

            def dying(store: FileStore, *arguments: object, _original: Callable[..., object] = original, **named: object) -> object:
                nonlocal count
                count += 1
                if count == write and not after:
                    os._exit(137)
                result = _original(store, *arguments, **named)
                if count >= write and after:
                    os._exit(137)
                return result

            setattr(FileStore, name, dying)
        os.close(2)
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 137)
    return code == 137


@pytest.mark.parametrize(
    ("after", "stride"), [(False, 9), pytest.param(False, 1, marks=pytest.mark.campaign), pytest.param(True, 1, marks=pytest.mark.campaign)]
)
def test_killed_at_any_write_and_run_again(tmp_path: Path, smoke: Recipe, after: bool, stride: int) -> None:
    """The same bytes come out, and nothing is left of the dead. Each root dies several times, at writes that are further on."""
    source = photo_folder(tmp_path / "photos", 9)
    recipe = dataclasses.replace(smoke, staging=dataclasses.replace(smoke.staging, shard_samples=3))

    def stage(root: str) -> None:
        stage_pairs(root=str(tmp_path / root), source=str(source), recipe=recipe, max_reject_fraction=0.0)

    stage("calm")
    calm = tree(tmp_path / "calm")
    writes, died = 1, True
    while died:
        root = f"killed-{writes}"
        died = die_at(writes, lambda root=root: stage(root), after=after)  # type: ignore[misc]
        if died and writes % 3 == 0:
            die_at(writes // 2, lambda root=root: stage(root), after=after)  # type: ignore[misc]
        stage(root)
        assert tree(tmp_path / root) == calm, writes
        assert not list((tmp_path / root).rglob("attempts"))
        writes += stride
    assert writes > 40


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.campaign)])
def test_killed_while_healing(tmp_path: Path, smoke: Recipe, stride: int) -> None:
    """A sealed set whose shard is damaged, and whose healer dies at each of its writes."""
    source = photo_folder(tmp_path / "photos", 6)

    def stage() -> str:
        return stage_pairs(root=str(tmp_path / "root"), source=str(source), recipe=smoke, max_reject_fraction=0.0)[0]

    folder = Path(stage())
    calm = tree(tmp_path / "root")
    shard, writes = folder / require_manifest(str(folder)).shards[0].name, 1
    while True:
        shard.write_bytes(b"x")
        if not die_at(writes, stage, after=False):
            break
        stage()
        assert tree(tmp_path / "root") == calm, writes
        writes += stride
    assert writes > 8


def test_the_plan_says_what_its_rejects_are(tmp_path: Path) -> None:
    """A changed list of rejects of the plan is found by its checksum."""
    plan = write_plan(str(tmp_path), PLAN, [Reject("a", "no caption", "")])
    end(begin(str(tmp_path), "first", 4))
    seal(str(tmp_path), plan, gather(str(tmp_path), plan))
    assert find_intact(str(tmp_path)) is not None
    (tmp_path / "rejects" / "plan.jsonl").write_bytes(b"{}\n")
    assert find_intact(str(tmp_path)) is None
    path = tmp_path / "plan.json"
    path.write_text(path.read_text().replace("x-pairs", "y-pairs"))
    with pytest.raises(Corrupt, match=r"plan\.json: its checksum does not match its content"):
        read_plan(str(tmp_path))
