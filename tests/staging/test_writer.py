import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from tests.staging.conftest import photo_folder, samples, slice_done
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.staging.plans import Plan, write_plan
from trainer.staging.rows import Reject
from trainer.staging.writer import SliceWriter, gather, seal
from trainer.storage.manifest import Manifest, require_manifest
from trainer.storage.samples import read_index, read_members

PLAN = Plan(
    kind="pairs", name="x-pairs", source={"uri": "x", "fingerprint": "f"}, options={}, shard_samples=3, splits=["train", "test"],
    rows_read=9, columns="pairs",
)  # fmt: skip


def write_slice(folder: Path, number: int, count: int = 7) -> None:
    """A slice of `count` small samples and one reject."""
    with SliceWriter(str(folder), PLAN, number) as writer:
        for row in range(count):
            key = f"{number}-{row}"
            members = {"image": ("jpg", b"picture" * row), "txt": ("txt", key.encode()), "json": ("json", b"{}")}
            writer.add(key, members, [[49406, row, 49407], [49406, 49407]])
        writer.reject(Reject(f"bad {number}", "empty file", "0 bytes"))


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, except for the note on which of them were checked."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "CHECKED.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def by_webdataset(names: list[str], *stages: Any) -> list[Any]:
    """What webdataset makes of tars. We open and close the files: webdataset leaves that to the garbage collector."""
    read = []
    for name in names:
        with open(name, "rb") as stream:
            members = webdataset.tariterators.tar_file_expander([{"url": name, "stream": stream}])
            samples_of_tar = partial(webdataset.tariterators.group_by_keys, members)
            read += list(webdataset.DataPipeline(samples_of_tar, *stages))
    return read


def test_slices_add_up_to_a_manifest_in_any_order(tmp_path: Path) -> None:
    """Two slices, the second first; shards of at most three samples; every row accounted for."""
    write_plan(str(tmp_path), PLAN)
    write_slice(tmp_path, 1, 2)
    with pytest.raises(RunError, match="1 of 2 slices are not done: 0"):
        gather(str(tmp_path), PLAN)
    write_slice(tmp_path, 0)
    account = gather(str(tmp_path), PLAN)
    manifest = seal(str(tmp_path), PLAN, account)
    assert [(shard.name, shard.num_samples, shard.split) for shard in manifest.shards] == [
        ("shard-00000-00000.tar", 3, "train"), ("shard-00000-00001.tar", 3, "train"), ("shard-00000-00002.tar", 1, "train"),
        ("shard-00001-00000.tar", 2, "test"),
    ]  # fmt: skip
    assert manifest.rows == {"read": 9, "written": 9, "lost": {"empty file": 2}}
    assert require_manifest(str(tmp_path), manifest.identity) == manifest


def test_the_index_finds_every_member(tmp_path: Path) -> None:
    """Offsets, sizes, checksums and tokens, by ranges of the tar."""
    write_plan(str(tmp_path), PLAN)
    write_slice(tmp_path, 0)
    write_slice(tmp_path, 1)
    shard = seal(str(tmp_path), PLAN, gather(str(tmp_path), PLAN)).shards[1]
    index = read_index(str(tmp_path), shard)
    assert index.keys == ("0-3", "0-4", "0-5")
    assert read_members(str(tmp_path), index, 1) == {"image": b"picture" * 4, "txt": b"0-4", "json": b"{}"}
    assert [tokens.tolist() for tokens in index.captions(2)] == [[49406, 5, 49407], [49406, 49407]]


