"""A lane of several cells at once: a launcher's pod that follows several PyTorchJobs, loses one of them, and is replaced mid-run."""

import secrets
from pathlib import Path

import pytest

from tests.cluster import harness, training
from tests.cluster.training import CHECKPOINT_EVERY, Experiment, Staged
from tests.cluster.workflows import Workflow
from trainer.storage import exists, layout, open_store, read_bytes, read_json, write_bytes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

LANE = "lane-1-of-3"


def uid_of(namespace: str, cell: Experiment) -> str:
    """Of the cell's job; empty if there is none."""
    job = harness.get("pytorchjob", namespace, cell.identity.name)
    return str(job["metadata"]["uid"]) if job else ""


def test_a_lane_of_three_cells_at_once_survives_a_failed_cell_and_its_own_pod(
    staged: Staged, restricted_namespace: str, tmp_path: Path
) -> None:
    """One cell's input is wrong: the others go on. Its successor adopts their jobs, and makes the third."""
    namespace = restricted_namespace
    asked = {"parallel_cells": "9", "backend": "pytorchjob"}
    cells = training.plan_cells(staged, range(9), f"e-{secrets.token_hex(3)}", "medium.yaml", asked)[::3]
    first, wrong, last = cells
    config = layout.config(wrong.config.output)
    right = read_bytes(config)
    write_bytes(config, right + b"nonsense: 1\n")
    profile = training.write_profile(tmp_path, namespace, staged, nodes=1)
    run = Workflow(namespace, first, profile, staged.store.pod_environment)

    run.launch(LANE)
    harness.wait_until("all three jobs at once", lambda: all(uid_of(namespace, cell) for cell in cells) or run.phase() == "Failed", 120)
    assert run.phase() != "Failed", run.log()
    record = layout.run_failure(staged.root, run.name, "random-seed3")
    harness.wait_until("the failure of the one cell", lambda: exists(record), 300)
    for cell in (first, last):
        cell.wait_for_commit(CHECKPOINT_EVERY)
    failure, before = read_json(record), [uid_of(namespace, cell) for cell in (first, last)]
    assert (failure["stage"], failure["exit_code"]) == ("contrastive", 2)
    assert "nonsense" in failure["line"]
    assert not uid_of(namespace, wrong), "a job that cannot succeed is not left behind"
    assert run.phase() == "Running"
    assert [cell.seal() for cell in (first, last)] == [None, None], "ended before the launcher's pod could be deleted"

    run.kill_launcher()
    write_bytes(config, right)
    run.launch(LANE)
    harness.wait_until("the successor to follow all three", lambda: uid_of(namespace, wrong), 120)
    assert [uid_of(namespace, cell) for cell in (first, last)] == before
    harness.wait_until("the successor's end", lambda: run.phase() in ("Succeeded", "Failed"), 900)

    assert run.phase() == "Succeeded", f"{run.log()[-4000:]}\n{harness.describe(namespace)}"
    said = run.log().splitlines()
    for cell in ("random-seed0", "random-seed6"):
        assert [line for line in said if line.startswith(f"{cell}: ") and "adopted" in line]
    assert [line for line in said if line.startswith("random-seed3: ") and "was created" in line]
    for one in cells:
        assert one.seal() is not None
        assert [record["step"] for record in one.records()] == list(range(1, one.records()[-1]["steps"] + 1))
    folders = [layout.cell(layout.experiment(staged.root, first.name), "random", seed) for seed in (0, 3)]
    figures = [[info.uri for info in open_store(staged.root).list(f"{folder}/evaluation/contrastive-final")] for folder in folders]
    assert all(figures), "a cell that is not the lane's last is evaluated before its slot takes the next"
