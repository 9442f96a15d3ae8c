"""One YAML file starts the same experiment on this machine, from a shell on a cluster, and through Kubeflow."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import main
from pipelines.planning.request import STORED_VERSION
from pipelines.planning.runs import read_run
from pipelines.profile.profile import PROFILE_VARIABLE
from pipelines.steps import links, planning, staging
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.kubeflow_server import kubeflow_server
from tests.pipelines.local.test_run import FAKE, REPOSITORY
from tests.pipelines.local.test_run_cluster import Kubelet
from trainer.storage import read_json
from trainer.storage.documents import read_document
from trainer.storage.plans import read_plan

REQUEST = """
experiment: same
recipe: {base: smoke, contrastive: {epochs: 2}}
set: {perceptual.epochs: 1}
arms: [random, perceptual]
seeds: [3]
placement: {log_every_steps: 1}
"""
WHERE = ("root", "profile", "backend")
"""Parameters that say where, not what."""


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    (tmp_path / "experiment.yaml").write_text(REQUEST)
    return tmp_path / "experiment.yaml"


def run(folder: Path, *arguments: str, **variables: str) -> None:
    """`python -m pipelines run` around a trainer that only pretends."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FAKE), str(REPOSITORY)]), **variables}
    command = [sys.executable, "-m", "pipelines", "run", *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def asked_for(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The one stored request, less what says where; and each cell's recipe hashes."""
    (stored,) = (root / "experiments/same/requests").iterdir()
    plan = read_plan(f"{root}/experiments/same")
    assert plan is not None
    assert plan["request"] == str(stored)
    document = read_document(str(stored), "a request", STORED_VERSION) or {}  # without its checksum, which covers the root too
    values = {key: value for key, value in document.items() if key not in WHERE}
    return values, {entry["cell"]: entry["recipe_hashes"] for entry in plan["cells"]}


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A played cluster whose pods mount the folder; the URI of its profile."""
    mount = {"name": "root", "mountPath": str(folder)}
    jobs = {"pod_template": {"spec": {"containers": [{"name": "pytorch", "volumeMounts": [mount]}]}}}
    (folder / "profile.yaml").write_text(yaml.safe_dump({"backend": "pytorchjob", "root": str(folder / "cluster"), "jobs": jobs}))
    with FakeApi() as api:
        api.kubeconfig(folder / "kubeconfig")
        Kubelet(api)
        yield str(folder / "profile.yaml")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_same_request_and_the_same_recipe_hashes_everywhere(tmp_path: Path, request_file: Path, monkeypatch: pytest.MonkeyPatch):
    """But for the root."""
    run(tmp_path, "--request", str(request_file), "--root", str(tmp_path / "laptop"))
    with cluster(tmp_path) as profile:
        run(tmp_path, "--request", str(request_file), "--profile", profile, KUBECONFIG=str(tmp_path / "kubeconfig"))
        with kubeflow_server() as server:
            monkeypatch.setenv("KFP_ENDPOINT", server.url)
            options = ["--request", str(request_file), "--no-wait", "--pipelines-image", "a/pipelines:1"]
            assert main(["submit", *options]) == 0
            (submitted,) = server.runs.values()
        _first_steps(submitted.body["runtime_config"]["parameters"], tmp_path, monkeypatch)

    laptop, shell, kubeflow = (asked_for(tmp_path / name) for name in ("laptop", "cluster", "kubeflow"))
    assert laptop == shell == kubeflow
    assert set(laptop[1]) == {"random-seed3", "perceptual-seed3"}


def _first_steps(parameters: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first pods of a Kubeflow run do with these parameters; their profile names a root of its own."""
    (folder / "mounted.yaml").write_text(yaml.safe_dump({"root": str(folder / "kubeflow")}))
    monkeypatch.setenv(PROFILE_VARIABLE, str(folder / "mounted.yaml"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE), str(REPOSITORY)]))
    request, _ = links.accept(run="a-run", profile="firstsight", request=parameters["request"])
    triplets, pairs = (staging.stage(what, request=request) for what in ("triplets", "pairs"))  # type: ignore[arg-type]
    planning.make_plan(request=request, pairs=pairs, triplets=triplets)


def test_a_form_with_the_request_alone_works_and_a_field_set_to_the_ordinary_default_wins(
    tmp_path: Path, request_file: Path, monkeypatch: pytest.MonkeyPatch
):
    """Kubeflow's form sends every field, and an empty one is not given."""
    (tmp_path / "mounted.yaml").write_text(yaml.safe_dump({"root": str(tmp_path / "kubeflow")}))
    monkeypatch.setenv(PROFILE_VARIABLE, str(tmp_path / "mounted.yaml"))
    form = dict.fromkeys(("recipe", "arms", "seeds", "set", "nodes", "placement", "pairs", "root"), "")

    stored, _ = links.accept(run="one", profile="firstsight", request=REQUEST, **form)
    other, _ = links.accept(run="two", profile="firstsight", request=str(request_file), **{**form, "recipe": "demo", "seeds": "0"})

    assert read_json(stored.removesuffix("#one"))["recipe"]["base"] == "smoke"
    uri = other.removesuffix("#two")
    assert (read_json(uri)["recipe"], read_json(uri)["seeds"]) == ("demo", ["0"])
    assert read_run(f"{tmp_path}/kubeflow", "two") == uri