def test_an_error_inside_a_slice_leaves_it_undone(tmp_path: Path) -> None:
    """Nothing counts until the slice's record is there."""

    def fail() -> None:
        with SliceWriter(str(tmp_path), PLAN, 0) as writer:
            writer.add("a", {"image": ("jpg", b"x"), "txt": ("txt", b"x"), "json": ("json", b"{}")})
            raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        fail()
    assert not slice_done(str(tmp_path), 0)


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    """No time, user or order of the machine is in a shard."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_slice(tmp_path / name, 0)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_key_too_long_for_a_tar_is_refused(tmp_path: Path) -> None:
    """Instead of an index that points beside the data."""

    def write() -> None:
        with SliceWriter(str(tmp_path), PLAN, 0) as writer:
            writer.add("k" * 120, {"image": ("jpg", b"x"), "txt": ("txt", b"x"), "json": ("json", b"{}")})

    with pytest.raises(RunError, match="too long"):
        write()


def test_plain_webdataset_reads_the_shards(tmp_path: Path, stage: Callable[..., tuple[str, Manifest]]) -> None:
    """Pictures, captions and facts, decoded by webdataset alone."""
    uri, manifest = stage(photo_folder(tmp_path / "photos", 10))
    names = [f"{uri}/{shard.name}" for shard in manifest.shards]
    read = by_webdataset(names, webdataset.decode("pil"))
    assert sorted(sample["__key__"] for sample in read) == sorted(samples(uri, manifest))
    assert isinstance(read[0]["png"], Image.Image)
    assert read[0]["txt"].startswith("picture number")
    assert read[0]["json"]["width"] == 40


def test_plain_webdataset_reads_the_evaluation_sets(tmp_path: Path, stage: Callable[..., tuple[str, Manifest]]) -> None:
    """In CLIP_benchmark's layout: test/<k>.tar beside nshards.txt."""
    _, manifest = stage(photo_folder(tmp_path / "photos", 10))
    folder = tmp_path / "root" / manifest.evaluation[0]["uri"]
    count = int((folder / "test" / "nshards.txt").read_text(encoding="utf-8"))
    names = [str(folder / "test" / f"{number}.tar") for number in range(count)]
    read = by_webdataset(names, webdataset.decode("pil"), webdataset.to_tuple("webp;png;jpg;jpeg", "txt"))
    assert len(read) == manifest.facts["splits"]["test"] == 2
    assert (folder / "dataset_type.txt").read_text(encoding="utf-8") == "retrieval"


def test_open_clips_stages_read_the_shards(tmp_path: Path, stage: Callable[..., tuple[str, Manifest]]) -> None:
    """The members that open_clip's own training pipeline asks for are there, by the names that it asks for."""
    uri, manifest = stage(photo_folder(tmp_path / "photos", 12, "jpg"))
    names = [f"{uri}/{shard.name}" for shard in manifest.split("train")]
    stages = (
        webdataset.select(lambda sample: "txt" in sample and ("png" in sample or "jpg" in sample)),
        webdataset.decode("pilrgb"),
        webdataset.rename(image="jpg;png;jpeg;webp", text="txt"),
        webdataset.to_tuple("image", "text"),
        webdataset.batched(4, partial=False),
    )
    images, texts = by_webdataset(names, *stages)[0]
    assert len(images) == len(texts) == 4


@pytest.mark.slow
def test_killed_anywhere_and_run_again_gives_the_same_bytes(tmp_path: Path, smoke: Recipe) -> None:
    """`stage pairs` is killed at several moments; what a last run leaves is what an undisturbed run leaves."""
    source = photo_folder(tmp_path / "photos", 300)

    def command(root: str) -> list[str]:
        base = [sys.executable, "-m", "trainer", "stage", "pairs", "--recipe", "smoke", "--set", "staging.shard_samples=16"]
        return [*base, "--source", str(source), "--root", str(tmp_path / root)]

    subprocess.run(command("calm"), check=True)
    kills = 0
    for delay in (0.0, 0.2, 0.5):
        process = subprocess.Popen(command("killed"))
        written = _shards(tmp_path / "killed")
        while process.poll() is None and next(written) < 3 + 5 * kills:
            time.sleep(0.01)
        time.sleep(delay)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    subprocess.run(command("killed"), check=True)
    calm = {name: digest for name, digest in tree(tmp_path / "calm").items()}
    killed = {name: digest for name, digest in tree(tmp_path / "killed").items() if not name.endswith(".partial")}
    assert kills
    assert killed == calm


def _shards(folder: Path) -> Iterator[int]:
    """How many shards there are, each time it is asked."""
    while True:
        yield len(list(folder.rglob("*.tar")))


def test_tar_members_carry_no_trace_of_the_machine(tmp_path: Path) -> None:
    """Time 0, a fixed owner, read-only."""
    write_slice(tmp_path, 0)
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "shard-00000-00000.tar").read_bytes())) as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "firstsight", 0o444)}
    assert json.loads((tmp_path / "slices" / "slice-00000.json").read_text(encoding="utf-8"))["plan_id"] == PLAN.plan_id


def test_a_full_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the disk fills up with the first sample or with the last: shard, folder and remedy in one line."""
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "w+b"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def write(count: int, size: int) -> None:
        with SliceWriter(str(tmp_path / "set"), PLAN, 0) as writer:
            for row in range(count):
                members = {"image": ("jpg", bytes(size)), "txt": ("txt", b"x"), "json": ("json", b"{}")}
                writer.add(f"0-{row}", members, [[49406, 49407]])

    for count, size in ((1, 1), (1, 1 << 20), (3, 1 << 20)):
        with pytest.raises(RunError, match=rf"shard-00000-00000\.tar: cannot be written: No space left in {tmp_path}: .* set TMPDIR"):
            write(count, size)
    assert not list((tmp_path / "set").rglob("*.*"))
