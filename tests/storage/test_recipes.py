"""A stage's folder tells which recipe made it, and a refusal names the keys that differ."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests import old_store
from trainer.config import ContrastiveConfig, StageConfig, recipe_fields, recipe_hash
from trainer.configs import dump_yaml
from trainer.errors import Corrupt, InputError
from trainer.storage import write_bytes
from trainer.storage.recipes import find_fields, read_stage, restore_config, shown, what_differs, write_config_file

OLD = StageConfig(output="x", contrastive=ContrastiveConfig(epochs=32))
NEW = StageConfig(output="x", contrastive=ContrastiveConfig(epochs=16))


def record(folder: Path, place: str) -> None:
    """Leave the old recipe where a stage does."""
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_yaml(OLD) if place.endswith(".yaml") else json.dumps({"recipe": recipe_fields(OLD)}))


@pytest.mark.parametrize("place", ["config.yaml", "lineage.json", "checkpoints/step-000000010/state.json"])
@pytest.mark.parametrize("ours", [NEW, recipe_hash(NEW)])
def test_the_differing_keys_are_named_from_whatever_records_the_recipe(tmp_path: Path, place: str, ours: StageConfig | str) -> None:
    """Also where config.yaml is the new recipe's by now, and where the new one is known by its hash alone."""
    planned = tmp_path / "planned"
    planned.mkdir()
    (planned / "config.yaml").write_text(dump_yaml(NEW))
    if place != "config.yaml":
        (tmp_path / "config.yaml").write_text(dump_yaml(NEW))
    record(tmp_path, place)
    assert what_differs(str(tmp_path), recipe_hash(OLD), ours, str(planned)) == ": contrastive.epochs: 32 -> 16"


@pytest.mark.parametrize("text", ["", "- 1", '{"recipe": 5}', "{"])
def test_a_recipe_that_is_recorded_nowhere_is_said_to_be(tmp_path: Path, text: str) -> None:
    """Which file would have told it, and of which hash; what cannot be read tells nothing."""
    for name in ("config.yaml", "lineage.json"):
        (tmp_path / name).write_text(text)
    line = what_differs(str(tmp_path), recipe_hash(OLD), NEW)
    assert f"recipe hash {recipe_hash(OLD)[:12]} instead of {recipe_hash(NEW)[:12]}" in line
    assert f"no config.yaml, lineage.json or checkpoint in {tmp_path} records recipe {recipe_hash(OLD)[:12]}" in line
    assert what_differs("", "", "a" * 64).startswith(" (recipe hash none instead of aaaaaaaaaaaa; ")


def test_a_record_counts_by_its_hash_alone(tmp_path: Path) -> None:
    """A lineage.json that was changed by hand is no record of what it was."""
    (tmp_path / "lineage.json").write_text(json.dumps({"recipe": {**recipe_fields(OLD), "seed": 5}}))
    assert find_fields(str(tmp_path), recipe_hash(OLD)) is None


def test_a_long_list_is_cut_and_counted() -> None:
    assert shown([f"k{number}: 0 -> 1" for number in range(9)]).endswith("k5: 0 -> 1; and 3 more")


def test_a_stage_of_ad127be_tells_its_recipe_by_its_checkpoint(tmp_path: Path) -> None:
    """Its lineage did not record it."""
    folder = old_store.unpack(tmp_path) / old_store.unfinished()["stage"]
    (folder / "config.yaml").unlink()
    found = find_fields(str(folder), old_store.unfinished()["seal"]["recipe_hash"])
    assert found is not None
    assert found["contrastive"]["epochs"] == 40


def test_no_flipped_bit_of_a_configuration_is_read_as_another_value(tmp_path: Path) -> None:
    """Its first line is the checksum of the rest; a file without such a line is read as it is."""
    config = dataclasses.replace(OLD, output=str(tmp_path))
    path = tmp_path / "config.yaml"
    write_config_file(str(path), config)
    assert read_stage(str(path)) == config
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            assert read_stage(str(path)) == config, position
        except (InputError, Corrupt):
            continue
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(Corrupt, match=r"config\.yaml: it"):
            read_stage(str(path))
    path.write_text(dump_yaml(config))
    assert read_stage(str(path)) == config


def test_a_configuration_changed_by_hand_is_read_once_its_first_line_is_gone(tmp_path: Path) -> None:
    """The refusal says so."""
    path = tmp_path / "config.yaml"
    write_config_file(str(path), OLD)
    changed = path.read_text().replace("seed: 0", "seed: 7")
    path.write_text(changed)
    with pytest.raises(Corrupt, match=r"edited by hand \(in that case remove that line\)"):
        read_stage(str(path))
    path.write_text(changed.partition("\n")[2])
    assert read_stage(str(path)).seed == 7


def test_a_configuration_is_restored_from_the_newest_intact_copy_of_the_same_folder(tmp_path: Path) -> None:
    """One without a checksum, a damaged one, and another stage's are passed over."""
    config = dataclasses.replace(OLD, output=str(tmp_path))
    assert restore_config(str(tmp_path)) == ""
    copies = {step: tmp_path / "checkpoints" / f"step-00000000{step}" / "config.yaml" for step in (1, 2, 3, 4)}
    write_config_file(str(copies[1]), config)
    write_config_file(str(copies[2]), dataclasses.replace(config, output=str(tmp_path / "elsewhere")))
    write_bytes(str(copies[3]), dump_yaml(config).encode())
    write_bytes(str(copies[4]), copies[1].read_bytes()[:-9])
    assert restore_config(str(tmp_path)) == str(copies[1])
    assert (tmp_path / "config.yaml").read_bytes() == copies[1].read_bytes()
