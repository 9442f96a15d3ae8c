"""A smoke run of each stage with its real loader, model and hand-off."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from tests.run import build
from trainer.config import StageConfig
from trainer.errors import InputError
from trainer.lineage import vision_weights, weights_sha256
from trainer.model import optimizer
from trainer.model.distributed import start as start_ranks
from trainer.run import loop
from trainer.run.starting import start
from trainer.run.train import launch
from trainer.stages.perceptual import PerceptualStage
from trainer.storage import write_bytes
from trainer.storage.committed import Committed, read_committed, write_committed


def finished(config: StageConfig) -> Committed:
    """Run the stage; its final/ seal."""
    launch(config.stage, build.written(config), [])
    seal = read_committed(f"{config.output}/final")
    assert seal is not None
    return seal


def tower_of(config: StageConfig) -> dict[str, NDArray[Any]]:
    return load_file(f"{config.output}/final/vision.safetensors")


def model_of(config: StageConfig) -> dict[str, NDArray[Any]]:
    return load_file(f"{config.output}/final/open_clip_model.safetensors")


def test_stage_1_leaves_a_sealed_tower_with_its_scores(tmp_path: Path) -> None:
    """vision.safetensors has the recorded hash; 2AFC before, at best and at the end are in the seal."""
    config = build.perceptual(tmp_path)
    facts = finished(config).facts
    assert weights_sha256(tower_of(config)) == facts["vision_sha256"]
    assert all(0 <= facts[name] <= 1 for name in ("untrained_val_2afc", "best_val_2afc", "val_2afc"))
    assert 1 <= facts["feature_rank"] <= 8
    lines = [json.loads(line) for line in (tmp_path / "towers" / "one" / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val_2afc" in line] == [2, 4]


def test_stage_1_in_chunks_learns_the_same(tmp_path: Path) -> None:
    """placement.local_batch_size cuts the batch, not the gradient. In float64: key biases have a gradient of rounding alone."""
    whole = build.perceptual(tmp_path / "a", epochs=1, precision="fp64")
    cut = build.perceptual(tmp_path / "b", epochs=1, precision="fp64", local_batch_size=4)
    finished(whole)
    finished(cut)
    for name, value in tower_of(whole).items():
        np.testing.assert_allclose(tower_of(cut)[name], value, atol=1e-7)


def test_the_posthoc_stage_in_chunks_learns_the_same(tmp_path: Path) -> None:
    """As stage 1; the last chunk is a short one."""
    base = build.contrastive(tmp_path, epochs=1, precision="fp64")
    finished(base)
    whole, cut = (build.posthoc(tmp_path / name, base, local_batch_size=size) for name, size in (("a", 0), ("b", 4)))
    for config in (whole, cut):
        assert config.posthoc is not None
        finished(dataclasses.replace(config, posthoc=dataclasses.replace(config.posthoc, precision="fp64")))
    for name, value in model_of(whole).items():
        np.testing.assert_allclose(model_of(cut)[name], value, atol=1e-7)


@pytest.mark.parametrize(("local_batch_size", "most"), [(0, 6), (4, 4), (100, 6), ("auto", 6)])
def test_stage_1_never_holds_more_triplets_than_placement_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_batch_size: Any, most: int
) -> None:
    """Neither in a step nor while it validates, however large the number."""
    held: list[int] = []
    features = PerceptualStage._features

    def counted(stage: PerceptualStage, images: torch.Tensor) -> torch.Tensor:
        held.append(len(images))
        return features(stage, images)

    monkeypatch.setattr(PerceptualStage, "_features", counted)
    finished(build.perceptual(tmp_path, epochs=1, local_batch_size=local_batch_size))
    assert max(held) == most


def test_best_val_hands_over_the_best_epoch(tmp_path: Path) -> None:
    """With handoff best_val the final score is the best one."""
    facts = finished(build.perceptual(tmp_path, epochs=4, handoff="best_val")).facts
    assert facts["val_2afc"] == facts["best_val_2afc"]


def test_stage_2_starts_from_the_tower_and_opens_in_open_clip(tmp_path: Path) -> None:
    """Lineage links the weights, and plain open_clip reads the result."""
    tower = build.perceptual(tmp_path)
    handed = finished(tower).facts["vision_sha256"]
    config = build.contrastive(tmp_path, start=build.start_from(tower, "tower"))
    facts = finished(config).facts
    lineage = json.loads((tmp_path / "cell" / "contrastive" / "lineage.json").read_text())
    assert lineage["start"]["weights_sha256"] == handed
    assert lineage["weights_sha256"] == facts["weights_sha256"] == weights_sha256(model_of(config))
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{config.output}/final")
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {n: v.shape for n, v in model_of(config).items()}


def test_the_permuted_control_has_the_towers_numbers_elsewhere(tmp_path: Path) -> None:
    """At the start of stage 2 each tensor holds the same values in another order."""
    tower = build.perceptual(tmp_path, epochs=1)
    finished(tower)
    config = build.contrastive(tmp_path, start=build.start_from(tower, "permuted"))
    dist = start_ranks(config.placement)
    stage = loop.build_stage(config, dist)
    start(config, dist, stage, optimizer.build(stage.module, loop.stage_settings(config).optimizer))
    values = {name: value.numpy() for name, value in stage.model.visual.state_dict().items()}
    for name, array in tower_of(tower).items():
        np.testing.assert_array_equal(np.sort(values[name], axis=None), np.sort(array, axis=None))
    assert not np.array_equal(values["conv1.weight"], tower_of(tower)["conv1.weight"])


def test_posthoc_changes_qkv_of_the_vision_tower_and_nothing_else(tmp_path: Path) -> None:
    """Tensor by tensor, by hash."""
    base = build.contrastive(tmp_path)
    finished(base)
    config = build.posthoc(tmp_path, base)
    facts = finished(config).facts
    before, after = model_of(base), model_of(config)
    changed = {name for name in before if weights_sha256({"": before[name]}) != weights_sha256({"": after[name]})}
    assert changed == {f"visual.transformer.resblocks.0.attn.in_proj_{part}" for part in ("weight", "bias")}
    assert facts["vision_sha256"] == weights_sha256(vision_weights(after))


def test_bf16_and_fp64_run(tmp_path: Path) -> None:
    """Autocast for one, whole modules for the other; the weights that are stored are float32."""
    for precision in ("bf16", "fp64"):
        config = build.perceptual(tmp_path / precision, epochs=1, precision=precision)
        finished(config)
        assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in tower_of(config).values())


def test_a_tower_with_a_renamed_key_is_refused_before_the_first_step(tmp_path: Path) -> None:
    """Sealed, hashed, and still not what the model expects: strict loading names it."""
    tower = build.perceptual(tmp_path, epochs=1)
    seal = finished(tower)
    weights = tower_of(tower)
    weights["projection"] = weights.pop("proj")
    data = save(weights)
    write_bytes(f"{tower.output}/final/vision.safetensors", data)
    files = {"vision.safetensors": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    facts = {**seal.facts, "vision_sha256": weights_sha256(weights)}
    write_committed(f"{tower.output}/final", Committed(recipe_hash=seal.recipe_hash, attempt=0, step=seal.step, files=files, facts=facts))
    config = build.contrastive(tmp_path, start=build.start_from(tower, "tower"))
    with pytest.raises(InputError, match=r"1 keys missing \(first: proj\), 1 unexpected \(first: projection\)"):
        finished(config)
    assert not (tmp_path / "cell" / "contrastive" / "progress.jsonl").exists()


def test_kill_and_resume_of_a_real_stage_is_exact(tmp_path: Path) -> None:
    """Stopped after step 3 of 4 and run again: the same weights as a run that was left alone."""
    whole = build.contrastive(tmp_path / "a")
    finished(whole)
    config = build.contrastive(tmp_path / "b", checkpoint_every_steps=1)
    seal = finished(config)
    for path in (tmp_path / "b" / "cell" / "contrastive" / "final").iterdir():
        path.unlink()
    again = finished(config)  # resumes from the checkpoint of step 3
    assert again.facts["weights_sha256"] == seal.facts["weights_sha256"]
    assert weights_sha256(model_of(whole)) == weights_sha256(model_of(config))
    assert torch.get_num_threads() == 1
