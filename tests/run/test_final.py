"""A finished stage: its seal, the files of final/, and the records beside them, each damaged in turn."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.run.test_checkpoint import HASH, flip_a_byte, saved
from trainer.errors import Corrupt
from trainer.run import checkpoint
from trainer.storage import checked, join, layout, open_store, write_bytes
from trainer.storage.committed import read_beside, read_committed, read_final, restore_beside
from trainer.storage.fence import Fence
from trainer.storage.file import FileStore
from trainer.storage.protocol import ObjectInfo


def final(root: str, folder: Path) -> None:
    """A final model with its two records."""
    checkpoint.write_final(
        root,
        folder,
        recipe_hash=HASH,
        step=7,
        fence=Fence(root, 0),
        facts={"vision_sha256": "x"},
        beside={"lineage.json": b'{"a": 1}', "progress.jsonl": b"{}\n"},
        copies={"config.yaml": b"seed: 0\n"},
    )


@pytest.fixture
def finished(root: str, tmp_path: Path) -> str:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "vision.safetensors").write_bytes(b"weights")
    final(root, folder)
    return root


def test_a_second_look_at_a_final_model_reads_no_file(finished: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer has checked it and left a record."""
    monkeypatch.setattr(checked, "file_sha256", lambda uri, *_: pytest.fail(f"{uri} was read"))
    assert read_final(finished)[1] == {}


@pytest.mark.parametrize("harm", [lambda data: data[:-1], lambda data: data[:-1] + b"!", lambda data: data + b"!", lambda data: b""])
@pytest.mark.parametrize("name", ["vision.safetensors", "lineage.json"])
def test_what_the_file_system_keeps_otherwise_is_not_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, harm: Callable[[bytes], bytes]
) -> None:
    """Each file is read back before the seal is written; one file of a checkpoint is not what was saved either."""
    folder, root, put = tmp_path / "weights", str(tmp_path / "root"), FileStore.put_stream
    folder.mkdir()
    (folder / "vision.safetensors").write_bytes(b"weights")

    def keep_otherwise(store: FileStore, uri: str, stream: BinaryIO, size: int | None = None) -> ObjectInfo:
        return put(store, uri, io.BytesIO(harm(stream.read())) if uri.endswith((name, "model.safetensors")) else stream)

    monkeypatch.setattr(FileStore, "put_stream", keep_otherwise)
    with pytest.raises(Corrupt, match=f"{name}: the file system did not return"):
        final(root, folder)
    assert read_final(root) == (None, {})
    with pytest.raises(Corrupt, match="did not return"):
        saved(join(root, "other"), 1)
    assert read_committed(layout.checkpoint(join(root, "other"), 1)) is None


@pytest.mark.parametrize(
    "name", ["final/vision.safetensors", "final/lineage.json", "final/progress.jsonl", "lineage.json", "progress.jsonl"]
)
def test_a_file_of_a_final_model_that_changed_is_named(finished: str, name: str) -> None:
    """Of the same size; the records beside it count as much as the weights."""
    flip_a_byte(join(finished, name))
    assert read_final(finished)[1] == {join(finished, name): "its checksum does not match the sealed one"}


@pytest.mark.parametrize("content", [b"", b"{", None], ids=["empty", "cut", "missing"])
@pytest.mark.parametrize("damaged", ["lineage.json", "final/lineage.json"])
def test_a_record_is_restored_from_its_other_copy(finished: str, damaged: str, content: bytes | None) -> None:
    """And readers are given the intact one meanwhile."""
    uri = join(finished, damaged)
    if content is None:
        open_store(uri).delete(uri)
    else:
        write_bytes(uri, content)
    seal, wrong = read_final(finished)
    assert seal is not None
    assert read_beside(finished, seal, "lineage.json") == b'{"a": 1}'
    assert restore_beside(finished, seal, wrong).keys() == {uri}
    assert read_final(finished)[1] == {}


def test_a_record_whose_copies_are_both_damaged_is_not_given_to_anyone(finished: str) -> None:
    """The stage must be trained again."""
    for uri in (join(finished, "lineage.json"), join(finished, "final", "lineage.json")):
        flip_a_byte(uri)
    seal, wrong = read_final(finished)
    assert seal is not None
    assert restore_beside(finished, seal, wrong) == {}
    with pytest.raises(Corrupt, match=r"neither it nor .* matches what was sealed"):
        read_beside(finished, seal, "lineage.json")


def test_a_damaged_seal_of_a_final_model_is_none(finished: str) -> None:
    """With its reason; nothing is raised."""
    flip_a_byte(join(finished, "final", "COMMITTED.json"))
    seal, wrong = read_final(finished)
    assert seal is None
    assert list(wrong) == [join(finished, "final", "COMMITTED.json")]


def test_the_final_model_is_sealed_last_with_its_checksums(root: str, tmp_path: Path) -> None:
    """Every file is named with size and SHA-256."""
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "vision.safetensors").write_bytes(b"weights")
    final(root, folder)
    seal, damaged = read_final(root)
    assert seal is not None
    assert damaged == {}
    assert seal.files["vision.safetensors"]["size"] == 7
    assert seal.facts == {"vision_sha256": "x"}
