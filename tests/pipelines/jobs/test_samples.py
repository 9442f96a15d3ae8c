"""manifests/: the samples are what the launcher makes, remote bases are pinned, and nothing is both there and in the chart."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cluster.names import Identity
from pipelines.jobs.base import JobSpec
from pipelines.jobs.shapes.indexed import IndexedJobs
from pipelines.jobs.shapes.pytorchjob import PyTorchJobs
from pipelines.profile.settings import JobSettings
from trainer.config import DataConfig
from trainer.storage import layout

MANIFESTS = Path(__file__).parents[3] / "manifests"
ROOT, EXPERIMENT = "s3://firstsight/runs", "demo"
STAGE = layout.stage(layout.cell(layout.experiment(ROOT, EXPERIMENT), "random", 0), "contrastive")
PLAN = layout.dataset(ROOT, "yfcc15m-openai", "0123456789abcdef")
HEADERS = {
    "pytorchjob.yaml": "Stage 2 of one cell on two nodes, as the launcher makes it. It reads the config.yaml of a planned experiment.",
    "staging-job.yaml": "Four pods fetch one data set. `python -m trainer stage plan …` printed the URI of its plan; `stage seal` ends it.",
}


def samples() -> dict[str, dict[str, Any]]:
    """Each sample by its file, rendered now."""
    settings = JobSettings(
        nodes=2,
        gpus_per_node=1,
        store_secret="firstsight",
        store_environment={"AWS_ENDPOINT_URL_S3": "http://firstsight-minio:9000", "AWS_REGION": "us-east-1"},
    )
    train = JobSpec(
        name="contrastive random-seed0",
        arguments=("train", "contrastive", "--config", f"{STAGE}/config.yaml"),
        folder=STAGE,
        purpose="train",
        identity=Identity(root=ROOT, output=STAGE, experiment=EXPERIMENT, cell="random-seed0", arm="random", seed=0, stage="contrastive"),
        recipe_hash="0" * 64,
        final=layout.final(STAGE),
    )
    staging = f"{layout.experiment(ROOT, EXPERIMENT)}/staging/pairs"
    fetch = JobSpec(
        name="stage pairs: fetch",
        arguments=("stage", "fetch", "--plan", PLAN, "--slice", "index/4"),
        folder=staging,
        purpose="stage",
        identity=Identity(root=ROOT, output=staging, experiment=EXPERIMENT, arm="pairs", seed=0, stage="stage-fetch"),
        slices=4,
    )
    jobs = {"pytorchjob.yaml": PyTorchJobs(settings).manifest(train, 0), "staging-job.yaml": IndexedJobs(settings).manifest(fetch, 0)}
    for job in jobs.values():
        del job["metadata"]["namespace"]  # kubectl's -n says it
    return jobs


@pytest.mark.parametrize("name", HEADERS)
def test_a_sample_is_what_the_launcher_makes(name: str):
    """UPDATE_GOLDEN=1 rewrites it."""
    path = MANIFESTS / "samples" / name
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.write_text(f"# {HEADERS[name]}\n" + yaml.safe_dump(samples()[name], sort_keys=False))

    assert yaml.safe_load(path.read_text()) == samples()[name]
    assert DataConfig(uri=PLAN).uri == PLAN


def test_every_base_is_pinned_or_there():
    """A branch would be another cluster tomorrow."""
    for path in MANIFESTS.rglob("kustomization.yaml"):
        for resource in yaml.safe_load(path.read_text())["resources"]:
            if "://" in resource:
                assert re.search(r"\?ref=v?\d+\.\d+\.\d+$", resource), f"{path}: {resource}"
            else:
                assert (path.parent / resource).exists(), f"{path}: {resource}"


def test_the_versions_are_those_that_the_tests_run():
    """The training operator of the cluster tests, kfp's own version."""
    tools = MANIFESTS.parent / "tests/cluster/tools"
    operator = (MANIFESTS / "training-operator/kustomization.yaml").read_text()
    pipelines = (MANIFESTS / "kubeflow-pipelines/kustomization.yaml").read_text()

    (version,) = re.findall(r"github.com/kubeflow/training-operator (v\S+)", (tools / "training-operator/go.mod").read_text())
    assert f"?ref={version}" in operator
    (version,) = re.findall(r'"kfp==([\d.]+)"', (MANIFESTS.parent / "pyproject.toml").read_text())
    assert f"?ref={version}" in pipelines
