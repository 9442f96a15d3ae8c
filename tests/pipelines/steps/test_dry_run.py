"""`run --dry-run`: the manifests that would be submitted and what they take; no cluster, nothing written."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import main
from pipelines.jobs import owners
from pipelines.profile.profile import PROFILE_VARIABLE

PROFILE = """
root: s3://bucket/root
backend: pytorchjob
jobs: {nodes: 2, gpus_per_node: 8, image: "registry.example/trainer:1"}
"""


@pytest.fixture(autouse=True)
def _no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither a kubeconfig nor, but for one root that nobody reads from, a store."""
    for name in (PROFILE_VARIABLE, owners.HOLDER_VARIABLE):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    (tmp_path / "profile.yaml").write_text(PROFILE)


def shown(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """The documents and the whole text of a dry run over an empty root."""
    profile = yaml.safe_load((tmp_path / "profile.yaml").read_text())
    mount = {"name": "root", "mountPath": str(tmp_path / "r")}
    profile["jobs"]["pod_template"] = {"spec": {"containers": [{"name": "pytorch", "volumeMounts": [mount]}]}}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    code = main(["run", "--dry-run", "--root", str(tmp_path / "r"), "--profile", str(tmp_path / "profile.yaml"), *arguments])
    out = capsys.readouterr()
    assert code == 0, out.err
    assert not (tmp_path / "r").exists()
    return [job for job in yaml.safe_load_all(out.out) if job], out.out


def test_every_manifest_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A tower that arms share is there once; each cell is evaluated by a Job."""
    jobs, _ = shown(capsys, tmp_path, "--recipe", "paper", "--arms", "random,perceptual,permuted")

    stages = [(job["kind"], job["metadata"]["labels"]["firstsight.dev/stage"]) for job in jobs]
    assert stages == [
        ("PyTorchJob", "contrastive"),
        ("Job", "evaluate"),
        ("PyTorchJob", "perceptual"),
        ("PyTorchJob", "contrastive"),
        ("Job", "evaluate"),
        ("PyTorchJob", "contrastive"),
        ("Job", "evaluate"),
    ]
    assert all(job["metadata"]["annotations"]["firstsight.dev/recipe-hash"] for job in jobs)


def test_what_a_run_asks_for_shapes_the_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Queue, image and nodes as given; resume reaches the trainer."""
    jobs, _ = shown(
        capsys, tmp_path, "--recipe", "paper", "--arms", "random", "--nodes", "4", "--queue", "night", "--image", "i:2", "--resume", "never"
    )

    worker = jobs[0]["spec"]["pytorchReplicaSpecs"]["Worker"]
    container = worker["template"]["spec"]["containers"][0]
    assert worker["replicas"] == 4
    assert container["image"] == "i:2"
    assert "placement.resume=never" in container["args"]
    assert jobs[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "night"


def test_the_hours_and_what_they_assume_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, text = shown(capsys, tmp_path, "--recipe", "paper", "--arms", "perceptual")

    assert "taken for YFCC15M" in text
    assert "50% of an H100's 798 TFLOP/s assumed" in text
    assert "hours on 16" in text
    assert "hours on 8" in text  # the perceptual stage takes one node


def test_a_backend_of_this_machine_has_no_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    jobs, text = shown(capsys, tmp_path, "--recipe", "paper", "--arms", "random", "--backend", "local")

    assert jobs == []
    assert "GPU-hours" in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--nodes", "-1"), "nodes must be between 1 and 1024"),
        (("--resume", "perhaps"), "resume must be auto, never or a checkpoint's URI"),
        (("--backend", "slurm"), "backend must be one of"),
        (("--profile", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("--experiment", "Has Capitals"), "experiment 'Has Capitals' must be 1 to 63 of a-z"),
        (("--experiment", "x" * 64), "must be 1 to 63 of a-z"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str], named: str):
    command = ["run", "--dry-run", "--recipe", "smoke", "--root", "s3://bucket/root", "--backend", "pytorchjob"]

    assert main([*command, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_a_profile_with_a_typo_names_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "profile.yaml").write_text("jobs: {nodez: 2}")

    assert main(["run", "--dry-run", "--recipe", "smoke", "--profile", str(tmp_path / "profile.yaml")]) == 2
    assert "nodez" in capsys.readouterr().err


def test_zero_nodes_in_a_profile_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "profile.yaml").write_text("jobs: {nodes: 0}")

    assert main(["run", "--dry-run", "--recipe", "smoke", "--profile", str(tmp_path / "profile.yaml")]) == 2
    assert "jobs.nodes must be >= 1, got 0" in capsys.readouterr().err
