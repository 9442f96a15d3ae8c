"""The table of every stored object: each row says something of each damage, and every object that a store holds has one."""

import importlib
import re
from pathlib import Path

import pytest

from tests import old_store
from trainer.storage import layout
from trainer.storage.states import KINDS, OUTCOMES, StoredKind, kind_of
from trainer.storage.writers import beside


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.pattern)
def test_each_damage_of_an_object_has_an_outcome(kind: StoredKind) -> None:
    for said in (kind.missing, kind.truncated, kind.flipped, kind.older):
        assert re.match(rf"({'|'.join(OUTCOMES)}): \w", said), said


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.pattern)
def test_writer_and_reader_exist(kind: StoredKind) -> None:
    """A module, or a function in one."""
    for name in filter(None, (kind.writer, kind.reader)):
        module, _, function = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), function), name


def test_every_object_of_a_store_of_an_older_version_has_a_row(tmp_path: Path) -> None:
    root = old_store.unpack(tmp_path)
    files = [path for path in root.rglob("*") if path.is_file() and path.name not in ("resolved.jsonl",)]

    assert files
    assert [str(path) for path in files if kind_of(str(root), str(path)) is None] == []


def test_every_place_of_the_layout_has_the_row_of_its_kind() -> None:
    experiment = layout.experiment("s3://b/r", "e")
    stage, tower = layout.stage(layout.cell(experiment, "random", 0), "contrastive"), layout.tower(experiment, "ab")
    rows = {
        beside(f"{layout.final(stage)}/COMMITTED.json", "upload"): "write in progress",
        layout.kubeflow_run("s3://b/r", "x"): "run's record",
        layout.request(experiment, "x"): "stored request",
        f"{experiment}/plan.json": "experiment's plan",
        layout.config(stage): "stage's configuration",
        layout.config(tower): "stage's configuration",
        layout.lineage(stage): "stage's lineage",
        layout.progress(tower): "stage's metrics by step",
        layout.log(experiment): "job's log",
        layout.log(layout.report(experiment)): "job's log",
        layout.failure(f"{experiment}/random-seed0/evaluation"): "record of a failure",
        layout.placement(stage): "stage's placement",
        layout.attempt(tower): "stage's newest attempt",
        f"{layout.final(stage)}/COMMITTED.json": "final model's seal",
        f"{layout.final(stage)}/open_clip_model.safetensors": "file of a final model",
        f"{layout.checkpoint(stage, 5)}/COMMITTED.json": "checkpoint's seal",
        f"{layout.kept(stage, 5)}/COMMITTED.json": "seal of kept weights",
        f"{layout.kept(stage, 5)}/model.safetensors": "kept weights",
        f"{layout.checkpoint(stage, 5)}/state.json": "file of a checkpoint",
        f"{layout.evaluation(f'{experiment}/random-seed0', 'contrastive', 'final')}/set_2afc.json": "figures",
        f"{layout.report(experiment)}/index.html": "file of the report",
        f"{layout.report_generation(experiment, 3)}/index.html": "file of a page",
        layout.request_begun(experiment, "x", stage): "record that a request began a stage",
        layout.run_failure("s3://b/r", "x", "random-seed0"): "record of a failed cell",
        layout.run_start("s3://b/r", "x", "lane-1-of-3", "evaluate"): "record of a step's start",
        layout.run_life("s3://b/r", "x", "lane-1-of-3"): "lane's heartbeat",
    }

    assert {uri: getattr(kind_of("s3://b/r", uri), "name", None) for uri in rows} == rows


@pytest.mark.parametrize("name", ["notes.txt", "experiments/e/mine.json", "datasets/a", "experiments/e/random-seed0/contrastive/x.json"])
def test_what_firstsight_never_writes_has_no_row(name: str) -> None:
    assert kind_of("/root", f"/root/{name}") is None
