import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from trainer import lineage
from trainer.config import StartConfig, StartKind
from trainer.errors import Corrupt, InputError
from trainer.lineage import MODEL_FILE, TOWER_FILE, read_start, weights_sha256
from trainer.storage import join, read_bytes, read_json, write_bytes
from trainer.storage.checked import remember
from trainer.storage.committed import Committed, write_committed
from trainer.storage.documents import write_document

HASH = "c" * 64
TOWER = {"proj": np.arange(6, dtype=np.float32).reshape(2, 3), "gain": np.array(2, np.float32)}


def finished(folder: str, file: str = TOWER_FILE, state: dict[str, Any] = TOWER, fact: str = "vision_sha256") -> StartConfig:
    """Write a sealed final/ with these weights; returns the matching start."""
    data = save(state)
    write_bytes(join(folder, file), data)
    files = {file: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    facts = {fact: weights_sha256(state)}
    write_committed(folder, Committed(recipe_hash=HASH, attempt=0, step=1, files=files, facts=facts))
    kind: StartKind = "tower" if file == TOWER_FILE else "model"
    return StartConfig(kind=kind, uri=folder, recipe_hash=HASH)


def test_equal_weights_have_equal_hashes_whatever_their_order() -> None:
    """Names, types, shapes and bytes count; the order of a dictionary does not."""
    assert weights_sha256(TOWER) == weights_sha256(dict(reversed(TOWER.items())))


@pytest.mark.parametrize(
    "changed",
    [
        {**TOWER, "proj": TOWER["proj"].reshape(3, 2)},
        {**TOWER, "proj": TOWER["proj"].astype(np.float64)},
        {"proj": TOWER["proj"], "bias": TOWER["gain"]},
        {**TOWER, "gain": np.zeros((), np.float32)},
    ],
)
def test_a_change_changes_the_hash(changed: dict[str, Any]) -> None:
    """Shape, type, name and value each count."""
    assert weights_sha256(changed) != weights_sha256(TOWER)


def test_a_tower_is_handed_over_with_its_hash(tmp_path: Path) -> None:
    """What stage 1 recorded is what stage 2 gets."""
    state, digest = read_start(finished(str(tmp_path)))
    assert digest == weights_sha256(TOWER)
    assert np.array_equal(state["proj"], TOWER["proj"])


def test_a_tower_can_be_extracted_from_a_whole_model(tmp_path: Path) -> None:
    """from:<uri> of an open_clip final/: its vision part, keys without `visual.`."""
    model = {f"visual.{name}": array for name, array in TOWER.items()} | {"logit_scale": np.ones((), np.float32)}
    finished(str(tmp_path), MODEL_FILE, model, "weights_sha256")
    state, digest = read_start(StartConfig(kind="tower", uri=str(tmp_path), recipe_hash=HASH))
    assert state.keys() == TOWER.keys()
    assert digest == weights_sha256(TOWER)


def test_a_bare_file_is_identified_by_its_bytes(tmp_path: Path) -> None:
    """from:<file> carries the SHA-256 of the file; keys may have the `visual.` of a whole model."""
    data = save({f"visual.{name}": array for name, array in TOWER.items()})
    write_bytes(str(tmp_path / "tower.safetensors"), data)
    start = StartConfig(kind="tower", uri=str(tmp_path / "tower.safetensors"), recipe_hash=hashlib.sha256(data).hexdigest())
    assert read_start(start)[0].keys() == TOWER.keys()


def test_a_start_without_a_seal_is_rejected(tmp_path: Path) -> None:
    """A stage that was not finished hands nothing over."""
    start = finished(str(tmp_path))
    (tmp_path / "COMMITTED.json").unlink()
    with pytest.raises(InputError, match=r"no COMMITTED\.json"):
        read_start(start)


def test_another_recipes_tower_is_refused(tmp_path: Path) -> None:
    """Another seed's tower has another recipe hash."""
    finished(str(tmp_path))
    with pytest.raises(InputError, match=r"start\.recipe_hash must be that of"):
        read_start(StartConfig(kind="tower", uri=str(tmp_path), recipe_hash="d" * 64))


@pytest.mark.parametrize("name", [TOWER_FILE, "COMMITTED.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_tower_is_refused_and_the_stage_to_run_again_is_named(tmp_path: Path, name: str, damage: str) -> None:
    """The file is covered by the seal's checksum, and the seal by its own. Records of earlier checks are discarded."""
    start = finished(str(tmp_path / "final"))
    path = tmp_path / "final" / name
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    remember(str(tmp_path), {f"final/{TOWER_FILE}": ("a stamp", "a checksum")})
    path.unlink() if damage == "missing" else path.write_bytes(data if damage == "flipped" else data[:-9])
    lost = (damage, name) == ("missing", "COMMITTED.json")
    with pytest.raises(InputError if lost else Corrupt, match=rf"{name}.*run the stage in {tmp_path} again"):
        read_start(start)
    vouched = set(read_json(str(tmp_path / "CHECKED.json"))["files"])
    assert vouched == ({f"final/{TOWER_FILE}"} if name == "COMMITTED.json" else set())


def test_other_weights_under_a_right_checksum_are_refused(tmp_path: Path) -> None:
    """The weights' own hash is what stage 1 recorded; a file swapped with its checksum does not pass."""
    start = finished(str(tmp_path))
    data = save({**TOWER, "gain": np.zeros((), np.float32)})
    write_bytes(join(str(tmp_path), TOWER_FILE), data)
    seal = json.loads(read_bytes(join(str(tmp_path), "COMMITTED.json")))
    seal["files"][TOWER_FILE] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_document(join(str(tmp_path), "COMMITTED.json"), seal)
    with pytest.raises(Corrupt, match="hash of the weights"):
        read_start(start)


def test_a_tower_cannot_start_what_needs_a_model(tmp_path: Path) -> None:
    """Posthoc needs both towers."""
    finished(str(tmp_path))
    with pytest.raises(InputError, match=r"needs open_clip_model\.safetensors"):
        read_start(StartConfig(kind="model", uri=str(tmp_path), recipe_hash=HASH))


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Replaces git with a shell script and limits the wait for it to 0.2 s."""

    def install(script: str) -> None:
        path = tmp_path / "bin" / "git"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("FIRSTSIGHT_GIT_COMMIT", raising=False)
    monkeypatch.setattr(lineage, "GIT_SECONDS", 0.2)
    lineage.code_facts.cache_clear()
    yield install
    lineage.code_facts.cache_clear()


@pytest.mark.parametrize(("revision", "dirty"), [("abc123", False), ("abc123-dirty", True)])
def test_an_image_says_whether_it_was_built_from_its_commit_alone(
    git: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, revision: str, dirty: bool
) -> None:
    """As images/build.sh found it."""
    monkeypatch.setenv("FIRSTSIGHT_GIT_COMMIT", revision)
    facts = lineage.code_facts()
    assert (facts["git_commit"], facts["dirty"]) == ("abc123", dirty)


@pytest.mark.parametrize(
    ("script", "commit"),
    [
        pytest.param("exec sleep 60", "", id="too slow"),
        pytest.param('case "$*" in *status*) exec sleep 60 ;; *) echo abc123 ;; esac', "abc123", id="status too slow: perhaps changed"),
        pytest.param("exit 128", "", id="no checkout, or an unsafe folder"),
        pytest.param("kill -9 $$", "", id="killed"),
        pytest.param("printf '\\377\\376'; exit 1", "", id="not text"),
        pytest.param('case "$*" in *ls-files*) exit 1 ;; *) echo abc123 ;; esac', "", id="a checkout around the installed package"),
    ],
)
def test_what_git_does_not_tell_is_unknown(git: Callable[[str], None], script: str, commit: str) -> None:
    """It costs the time limit once, but never a run; whether there are changes is then unknown, which is not the same as none."""
    git(script)
    facts = lineage.code_facts()
    assert (facts["git_commit"], facts["dirty"]) == (commit, None)


def test_git_is_queried_once_per_process(git: Callable[[str], None]) -> None:
    """What lineage.json says at the end is the code that was loaded, even if something else was checked out since."""
    git('case "$*" in *rev-parse*) echo abc123 ;; esac')
    first = lineage.code_facts()
    git("echo other")
    assert lineage.code_facts() == first == {**first, "git_commit": "abc123", "dirty": False}
