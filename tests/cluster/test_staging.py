"""A list of pictures staged by many pods: plan, an Indexed Job of fetches, seal; as the pipeline's step does it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.jobs.finding import identity_of
from pipelines.planning.request import merge, write_request
from pipelines.planning.resolving import resolve
from tests.cluster import harness, training, volumes
from tests.cluster.store import Store
from tests.cluster.training import Staged
from tests.staging.remote.sources import picture, place, write_yfcc
from trainer.storage import join, read_bytes, read_json, write_bytes
from trainer.storage.manifest import require_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

PHOTOS = 96
RECIPE = "staging: {shard_samples: 4}\ncontrastive: {global_batch_size: 16, contrast_batch_size: 16}\n"  # slices of 32 rows: three of them
EXPERIMENT = "lists"


@pytest.fixture(scope="module")
def in_store(store: Store) -> Iterator[Staged]:
    """A bucket in which nothing is staged yet, with the environment by which this machine reaches it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield Staged(store=store, root=store.make_bucket(), pairs="", triplets="", weights={})


@pytest.fixture(scope="module")
def listed(in_store: Staged, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of the store with pictures, a list of them, a recipe and the YAML that describes the list; its URI."""
    root, folder = in_store.root, tmp_path_factory.mktemp("list")
    files = write_yfcc(folder, PHOTOS)
    for name in ("list", "metadata"):
        write_bytes(join(root, "source", Path(files[name]).name), Path(files[name]).read_bytes())
    for number in range(PHOTOS):
        write_bytes(join(root, "source/images", place(number)), picture(number))
    description = {
        "kind": "yfcc15m-openai", "list": join(root, "source/list.tsv"), "metadata": join(root, "source/metadata.tsv"),
        "images": join(root, "source/images"), "captions": "title",
    }  # fmt: skip
    write_bytes(join(root, "list.yaml"), yaml.safe_dump(description).encode())
    write_bytes(join(root, "recipe.yaml"), RECIPE.encode())
    return root


@contextmanager
def step(root: str, store_root: str, profile: str, log: Path, source: str = "list.yaml") -> Iterator["subprocess.Popen[bytes]"]:
    """The pipeline's step `stage pairs` in a process of its own; profile "" : on this machine."""
    given = {"experiment": EXPERIMENT, "pairs": join(root, source), "recipe": join(root, "recipe.yaml"), "max_reject_fraction": 0.2}
    request = write_request(resolve(merge("", given)), store_root)
    program = f"from pipelines.steps import staging; print('staged', staging.stage('pairs', request={request!r}))"
    environment = {**harness.environment(), "FIRSTSIGHT_PROFILE": profile, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=stream, stderr=stream, env=environment, cwd=volumes.REPOSITORY)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def profile(in_store: Staged, restricted_namespace: str, tmp_path: Path) -> str:
    """Of three pods that fetch."""
    path = Path(training.write_profile(tmp_path, restricted_namespace, in_store, staging_cpu="50m", staging_memory="1Gi"))
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "staging_slices": 3}))
    return str(path)


def fetchers(namespace: str) -> dict[str, dict[str, Any]]:
    """The newest pod of each slice."""
    pods = [pod for pod in harness.listed("pods", namespace, "firstsight.dev/stage=stage-fetch")]
    pods.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    return {pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]: pod for pod in pods}


def identity(store_root: str) -> str:
    """Of the data set that the step sealed there, after every byte of it was found as the manifest has it."""
    uri = read_json(join(store_root, "experiments", EXPERIMENT, "staging/pairs/seal.json"))["uri"]
    return require_manifest(uri).identity


def test_three_pods_make_the_very_bytes_that_one_process_makes(
    listed: str, in_store: Staged, restricted_namespace: str, profile: str, tmp_path: Path
) -> None:
    """One of them is deleted by force: only its slice is rebuilt, the others' pods are left as they are."""
    here, there = str(tmp_path / "here"), in_store.store.make_bucket()
    with step(listed, here, "", tmp_path / "here.log") as process:
        assert process.wait(300) == 0, (tmp_path / "here.log").read_text()
    log = tmp_path / "there.log"
    with step(listed, there, profile, log) as process:
        harness.wait_until("three pods that fetch", lambda: len(fetchers(restricted_namespace)) == 3, 200)
        first = fetchers(restricted_namespace)
        lost = first["1"]["metadata"]["name"]
        harness.kubectl("-n", restricted_namespace, "delete", "pod", lost, "--force", "--grace-period=0")
        assert process.wait(400) == 0, log.read_text() + harness.describe(restricted_namespace)

    last = fetchers(restricted_namespace)
    assert last["1"]["metadata"]["uid"] != first["1"]["metadata"]["uid"]
    assert [last[index]["metadata"]["uid"] for index in "02"] == [first[index]["metadata"]["uid"] for index in "02"]
    assert identity(there) == identity(here)
    jobs = harness.listed("jobs", restricted_namespace)
    assert sorted(identity_of(job)["stage"] for job in jobs) == ["stage-fetch", "stage-plan", "stage-seal"]


def test_wrong_input_ends_the_job_at_once_and_leaves_the_reason(
    listed: str, in_store: Staged, restricted_namespace: str, profile: str, tmp_path: Path
) -> None:
    """The pod that plans exits 2: no retry, exit code 2, and the line that the trainer said."""
    description = yaml.safe_load(read_bytes(join(listed, "list.yaml")))
    write_bytes(join(listed, "wrong.yaml"), yaml.safe_dump({**description, "list": join(listed, "source/none.tsv")}).encode())
    root, log = in_store.store.make_bucket(), tmp_path / "step.log"
    with step(listed, root, profile, log, "wrong.yaml") as process:
        assert process.wait(240) == 2, log.read_text() + harness.describe(restricted_namespace)

    assert "none.tsv" in log.read_text().strip().splitlines()[-1]
    assert read_json(join(root, "experiments", EXPERIMENT, "staging/pairs/failure.json"))["exit_code"] == 2
    assert len(harness.listed("pods", restricted_namespace, "firstsight.dev/stage=stage-plan")) <= 1
